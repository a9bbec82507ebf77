"""Work beside the main thread, on a thread that never keeps a program from ending."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """A thread that works on things in the order in which they are handed over.

    It takes all that waits at once, so that slow work is not slowed further by many calls. After a
    failure it works no more. It is a daemon: Python does not wait for it at its end, as it would
    for the threads of an executor.
    """

    def __init__(self, work: Callable[[list[T]], object]) -> None:
        """Take the work; no thread runs until something is handed over."""
        self._work = work
        self._changed = threading.Condition()
        self._waiting: list[T] = []
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._busy = False
        self._closed = False

    def hand_over(self, things: Sequence[T]) -> None:
        """Leave things to be worked on; returns at once."""
        with self._changed:
            self._waiting.extend(things)
            self._changed.notify_all()
        if self._thread is None:
            # In a copy of the context, which holds the precision of `decimal`, for one.
            run = contextvars.copy_context().run
            self._thread = threading.Thread(target=run, args=(self._run,), daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Return when all that was handed over is done, or raise what the work raised."""
        # Not `Thread.join`: a signal gets through to one who waits for a condition.
        with self._changed:
            self._changed.wait_for(self._idle)
        if self._failure is not None:
            raise self._failure

    def settles(self, patience: float) -> bool:
        """Whether all that was handed over is done within so many seconds."""
        with self._changed:
            return self._changed.wait_for(self._idle, patience)

    def close(self, patience: float) -> None:
        """Drop what waits, and end the thread after the work in hand.

        Args:
            patience: seconds to wait for that work; it is left to itself then.
        """
        with self._changed:
            self._waiting, self._closed = [], True
            self._changed.notify_all()
            self._changed.wait_for(self._idle, patience)

    def _idle(self) -> bool:
        return self._failure is not None or not (self._waiting or self._busy)

    def _run(self) -> None:
        while things := self._take():
            try:
                self._work(things)
            except BaseException as failure:  # noqa: BLE001, raised again in the thread that waits
                self._failure = failure
            with self._changed:
                self._busy = False
                self._changed.notify_all()
            if self._failure is not None:
                return

    def _take(self) -> list[T]:
        """All that waits, as soon as something does; nothing when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            things, self._waiting = self._waiting, []
            self._busy = bool(things)
            return things


def in_background(work: Callable[[], T]) -> T:
    """What `work` returns or raises; meanwhile a signal gets through to the thread that waits."""
    (result,) = all_in_background([work])
    return result


def all_in_background(works: Sequence[Callable[[], T]]) -> list[T]:
    """What each of `works` returns, done at the same time; or what the first that fails raises."""
    results: dict[int, T] = {}

    def do(places: Sequence[int]) -> None:
        for place in places:
            results[place] = works[place]()

    threads = [Background[int](do) for _ in works]
    try:
        for place, thread in enumerate(threads):
            thread.hand_over([place])
        for thread in threads:
            thread.wait()
    finally:
        for thread in threads:
            thread.close(patience=0.0)
    return [results[place] for place in range(len(works))]
