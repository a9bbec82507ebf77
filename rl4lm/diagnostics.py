"""How good the signal of a step is: numbers that tell a right gradient from a useful one.

Each process counts on its own completions; `Tally` says how the counts of several are put together.
None means that a number is not defined for this step; nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl4lm.estimator.importance import clipped_completions, importance_ratio
from rl4lm.estimator.kl import k1, k3
from rl4lm.rules.update import EXPECTED_GAPS
from rl4lm.types import Experience, Rollout

Numbers = Mapping[str, float]

_MEASURED_ELEMENTS = 2**26  # gradient entries that are kept a second time to measure the noise


@dataclass(frozen=True)
class Tally:
    """Numbers of one process that are added up, or of which the largest counts, over all."""

    sums: Numbers
    largest: Numbers

    def __or__(self, other: Tally) -> Tally:
        """Both together; they share no names."""
        return Tally({**self.sums, **other.sums}, {**self.largest, **other.largest})


def combine(tally: Tally, gathered: Tensor) -> dict[str, float]:
    """The numbers of all processes: `gathered` [W, n] holds a row `as_row` of each."""
    sums, largest = gathered.split([len(tally.sums), len(tally.largest)], dim=1)
    return {
        **dict(zip(tally.sums, sums.sum(dim=0).tolist(), strict=True)),
        **dict(zip(tally.largest, largest.amax(dim=0).tolist(), strict=True)),
    }


def as_row(tally: Tally) -> Tensor:
    """The numbers of this process, float64 [1, n]."""
    values = [*tally.sums.values(), *tally.largest.values()]
    return torch.tensor([values], dtype=torch.float64)


def tally_advantages(e: Experience) -> Tally:
    """Completions that have any advantage."""
    per_token = e.advantages if e.advantages.dim() == 2 else e.advantages[:, None]
    live = (per_token.ne(0) & e.rollout.completion_mask).any(dim=1)
    return Tally({"live": float(live.sum())}, {})


def tally_gap(rollout: Rollout, logprobs: Tensor) -> Tally:
    """|sampling log-prob - training log-prob| over the tokens met.

    Args:
        rollout: with the log-probs at sampling time.
        logprobs: [B, T] of the training pass, nan on completions that were not run.
    """
    gaps = (rollout.sampling_logprobs - logprobs).abs()[rollout.completion_mask]
    met = gaps[~gaps.isnan()]
    return Tally(
        {"gap": float(met.sum()), "gap_tokens": float(len(met))},
        {"gap_max": float(met.max()) if len(met) else 0.0},
    )


def tally_kl(e: Experience) -> Tally:
    """Estimates of the KL divergence to the reference, of the policy that sampled."""
    mask, policy = e.rollout.completion_mask, e.policy_logprobs.double()
    reference = e.reference_logprobs.double()
    return Tally(
        {
            "kl_k3": float(k3(policy, reference, mask).sum()),
            "kl_k1": float(k1(policy, reference, mask).sum()),
            "kl_tokens": float(mask.sum()),
        },
        {},
    )


def tally_ratios(e: Experience, logprobs: Tensor, epsilon: float) -> Tally:
    """Importance ratios before any clipping, and which completions the clip would drop."""
    mask = e.rollout.completion_mask
    ratio = importance_ratio(logprobs.double(), e.rollout.sampling_logprobs.double(), mask)
    low, high = clipped_completions(ratio, e.advantages, mask, epsilon)
    return Tally(
        {
            "ratio": float(ratio.sum()),
            "clip_low": float(low.sum()),
            "clip_high": float(high.sum()),
        },
        {"ratio_max": float(ratio.max()), "minus_ratio_min": -float(ratio.min())},
    )


def tally_busy(seconds: Numbers) -> Tally:
    """How long this process was at work before it met the others, in each half of a step.

    Args:
        seconds: of the parts of the step so far, by the names of the log.
    """
    gathering = ("time/sample_s", "time/score_s")
    busy = {
        "busy_gathering": sum(seconds.get(name, 0.0) for name in gathering),
        "busy_gradient": seconds.get("time/gradient_s", 0.0),
    }
    return Tally(busy, {f"{name}_most": value for name, value in busy.items()})


def idle_seconds(numbers: Numbers, processes: int) -> float:
    """For how long a process waited for the slowest one in a step, in the mean over all of them."""
    halves_of_a_step = ("busy_gathering", "busy_gradient")
    return sum(numbers[f"{name}_most"] - numbers[name] / processes for name in halves_of_a_step)


def tally_other_policy(e: Experience, logprobs: Tensor) -> Tally:
    """How far the policy is from another one that drew, and what it would have earned itself.

    Args:
        e: its rollout has the log-probs of the policy that drew; counted beside `tally_ratios`.
        logprobs: [B, T] of the policy that is trained.
    """
    mask, sampling = e.rollout.completion_mask, e.rollout.sampling_logprobs.double()
    log_ratios = k1(logprobs.double(), sampling, mask)
    ratio = importance_ratio(logprobs.double(), sampling, mask)
    applies = e.scores.valid.flatten()
    return Tally(
        {
            "ratio_squares": float(ratio.square().sum()),
            "minus_log_ratio": -float(log_ratios.sum()),
            "weighted_reward": float((ratio * e.scores.rewards.flatten())[applies].sum()),
            "rewarded_ratio": float(ratio[applies].sum()),
        },
        {},
    )


def signal_metrics(numbers: Numbers, completions: int) -> dict[str, float | None]:
    """What the tallies of all processes say, under the names of the log.

    Args:
        numbers: of `combine`; the KL's and the ratio's are there where they were counted.
        completions: N, of the whole step.
    """
    metrics: dict[str, float | None] = {
        "effective_samples": numbers["live"],
        "effective_share": numbers["live"] / completions,
    }
    if "gap" in numbers:
        tokens = numbers["gap_tokens"]
        metrics["sampler_gap_mean"] = numbers["gap"] / tokens if tokens else None
        metrics["sampler_gap_max"] = numbers["gap_max"] if tokens else None
    if "kl_k3" in numbers:
        metrics["kl"] = numbers["kl_k3"] / numbers["kl_tokens"]
        metrics["kl_sequence"] = numbers["kl_k1"] / completions
    if "ratio" in numbers:
        low, high = numbers["clip_low"] / completions, numbers["clip_high"] / completions
        metrics |= {
            "importance_ratio/mean": numbers["ratio"] / completions,
            "importance_ratio/min": -numbers["minus_ratio_min"],
            "importance_ratio/max": numbers["ratio_max"],
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low + high,
        }
    if "ratio_squares" in numbers:
        share = _quotient(numbers["ratio"] ** 2, completions * numbers["ratio_squares"])
        reward = _quotient(numbers["weighted_reward"], numbers["rewarded_ratio"])
        metrics["importance_ratio/kl"] = numbers["minus_log_ratio"] / completions
        metrics["importance_ratio/effective_share"] = share  # of Kish
        metrics["importance_ratio/reward"] = reward
    return metrics


def _quotient(above: float, below: float) -> float | None:
    """None where it is not defined, or where ratios have overflowed."""
    return above / below if 0.0 < below < math.inf else None


def gap_is_suspicious(metrics: Mapping[str, float | None], dtype: torch.dtype) -> bool:
    """Whether the sampler gap is larger than rounding in this dtype explains."""
    mean, largest = metrics.get("sampler_gap_mean"), metrics.get("sampler_gap_max")
    name = str(dtype).removeprefix("torch.")
    expected_mean, expected_max = EXPECTED_GAPS.get(name, EXPECTED_GAPS["bfloat16"])
    if mean is None or largest is None:
        return False
    return not (mean <= expected_mean and largest <= expected_max)


def halves(places: Sequence[int], generations: int) -> Tensor:
    """bool [B], True on the completions of every other prompt of the step's global list."""
    return (torch.tensor(places) % 2 == 0).repeat_interleave(generations)


