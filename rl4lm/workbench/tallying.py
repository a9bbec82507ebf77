"""What scored rows come to: means, quantiles, and how they agree with labels. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rl4lm.data.rowfile import Row

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MOST_VALUES = 12  # distinct ones that a histogram counts apart
_BINS = 10
_TRUE = (True, "true", "True", "1", "yes")
_FALSE = (False, "false", "False", "0", "no")


def summarize_scores(scored: Sequence[Row]) -> dict[str, Any]:
    """Rows, how many the reward applied to, and mean, spread, range and histogram of those."""
    values = [row["reward"] for row in scored if row["reward"] is not None]
    none = len(scored) - len(values)
    return {
        "rows": len(scored),
        "scored": len(values),
        "none": none,
        "none_share": none / len(scored) if scored else 0.0,
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
        "quantiles": {f"p{100 * q:02.0f}": quantile(values, q) for q in _QUANTILES},
        "histogram": histogram(values),
    }


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that `share` of the values do not exceed, one that occurs; None of no values."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def histogram(values: Sequence[float]) -> list[dict[str, float]]:
    """How often each value occurs; where there are many, how many lie in each of ten equal bins.

    Returns:
        Rows ``{"from", "to", "count"}``, ascending; `to` is `from` where a value is counted, and
        else it belongs to the next bin, but in the last one.
    """
    counts = Counter(values)
    if len(counts) <= _MOST_VALUES:
        return [{"from": v, "to": v, "count": n} for v, n in sorted(counts.items())]
    low, high = min(values), max(values)
    edges = [low + (high - low) * i / _BINS for i in range(_BINS)] + [high]
    places = [min(int((v - low) / (high - low) * _BINS), _BINS - 1) for v in values]
    binned = Counter(places)
    return [{"from": edges[i], "to": edges[i + 1], "count": binned[i]} for i in range(_BINS)]


def latencies(seconds: Sequence[float]) -> dict[str, float | None]:
    """Percentiles of times."""
    named = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: quantile(seconds, share) for name, share in named.items()}


def read_label(value: Any) -> bool | None:
    """Whether a label says right or wrong; None where it is empty.

    Raises:
        ValueError: it is nothing of the kind.
    """
    if value is None or value == "":
        return None
    for meant, spellings in ((True, _TRUE), (False, _FALSE)):
        if value in spellings:  # 1 and 1.0 are True, 0 and 0.0 False
            return meant
    raise ValueError(value)


def compare_with_labels(
    scored: Sequence[Row], label: str, threshold: float
) -> tuple[dict[str, Any], list[bool | None]]:
    """How far rewards and labels agree, where a reward of `threshold` or more says right.

    Args:
        scored: rows with `reward`, and with the column `label`.
        label: column with true or false, 1 or 0; empty in rows that have none.
        threshold: as said.

    Returns:
        The four counts of the confusion matrix, ``precision = TP / (TP + FP)``, ``recall = TP /
        (TP + FN)``, ``agreement = (TP + TN) / all``, each None where it divides by nothing; and for
        every row whether the two agree, None where it has no label or no reward.

    Raises:
        ValueError: a label is neither true nor false.
    """
    pairs = [(read_label(row.get(label)), row["reward"]) for row in scored]
    judged = [(a, b >= threshold) for a, b in pairs if a is not None and b is not None]
    counts = Counter(judged)
    right, caught = counts[True, True], counts[True, True] + counts[False, True]
    return {
        "label": label,
        "threshold": threshold,
        "true_positive": right,
        "false_positive": counts[False, True],
        "false_negative": counts[True, False],
        "true_negative": counts[False, False],
        "unlabelled": sum(a is None for a, _ in pairs),
        "unscored": sum(a is not None and b is None for a, b in pairs),
        "precision": _share(right, caught),
        "recall": _share(right, right + counts[True, False]),
        "agreement": _share(right + counts[False, False], len(judged)),
    }, [None if a is None or b is None else a == (b >= threshold) for a, b in pairs]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
