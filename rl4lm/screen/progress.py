"""The steps of a run on the screen: a bar where one can be drawn, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from rl4lm.screen.wording import clock, step_numbers

_BAR_WIDTH = 45  # columns that the bar, the step and the time left need on a terminal
_SELDOM = ("variance_reduction", "gradient_snr", "gradient_noise_scale")


class Steps:
    """The steps from a first one to the last."""

    def __init__(self, first: int, total: int, every: int, say: Callable[[str], None]) -> None:
        """Begin; lines come until `draw_on` is called.

        Args:
            first: steps done before.
            total: steps of the whole run.
            every: steps between two lines.
            say: shows a line.
        """
        self._first = first
        self._total = total
        self._every = every
        self._say = say
        self._began = time.monotonic()
        self._seldom: dict[str, float] = {}  # metrics that not every step has, as last measured
        self.bar: Progress | None = None

    def draw_on(self, console: Console) -> None:
        """Draw a bar, on a terminal that moves its cursor."""
        columns: list[ProgressColumn] = [
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
        ]
        self.bar = Progress(*columns, console=console, expand=True)
        self.bar.add_task("", completed=self._first, total=self._total, numbers="")
        self.bar.start()

    def show(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show the numbers of a finished step; `step` counts from 1."""
        measured = {name: metrics.get(name) for name in _SELDOM}
        self._seldom |= {name: value for name, value in measured.items() if value is not None}
        parts = step_numbers({**metrics, **self._seldom})
        if self.bar is not None:
            room = self.bar.console.width - _BAR_WIDTH
            while len("  ".join(parts)) > room and len(parts) > 1:
                parts = parts[:-1]
            (task,) = self.bar.task_ids
            self.bar.update(task, completed=step, numbers="  ".join(parts))
        elif step % self._every == 0 or step in (1, self._total):
            elapsed = time.monotonic() - self._began
            left = clock(elapsed / (step - self._first) * (self._total - step))
            self._say(f"step {step}/{self._total}  {'  '.join(parts)}  {left} left")

    def stop(self) -> None:
        """Take the bar down; may be called more than once."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
