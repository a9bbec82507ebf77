"""The sandbox as its users see it: workers, the order of results, retries.

    with Sandbox() as sandbox:
        verdicts = sandbox.map(judge, items)    # judge(runner, item) -> verdict

Each worker is a fork server with one thread of the parent; a judge starts as many runs as it needs
through the `Runner` it is given.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Literal, TypeVar

from rewards.sandbox import selftest
from rewards.sandbox.errors import RunLost, SandboxFailed
from rewards.sandbox.library import NOTHING_OPENED
from rewards.sandbox.limits import Limits
from rewards.sandbox.session import Runner
from rewards.sandbox.worker import Setup, Worker

T = TypeVar("T")
R = TypeVar("R")
Isolation = Literal["sandbox", "container"]

# A server is replaced after this many runs, so that nothing can slowly grow in one.
RUNS_PER_SERVER = 5000

_log = logging.getLogger(__name__)
# What is known to work in this process: the self-test runs once per way of confining.
_tested: set[tuple[int, str, frozenset[tuple[str, str]]]] = set()


class Sandbox:
    """Runs programs that nobody has read.

    Args:
        workers: Servers, each with its own thread; None: one per core this process may use.
        limits: Of every run.
        isolation: "sandbox" refuses to start where a program cannot be confined. "container" is
            for a process that is in a throw-away container already: what works stays on, resource
            limits, dropped capabilities and deadlines always do, and the rest is not asked for.

    Raises:
        SandboxUnavailable: A layer is missing on this machine; the message names the remedy.
    """

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        *,
        isolation: Isolation = "sandbox",
        _without: frozenset[str] = frozenset(),
        _runner: str = "runner",
    ) -> None:
        """Start the workers and make sure that they confine.

        `_without` (layers left out, no refusal) and `_runner` (path of another runner) are for
        the tests of this package.
        """
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if isolation not in ("sandbox", "container"):
            raise ValueError(f"isolation must be 'sandbox' or 'container', got {isolation!r}")
        selftest.check_platform()
        self._size = workers or len(os.sched_getaffinity(0))
        self._limits = limits
        self._setup = Setup(limits, runner=_runner, without=_without)
        self._isolation: Isolation = isolation
        self._make_workers()
        if isolation == "container":
            _log.warning(
                "isolation='container': programs run with whatever layers this machine has, none "
                "but limits and dropped capabilities being required. Only the container stands "
                "between them and everything that this process can reach. %s",
                dict(self.layers),
            )

    @property
    def layers(self) -> Mapping[str, str]:
        """Layer -> "on", "on: how" or "off: why"; for logs and for a run's metadata."""
        return MappingProxyType(self._layers)

    def map(self, judge: Callable[[Runner, T], R], items: Sequence[T]) -> list[R]:
        """Return `judge(runner, item)` of every item, in order, whichever worker did it.

        Raises:
            SandboxFailed: The same item lost its run twice, or a run could not be confined.
        """
        if self._owner != os.getpid():
            self._remake_after_fork()
        with self._lock:
            if self._closed:
                raise ValueError("the sandbox is closed")
            return self._map(judge, items)

    def _map(self, judge: Callable[[Runner, T], R], items: Sequence[T]) -> list[R]:
        results: dict[int, R] = {}
        errors: dict[int, BaseException] = {}
        stop = threading.Event()
        numbers = iter(range(len(items)))
        take = threading.Lock()

        def work(place: int) -> None:
            while not stop.is_set():
                with take:
                    number = next(numbers, None)
                if number is None:
                    return
                try:
                    results[number] = self._judge(place, judge, items[number])
                except BaseException as error:
                    errors[number] = error
                    stop.set()
                    raise

        places = range(min(self._size, len(items)))
        if len(places) == 1:
            work(0)
            return [results[number] for number in range(len(items))]
        with ThreadPoolExecutor(max(len(places), 1), "sandbox") as threads:
            try:
                for done in [threads.submit(work, place) for place in places]:
                    done.exception()
            finally:
                stop.set()  # After Ctrl-C: finish the items at hand and take no other.
        if errors:
            raise errors[min(errors)]
        return [results[number] for number in range(len(items))]

    def _judge(self, place: int, judge: Callable[[Runner, T], R], item: T) -> R:
        for attempt in itertools.count():
            worker = self._ready_worker(place)
            runner = Runner(
                worker,
                self._limits,
                name_imports=self._layers["files"] == NOTHING_OPENED,
                last_try=attempt > 0,
            )
            try:
                try:
                    return judge(runner, item)
                finally:
                    runner.close()
            except RunLost as lost:
                _log.warning("a run was lost and its item is judged again: %s", lost)
                if attempt > 0:
                    raise SandboxFailed(f"the same item lost its run twice; last: {lost}") from lost
        raise AssertionError("unreachable")

    def _ready_worker(self, place: int) -> Worker:
        """Return the worker at `place`, a new one if it is lost or has done its share."""
        worker = self._workers[place]
        if not worker.lost and worker.process.poll() is None and worker.runs < RUNS_PER_SERVER:
            return worker
        worker.close()
        self._workers[place] = worker = Worker(self._setup)
        layers = worker.layers()
        if layers != self._layers:
            raise SandboxFailed(f"a new server has other layers: {layers}, before: {self._layers}")
        return worker

    def _make_workers(self) -> None:
        self._owner = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        try:
            for _ in range(self._size):
                self._workers.append(Worker(self._setup))
            # All of them: every server must be ready before the first item.
            states = [worker.layers() for worker in self._workers]
            self._layers = states[0]
            if not self._setup.without:
                self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        key = (os.getpid(), self._isolation, frozenset(self._layers.items()))
        if key not in _tested:
            selftest.require(self._workers[0], self._limits, self._layers, self._isolation)
            _tested.add(key)
            _log.info("programs are confined: %s", self._layers)

    def _remake_after_fork(self) -> None:
        """Start workers of one's own: those of the process this was forked from stay its own."""
        for worker in self._workers:
            worker.close()
        self._make_workers()

    def close(self) -> None:
        """End all workers and what runs in them."""
        self._closed = True
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> Sandbox:
        """Return the sandbox itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End all workers."""
        self.close()
