"""A run of several processes ends as one: within seconds, and with the true cause on the screen.

When a process dies, the others sit in a collective that will never end, or that ends with words
about a connection. So each has a thread beside the main one that looks for signs of a failure (see
`signs.py`). What it finds, the main thread learns in one of three ways: the collective it is in
breaks, and the error is translated; or a signal interrupts whatever else it does; or it hangs in
something that nothing interrupts, and the thread says the cause and ends the process.

A run of one process has no thread and no board.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

from rl4lm.errors import PeerLostError
from rl4lm.processes import activity
from rl4lm.processes.board import Board, BoardLostError
from rl4lm.processes.ending import end_at_last, end_now, interrupt_the_main_thread
from rl4lm.processes.neighbours import Identity, identity, missing_ranks
from rl4lm.processes.signs import DONE, FAILED, FOLLOWS, STOPPED, Failure, Signs

T = TypeVar("T")

_LOOK_S = 0.3
# All of them together stay below the 30 s after which launchers kill.
_NOTICE_S = 4.0  # for the main thread to come across the failure by itself
_SAVE_S = 10.0  # for a checkpoint that is being written
_LEAVE_S = 8.0  # for what has to be tidied up at the end
_EXIT_S = 15.0  # for Python's own end
_CONNECTION = re.compile(
    r"connect|broken pipe|timed? ?out|reset|closed|read error|write error", re.I
)


class Peers:
    """This process among the others, from before they know one another to its end."""

    def __init__(self, rank: int, limit_s: float | None) -> None:
        """Begin to look.

        Args:
            rank: of this process.
            limit_s: how long it waits for another one; None for as long as it takes.
        """
        self.rank = rank
        self.advice: Callable[[], str] = lambda: ""  # how to go on after a failure
        self._limit_s = limit_s
        self._signs: Signs | None = None  # until all have come up
        self._absent: list[int] = []
        self._failure: Failure | None = None
        self.noticed = False  # by the main thread, which is on its way out
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="rl4lm-peers", daemon=True)
        self._thread.start()

    def meet(self, exchange: Callable[[list[Any]], list[Any]]) -> None:
        """Get to know the others, unless they are known from an earlier run of this process.

        Args:
            exchange: concatenates lists of plain values of all processes, in their order.
        """
        if self._signs is not None:
            return
        mine = identity(self.rank)
        cards = self.together(lambda: exchange([(uuid.uuid4().hex, asdict(mine))]))
        session = cards[0][0]  # of process 0: new after every restart
        everybody = [Identity(**card) for _, card in cards]
        # Where they met by a file, or process 0 is gone by now, what is seen here has to do.
        with contextlib.suppress(BoardLostError):
            self._signs = Signs(mine, everybody, Board(session), self._limit_s)
        self._signs = self._signs or Signs(mine, everybody, None, self._limit_s)

    def together(self, act: Callable[[], T]) -> T:
        """Do something that all processes do together.

        Raises:
            PeerLostError: it broke off, because of another process.
        """
        with activity.waiting(), self.explaining():
            return act()

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Where what processes do together breaks off: because of another one, it is said which.

        Raises:
            PeerLostError: another process is to blame.
        """
        try:
            yield
        except RuntimeError as error:
            cause = self._cause_of(error)
            if cause is None:
                raise
            raise PeerLostError(cause) from None

    def failure(self, patience_s: float = 0.0) -> str | None:
        """Why the run cannot go on, if another process is to blame.

        Args:
            patience_s: give the thread so long to find out.
        """
        until = time.monotonic() + patience_s
        # By and by and not by an event: the caller may be the handler of a signal.
        while self._failure is None and time.monotonic() < until:
            time.sleep(0.05)
        if self._failure is None:
            return None
        self.noticed = True
        return self._words(self._failure)

    def may_speak(self) -> bool:
        """Whether it falls to this process to tell of another's failure."""
        if self._signs is not None:
            return self._signs.may_speak()
        first = self.rank - int(os.environ.get("LOCAL_RANK", "0"))
        return set(range(first, self.rank)) <= set(self._absent)

    def leave(self, how: str, cause: str = "", told: bool = False) -> None:
        """Let the others know that this process ends; only the first call counts.

        Args:
            how: one of the words of `signs.py`.
            cause: the error, where it failed.
            told: the error is told on this machine's screen.
        """
        if self._over.is_set():
            return
        self._over.set()
        if self._signs is not None:
            if how == FAILED:
                machine = self._signs.mine.machine if told else ""
                text = f"{self._signs.mine} has failed: {cause}"
                self._signs.post(Failure(text, self.rank, machine))
            self._signs.leave(how)
        if how == DONE:
            self._thread.join(2.0)  # Python does not end well with a thread inside of torch
        elif how != STOPPED:
            end_at_last(_EXIT_S)

    def _cause_of(self, error: RuntimeError) -> str | None:
        """What to say where something common broke off; None where that is its own fault."""
        found = self.failure()
        if found is not None or not _CONNECTION.search(str(error)):
            return found
        # Whoever is to blame may have to be missed by others first.
        return self.failure(2 * _NOTICE_S) or self._blame(error)

    def _blame(self, error: RuntimeError) -> str:
        said = str(error).split(". This is typically")[0].partition("] ")[2] or str(error)
        failure = Failure(
            f"the connection of process {self.rank} to another one broke, and nothing is known of "
            f"that one yet: {said.splitlines()[0][:200]}"
        )
        self._failure = self._signs.post(failure) if self._signs else failure
        self.noticed = True
        return self._words(self._failure)

    def _words(self, failure: Failure) -> str:
        if self._signs is not None and failure.told_on == self._signs.mine.machine:
            text = failure.text.partition(":")[0]
            return f"{text} and says why itself; this process ends with it"
        with contextlib.suppress(OSError):
            return "\n".join(filter(None, [failure.text, self.advice()]))
        return failure.text

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            found = self._signs.look() if self._signs else self._look_around()
            self._failure = self._failure or found  # the main thread may know one already
            if self._failure is not None:
                return self._bring_to_an_end(self._failure)

    def _look_around(self) -> Failure | None:
        """Before all have come up: is one of this machine gone, or does one not come at all?"""
        waited = activity.waited_s()
        if self._limit_s is not None and waited is not None and waited > self._limit_s:
            return Failure(
                f"not all processes have come up: process {self.rank} has waited for "
                f"{waited:.0f} s (ddp_timeout); look for the other machines and their launchers"
            )
        absent, self._absent = self._absent, missing_ranks()
        for rank in absent:
            if rank in self._absent:
                return Failure(
                    f"process {rank} is gone while the run was starting: it was killed from "
                    "outside or has crashed; the launcher's own lines say how it ended",
                    rank,
                )
        return None

    def _bring_to_an_end(self, failure: Failure) -> None:
        """See to it that this process ends."""
        self._wait_while(activity.is_saving, _SAVE_S)
        if activity.waited_s() is None and not self.noticed and not self._over.is_set():
            interrupt_the_main_thread()
        self._wait_while(lambda: not self.noticed, _NOTICE_S)
        if self.noticed:
            self._wait_while(lambda: True, _LEAVE_S)
        if not self._over.is_set():
            self._end_now(failure)

    def _wait_while(self, condition: Callable[[], bool], limit_s: float) -> None:
        until = time.monotonic() + limit_s
        while condition() and time.monotonic() < until and not self._over.wait(0.1):
            pass

    def _end_now(self, failure: Failure) -> None:
        """Speak for the main thread, which does not come back, and end the process."""
        speaks = self.may_speak()
        if self._signs is not None:
            self._signs.leave(FOLLOWS)
        said = f"\nrl4lm (process {self.rank}): error: {self._words(failure)}\n"
        end_now(said if speaks else "")


