"""The side of a benchmark that tells contenders when to make a step."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from contenders import CLOCKS, PHASES, Job, work
from measuring import summary


class Worker:
    """The parent's end of a process that does what it is told over a pipe."""

    def __init__(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        """Start it; its function is called with its end of the pipe and the arguments."""
        context = multiprocessing.get_context("spawn")
        self._pipe: Connection
        self._pipe, theirs = context.Pipe()
        self._name = name
        self._process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, word: str) -> None:
        """Have something done."""
        self._pipe.send(word)

    def answer(self) -> dict[str, Any]:
        """What came of it, when it is done."""
        try:
            answer: dict[str, Any] = self._pipe.recv()
        except EOFError:
            raise SystemExit(f"{self._name} ended without a word (memory?)") from None
        if "error" in answer:
            raise SystemExit(f"{self._name} failed:\n{answer['error']}")
        return answer

    def stop(self) -> None:
        """End the process; it has nothing to save."""
        self._process.kill()
        self._process.join()


class Contender:
    """A program in a process of its own."""

    def __init__(self, job: Job) -> None:
        """Start it, and wait until it is built."""
        self.job, self.steps = job, list[dict[str, Any]]()
        self._worker = Worker(job.contender, work, job)
        try:
            self.built = self._worker.answer()
        except BaseException:
            self.stop()
            raise

    def step(self) -> dict[str, Any]:
        """Have one step made."""
        self._worker.tell("step")
        return self._worker.answer()

    def stop(self) -> None:
        """End it."""
        self._worker.stop()

    def result(self) -> dict[str, Any]:
        """What the counted steps took."""
        phases = [*dict.fromkeys(PHASES.values()), "rest"]
        return {
            "settings": self.built["settings"],
            **{clock: summary([step[clock] for step in self.steps]) for clock in CLOCKS},
            **{
                f"phases_{kind}_s": {
                    phase: statistics.median(s[f"phases_{kind}_s"][phase] for s in self.steps)
                    for phase in phases
                }
                for kind in ("wall", "cpu")
            },
            "memory": self.built["memory"] | {"peak_bytes": self.steps[-1]["peak_bytes"]},
            "mean_length": statistics.fmean(step["mean_length"] for step in self.steps),
            "steps": self.steps,
        }
