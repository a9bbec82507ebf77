"""A board on which the processes of a run leave notes for one another.

It lives in the store through which the processes found each other (the launcher holds it, else
process 0), on a connection of its own, so that it is read and written while a collective hangs.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

_CONNECT_S = 60.0


class BoardLostError(Exception):
    """The board cannot be reached any more: whoever held it is gone."""


class Board:
    """Notes by name; each is a mapping of plain values."""

    def __init__(self, session: str) -> None:
        """Connect.

        Args:
            session: of these very processes; after a restart it is another one, so that nobody
                reads what is over.

        Raises:
            BoardLostError: nobody holds it.
        """
        from torch.distributed import PrefixStore, TCPStore

        host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        self.place = f"{host}:{port}"
        if host is None or port is None:
            raise BoardLostError("there is no MASTER_ADDR, or no MASTER_PORT")
        limit = timedelta(seconds=_CONNECT_S)
        try:
            store = TCPStore(host, int(port), is_master=False, timeout=limit)
        except RuntimeError as error:
            raise BoardLostError(self.place) from error
        self._store = PrefixStore(f"rl4lm/{session}", store)

    def post(self, name: str, note: dict[str, Any]) -> None:
        """Leave a note, in the place of an older one.

        Raises:
            BoardLostError: as for all methods.
        """
        try:
            self._store.set(name, json.dumps(note))
        except RuntimeError as error:
            raise BoardLostError(self.place) from error

    def post_first(self, name: str, note: dict[str, Any]) -> dict[str, Any]:
        """Leave a note unless there is one; returns the one that is there then."""
        try:
            there: bytes = self._store.compare_set(name, "", json.dumps(note))
        except RuntimeError as error:
            raise BoardLostError(self.place) from error
        return dict(json.loads(there))

    def read(self, name: str) -> dict[str, Any] | None:
        """A note, or None."""
        try:
            # `get` alone would wait for it.
            return json.loads(self._store.get(name)) if self._store.check([name]) else None
        except RuntimeError as error:
            raise BoardLostError(self.place) from error
