"""What a page shows of some runs, as plain values."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl4lm.config import OPTIONS
from rl4lm.report.completions import read_completions
from rl4lm.report.curves import SECONDS, columns, figures
from rl4lm.report.headline import headline, numbers
from rl4lm.rules.diagnosis import examine
from rl4lm.rules.findings import Row, RunLog, number
from rl4lm.rundir.runlog import read_run

_INVOCATION = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "resume_anyway")


def payload(runs: Sequence[Path], most: int, refresh: float | None = None) -> dict[str, Any]:
    """Everything that a page shows.

    Args:
        runs: run directories.
        most: completions on the page, over all runs.
        refresh: seconds after which the page reads itself again; None means never.

    Raises:
        DataError: a directory holds no run.
    """
    logs = [read_run(run) for run in runs]
    names = _names(runs)
    shown = [
        _run(run, name, log, most // len(runs))
        for run, name, log in zip(runs, names, logs, strict=True)
    ]
    return {
        "runs": shown,
        "figures": figures(shown),
        "seconds": list(SECONDS),
        "options": _options([log.config for log in logs]),
        "refresh": refresh,
    }


def _names(runs: Sequence[Path]) -> list[str]:
    """The last folder of each run, or as much of its path as tells it from the others."""
    parts = [run.resolve().parts for run in runs]
    depth = 1
    while depth < max(map(len, parts)) and len({each[-depth:] for each in parts}) < len(parts):
        depth += 1
    return ["/".join(each[-depth:]) for each in parts]


def _run(run: Path, name: str, log: RunLog, most: int) -> dict[str, Any]:
    diagnosis = examine(log)
    summary = _summary(run)
    return {
        "name": name,
        "quoted": shlex.quote(str(run)),
        "finished": log.finished,
        "headline": headline(log, summary),
        "facts": _facts(log, summary),
        "steps": columns(log.steps),
        "evaluations": columns([numbers(row) for row in log.evaluations]),
        "findings": [found.to_dict() for found in diagnosis.findings],
        "checked": list(diagnosis.checked),
        "damage": list(log.damage),
        "completions": read_completions(run, log.config, most),
    }


def _facts(log: RunLog, summary: Mapping[str, Any]) -> str:
    """What the run cost, and on what it ran."""
    told = [f"{log.last_step:,} steps"]
    samples, seconds = number(summary.get("samples")), number(summary.get("train_seconds"))
    memory = number(summary.get("peak_memory_bytes"))
    if samples:
        told.append(f"{samples:,.0f} completions")
    if seconds:
        told.append(
            f"{seconds:,.0f} s of training"
            if seconds < 600
            else f"{seconds / 60:,.0f} min of training"
        )
    if memory:
        told.append(f"{memory / 1e6:,.0f} MB at most")
    processes, device = log.layout.get("processes"), log.layout.get("device")
    if processes and device:
        told.append(f"{processes} process{'es' if str(processes) != '1' else ''} on {device}")
    return ", ".join(told)


def _summary(run: Path) -> dict[str, Any]:
    try:
        found = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run that goes on has none; damage is the doctor's to name
        return {}
    return found if isinstance(found, dict) else {}


def _options(configs: Sequence[Row]) -> list[dict[str, Any]]:
    """Every option with its value in each run, and whether it differs: between them, or from
    the default where there is one run."""
    names = [*OPTIONS, *dict.fromkeys(n for config in configs for n in config if n not in OPTIONS)]
    rows = []
    for name in names:
        default = OPTIONS[name].default if name in OPTIONS else None
        values = [config.get(name, default) for config in configs]
        compared = values if len(values) > 1 else [*values, default]
        differs = any(value != compared[0] for value in compared)
        rows.append(
            {
                "name": name,
                "values": [_shown(value) for value in values],
                "default": _shown(default),
                "differs": differs and name not in _INVOCATION,
            }
        )
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return str(value)