# Of this process. There is one, as there is one group of processes, however many runs it makes.
_mine: Peers | None = None


def join(rank: int, limit_s: float | None) -> Peers:
    """Begin to look after the other processes, unless that has begun already."""
    global _mine
    if _mine is None:
        _mine = Peers(rank, limit_s)
        _listen_to_the_end()
    return _mine


def part() -> None:
    """This process has come to a good end; it may join others again."""
    global _mine
    leave(DONE)
    _mine = None


def failure(patience_s: float = 0.0) -> str | None:
    """Why the run cannot go on, if another process is to blame; see `Peers.failure`."""
    return None if _mine is None else _mine.failure(patience_s)


def explaining() -> contextlib.AbstractContextManager[None]:
    """Work in which this process may have to wait for others; see `Peers.explaining`."""
    return contextlib.nullcontext() if _mine is None else _mine.explaining()


def has_noticed() -> bool:
    """Whether the main thread knows of such a failure, and is on its way out."""
    return _mine is not None and _mine.noticed


def may_speak() -> bool:
    """Whether it falls to this process to tell of another's failure."""
    return _mine is None or _mine.may_speak()


def leave(how: str, cause: str = "", told: bool = False) -> None:
    """Let the others know that this process ends; see `Peers.leave`."""
    if _mine is not None:
        _mine.leave(how, cause, told)


def _leave_as_python_does() -> None:
    """At the end of a program that has not said how it ends."""
    error = getattr(sys, "last_value", None)
    if error is None:
        leave(DONE)
    elif isinstance(error, KeyboardInterrupt):
        leave(STOPPED)
    else:
        leave(
            FAILED,
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            told=True,
        )


def _forget() -> None:
    """In a process that was forked from this one, which has no part in the run."""
    global _mine
    _mine = None


@functools.cache
def _listen_to_the_end() -> None:
    atexit.register(_leave_as_python_does)
    os.register_at_fork(after_in_child=_forget)