def measured_tensors(sizes: Sequence[int]) -> list[int]:
    """Which tensors' gradients are kept to measure the noise: all, or an even choice that fits.

    Args:
        sizes: elements of each trainable tensor, in order.

    Returns:
        Their indices, ascending.
    """
    if sum(sizes) <= _MEASURED_ELEMENTS:
        return list(range(len(sizes)))
    chosen: list[int] = []
    room = _MEASURED_ELEMENTS
    # Bit-reversed order spreads the choice over the depth of the model, however soon it is full.
    for index in sorted(range(len(sizes)), key=lambda i: int(f"{i:016b}"[::-1], 2)):
        if sizes[index] <= room:
            chosen.append(index)
            room -= sizes[index]
    return sorted(chosen)


def half_noise(
    first: Sequence[Tensor], whole: Sequence[Tensor], first_count: int, count: int
) -> tuple[float, float] | None:
    """Signal and noise of a gradient, from two halves of its samples.

    With g_1, g_2 the mean gradients of n_1 and n_2 completions of different prompts,

        |G|² ≈ g_1 · g_2            tr Σ ≈ |g_1 - g_2|² / (1/n_1 + 1/n_2)

    are unbiased for the squared norm of the true gradient and for the variance of one completion's
    (McCandlish et al., "An empirical model of large-batch training", 2018, with independent halves
    in the place of two batch sizes). A baseline shared by the halves adds 1/(N-1)² of |G|².

    Args:
        first: (1/N) Σ over the first half, tensors of any shapes.
        whole: (1/N) Σ over all of the step, in the same order.
        first_count: n_1.
        count: N = n_1 + n_2.

    Returns:
        (|G|², tr Σ); None where a half is empty or a number is not finite.
    """
    second_count = count - first_count
    if not first_count or not second_count:
        return None
    signal = noise = 0.0
    for part, total in zip(first, whole, strict=True):
        one = part.double() * (count / first_count)
        two = (total.double() - part.double()) * (count / second_count)
        signal += float((one * two).sum())
        noise += float((one - two).square().sum())
    variance = noise / (1 / first_count + 1 / second_count)
    return (signal, variance) if math.isfinite(variance) and math.isfinite(signal) else None


def noise_metrics(
    noise: tuple[float, float] | None,
    without_baseline: tuple[float, float] | None,
    scale: float,
    count: int,
) -> dict[str, float | None]:
    """What the halves of a step say of its gradient.

    Args:
        noise: of `half_noise`.
        without_baseline: the same with nothing subtracted from the returns.
        scale: what the baseline multiplies the expected gradient by.
        count: N, completions of the step.

    Returns:
        ``gradient_noise_scale``: tr Σ / |G|², the completions that a step needs before its signal
        is as large as its noise. ``gradient_snr``: |G|² / (tr Σ / N) of this step. None where there
        is no noise or the estimate of |G|² is not positive. ``variance_reduction``: 1 less the
        ratio of tr Σ / scale² to tr Σ without the baseline; negative where it adds noise.
    """
    metrics: dict[str, float | None] = dict.fromkeys(
        ("gradient_noise_scale", "gradient_snr", "variance_reduction")
    )
    if noise is not None and min(noise) > 0:
        signal, variance = noise
        metrics["gradient_noise_scale"] = variance / signal
        metrics["gradient_snr"] = signal * count / variance
    if noise is not None and without_baseline is not None and without_baseline[1] > 0:
        metrics["variance_reduction"] = 1 - noise[1] / scale**2 / without_baseline[1]
    return metrics
