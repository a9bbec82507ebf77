"""What a person sees of a run: a progress bar, tables of completions, a line before and after.

On a terminal the bar lives at the bottom and tables scroll above it. Where the output is a file, or
a terminal that cannot move its cursor, plain lines come instead. Only the main process speaks.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rl4lm.rules.findings import Finding
from rl4lm.screen.panels import (
    checks_table,
    completions_table,
    evaluation_table,
    group_tables,
    replayed_table,
    samples_table,
    variances_table,
    versus,
)
from rl4lm.screen.progress import Steps
from rl4lm.screen.scoreboard import report_lines, scored_table
from rl4lm.screen.stages import Stages
from rl4lm.screen.wording import (
    describe_evaluation,
    options_line,
    verdict,
)

_TABLE_ROWS = 5
_WARNINGS_SHOWN = 3  # of each kind that may come with every step
_SCORE_ROWS = 20
_PLAIN_WIDTH = 120  # columns of a table in a file
_UNBOUNDED = 10_000  # columns; wider than any table
_NUMBERS_WIDTH = 42  # columns that a table of completions needs besides prompt and completion


class Screen:
    """Shows a run to a person."""

    def __init__(
        self,
        *,
        stderr: bool = False,
        logging_steps: int = 10,
        quiet: bool = False,
        terse: bool = False,
    ) -> None:
        """Set where to write.

        Args:
            stderr: write there, because the standard output carries JSON.
            logging_steps: steps between two lines where the output is not a terminal.
            quiet: show nothing at all.
            terse: show only warnings and what a command came to.
        """
        self._console = _open_console(stderr)
        self._console.quiet = quiet
        self._quiet = quiet
        self._terse = terse
        self._logging_steps = logging_steps
        self._steps = Steps(0, 0, logging_steps, self.note)
        self._said: Counter[str] = Counter()  # warnings of each kind

    def only_if(self, shown: bool) -> None:
        """Fall silent unless this is the process that speaks."""
        self._console.quiet = self._quiet or not shown

    @property
    def speaks(self) -> bool:
        """Whether anybody sees what is shown."""
        return not self._console.quiet

    def note(self, text: str) -> None:
        """A line about what goes on."""
        if not self._terse:
            self.result(text)

    def result(self, text: str) -> None:
        """A line that a command is run for."""
        self._console.print(escape(text))

    def warn(self, text: str) -> None:
        """A line that should not be missed."""
        self._console.print(f"[bold yellow]warning:[/] {escape(text)}")

    def stages(self) -> Stages:
        """What shows how far a command is that makes no steps."""
        return Stages(self._console, shown=self.speaks and not self._terse)

    def start(self, first_step: int, total: int) -> None:
        """Begin to show steps."""
        self._steps = Steps(first_step, total, self._logging_steps, self.note)
        if self._console.is_interactive and not self._terse:
            self._steps.draw_on(self._console)

    def step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show the numbers of a finished step; `step` counts from 1."""
        self._steps.show(step, metrics)

    def stop(self) -> None:
        """Take the bar down; may be called more than once."""
        self._steps.stop()

    def skipped(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Say why a step changed nothing."""
        why = (
            f"its gradient is not finite (norm {metrics['grad_norm']})"
            if not math.isfinite(metrics["grad_norm"] or 0.0)
            else "no completion had an advantage, all that were compared earned the same"
        )
        self._warn_some_times("skipped", f"step {step} changed nothing: {why}")

    def gap(self, step: int, metrics: Mapping[str, float | None], dtype: str) -> None:
        """Say that sampling and training disagree about the policy."""
        self._warn_some_times(
            "gap",
            f"step {step}: log-probabilities of sampling and training differ by "
            f"{metrics['sampler_gap_mean']:.2g} on average and {metrics['sampler_gap_max']:.2g} at "
            f"most, more than rounding in {dtype} explains; the gradient is that of another policy",
        )

    def finding(self, step: int, finding: Finding) -> None:
        """Say what a rule has found, and what may help."""
        self.warn(f"step {step}: {finding.name}: {finding.seen}")
        for remedy in finding.remedies:
            self.result(f"  try: {remedy}")

    def trouble(self, text: str) -> None:
        """Say that something cannot be written."""
        self._warn_some_times("trouble", text)

    def _warn_some_times(self, kind: str, text: str) -> None:
        """Warn the first few times, since it may be every step."""
        self._said[kind] += 1
        if self._said[kind] <= _WARNINGS_SHOWN:
            last = self._said[kind] == _WARNINGS_SHOWN
            self.warn(text + ("; further ones are only counted" if last else ""))

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A small table of completions with their rewards."""
        if self._terse:
            return
        # Cut here: rich would take the room from the numbers.
        room = min(60, max(12, (self._console.width - _NUMBERS_WIDTH) // 2))
        self.note(f"samples at step {step}")
        self._show([completions_table(rows[:_TABLE_ROWS], room)])

    def evaluation(self, title: str, metrics: Mapping[str, float]) -> None:
        """One line about an evaluation."""
        self.note(f"{title}: {describe_evaluation(metrics)}")

    def before_after(
        self,
        before: Mapping[str, float],
        after: Mapping[str, float],
        change: Mapping[str, Mapping[str, Any]],
        footer: str,
    ) -> None:
        """The result of a run: a row per metric that a person would ask for."""
        if before and after:
            self._console.print()
            self._show(*versus(("before", "after"), before, after, change))
        self.result(footer)

    def metrics(self, title: str, metrics: Mapping[str, float], drawn: str) -> None:
        """An evaluation as a table; `drawn` says how its completions came about."""
        self.result(title)
        self._show([evaluation_table(metrics)])
        for layouts in group_tables(metrics):
            self._show(*layouts)
        self.result(f"  {metrics['samples']:.0f} prompts, {drawn}")

    def comparison(
        self,
        names: tuple[str, str],
        second: Mapping[str, float],
        first: Mapping[str, float],
        found: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Two models on the same prompts; the differences are those of the latter."""
        self._console.print()
        self._show(*versus(names, second, first, found))

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Completions with their log-probability."""
        self._show([samples_table(rows)])

    def scores(
        self, title: str, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
    ) -> None:
        """Scored rows, their summary, and what else was found about the rewards."""
        if rows and not self._terse:
            self._show([scored_table(rows[:_SCORE_ROWS])])
        shown = len(rows) if self._terse else _SCORE_ROWS
        for line in report_lines(title, summary, shown):
            self.result(line)

    def verification(self, report: Mapping[str, Any]) -> None:
        """What `verify` found about one set of options: checks, verdict, variances."""
        self.note(f"J = {report['objective']};  {options_line(report['options'])}")
        failed = any(not check["passed"] for check in report["checks"])
        if failed or not self._terse:
            self._show([checks_table(report["checks"])])
        if report["variance"] and not self._terse:
            self._show([variances_table(report["variance"])])
        self.result(verdict(report))

    def replayed(self, found: Mapping[str, Any]) -> None:
        """Logged steps done again: the one asked for, and where the first difference is."""
        steps = found["steps"]
        self.note(f"from {found['start']}, {len(steps)} steps done again")
        if not self._terse:
            self._show([replayed_table(steps[-1])])
        first = found["first_disagreement"]
        verdict = "agrees" if found["agrees"] else "does NOT agree"
        since = "" if first is None else f"; the first step that does not is {first}"
        self.result(f"step {steps[-1]['step']} {verdict} within {found['tolerance']:.0e}{since}")

    def verified(self, report: Mapping[str, Any]) -> None:
        """One line about one of many sets of options."""
        worst = max(c["value"] / c["limit"] * 1e-9 for c in report["checks"] if c["limit"] < 1e-7)
        tell = self.result if report["verdict"] == "failed" else self.note
        tell(
            f"{report['verdict']:17}  scale {report['scale']:.3f}  worst error {worst:.0e}  "
            f"{options_line(report['options'])}"
        )

    def _show(self, *layouts: Sequence[Table]) -> None:
        """Tables, in the first of some layouts that the screen has room for, else in the last."""
        unbounded = self._console.options.update(max_width=_UNBOUNDED)
        for tables in layouts:
            widths = [Measurement.get(self._console, unbounded, each).maximum for each in tables]
            if max(widths) <= self._console.width:
                break
        for i, table in enumerate(tables):
            if i:
                self._console.print()
            for line in self._console.render_lines(table, pad=False):
                text = Text.assemble(*((part.text, part.style or "") for part in line))
                text.rstrip()  # rich fills every line up to the width of the table
                self._console.print(text, no_wrap=True, crop=False)


def _open_console(stderr: bool) -> Console:
    """The standard output or error, as a terminal or as a file."""
    # A notebook is a file here, though its streams say they are a terminal: a bar would be drawn
    # there again and again, and rich would make a display of its own of every line.
    notebook = Console().is_jupyter
    terminal = (sys.stderr if stderr else sys.stdout).isatty() and not notebook
    # FORCE_COLOR makes rich take a file for a terminal; a bar has no place in it all the same.
    console = Console(
        stderr=stderr,
        highlight=False,
        emoji=False,
        force_jupyter=False,
        force_terminal=False if notebook else None,
        force_interactive=None if terminal else False,
    )
    if not terminal:
        console.width = _PLAIN_WIDTH
        console.soft_wrap = True  # a line of a log is one line
    return console
