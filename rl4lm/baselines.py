"""Baselines: what is subtracted from a reward so that the gradient keeps its mean and loses noise.

A baseline is a pure function

    (rewards [..., P, G], BaselineInputs, state) -> (b [..., P, G], new state)

over the *global* step (all processes), in float64. Leading batch axes are allowed. It computes on
``r - r[first valid]``, so that equal rewards give advantages of exactly 0 and not 1e-17. Samples
that are not valid (every reward was None) are left out of every sum, and get a baseline of 0.

`SCALES` states what each does to the expected gradient: with a baseline that does not see its own
sample the scale is 1; a mean that includes it shrinks the gradient by a known factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Any]


@dataclass(frozen=True)
class BaselineInputs:
    """What a baseline may look at besides the rewards."""

    lengths: Tensor  # int64 [..., P, G], sampled tokens of each completion
    valid: Tensor  # bool [..., P, G], False where no reward applied


Baseline = Callable[[Tensor, BaselineInputs, State], tuple[Tensor, State]]


def none(rewards: Tensor, inputs: BaselineInputs, state: State) -> tuple[Tensor, State]:
    """b = 0: plain REINFORCE (Williams, 1992). Scale 1, the largest variance."""
    _check(rewards, inputs)
    return torch.zeros_like(rewards), state


def batch_mean(rewards: Tensor, inputs: BaselineInputs, state: State) -> tuple[Tensor, State]:
    """b_i = (1/N) Σ_j r_j over the N valid completions of the step, i itself included.

    The expected gradient is exactly (N-1)/N of the true one, because a sample cannot be
    compared with itself.
    """
    _check(rewards, inputs)
    return _mean(rewards, inputs.valid, dims=(-2, -1)), state


def batch_leave_one_out(
    rewards: Tensor, inputs: BaselineInputs, state: State
) -> tuple[Tensor, State]:
    """b_i = (1/(N-1)) Σ_{j≠i} r_j over the valid completions of the step. Scale 1."""
    _check(rewards, inputs)
    return _leave_one_out(rewards, inputs.valid, dims=(-2, -1)), state


def prompt_leave_one_out(
    rewards: Tensor, inputs: BaselineInputs, state: State
) -> tuple[Tensor, State]:
    """b_i = (1/(G-1)) Σ_{j≠i} r_j over the other samples of the same prompt. Scale 1.

    RLOO: Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!" (2019); Ahmadian et al.,
    "Back to basics" (2024).
    """
    _check(rewards, inputs)
    return _leave_one_out(rewards, inputs.valid, dims=(-1,)), state


BASELINES: Mapping[str, Baseline] = {
    "none": none,
    "batch_mean": batch_mean,
    "batch_leave_one_out": batch_leave_one_out,
    "prompt_leave_one_out": prompt_leave_one_out,
}

# Expected gradient over true gradient, for N completions in the step, all of them valid.
SCALES: Mapping[str, Callable[[int], float]] = {
    "none": lambda n: 1.0,
    "batch_mean": lambda n: (n - 1) / n,
    "batch_leave_one_out": lambda n: 1.0,
    "prompt_leave_one_out": lambda n: 1.0,
}


def advantages(rewards: Tensor, baseline: Tensor, valid: Tensor) -> Tensor:
    """A = r - b [..., P, G], and 0 where no reward applied."""
    return torch.where(valid, rewards - baseline, 0.0)


def _check(rewards: Tensor, inputs: BaselineInputs) -> None:
    if rewards.dim() < 2 or rewards.dtype != torch.float64:
        raise ValueError(
            f"rewards must be float64 [..., P, G], got {rewards.dtype} {tuple(rewards.shape)}"
        )
    for name in ("lengths", "valid"):
        shape = getattr(inputs, name).shape
        if shape != rewards.shape:
            raise ValueError(f"{name} {tuple(shape)} must match rewards {tuple(rewards.shape)}")


def _first_valid(rewards: Tensor, valid: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The first valid reward of each group, with the group's dimensions kept at size 1."""
    flat_rewards = rewards.flatten(-len(dims))  # [..., n]
    first = valid.flatten(-len(dims)).to(torch.int8).argmax(dim=-1, keepdim=True)
    chosen = flat_rewards.gather(-1, first)
    return chosen[(..., *[None] * (len(dims) - 1))]


def _mean(rewards: Tensor, valid: Tensor, dims: tuple[int, ...]) -> Tensor:
    first = _first_valid(rewards, valid, dims)
    excess = torch.where(valid, rewards - first, 0.0)
    count = valid.sum(dim=dims, keepdim=True).clamp(min=1)
    mean = first + excess.sum(dim=dims, keepdim=True) / count
    return torch.where(valid, mean, 0.0)


def _leave_one_out(rewards: Tensor, valid: Tensor, dims: tuple[int, ...]) -> Tensor:
    first = _first_valid(rewards, valid, dims)
    excess = torch.where(valid, rewards - first, 0.0)
    others = valid.sum(dim=dims, keepdim=True) - 1
    mean = first + (excess.sum(dim=dims, keepdim=True) - excess) / others.clamp(min=1)
    # A sample with no other to compare it with keeps the constant 0, which is still independent.
    return torch.where(valid & (others > 0), mean, 0.0)
