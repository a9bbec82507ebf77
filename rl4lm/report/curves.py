"""Which curves a report draws, and the metrics of a run as columns."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl4lm.rules.findings import Row, number

_MOST_POINTS = 2000  # of a curve; more are averaged

SECONDS = ("sample", "score", "centre", "gradient", "reduce", "update", "idle")


@dataclass(frozen=True)
class Curve:
    """One figure: a title, the metrics in it, how numbers are written, and what to see in it."""

    title: str
    metrics: tuple[str, ...]  # names, or patterns of names
    note: str
    form: str = "number"  # or "percent"
    evaluations: bool = False  # of eval.jsonl instead of metrics.jsonl

    def to_dict(self, present: Sequence[str]) -> dict[str, Any]:
        """Plain values, with the patterns resolved among the metrics there are."""
        names = [
            name for pattern in self.metrics for name in present if fnmatch.fnmatch(name, pattern)
        ]
        return {
            "title": self.title,
            "metrics": list(dict.fromkeys(names)),
            "note": self.note,
            "form": self.form,
            "source": "evaluations" if self.evaluations else "steps",
        }


EACH_REWARD = "Each reward"

CURVES = (
    Curve("Reward", ("reward",), "mean over the completions of a step"),
    Curve(
        "Held-out accuracy",
        ("accuracy",),
        "greedy answers to prompts that are not trained on, with their interval",
        "percent",
        evaluations=True,
    ),
    Curve(EACH_REWARD, ("rewards/*/mean",), "mean of each function before its weight"),
    Curve("Completion length", ("completions/mean_length",), "tokens, the end token included"),
    Curve(
        "Truncated",
        ("completions/clipped_ratio",),
        "completions cut off by max_completion_length",
        "percent",
    ),
    Curve("Entropy", ("entropy",), "nats a token: how undecided the policy is"),
    Curve("Gradient norm", ("grad_norm",), "before it is scaled down to max_grad_norm"),
    Curve(
        "Signal to noise",
        ("gradient_snr",),
        "squared signal over squared noise of a step's gradient, measured every noise_every steps",
    ),
    Curve(
        "Variance reduction",
        ("variance_reduction",),
        "share of the gradient's variance that the baseline takes away; below 0 it adds noise",
        "percent",
    ),
    Curve(
        "Prompts without a signal",
        ("frac_reward_zero_std",),
        "prompts whose completions all earned the same",
        "percent",
    ),
    Curve("KL from the reference", ("kl",), "nats a token"),
    Curve("Learning rate", ("learning_rate",), "of the step"),
    Curve("Tokens per second", ("tokens_per_second",), "sampled tokens over the time of a step"),
)


def columns(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Rows of metrics as one list per metric that is ever a number, thinned where there are many.

    Returns:
        Name -> values in the order of the rows, None where a row has no finite number; several
        rows are averaged where there are more than a screen can show.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    width = -(-len(rows) // _MOST_POINTS)
    bins = [rows[k : k + width] for k in range(0, len(rows), width)] if width else []
    found = {name: [_average(part, name) for part in bins] for name in names}
    found = {name: values for name, values in found.items() if any(v is not None for v in values)}
    if "step" in found:  # a point stands where its last step does
        found["step"] = [number(part[-1].get("step")) for part in bins]
    return found


def _average(rows: Sequence[Row], name: str) -> float | None:
    values = [v for row in rows if (v := number(row.get(name))) is not None]
    return sum(values) / len(values) if values else None


def figures(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The curves that any of some runs has something for, in the order of `CURVES`.

    Args:
        runs: each with its columns under ``steps`` and ``evaluations``.
    """
    drawn = []
    for curve in CURVES:
        source = "evaluations" if curve.evaluations else "steps"
        present = dict.fromkeys(name for run in runs for name in run[source])
        drawn.append(curve.to_dict(list(present)))
    return [f for f in drawn if f["metrics"] and (f["title"] != EACH_REWARD or _several(f, runs))]


def _several(figure: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run has several functions: one alone is the reward, which has a figure already."""
    return any(sum(name in run["steps"] for name in figure["metrics"]) > 1 for run in runs)
