"""What is compared by `verify`, and what a difference must not exceed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl4lm.exact.steps import Batches, Draws

LIMIT = 1e-9  # relative error that float64 rounding stays far below
_LEAST_P = 1e-6  # of the chi-square test
_MOST_Z = 5.0  # standard errors that a mean may be off


@dataclass(frozen=True)
class Check:
    """One comparison: what was found, and what it must not exceed (or, for p, fall below)."""

    name: str
    value: float
    limit: float
    passed: bool


def at_most(name: str, value: float, limit: float = LIMIT) -> Check:
    """Passed where the value does not exceed the limit; nan passes nothing."""
    return Check(name, value, limit, value <= limit)


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())


def check_batches(batches: Batches, stated: Tensor, spread: float) -> Iterator[Check]:
    """That each step is as predicted, and that their mean is the stated gradient.

    Along that gradient the standard deviation of a step is `spread`, exactly: one that is estimated
    from so few steps can be far too small.
    """
    usual = float(batches.predicted.norm(dim=1).square().mean().sqrt())
    worst = float((batches.found - batches.predicted).norm(dim=1).max()) / usual
    yield at_most(f"{len(batches.found)} whole batches through the step", worst)
    if batches.later:
        gaps = [float((a - b).norm() / b.norm().clamp(min=usual / 100)) for a, b in batches.later]
        yield at_most(f"{len(gaps)} second updates, clipped", _largest(gaps))
    along = (batches.found - stated) @ (stated / stated.norm())  # [K]
    z = abs(float(along.mean())) / spread * math.sqrt(len(along)) if spread else math.inf
    yield at_most("mean of these steps, standard errors off", z, _MOST_Z)


def check_sampler(draws: Sequence[Draws]) -> Iterator[Check]:
    """That completions come as often as π says, with the log-probs that they have."""
    yield at_most("log-probs at sampling time", _largest([d.gap for d in draws]))
    least = -_largest([-chi_square(drawn.completions, drawn.probability) for drawn in draws])
    yield Check("chi-square of the sampler, p", least, _LEAST_P, least >= _LEAST_P)


def chi_square(drawn: Tensor, probability: Tensor) -> float:
    """Pearson's test of draws [m] of 0 … n-1 against their probabilities [n]: the p-value."""
    expected = probability * len(drawn)
    counts = torch.bincount(drawn, minlength=len(probability)).double()
    rare = expected < 5  # put together, since the test is one of large counts
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    statistic = ((counts - expected).square() / expected.clamp(min=1e-300)).sum()
    return float(
        torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2)
    )


def _largest(values: Sequence[float]) -> float:
    """The largest value, or nan where one is: Python's max may pass over it."""
    return float(torch.tensor(values, dtype=torch.float64).max())
