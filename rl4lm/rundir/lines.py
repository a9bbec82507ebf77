"""Files of JSON lines that grow, and what JSON can say."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rl4lm.errors import SaveError
from rl4lm.rundir import durable


class LineFile:
    """A file of JSON lines that grows; what cannot be written waits."""

    def __init__(self, path: Path) -> None:
        """Nothing waits yet; the file need not be there."""
        self._path = path
        self._waiting: list[str] = []

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows, after those that wait; `OSError` leaves the file as it was."""
        self._waiting += [
            json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows
        ]
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(self._waiting)
        except OSError:
            if self._path.exists():
                os.truncate(self._path, size)  # no half a line is left behind
            raise
        self._waiting = []

    def settle(self) -> None:
        """Write what waits, and have the file on the disk."""
        try:
            if self._waiting:
                self.append(())
            if self._path.exists():
                durable.sync(self._path)
        except OSError as error:
            raise SaveError(
                f"{len(self._waiting)} lines of {str(self._path)!r} cannot be written: {error}"
            ) from error


def plain(value: Any) -> Any:
    """The value with nan and infinities as null, which JSON can say."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
