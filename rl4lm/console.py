"""What a person sees of a run: a progress bar, tables of completions, a line before and after.

On a terminal the bar lives at the bottom and tables scroll above it. Where the output is a file,
plain short lines come instead. Only the main process speaks.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from rl4lm.panels import evaluation_table, group_tables, versus
from rl4lm.rules.findings import Finding
from rl4lm.scoreboard import report_lines, scored_table
from rl4lm.wording import (
    clock,
    describe_evaluation,
    one_line,
    options_line,
    step_numbers,
    verdict,
)

_TABLE_ROWS = 5
_WARNINGS_SHOWN = 3  # of each kind that may come with every step
_SCORE_ROWS = 20
_PLAIN_WIDTH = 120  # columns of a table in a file
_BAR_WIDTH = 45  # columns that the bar, the step and the time left need on a terminal
_SELDOM = ("variance_reduction", "gradient_snr", "gradient_noise_scale")
_NUMBERS_WIDTH = 42  # columns that a table of completions needs besides prompt and completion


class Screen:
    """Shows a run to a person."""

    def __init__(
        self, *, stderr: bool = False, logging_steps: int = 10, quiet: bool = False
    ) -> None:
        """Set where to write.

        Args:
            stderr: write there, because the standard output carries JSON.
            logging_steps: steps between two lines where the output is not a terminal.
            quiet: show nothing at all.
        """
        # A notebook is a file here, though its streams say they are a terminal: a bar would be
        # drawn there again and again, and rich would make a display of its own of every line.
        self._console = Console(
            stderr=stderr,
            highlight=False,
            emoji=False,
            force_jupyter=False,
            force_terminal=False if Console().is_jupyter else None,
        )
        if not self._console.is_terminal:
            self._console.width = _PLAIN_WIDTH
            self._console.soft_wrap = True  # a line of a log is one line
        self._console.quiet = quiet
        self._quiet = quiet
        self._logging_steps = logging_steps
        self._progress: Progress | None = None
        self._task: Any = None
        self._total = 0
        self._first_step = 0
        self._said: Counter[str] = Counter()  # warnings of each kind
        self._seldom: dict[str, float] = {}  # metrics that not every step has, as last measured
        self._started = 0.0

    def only_if(self, shown: bool) -> None:
        """Fall silent unless this is the process that speaks."""
        self._console.quiet = self._quiet or not shown

    @property
    def speaks(self) -> bool:
        """Whether anybody sees what is shown."""
        return not self._console.quiet

    def note(self, text: str) -> None:
        """A line of plain text."""
        self._console.print(escape(text))

    def warn(self, text: str) -> None:
        """A line that should not be missed."""
        self._console.print(f"[bold yellow]warning:[/] {escape(text)}")

    def start(self, first_step: int, total: int) -> None:
        """Begin to show steps."""
        self._first_step, self._total, self._started = first_step, total, time.monotonic()
        if self._console.is_terminal:
            columns: list[ProgressColumn] = [
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
            ]
            self._progress = Progress(*columns, console=self._console, expand=True)
            self._task = self._progress.add_task("", completed=first_step, total=total, numbers="")
            self._progress.start()

    def step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show the numbers of a finished step; `step` counts from 1."""
        measured = {name: metrics.get(name) for name in _SELDOM}
        self._seldom |= {name: value for name, value in measured.items() if value is not None}
        parts = step_numbers({**metrics, **self._seldom})
        numbers = "  ".join(parts)
        if self._progress is not None:
            room = self._console.width - _BAR_WIDTH
            while len(numbers) > room and len(parts) > 1:
                numbers = "  ".join(parts := parts[:-1])
            self._progress.update(self._task, completed=step, numbers=numbers)
        elif step % self._logging_steps == 0 or step in (1, self._total):
            elapsed = time.monotonic() - self._started
            left = elapsed / (step - self._first_step) * (self._total - step)
            self.note(f"step {step}/{self._total}  {numbers}  {clock(left)} left")

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
            self.note(f"  try: {remedy}")

    def trouble(self, text: str) -> None:
        """Say that something cannot be written."""
        self._warn_some_times("trouble", text)

    def _warn_some_times(self, kind: str, text: str) -> None:
        """Warn the first few times, since it may be every step."""
        self._said[kind] += 1
        if self._said[kind] <= _WARNINGS_SHOWN:
            last = self._said[kind] == _WARNINGS_SHOWN
            self.warn(text + ("; further ones are only counted" if last else ""))

    def stop(self) -> None:
        """Take the bar down; may be called more than once."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A small table of completions with their rewards."""
        table = Table(
            title=f"samples at step {step}", title_justify="left", box=None, padding=(0, 2)
        )
        for header, justify in (
            ("prompt", "right"),
            ("completion", "left"),
            ("reward", "right"),
            ("advantage", "right"),
        ):
            table.add_column(header, justify=justify, overflow="ellipsis", no_wrap=True)  # type: ignore[arg-type]
        # Cut here: rich would take the room from the numbers.
        room = min(60, max(12, (self._console.width - _NUMBERS_WIDTH) // 2))
        for row in rows[:_TABLE_ROWS]:
            cut = " (cut off)" if row["truncated"] else ""
            table.add_row(
                one_line(row["prompt"], room),
                one_line(row["completion"], room) + cut,
                "none" if row["reward"] is None else f"{row['reward']:.2f}",
                f"{row['advantage']:+.2f}",
            )
        self._console.print(table)

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
            self._console.print(versus(("before", "after"), before, after, change))
        self.note(footer)

    def metrics(self, title: str, metrics: Mapping[str, float], drawn: str) -> None:
        """An evaluation as a table; `drawn` says how its completions came about."""
        self._console.print(evaluation_table(title, metrics))
        for table in group_tables(metrics):
            self._console.print(table)
        self.note(f"  {metrics['samples']:.0f} prompts, {drawn}")

    def comparison(
        self,
        names: tuple[str, str],
        second: Mapping[str, float],
        first: Mapping[str, float],
        found: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Two models on the same prompts; the differences are those of the latter."""
        self._console.print()
        self._console.print(versus(names, second, first, found))

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Completions with their log-probability."""
        table = Table(box=None, padding=(0, 2))
        for header in ("prompt", "completion", "log π"):
            justify = "right" if header == "log π" else "left"
            table.add_column(header, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for row in rows:
            cut = " (cut off)" if row["truncated"] else ""
            text = one_line(row["completion"], 200) + cut
            table.add_row(one_line(row["prompt"]), text, f"{row['logprob']:.2f}")
        self._console.print(table)

    def scores(
        self, title: str, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
    ) -> None:
        """Scored rows, their summary, and what else was found about the rewards."""
        if rows:
            self._console.print(scored_table(rows[:_SCORE_ROWS]))
        for line in report_lines(title, summary, _SCORE_ROWS):
            self.note(line)

    def verification(self, report: Mapping[str, Any]) -> None:
        """What `verify` found about one set of options: checks, verdict, variances."""
        self.note(f"J = {report['objective']};  {options_line(report['options'])}")
        table = Table(box=None, padding=(0, 2))
        for header in ("check", "found", "allowed", ""):
            table.add_column(header, justify="left" if header in ("check", "") else "right")
        for check in report["checks"]:
            passed = "ok" if check["passed"] else "[bold red]FAILED[/]"
            table.add_row(
                escape(check["name"]), f"{check['value']:.2g}", f"{check['limit']:.0e}", passed
            )
        self._console.print(table)
        if report["variance"]:
            table = Table(box=None, padding=(0, 2))
            table.add_column("baseline")
            table.add_column("variance of a step's gradient, none = 1", justify="right")
            for name, value in report["variance"].items():
                table.add_row(name, f"{value:.3f}")
            self._console.print(table)
        self.note(verdict(report))

    def replayed(self, found: Mapping[str, Any]) -> None:
        """Logged steps done again: the one asked for, and where the first difference is."""
        steps = found["steps"]
        self.note(f"from {found['start']}, {len(steps)} steps done again")
        table = Table(box=None, padding=(0, 2))
        for header in ("step", "", "loss", "gradient norm", "relative difference"):
            table.add_column(header, justify="right")
        last = steps[-1]
        table.add_row(
            str(last["step"]), "logged", f"{last['loss']:.9g}", f"{last['grad_norm']:.9g}"
        )
        again = f"{last['loss_again']:.9g}", f"{last['grad_norm_again']:.9g}"
        table.add_row("", "again", *again, f"{last['difference']:.1e}")
        self._console.print(table)
        first = found["first_disagreement"]
        verdict = "agrees" if found["agrees"] else "does NOT agree"
        since = "" if first is None else f"; the first step that does not is {first}"
        self.note(f"step {last['step']} {verdict} within {found['tolerance']:.0e}{since}")

    def verified(self, report: Mapping[str, Any]) -> None:
        """One line about one of many sets of options."""
        worst = max(c["value"] / c["limit"] * 1e-9 for c in report["checks"] if c["limit"] < 1e-7)
        self.note(
            f"{report['verdict']:17}  scale {report['scale']:.3f}  worst error {worst:.0e}  "
            f"{options_line(report['options'])}"
        )
