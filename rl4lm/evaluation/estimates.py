"""What some completions of some prompts say of all: pass@k, means, and how far off they may be.

The unit is the prompt: completions of one prompt are alike, so that it is prompts that are drawn
again, never completions. Pure functions of numbers; what they draw depends on a seed alone. How
often the intervals hold the truth is simulated in `tests/test_estimates.py` and told in
docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

RESAMPLES = 4000
_AT_ONCE = 2**22  # numbers of a table of resamples that are held at once
_FEW = 10  # prompts off a bound of [0, 1], below which resampling them says too little


class Interval(NamedTuple):
    """Where a mean may lie; both nan where the values do not tell."""

    low: float
    high: float


def pass_at_k(passed: int, drawn: int, k: int) -> float:
    """The chance that k completions of a prompt hold one that passes, from `drawn` ≥ k of them.

    ``1 - C(n-c, k) / C(n, k) = 1 - Π_{i=n-c+1}^{n} (1 - k/i)`` with c of n passed: the mean over
    all subsets of k of the n, hence unbiased, and computed without a factorial (Chen et al.,
    "Evaluating Large Language Models Trained on Code", 2021, equation 1).

    Raises:
        ValueError: not 0 ≤ passed ≤ drawn, or not 1 ≤ k ≤ drawn.
    """
    if not (0 <= passed <= drawn and 1 <= k <= drawn):
        raise ValueError(
            f"passed={passed} of drawn={drawn} with k={k}: 0 <= passed <= drawn and "
            "1 <= k <= drawn are needed; draw at least k completions of each prompt"
        )
    if drawn - passed < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(drawn - passed + 1, drawn + 1)))


def mean_interval(values: ArrayLike, confidence: float = 0.95, seed: int = 0) -> Interval:
    """A confidence interval for the mean of what the values, one for each prompt, are drawn from.

    Outcomes of 0 and 1 have Wilson's score interval, which needs no spread to be seen. So have
    values within [0, 1] of which fewer than ten are off 0, or off 1: their variance is at most that
    of outcomes with the same mean, and too few differ for resampling. All others have the bootstrap
    over prompts of `bootstrap_interval`.

    Args:
        values: one for each prompt, none of them nan.
        confidence: share of such intervals that hold the truth, within (0, 1).
        seed: of the resamples.

    Returns:
        The interval; both ends nan where there are no values, or where all are equal and not
        within [0, 1].
    """
    table = np.asarray(values, dtype=np.float64)
    if len(table) == 0:
        return Interval(math.nan, math.nan)
    shares = bool(table.min() >= 0.0 and table.max() <= 1.0)
    if shares and min((table != 0.0).sum(), (table != 1.0).sum()) < _FEW:
        return wilson(float(table.sum()), len(table), confidence)
    if shares and np.isin(table, (0.0, 1.0)).all():
        return wilson(float(table.sum()), len(table), confidence)
    return bootstrap_interval(table, confidence, seed)


def wilson(passed: float, count: int, confidence: float) -> Interval:
    """The score interval of a share (Wilson, "Probable inference", JASA 1927).

    ``(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)`` with p = passed / count.
    """
    z, p = normal_quantile(confidence), passed / count
    scale = 1.0 + z * z / count
    centre = (p + z * z / (2 * count)) / scale
    half = z * math.sqrt(max(p * (1.0 - p), 0.0) / count + z * z / (4 * count * count)) / scale
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def normal_quantile(confidence: float) -> float:
    """How many standard errors hold a share of a normal distribution, on both sides."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def resampled_means(values: Values, seed: int) -> Values:
    """The means of `RESAMPLES` bootstrap samples of the values, float64 [RESAMPLES].

    Drawn as how often each distinct value comes up, which is the same and quicker where there are
    few of them.
    """
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.Generator(np.random.Philox(seed))
    size = len(values)
    shares = counts / size
    parts = [generator.multinomial(size, shares, rows) @ distinct for rows in _rows(len(distinct))]
    return np.asarray(np.concatenate(parts) / size, dtype=np.float64)


def _rows(width: int) -> Iterator[int]:
    """How many resamples to draw at once."""
    most = max(1, _AT_ONCE // width)
    for start in range(0, RESAMPLES, most):
        yield min(most, RESAMPLES - start)


def bootstrap_interval(values: Values, confidence: float, seed: int) -> Interval:
    """The BCa interval of a mean (Efron, "Better bootstrap confidence intervals", JASA 1987).

    Its normal quantile is widened for small samples, ``√(n/(n-1)) t_{n-1}`` in the place of z: the
    spread of a sample is too small, and is estimated (Hesterberg, "What teachers should know about
    the bootstrap", 2015). Both ends are nan where all values are equal.
    """
    if values.min() == values.max():
        return Interval(math.nan, math.nan)
    normal, size = NormalDist(), len(values)
    mean = float(values.mean())
    means = resampled_means(values, seed)
    below = float((means < mean).mean() + (means == mean).mean() / 2)
    bias = normal.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    off = values - mean
    acceleration = float((off**3).sum() / (6 * (off**2).sum() ** 1.5))
    wide = math.sqrt(size / (size - 1)) * _t_quantile(normal_quantile(confidence), size - 1)
    ends = []
    for z in (-wide, wide):
        bend = max(1.0 - acceleration * (bias + z), 1e-3)  # a skew that turns it round ends there
        ends.append(normal.cdf(bias + (bias + z) / bend))
    low, high = np.quantile(means, ends)
    return Interval(float(low), float(high))


def _t_quantile(z: float, degrees: int) -> float:
    """Student's quantile from the normal one, by the first terms in 1/degrees.

    Abramowitz and Stegun 26.7.5; from 9 degrees on, the error at 95 % is below 1e-4.
    """
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
