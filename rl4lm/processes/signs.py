"""The signs that another process of the run has failed, or keeps this one waiting for too long.

Looked for several times a second, on a thread beside the main one. On this machine a process that
is gone is seen by its id. On others it is heard of through the board, or not heard of for so long
that it must be gone. Whoever sees a failure first posts it, so that all name the same one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rl4lm.processes import activity
from rl4lm.processes.board import Board, BoardLostError
from rl4lm.processes.neighbours import Identity, is_gone

# How a process leaves. One that ends because of another's failure is no failure of its own.
DONE, STOPPED, FAILED, FOLLOWS = "done", "stopped", "failed", "follows"

_BEAT_S = 1.0
_SILENT_S = 120.0  # a machine may be busy; what is really gone is seen in other ways, mostly
_SETTLE_S = 5.0  # two processes pass the same end, one of them a little earlier


@dataclass(frozen=True)
class Failure:
    """Why a run cannot go on."""

    text: str
    culprit: int | None = None  # rank; None where it is none of the processes
    told_on: str = ""  # the machine on whose screen the culprit has said why; "" = nowhere


class Signs:
    """Looks at the other processes."""

    def __init__(
        self,
        mine: Identity,
        everybody: Sequence[Identity],
        board: Board | None,
        limit_s: float | None,
    ) -> None:
        """Take who there is.

        Args:
            mine: this process.
            everybody: all processes, by rank.
            board: where they leave notes; None where there is none.
            limit_s: how long this process waits for another one; None for as long as it takes.
        """
        self.mine = mine
        self._everybody = everybody
        self._board = board
        self._place = "" if board is None else f" at {board.place}"
        self._limit_s = limit_s
        self._parent = os.getppid()
        self._ended: set[int] = set()  # ranks that have said that they leave
        self._board_lost_at: float | None = None
        self._beat_at = 0.0
        self._beats = 0
        self._said: tuple[Any, Any] = (None, None)  # what this process was doing, and in which step
        self._heard_at = time.monotonic()  # of the next process
        self._known: dict[int, dict[str, Any]] = {}  # what each was doing when last looked at

    def look(self) -> Failure | None:
        """Tell the others what this process does, and look for a failure; None where all is well.

        Called by one thread only.
        """
        self._beat()
        posted = self._read("failure")
        if posted is not None:
            return Failure(**posted)
        signs = (self._launcher, self._neighbours, self._silent, self._left, self._too_long)
        found = next((failure for sign in signs if (failure := sign()) is not None), None)
        return None if found is None else self.post(found)

    def post(self, failure: Failure) -> Failure:
        """Let the others know; returns the failure that was known first."""
        try:
            if self._board is not None:
                return Failure(**self._board.post_first("failure", asdict(failure)))
        except BoardLostError:
            self._lose_board()
        return failure

    def leave(self, how: str) -> None:
        """Say that this process ends, and how; nobody shall miss it."""
        note = {"rank": self.mine.rank, "how": how}
        self._write(f"left/{self.mine.rank}", note)
        if how in (DONE, STOPPED):
            self._write("left", note)

    def may_speak(self) -> bool:
        """Whether it falls to this process to tell what all on this machine know: once."""
        try:
            if self._board is not None:
                mine = {"rank": self.mine.rank}
                return self._board.post_first(f"spoken/{self.mine.machine}", mine) == mine
        except BoardLostError:
            self._lose_board()
        return all(who.rank > self.mine.rank or is_gone(who) for who in self._here())

    def _here(self) -> list[Identity]:
        """The other processes of this machine."""
        return [
            who
            for who in self._everybody
            if who.machine == self.mine.machine and who.rank != self.mine.rank
        ]

    def _beat(self) -> None:
        note, before = activity.note(), self._said
        self._said = note["what"], note["step"]
        if self._said != before or time.monotonic() - self._beat_at >= _BEAT_S:
            self._beat_at, self._beats = time.monotonic(), self._beats + 1
            self._write(f"state/{self.mine.rank}", {**note, "beat": self._beats})

    def _launcher(self) -> Failure | None:
        """The launcher of a process does not end without it, unless it was killed."""
        if "TORCHELASTIC_RUN_ID" not in os.environ or os.getppid() == self._parent:
            return None
        return Failure(
            f"the launcher (pid {self._parent} on {self.mine.host}) that has started process "
            f"{self.mine.rank} is gone; nobody would see to this process any more"
        )

    def _neighbours(self) -> Failure | None:
        for who in self._here():
            if who.rank in self._ended or not is_gone(who):
                continue
            if self._read(f"left/{who.rank}") is not None:
                self._ended.add(who.rank)
            elif self._board is not None or activity.waited_s() is not None:
                return self._lost(who, "is gone without a word")
        return None

    def _silent(self) -> Failure | None:
        """The next process, where it is on another machine: has it been heard of?

        Each looks at the next one only, so that the board is not read by all about all.
        """
        who = self._everybody[(self.mine.rank + 1) % len(self._everybody)]
        before = self._known.get(who.rank)
        if self._state(who.rank) != before:
            self._heard_at = time.monotonic()
        silent_s = time.monotonic() - self._heard_at
        if self._board is None or silent_s < _SILENT_S or who.machine == self.mine.machine:
            return None
        if self._read(f"left/{who.rank}") is not None:
            return None
        return self._lost(who, f"has not been heard of for {silent_s:.0f} s")

    def _lost(self, who: Identity, how: str) -> Failure:
        doing = activity.phrase(self._state(who.rank))
        return Failure(
            f"{who} {how}; it was last seen {doing}. It was killed from outside or has crashed; "
            f"where memory ran out, `dmesg` on {who.host} names it",
            who.rank,
        )

    def _left(self) -> Failure | None:
        """What this process waits for will not come: another one has ended, or the board has."""
        waited = activity.waited_s()
        if waited is None or waited < _SETTLE_S:
            return None
        lost_at = self._board_lost_at
        if lost_at is not None and time.monotonic() - lost_at > _SETTLE_S:
            return Failure(
                f"what holds the processes together{self._place} is gone: the launcher or the "
                "process there was killed, or its machine cannot be reached"
            )
        note = self._read("left")
        if note is None:
            return None
        why = "was told to stop" if note["how"] == STOPPED else "has come to its end"
        return Failure(
            f"{self._everybody[note['rank']]} {why}, and process {self.mine.rank} still waits for "
            "it",
            note["rank"],
        )

    def _too_long(self) -> Failure | None:
        waited = activity.waited_s()
        if self._limit_s is None or waited is None or waited < self._limit_s:
            return None
        notes = {who.rank: self._state(who.rank) for who in self._everybody}
        late = {r: n for r, n in notes.items() if r != self.mine.rank and n and not n["waiting"]}
        waits = f"process {self.mine.rank} has waited for {waited:.0f} s (ddp_timeout)"
        if not late:
            return Failure(f"{waits}; {self._all_wait(notes)}")
        slow = max(late, key=lambda rank: float(late[rank]["for_s"]))
        return Failure(
            f"{self._everybody[slow]} has been {activity.phrase(late[slow])} for "
            f"{late[slow]['for_s']:.0f} s; {waits}. Raise ddp_timeout if it may take so long",
            slow,
        )

    @staticmethod
    def _all_wait(notes: Mapping[int, dict[str, Any] | None]) -> str:
        doings = [f"process {r} while {activity.phrase(n)}" for r, n in list(notes.items())[:8]]
        return f"all wait for one another: {', '.join(doings)}"

    def _state(self, rank: int) -> dict[str, Any] | None:
        """What a process was doing when it was last heard of."""
        note = self._read(f"state/{rank}")
        if note is not None:
            self._known[rank] = note
        return self._known.get(rank)

    def _read(self, name: str) -> dict[str, Any] | None:
        return self._on_board(lambda board: board.read(name))

    def _write(self, name: str, note: dict[str, Any]) -> None:
        self._on_board(lambda board: board.post(name, note))

    def _on_board(self, act: Callable[[Board], dict[str, Any] | None]) -> dict[str, Any] | None:
        """Use the board; nothing comes of it once it is lost."""
        try:
            return None if self._board is None else act(self._board)
        except BoardLostError:
            self._lose_board()
            return None

    def _lose_board(self) -> None:
        self._board, self._board_lost_at = None, time.monotonic()
