"""Why does it not learn? What a run's own files say, with what to do about it.

    rl4lm doctor RUN_DIR [--json]

Nothing is run again and no model is loaded. What is looked for is in the package `rl4lm.rules`; the
same rules watch a run while it goes on (`rl4lm.rules.diagnosis.Watch`).
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from rl4lm.rules.diagnosis import Diagnosis, examine
from rl4lm.rules.findings import Finding, RunLog, Severity
from rl4lm.rundir.runlog import read_run

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold"}


def diagnose(run: Path) -> tuple[RunLog, Diagnosis]:
    """Read a run directory and apply every rule.

    Raises:
        DataError: the directory holds no run.
    """
    log = read_run(run)
    return log, examine(log)


def show(
    log: RunLog, diagnosis: Diagnosis, console: Console | None = None, terse: bool = False
) -> None:
    """Print findings, the worst first, and, but where it is to be terse, what was looked at."""
    page = console or Console(highlight=False, emoji=False)
    _print(page, escape(_heading(log, diagnosis)))
    for finding in diagnosis.findings:
        _print_finding(page, finding)
    if terse:
        return
    page.print()
    _print(page, "checked: " + escape(", ".join(diagnosis.checked) or "nothing"))
    for asks, reason in diagnosis.unchecked.items():
        _print(page, escape(f"not checked: {asks} ({reason})"))


def _heading(log: RunLog, diagnosis: Diagnosis) -> str:
    read = f"{len(log.steps)} steps, completions of {len(log.samples)}, "
    read += f"{len(log.evaluations)} evaluations"
    counts = {
        severity: sum(found.severity is severity for found in diagnosis.findings)
        for severity in sorted(Severity, reverse=True)
    }
    told = [f"{n} {s.name.lower()}{'s' if n > 1 else ''}" for s, n in counts.items() if n]
    return f"{read}: {', '.join(told) or 'nothing found'}"


def _print_finding(page: Console, finding: Finding) -> None:
    page.print()
    label = f"[{_STYLES[finding.severity]}]{finding.severity.name.lower()}[/]"
    _print(page, f"{label} {finding.name}: {escape(finding.seen)}")
    _print(page, escape(f"why: {finding.why}"), indent=2)
    for remedy in finding.remedies:
        _print(page, escape(f"try: {remedy}"), indent=2)


def _print(page: Console, text: str, indent: int = 0) -> None:
    """A paragraph: wrapped and indented on a terminal, one line in a file."""
    if page.is_terminal:
        page.print(Padding(text, (0, 0, 0, indent)))
    else:
        page.print(" " * indent + text, soft_wrap=True)
