"""How far a command is whose work comes in stages: a bar on a terminal, else a line now and then.

A stage counts where it can. A call about all rows at once cannot be looked into: the bar then moves
without saying how far it is, and beside it stands for how long it has.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rl4lm.screen.wording import clock

_LINE_S = 10.0  # between two lines where the output is no terminal


class Stages:
    """Shows the stages of a command, one after another, from its `with` on."""

    def __init__(self, console: Console, shown: bool, every_s: float = _LINE_S) -> None:
        """Set where to write.

        Args:
            console: has a bar where it is a terminal, else lines.
            shown: False for nothing at all.
            every_s: seconds before the first line, and between two of them.
        """
        self._console = console
        self._every_s = every_s
        self._what = ""
        self._done, self._total, self._began = 0, 0, time.monotonic()
        self._over = threading.Event()
        self._bar = self._speaker = None
        if shown and console.is_interactive:
            self._bar = _bar(console)
            self._task = self._bar.add_task("", total=None, count="")
        elif shown:
            self._speaker = threading.Thread(target=self._speak, daemon=True)

    def begin(self, what: str) -> None:
        """A stage begins, and the one before is over.

        Args:
            what: in words, such as "scoring 5,000 rows".
        """
        self._what, self._done, self._total, self._began = what, 0, 0, time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task, total=None, description=what, count="")

    def told(self, done: int, total: int) -> None:
        """So many are done of this stage, of so many."""
        self._done, self._total = done, total
        if self._bar is not None:
            count = f"{done}/{total}"
            self._bar.update(self._task, completed=done, total=total, count=count)

    def __enter__(self) -> Stages:
        for shower in (self._bar, self._speaker):
            if shower is not None:
                shower.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.stop()
        if self._speaker is not None:
            self._speaker.join()

    def _speak(self) -> None:
        while not self._over.wait(self._every_s):
            if self._what:
                self._console.print(self._line(), markup=False)

    def _line(self) -> str:
        elapsed = time.monotonic() - self._began
        if not self._done:
            return f"{self._what}: {clock(elapsed)} so far"
        left = elapsed / self._done * (self._total - self._done)
        return f"{self._what}: {self._done}/{self._total}, {clock(left)} left"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        expand=True,
        transient=True,
    )
