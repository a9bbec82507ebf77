"""Before and after: the first evaluation of a run beside its last one, as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl4lm.rules.findings import Row, RunLog, number
from rl4lm.screen.wording import interval_of, value_rows

_WIDE = 1.96  # standard errors on either side that hold the truth 95 times in 100


def headline(log: RunLog, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first evaluation beside the last one: exact matches where there are any, else reward.

    Args:
        log: of the run.
        summary: its `summary.json`, empty where it has none yet.

    Returns:
        None where nothing was evaluated. ``before`` and ``after`` as numbers to be written in
        ``form``; ``said``: what they are; ``rows``: a label and both values, in words, of every
        metric that a person would ask for. Before is null where there is one evaluation.
    """
    if not log.evaluations:
        return None
    first, last = numbers(log.evaluations[0]), numbers(log.evaluations[-1])
    one = len(log.evaluations) == 1
    metric = "accuracy" if "accuracy" in last else "reward"
    return {
        "form": "percent" if metric == "accuracy" else "number",
        "before": None if one else first.get(metric),
        "after": last.get(metric),
        "said": _said(metric, first, last, log, summary),
        "rows": [
            {"label": label.strip(), "before": None if one else before, "after": after}
            for _, label, (before, after) in value_rows(first, last)
        ],
    }


def numbers(row: Row) -> dict[str, float]:
    """The finite numbers of an evaluation, and bounds of its accuracy where none are logged."""
    found = {name: value for name in row if (value := number(row[name])) is not None}
    if "accuracy_low" in found or not {"accuracy", "accuracy_stderr"} <= found.keys():
        return found
    share, width = found["accuracy"], _WIDE * found["accuracy_stderr"]
    bounds = {"accuracy_low": max(0.0, share - width), "accuracy_high": min(1.0, share + width)}
    return found | bounds


def _said(
    metric: str,
    first: Mapping[str, float],
    last: Mapping[str, float],
    log: RunLog,
    summary: Mapping[str, Any],
) -> str:
    """What the two numbers are, and how sure they are."""
    what = "greedy answers that are right" if metric == "accuracy" else "mean reward, greedy"
    held_out = summary.get("eval_on") != "train"
    where = "held-out prompts" if held_out else "training prompts, since there is no held-out split"
    told = f"{what}, on {last.get('samples', 0):.0f} {where}"
    bounds = [interval_of(metric, each) for each in ([first, last] if first != last else [last])]
    if all(bounds):
        unit = " %" if metric == "accuracy" else ""
        told += "; 95 % intervals " + " → ".join(each + unit for each in bounds)
    if not log.finished:
        step = last.get("step", 0)
        told += f"; the run has not ended, the last evaluation is of step {step:.0f}"
    return told
