"""The trainer's side of a named reward: a process that is asked, killed and started again."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from rl4lm.errors import RewardError, RewardFailedError
from rl4lm.rewarding.calls import Answer, Call
from rl4lm.rewarding.launch import Worker, WorkerLost
from rl4lm.rewarding.performing import Raised
from rl4lm.rewarding.worker import ANSWERED, NO_MEMORY, RAISED, REFUSED


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class RewardProcess:
    """A reward in a process of its own, which is started when it is first needed."""

    def __init__(
        self,
        name: str,
        timeout_s: float | None,
        seconds_per_sample: float = 0.0,
        seeded: bool = True,
    ) -> None:
        """Take what the worker needs to find the same function as this process.

        Args:
            name: of the reward, as it was looked up.
            timeout_s: seconds for one call; None for no limit.
            seconds_per_sample: what a completion may take besides, of a reward that ends by itself
                what hangs.
            seeded: whether what the reward draws at random follows from the seed of the run.
        """
        self._name = name
        self._timeout_s = timeout_s
        self._seconds_per_sample = seconds_per_sample
        self._seeded = seeded
        self._path = [entry or os.getcwd() for entry in sys.path]
        self._folder = os.getcwd()
        self._lock = threading.Lock()  # one call at a time
        self._worker: Worker | None = None
        self._calls = 0

    def start(self) -> None:
        """Start the worker without waiting for it, unless there is one."""
        with contextlib.suppress(OSError):  # it is tried again when there is something to ask
            self._start()

    def _start(self) -> Worker:
        if self._worker is not None and not self._worker.is_mine():
            self._worker = None  # this is a fork of the process whose worker it is
        if self._worker is not None and not self._worker.is_alive():
            self._drop(self._worker)
        if self._worker is None:
            self._worker = Worker(self._name, self._path, self._folder)
        return self._worker

    def close(self) -> None:
        """End the worker; a call that another thread waits for fails. A later call starts anew."""
        worker, self._worker = self._worker, None
        if worker is not None:
            # Between calls a reward may clean up behind itself; in a call it may never be through.
            worker.end(at_once=self._lock.locked())

    def ask(self, call: Call) -> Answer:
        """What the reward answers.

        Raises:
            RewardError: it returned something that is no list of rewards.
            Raised: it raised.
            WorkerLost: the worker hung or died, and another one is being started.
            RewardFailedError: no worker can be started.
        """
        with self._lock:
            frame = self._frame(call)
            worker = self._ready_worker()
            try:
                number, kind, payload = worker.exchange(frame, self._limit(call))
                if number != self._calls or kind not in _READERS:
                    raise WorkerLost("crashes", "crashed: it sent a reply to something else")
            except WorkerLost:
                self._replace(worker)
                raise
            except BaseException:  # an interrupt: the worker is in the middle of its work
                self._drop(worker)
                raise
            if kind == NO_MEMORY:  # what it still holds is anybody's guess
                self._replace(worker)
            return _READERS[kind](payload)

    def _limit(self, call: Call) -> float | None:
        if self._timeout_s is None:
            return None
        return self._timeout_s + self._seconds_per_sample * len(call.lengths)

    def _frame(self, call: Call) -> bytes:
        self._calls += 1
        call = call if self._seeded else replace(call, draws_by=None)
        try:
            return pickle.dumps((self._calls, call), pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise RewardError(
                f"what the reward {call.reward!r} asks for cannot be sent to its process: {error}; "
                "keep such columns out of the data, or hand the function itself over in Python"
            ) from error

    def _ready_worker(self) -> Worker:
        """A worker that has found the reward."""
        with contextlib.suppress(WorkerLost, OSError):
            return self._started()
        try:  # once more: want of memory or of processes may have been another program's doing
            return self._started()
        except (WorkerLost, OSError) as error:
            raise RewardFailedError(
                f"the process of the reward {self._name!r} cannot start: {error}"
            ) from error

    def _started(self) -> Worker:
        worker = self._start()
        try:
            worker.wait_until_ready()
        except BaseException:
            self._drop(worker)
            raise
        return worker

    def _replace(self, lost: Worker) -> None:
        if self._worker is not lost:
            raise RewardFailedError(f"the process of the reward {self._name!r} was closed")
        self._drop(lost)
        self.start()

    def _drop(self, worker: Worker | None) -> None:
        if self._worker is worker:
            self._worker = None
        if worker is not None:
            worker.end(at_once=True)


def _raise_refused(payload: Any) -> NoReturn:
    raise RewardError(payload)


def _raise_raised(payload: Any) -> NoReturn:
    message, traceback = payload
    raise Raised(message) from WorkerTraceback(traceback)


def _raise_no_memory(payload: Any) -> NoReturn:
    raise WorkerLost("crashes", "ran out of memory")


_READERS: dict[str, Callable[[Any], Answer]] = {
    ANSWERED: lambda payload: payload,
    REFUSED: _raise_refused,
    RAISED: _raise_raised,
    NO_MEMORY: _raise_no_memory,
}
