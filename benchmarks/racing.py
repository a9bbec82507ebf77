"""The side of a benchmark that tells contenders when to make a step."""

from __future__ import annotations

import multiprocessing
import statistics
from multiprocessing.connection import Connection
from typing import Any

from contenders import CLOCKS, PHASES, Job, work
from measuring import summary


class Contender:
    """The parent's end of a worker's pipe."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe: Connection
        self._pipe, theirs = context.Pipe()
        self.job, self.steps = job, list[dict[str, Any]]()
        self._process = context.Process(target=work, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.built = self._receive()
        except BaseException:
            self.stop()
            raise

    def step(self) -> dict[str, Any]:
        """Have one step made."""
        self._pipe.send("step")
        return self._receive()

    def stop(self) -> None:
        """End the process; it has nothing to save."""
        self._process.kill()
        self._process.join()

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

    def _receive(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._pipe.recv()
        except EOFError:
            raise SystemExit(f"{self.job.contender} ended without a word (memory?)") from None
        if "error" in answer:
            raise SystemExit(f"{self.job.contender} failed:\n{answer['error']}")
        return answer
