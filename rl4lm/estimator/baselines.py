"""Baselines: what is subtracted from a reward so that the gradient keeps its mean and loses noise.

A baseline is a pure function

    (rewards [..., P, G], BaselineInputs, state) -> (b [..., P, G], new state)

over the *global* step (all processes), in float64. Leading batch axes are allowed. It computes on
``r - r[first valid]``, so that equal rewards give advantages of exactly 0 and not 1e-17. Samples
that are not valid (every reward was None) are left out of every sum, and get a baseline of 0.

`SCALES` states what each does to the expected gradient: with a baseline that does not see its own
sample the scale is 1; a mean that includes it shrinks the gradient by a known factor.

Those within the step cost O(P·G) and hand the state through. Those of `KEEPS_HISTORY` read past
steps (`rl4lm.estimator.value_baselines`): their state is a flat mapping of tensors, the empty one
at first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl4lm.estimator.names import COMPARES_WITHIN_PROMPT
from rl4lm.estimator.value_baselines import running_mean, value_of_features, value_of_key

State = Mapping[str, Any]


@dataclass(frozen=True)
class BaselineInputs:
    """What a baseline may look at besides the rewards."""

    lengths: Tensor  # int64 [..., P, G], sampled tokens of each completion
    valid: Tensor  # bool [..., P, G], False where no reward applied
    prompt_keys: Tensor  # int64 [P], the row of the data set; may occur twice in a step
    prompt_features: Tensor  # float64 [P, F], the last hidden state; F = 0 where nobody asks for it


Baseline = Callable[[Tensor, BaselineInputs, State], tuple[Tensor, State]]


def none(rewards: Tensor, inputs: BaselineInputs, state: State) -> tuple[Tensor, State]:
    """b = 0: plain REINFORCE (Williams, 1992). Scale 1, the largest variance.

    Costs nothing. Right as the reference that the others are measured against, and where rewards
    are centred already.
    """
    _check(rewards, inputs)
    return torch.zeros_like(rewards), state


def batch_mean(rewards: Tensor, inputs: BaselineInputs, state: State) -> tuple[Tensor, State]:
    """b_i = (1/N) Σ_j r_j over the N valid completions of the step, i itself included.

    The expected gradient is exactly (N-1)/N of the true one, because a sample cannot be
    compared with itself: scale (N-1)/N. The mean reward as baseline: Williams (1992). Right for
    comparison with code that does this; otherwise `batch_leave_one_out` costs the same.
    """
    _check(rewards, inputs)
    return _mean(rewards, inputs.valid, dims=(-2, -1)), state


def batch_leave_one_out(
    rewards: Tensor, inputs: BaselineInputs, state: State
) -> tuple[Tensor, State]:
    """b_i = (1/(N-1)) Σ_{j≠i} r_j over the valid completions of the step. Scale 1.

    Kool et al. (2019), over the step instead of the prompt. Right where G = 1, or where all
    prompts are about equally hard; it does not remove what differs between prompts.
    """
    _check(rewards, inputs)
    return _leave_one_out(rewards, inputs.valid, dims=(-2, -1)), state


def prompt_mean(rewards: Tensor, inputs: BaselineInputs, state: State) -> tuple[Tensor, State]:
    """b_i = (1/G) Σ_j r_j over the samples of the prompt, i itself included. Scale (G-1)/G.

    GRPO (Shao et al., 2024) without the division by the standard deviation, that is Dr. GRPO:
    Liu et al., "Understanding R1-Zero-Like Training" (2025). It is G/(G-1) away from
    `prompt_leave_one_out`, sample by sample: right for comparison with such code at its learning
    rate. With G = 1 every advantage is 0.
    """
    _check(rewards, inputs)
    return _mean(rewards, inputs.valid, dims=(-1,)), state


def prompt_leave_one_out(
    rewards: Tensor, inputs: BaselineInputs, state: State
) -> tuple[Tensor, State]:
    """b_i = (1/(G-1)) Σ_{j≠i} r_j over the other samples of the same prompt. Scale 1.

    RLOO: Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!" (2019); Ahmadian et al.,
    "Back to basics" (2024). Right wherever G > 1 can be afforded: it needs no history and removes
    the difficulty of the prompt. With G = 1 there is no other sample, and b = 0.
    """
    _check(rewards, inputs)
    return _leave_one_out(rewards, inputs.valid, dims=(-1,)), state


def length_weighted(rewards: Tensor, inputs: BaselineInputs, state: State) -> tuple[Tensor, State]:
    """b_i = Σ_{j≠i} l_j r_j / Σ_{j≠i} l_j over the other samples of the prompt. Scale 1.

    After OPO: Hao et al., "On-Policy RL with Optimal Reward Baseline" (2025): if ‖∇log π(o)‖² grows
    with the length l, the variance is smallest at the length-weighted mean. The published form
    Σ_j l_j r_j / Σ_j l_j includes the sample's own length, and its expected gradient is *not* a
    multiple of the true one. Right where lengths differ much within a prompt; b = 0 with G = 1.
    """
    _check(rewards, inputs)
    return _leave_one_out(rewards, inputs.valid, dims=(-1,), weights=inputs.lengths), state


def moving_average(rewards: Tensor, inputs: BaselineInputs, state: State) -> tuple[Tensor, State]:
    """b = the exponential moving average of the mean valid reward of *past* steps, 0 at first.

    After a step with mean m: v ← v + max(1 - 0.9, 1/t)·(m - v), t the steps with a valid reward so
    far; others leave the state. Scale 1. Reinforcement comparison: Sutton (1984), Williams (1992).
    Costs 16 bytes. Right for P·G = 1 or small steps of prompts that are about equally hard.
    """
    _check(rewards, inputs)
    values, new = running_mean(*_of_prompts(rewards, inputs), state)
    return _to_samples(values, inputs), new


def prompt_value(rewards: Tensor, inputs: BaselineInputs, state: State) -> tuple[Tensor, State]:
    """b = V[key], a running estimate for each prompt from past steps only.

    V[key] ← V[key] + max(1 - 0.9, 1/t)·(m - V[key]), once a step with a valid reward for this key,
    m the mean over all its valid samples, t their number of steps so far. A key not met before has
    the `moving_average` of all past steps. Scale 1. Close to SPO: Xu and Ding, "Single-stream
    Policy Optimization" (2025), whose tracker forgets by the change of the policy. The memory grows
    by 24 bytes with each distinct prompt (24 MB for a million), as does the time to copy it each
    step. Right with G = 1 and several epochs over the prompts; in the first it is `moving_average`.
    """
    _check(rewards, inputs)
    values, new = value_of_key(*_of_prompts(rewards, inputs), inputs.prompt_keys, state)
    return _to_samples(values, inputs), new


def linear_value(rewards: Tensor, inputs: BaselineInputs, state: State) -> tuple[Tensor, State]:
    """b = V(q), ridge regression (Hoerl and Kennard, 1970) on the features of past prompts.

    V(q) = ȳ + k(q)ᵀ (K + λI)⁻¹ (y - ȳ) with y the mean valid rewards of the most recent 512 prompts
    of *past* steps, K their centred linear kernel, λ = 0.1·tr(K)/W, within the range of y. Scale 1.
    A learned value as baseline: Sutton et al. (2000). Costs one solve of at most 512³ a step and
    4·F + 9 bytes a prompt (8 MB at F = 4096). Right with G = 1 and prompts seldom met twice, whose
    difficulty can be read off the hidden state.
    """
    _check(rewards, inputs)
    values, new = value_of_features(*_of_prompts(rewards, inputs), inputs.prompt_features, state)
    return _to_samples(values, inputs), new


BASELINES: Mapping[str, Baseline] = {
    "none": none,
    "batch_mean": batch_mean,
    "batch_leave_one_out": batch_leave_one_out,
    "prompt_mean": prompt_mean,
    "prompt_leave_one_out": prompt_leave_one_out,
    "length_weighted": length_weighted,
    "moving_average": moving_average,
    "prompt_value": prompt_value,
    "linear_value": linear_value,
}
NEEDS_TWO_GENERATIONS = COMPARES_WITHIN_PROMPT
KEEPS_HISTORY = frozenset({"moving_average", "prompt_value", "linear_value"})
NEEDS_FEATURES = frozenset({"linear_value"})

# Expected gradient over true gradient, for P prompts of G completions, all of them valid.
SCALES: Mapping[str, Callable[[int, int], float]] = {
    **dict.fromkeys(BASELINES, lambda prompts, generations: 1.0),
    "batch_mean": lambda prompts, generations: (
        (prompts * generations - 1) / (prompts * generations)
    ),
    "prompt_mean": lambda prompts, generations: (generations - 1) / generations,
}


def advantages(rewards: Tensor, baseline: Tensor, valid: Tensor) -> Tensor:
    """A = r - b [..., P, G], and 0 where no reward applied."""
    return torch.where(valid, rewards - baseline, 0.0)


def _check(rewards: Tensor, inputs: BaselineInputs) -> None:
    if rewards.dim() < 2 or rewards.dtype != torch.float64:
        raise ValueError(
            f"rewards must be float64 [..., P, G], got {rewards.dtype} {tuple(rewards.shape)}"
        )
    for name, dtype in (("lengths", torch.int64), ("valid", torch.bool)):
        tensor = getattr(inputs, name)
        if tensor.shape != rewards.shape:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} must match rewards {tuple(rewards.shape)}"
            )
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")
    keys, features, prompts = inputs.prompt_keys, inputs.prompt_features, rewards.shape[-2]
    if keys.shape != (prompts,) or keys.dtype != torch.int64:
        raise ValueError(
            f"prompt_keys must be int64 [P] with P={prompts}, got {keys.dtype} {tuple(keys.shape)}"
        )
    if features.dim() != 2 or len(features) != prompts or features.dtype != torch.float64:
        raise ValueError(
            f"prompt_features must be float64 [P, F] with P={prompts}, got {features.dtype} "
            f"{tuple(features.shape)}"
        )


def _of_prompts(rewards: Tensor, inputs: BaselineInputs) -> tuple[Tensor, Tensor]:
    """Mean valid reward of each prompt (0 without any) and its valid samples, both [..., P]."""
    mean = _mean_of_group(rewards, inputs.valid, dims=(-1,))[..., 0]
    count = inputs.valid.sum(dim=-1)
    return torch.where(count > 0, mean, 0.0), count


def _to_samples(values: Tensor, inputs: BaselineInputs) -> Tensor:
    """The value of each prompt [..., P] at its valid samples [..., P, G], 0 at the others."""
    return torch.where(inputs.valid, values[..., None], 0.0)


def _first_valid(rewards: Tensor, valid: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The first valid reward of each group, with the group's dimensions kept at size 1."""
    flat_rewards = rewards.flatten(-len(dims))  # [..., n]
    first = valid.flatten(-len(dims)).to(torch.int8).argmax(dim=-1, keepdim=True)
    chosen = flat_rewards.gather(-1, first)
    return chosen[(..., *[None] * (len(dims) - 1))]


