"""Who is told how far the work on a reward is: the screen, or nobody."""

from __future__ import annotations

from typing import Protocol


class Stages(Protocol):
    """Is told of one stage after another."""

    def begin(self, what: str) -> None:
        """A stage begins, and the one before is over; `what` says in words what it is."""

    def told(self, done: int, total: int) -> None:
        """So many are done of this stage, of so many."""


class _Nobody:
    def begin(self, what: str) -> None: ...

    def told(self, done: int, total: int) -> None: ...


NOBODY: Stages = _Nobody()
