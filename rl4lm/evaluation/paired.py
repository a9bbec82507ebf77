"""Two sets of completions of the same prompts: how far apart they are, and whether by chance.

Each prompt is its own comparison, so that how hard it is drops out. Pure functions of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rl4lm.evaluation.estimates import Interval, Values, bootstrap_interval, normal_quantile

FLIPS = 20000  # random signs of the differences
_ALL_SIGNS = 12  # differences whose signs are gone through one by one
_AT_ONCE = 2**22  # signs held at once
_ROUNDING = 1e-12  # sums within this, relatively, count as equal


@dataclass(frozen=True)
class Comparison:
    """What is known of a difference over the same prompts."""

    prompts: int  # that have a value on both sides
    difference: float  # mean of first - second
    low: float
    high: float
    p_value: float  # chance of a difference at least as large, were there none
    test: str  # "mcnemar" or "sign_flips"
    only_first: int  # prompts on which the first is better
    only_second: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(
    first: Sequence[float], second: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Compare two values of each prompt; prompts where either is nan are left out.

    Outcomes of 0 and 1: McNemar's test, exact, and Bonett and Price's interval. Others: the
    permutation test that flips the signs of the differences, and the bootstrap over them.

    Args:
        first: a value for each prompt.
        second: a value for each of the same prompts, in the same order.
        confidence: of the interval, within (0, 1).
        seed: of the resamples and flips.

    Raises:
        ValueError: not as many values.
    """
    pair = np.asarray([first, second], dtype=np.float64)  # [2, prompts]
    pair = pair[:, ~np.isnan(pair).any(axis=0)]
    off = pair[0] - pair[1]
    better, worse = int((off > 0).sum()), int((off < 0).sum())
    counts = {"prompts": len(off), "only_first": better, "only_second": worse}
    if len(off) == 0:
        nan = math.nan
        return Comparison(difference=nan, low=nan, high=nan, p_value=nan, test="none", **counts)
    if np.isin(pair, (0.0, 1.0)).all():
        interval, test = _share_difference(better, worse, len(off), confidence), "mcnemar"
        p_value = mcnemar(better, worse)
    else:
        interval, test = bootstrap_interval(off, confidence, seed), "sign_flips"
        p_value = sign_flips(off, seed)
    return Comparison(
        difference=float(off.mean()),
        low=interval.low,
        high=interval.high,
        p_value=p_value,
        test=test,
        **counts,
    )


def compare_all(
    first: Mapping[str, Sequence[float]],
    second: Mapping[str, Sequence[float]],
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """`compare` of every outcome that both sides have for the same number of prompts."""
    return {
        name: compare(values, second[name], confidence, seed)
        for name, values in first.items()
        if len(values) == len(second.get(name, ()))
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact p-value of McNemar's test: of the prompts that only one side solves, are half each?

    ``min(1, 2 P(X ≤ min(b, c)))`` with X binomial of b + c prompts at one half (McNemar, "Note on
    the sampling error of the difference between correlated proportions", Psychometrika 1947).
    """
    both = only_first + only_second
    term, ways = 1, 0
    for i in range(min(only_first, only_second) + 1):
        ways += term
        term = term * (both - i) // (i + 1)  # C(both, i + 1)
    return float(min(1.0, 2 * ways / 2**both))


def sign_flips(differences: Values, seed: int) -> float:
    """The p-value of the permutation test that gives every difference a random sign.

    Were the two sides alike, first and second could be swapped on any prompt (Fisher, "The Design
    of Experiments", 1935). All signs are gone through for up to 12 differences; else 20,000 draws
    and the sample itself are counted, so that no p-value is 0 (Phipson and Smyth, 2010).
    """
    size = np.abs(differences[differences != 0.0])
    found = abs(float(differences.sum())) - _ROUNDING * float(size.sum())
    if len(size) == 0:
        return 1.0
    if len(size) <= _ALL_SIGNS:
        places = np.arange(2 ** len(size))[:, None] >> np.arange(len(size))
        return float((np.abs((1 - 2 * (places & 1)) @ size) >= found).mean())
    generator = np.random.Generator(np.random.Philox(seed))
    as_far, most = 1, max(1, _AT_ONCE // len(size))
    for start in range(0, FLIPS, most):
        signs = generator.integers(0, 2, (min(most, FLIPS - start), len(size)), dtype=np.int8)
        as_far += int((np.abs((1.0 - 2.0 * signs) @ size) >= found).sum())
    return as_far / (FLIPS + 1)


def _share_difference(better: int, worse: int, count: int, confidence: float) -> Interval:
    """The adjusted interval of a difference of paired shares, one more prompt of either kind.

    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", J. Educ. Behav. Stat. 2012.
    """
    gain, loss = (better + 1) / (count + 2), (worse + 1) / (count + 2)
    centre = gain - loss
    half = normal_quantile(confidence) * math.sqrt((gain + loss - centre**2) / (count + 2))
    return Interval(max(-1.0, centre - half), min(1.0, centre + half))
