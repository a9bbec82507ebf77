"""Write the page of some runs: once, or again and again while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl4lm.errors import OutputError
from rl4lm.report.page import render
from rl4lm.report.payload import payload
from rl4lm.rundir import durable

COMPLETIONS = 100_000  # on a page that was asked for
AT_THE_END = 20_000  # on the one that a run makes by itself
EVERY_S = 10.0


def write_report(
    runs: Sequence[Path],
    out: Path,
    most: int = COMPLETIONS,
    refresh: float | None = None,
) -> dict[str, Any]:
    """Write the page, whole or not at all; returns what it shows.

    Raises:
        DataError: a directory holds no run.
        OutputError: the file cannot be written.
    """
    shown = payload(runs, most, refresh)
    names = [run["name"] for run in shown["runs"]]
    title = " and ".join(names) if len(names) < 4 else f"{len(names)} runs"
    try:
        durable.replace_text(out, render(shown, title))
    except OSError as error:
        raise OutputError(
            f"the report {str(out)!r} cannot be written: {error}; name another file with --out"
        ) from error
    return shown


def watch(
    runs: Sequence[Path],
    out: Path,
    most: int = COMPLETIONS,
    every_s: float = EVERY_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the page again and again until every run has ended.

    Args:
        runs: run directories.
        out: the page.
        most: completions on it.
        every_s: seconds between two.
        sleep: waits so long.
    """
    while True:
        shown = write_report(runs, out, most, refresh=every_s)
        if all(run["finished"] for run in shown["runs"]):
            return
        sleep(every_s)
