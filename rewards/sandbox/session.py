"""One run as the parent sees it: a confined child with a deadline."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

from rewards.sandbox.errors import NOT_CONFINED, Ended, RunLost, SandboxFailed, printable
from rewards.sandbox.imports import named_modules
from rewards.sandbox.limits import Limits
from rewards.sandbox.pipes import Pipes
from rewards.sandbox.worker import Worker

# How long a child whose socket has closed may take to be gone, before it is taken as alive.
_LAST_BREATH_MS = 100


@dataclass(frozen=True)
class Start:
    """What to start: the job line, all of standard input, the wall clock, and for the server the
    modules to import first and whether a program or the self-test is run.

    `forgive_kill`: a kill that comes from outside is not held against the run.
    """

    job: bytes
    stdin: bytes
    seconds: float
    modules: tuple[str, ...] = ()
    entry: str = "runner"
    forgive_kill: bool = True

    def message(self) -> dict[str, object]:
        """Return what the server is told of it: nothing of the job."""
        # A second more than the deadline, rounded up: the deadline comes first.
        cpu = int(self.seconds) + 2
        return {"start": 1, "cpu": cpu, "modules": list(self.modules), "entry": self.entry}


@dataclass(frozen=True)
class Exit:
    """How a run ended. Exactly one of `status` and `signal` is a number."""

    status: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    cpu_seconds: float
    peak_memory_bytes: int

    def describe(self) -> str:
        """Return the end in words, with the last of stderr."""
        how = f"exit status {self.status}"
        if self.signal is not None:
            how = f"killed by signal {self.signal}"
        said = printable(self.stderr)
        return f"{how}: {said}" if said else how


class Session:
    """A confined child. Leaving the `with` block ends it; made by `Runner.start`."""

    def __init__(self, worker: Worker, limits: Limits, start: Start) -> None:
        """Start the child; its clock runs from here."""
        self._worker = worker
        self._start = start
        self._deadline = time.monotonic() + start.seconds
        self._over: Ended | None = None
        self._closed = False
        self._pipes = Pipes(limits, start.job, start.stdin)
        try:
            answer, (self._watch,) = worker.request(start.message(), self._pipes.given)
        except BaseException:
            self._pipes.close()
            raise
        finally:
            self._pipes.close_given()
        self._pid = answer["pid"]
        worker.runs += 1

    def ask(self, line: bytes, seconds: float | None = None) -> bytes:
        """Send one line and return the one line that answers it, both without the newline.

        Args:
            line: The request.
            seconds: A limit for this answer, where it is shorter than what is left of the run.

        Raises:
            Ended: The run died, ran out of time, wrote too much or did not wait for the request.
        """
        self._check_running()
        if b"\n" in line:
            raise ValueError("a request is one line; it has a newline inside")
        deadline = self._deadline
        if seconds is not None:
            deadline = min(deadline, time.monotonic() + seconds)
        try:
            self._pipes.send(line)
            while (reply := self._pipes.take_line()) is None:
                self._pipes.step(self._left(deadline))
                if self._pipes.hung_up:
                    self._died()
        except Ended as over:
            self._end(over)
        return reply

    def wait(self) -> Exit:
        """Wait until the run has ended by itself and return how.

        Raises:
            Ended: It ran out of time or wrote too much.
        """
        self._check_running()
        try:
            while not self._pipes.step(self._left(self._deadline), self._watch):
                pass
            self._pipes.drain()
        except Ended as over:
            self._end(over)
        return self._finish()

    def close(self) -> None:
        """End the child if it still runs; what it has written is forgotten."""
        if not self._closed:
            try:
                if not self._worker.lost:
                    self._worker.request({"end": self._pid})
            finally:
                self._let_go()

    def __enter__(self) -> Session:
        """Return the session itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the child."""
        self.close()

    def _check_running(self) -> None:
        if self._over is not None:
            raise self._over
        if self._closed:
            raise ValueError("the session is closed")

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Ended("timeout", f"no end after {self._start.seconds:g} s")
        return left

    def _end(self, over: Ended) -> NoReturn:
        self._over = over
        self.close()
        raise over

    def _died(self) -> NoReturn:
        """Say what the child died of, after its socket has closed."""
        watch = select.poll()
        watch.register(self._watch, select.POLLIN)
        if not watch.poll(_LAST_BREATH_MS):
            raise Ended("died", "it closed its socket")
        self._pipes.drain()
        raise Ended("died", self._finish().describe())

    def _finish(self) -> Exit:
        """Fetch from the server how the child, which is gone, has ended."""
        try:
            answer, _ = self._worker.request({"end": self._pid})
        finally:
            self._let_go()
        ended = self._as_exit(answer)
        if ended.signal == NOT_CONFINED:
            raise SandboxFailed(f"a run could not be confined: {printable(ended.stderr)}")
        if ended.signal == signal.SIGKILL and self._start.forgive_kill:
            raise RunLost("a run was killed from outside, as by the kernel when memory runs out")
        return ended

    def _as_exit(self, answer: dict[str, Any]) -> Exit:
        code = os.waitstatus_to_exitcode(answer["status"])
        return Exit(
            status=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            stdout=self._pipes.stdout,
            stderr=self._pipes.stderr,
            cpu_seconds=answer["cpu"],
            peak_memory_bytes=answer["memory"],
        )

    def _let_go(self) -> None:
        self._closed = True
        self._pipes.close()
        os.close(self._watch)


class Runner:
    """A worker in the hands of one judge, on one thread."""

    def __init__(
        self, worker: Worker, limits: Limits, *, name_imports: bool, last_try: bool
    ) -> None:
        """Wrap `worker`.

        Args:
            worker: The server that forks the children.
            limits: Of every run.
            name_imports: The server is told what a job imports, as nothing can be opened later.
            last_try: The item has been judged once before and its run was lost.
        """
        self._worker = worker
        self._limits = limits
        self._name_imports = name_imports
        self._last_try = last_try
        self._sessions = ExitStack()

    def start(self, job: bytes, stdin: bytes = b"", seconds: float | None = None) -> Session:
        """Start one confined child.

        Args:
            job: The line that the child reads first, after it is confined; no newline inside.
            stdin: What its standard input has; the parent feeds and then closes it.
            seconds: Wall clock of the run, where it is not `Limits.seconds`.
        """
        if b"\n" in job:
            raise ValueError("a job is one line; it has a newline inside")
        start = Start(
            job,
            stdin,
            seconds=self._limits.seconds if seconds is None else seconds,
            modules=tuple(named_modules(job)) if self._name_imports else (),
            forgive_kill=not self._last_try,
        )
        return self._sessions.enter_context(Session(self._worker, self._limits, start))

    def close(self) -> None:
        """End every session that a judge has left open."""
        self._sessions.close()
