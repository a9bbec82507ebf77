"""Prompts in groups by a column of their rows, for a number each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_GROUPS = 12  # by value; beyond them numbers go by range, and words by what is common
OTHERS = "(others)"
_RANGES = 4
_LABEL = 40  # characters


def groups(values: Sequence[Any]) -> dict[str, list[int]]:
    """The places of the values, by group; a value that is None is in no group.

    Up to twelve distinct values are a group each, in order. More numbers, also those written as
    text, are cut into four ranges of about as many prompts, ``low to high``; of more words the
    eleven most common are a group each, and the rest together are ``(others)``.
    """
    labels = [None if value is None else _label(value) for value in values]
    numbers = [_number(value) for value in values]
    numeric = all((n is None) == (label is None) for n, label in zip(numbers, labels, strict=True))
    distinct = Counter(label for label in labels if label is not None)
    if len(distinct) > MOST_GROUPS and numeric:
        return _ranges(numbers)
    if len(distinct) <= MOST_GROUPS:
        order = sorted(distinct, key=float) if numeric else sorted(distinct)
        return _places(labels, order)
    kept = sorted(label for label, _ in distinct.most_common(MOST_GROUPS - 1))
    rest = [label if label is None or label in kept else OTHERS for label in labels]
    return _places(rest, [*kept, OTHERS])


def _label(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"


def _number(value: Any) -> float | None:
    """The value as a finite number; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _places(labels: Sequence[str | None], order: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {label: [] for label in order}
    for place, label in enumerate(labels):
        if label is not None:
            found[label].append(place)
    return found


def _ranges(numbers: Sequence[float | None]) -> dict[str, list[int]]:
    """Ranges between quantiles; each is named by the smallest and the largest number in it."""
    present = [number for number in numbers if number is not None]
    edges = np.quantile(present, np.arange(1, _RANGES) / _RANGES, method="inverted_cdf")
    parts: list[list[int]] = [[] for _ in range(_RANGES)]
    for place, number in enumerate(numbers):
        if number is not None:
            parts[int(np.searchsorted(edges, number))].append(place)
    found = {}
    for part in filter(None, parts):
        inside = [number for place in part if (number := numbers[place]) is not None]
        found[f"{min(inside):g} to {max(inside):g}"] = part
    return found