def _mean_of_group(rewards: Tensor, valid: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The mean of the valid rewards, with the group's dimensions kept at size 1."""
    first = _first_valid(rewards, valid, dims)
    excess = torch.where(valid, rewards - first, 0.0)
    count = valid.sum(dim=dims, keepdim=True).clamp(min=1)
    return first + excess.sum(dim=dims, keepdim=True) / count


def _mean(rewards: Tensor, valid: Tensor, dims: tuple[int, ...]) -> Tensor:
    return torch.where(valid, _mean_of_group(rewards, valid, dims), 0.0)


def _leave_one_out(
    rewards: Tensor, valid: Tensor, dims: tuple[int, ...], weights: Tensor | None = None
) -> Tensor:
    """Σ_{j≠i} w_j r_j / Σ_{j≠i} w_j over the valid samples of the group; w = 1 by default."""
    weight = torch.where(valid, 1 if weights is None else weights, 0)
    first = _first_valid(rewards, valid, dims)
    excess = torch.where(valid, rewards - first, 0.0) * weight
    others = weight.sum(dim=dims, keepdim=True) - weight
    mean = first + (excess.sum(dim=dims, keepdim=True) - excess) / others.clamp(min=1)
    # A sample with no other to compare it with keeps the constant 0, which is still independent.
    return torch.where(valid & (others > 0), mean, 0.0)
