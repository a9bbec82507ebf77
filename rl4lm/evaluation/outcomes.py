"""From the completions of an evaluation to a value for each prompt, and from those to numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl4lm.evaluation.estimates import mean_interval, pass_at_k
from rl4lm.evaluation.grouping import groups

Record = Mapping[str, Any]  # of a completion, see `rl4lm.evaluation.evaluate`
Outcomes = Mapping[str, Sequence[float]]  # name -> a value for each prompt

ACCURACY = "accuracy"
SAMPLED = "sampled/"  # before the name of what is told of completions drawn by chance


def in_order(records: Sequence[Record]) -> list[Record]:
    """Greedy ones first, then by prompt and sample, however the processes had dealt them."""
    return sorted(records, key=lambda r: (not r["greedy"], r["place"], r["sample"]))


def outcomes(
    records: Sequence[Record], prompts: int, ks: Sequence[int], threshold: float
) -> dict[str, list[float]]:
    """What came of each prompt.

    Args:
        records: of all completions, in order.
        prompts: how many there are; a record's place is below it.
        ks: for pass@k, each at most the completions by chance of a prompt.
        threshold: a completion passes with this score or more: its accuracy, or its reward where
            the rows have no answers.

    Returns:
        Name -> a value for each prompt, nan where it does not apply: ``reward``, ``accuracy``,
        ``metrics/<name>`` of the greedy completion; with completions by chance ``pass@<k>``, and
        ``sampled/<name>`` for the mean of each of these. ``accuracy`` is left out where it applies
        to no prompt.
    """
    found: dict[str, list[float]] = {}
    for prefix, greedy in (("", True), (SAMPLED, False)):
        drawn = [record for record in records if record["greedy"] is greedy]
        if not drawn:
            continue
        by_prompt = {prefix + name: _per_prompt(drawn, name, prompts) for name in _names(drawn)}
        found |= {name: [_mean(values) for values in rows] for name, rows in by_prompt.items()}
        if not greedy:
            scores = by_prompt.get(prefix + ACCURACY, by_prompt[prefix + "reward"])
            found |= {f"pass@{k}": [_pass_at_k(s, k, threshold) for s in scores] for k in ks}
    return found


def _names(records: Sequence[Record]) -> list[str]:
    """What is told of each completion; an accuracy that applies to none is left out."""
    names = ["reward", *records[0]["metrics"]]
    applies = any(not math.isnan(r["metrics"].get(ACCURACY, math.nan)) for r in records)
    return [name for name in names if name != ACCURACY or applies]


def _per_prompt(records: Sequence[Record], name: str, prompts: int) -> list[list[float]]:
    """The values of the completions of each prompt to which it applies."""
    rows: list[list[float]] = [[] for _ in range(prompts)]
    for record in records:
        value = record["reward"] if name == "reward" else record["metrics"][name]
        if not math.isnan(value):
            rows[record["place"]].append(value)
    return rows


def _pass_at_k(scores: Sequence[float], k: int, threshold: float) -> float:
    """pass@k of one prompt; nan where it has fewer than k scores."""
    if len(scores) < k:
        return math.nan
    return pass_at_k(sum(score >= threshold for score in scores), len(scores), k)


def summarize(
    records: Sequence[Record],
    values: Outcomes,
    columns: Mapping[str, Sequence[Any]],
    confidence: float,
    seed: int,
) -> dict[str, float]:
    """The numbers of an evaluation.

    Args:
        records: of all completions.
        values: their `outcomes`.
        columns: what the names of a column's groups begin with -> its value for each prompt.
        confidence: of the intervals.
        seed: of their resamples.

    Returns:
        ``samples`` (prompts), ``ended`` (share), ``mean_length`` (tokens) and
        ``rewards/<name>/mean`` of the greedy completions; for every outcome its mean, with
        ``<outcome>_low``, ``_high`` and ``_stderr``; ``samples/<group>`` and ``<outcome>/<group>``
        with ``_low`` and ``_high`` for each group of a column; of completions by chance
        ``sampled/ended``, ``sampled/mean_length`` and ``sampled/completions`` (of each prompt);
        ``confidence``.
    """
    greedy = [record for record in records if record["greedy"]]
    drawn = [record for record in records if not record["greedy"]]
    result = {"samples": float(len(greedy)), **_rewards(greedy)}
    for name, outcome in values.items():
        result |= _told(name, outcome, confidence, seed)
        result[f"{name}_stderr"] = _standard_error(outcome)
    result |= _by_group(values, columns, confidence, seed) | _shapes("", greedy)
    if drawn:
        result |= _shapes(SAMPLED, drawn)
        result[f"{SAMPLED}completions"] = len(drawn) / len(greedy)
    return {**result, "confidence": confidence}


def _rewards(records: Sequence[Record]) -> dict[str, float]:
    """The mean of each reward over the completions that it applies to."""
    earned = {name: [r["rewards"][name] for r in records] for name in records[0]["rewards"]}
    return {
        f"rewards/{name}/mean": _mean([v for v in values if not math.isnan(v)])
        for name, values in earned.items()
    }


def _shapes(prefix: str, records: Sequence[Record]) -> dict[str, float]:
    """How many completions ended, and their length."""
    return {
        f"{prefix}ended": _mean([float(r["ended"]) for r in records]),
        f"{prefix}mean_length": _mean([float(len(r["completion_ids"])) for r in records]),
    }


def _by_group(
    values: Outcomes, columns: Mapping[str, Sequence[Any]], confidence: float, seed: int
) -> dict[str, float]:
    """The outcomes of the prompts of each group of a column; sampled ones are told as pass@k."""
    result: dict[str, float] = {}
    told = {name: each for name, each in values.items() if not name.startswith(SAMPLED)}
    for label, places in _grouped(columns).items():
        result[f"samples/{label}"] = float(len(places))
        for name, outcome in told.items():
            inside = [outcome[place] for place in places]
            result |= _told(f"{name}/{label}", inside, confidence, seed)
    return result


def _grouped(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[int]]:
    """The places of the prompts of each group, under its name."""
    return {
        prefix + label: places
        for prefix, values in columns.items()
        for label, places in groups(values).items()
    }


def _told(name: str, values: Sequence[float], confidence: float, seed: int) -> dict[str, float]:
    """Mean and interval of the values that apply."""
    present = [value for value in values if not math.isnan(value)]
    interval = mean_interval(present, confidence, seed)
    return {name: _mean(present), f"{name}_low": interval.low, f"{name}_high": interval.high}


def _standard_error(values: Sequence[float]) -> float:
    """The spread of the values over the root of their number; of a share p, √(p(1-p)/n)."""
    present = [value for value in values if not math.isnan(value)]
    return float(np.std(present)) / math.sqrt(len(present)) if present else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
