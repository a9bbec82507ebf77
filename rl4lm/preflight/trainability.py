"""Whether every trainable tensor receives the right gradient: one backward pass, compared."""

from __future__ import annotations

import torch

from rl4lm.errors import ModelError, TrainingError
from rl4lm.estimator.losses import TokenWeights
from rl4lm.model.policy import Policy
from rl4lm.preflight.yardstick import name_of, plain_rows
from rl4lm.types import Rollout

_TOLERANCE = 1e-3  # difference of norms, as a share of the largest one


def check_gradients(policy: Policy, rollout: Rollout) -> None:
    """One backward with all advantages 1: every trainable tensor must receive the right gradient.

    Two norms per tensor are compared, of the training pass and of the whole model on one unpadded
    sequence at a time; norms, because a second copy of the gradients may not fit.

    Raises:
        TrainingError: nothing is trainable, or names the tensors without a usable gradient.
        ModelError: a gradient that is not the model's own.
    """
    if not policy.trainable():
        raise TrainingError(
            "no parameter is trainable; unfreeze the model, or ask for an adapter with --use_peft"
        )
    _drop_gradients(policy)
    ones = torch.ones_like(rollout.sampling_logprobs)
    weights = TokenWeights(ones, torch.zeros_like(ones))
    policy.accumulate_gradient(rollout, weights, temperature=1.0, max_tokens=10**9)
    silent = _without_gradient(policy)
    actual = _gradient_norms(policy)
    _drop_gradients(policy)
    if silent:
        shown = ", ".join(silent[:5]) + (f" and {len(silent) - 5} more" if len(silent) > 5 else "")
        raise TrainingError(
            f"{len(silent)} of {len(policy.trainable())} trainable tensors receive no usable "
            f"gradient: {shown}; freeze them (requires_grad_(False)) or mend the model"
        )
    _compare_norms(policy, actual, _plain_gradient_norms(policy, rollout))


def _without_gradient(policy: Policy) -> list[str]:
    """The trainable tensors whose gradient is missing, not finite, or 0 where it cannot be.

    A's gradient is exactly 0 while B is (LoRA starts there), so only its presence is asked for;
    every lora_B must be non-zero.
    """
    return [
        name
        for name, parameter in policy.trainable().items()
        if parameter.grad is None
        or not parameter.grad.isfinite().all()
        or ("lora_B" in name and not parameter.grad.any())
    ]


def _plain_gradient_norms(policy: Policy, rollout: Rollout) -> dict[str, float]:
    """Norms of ∇ Σ log π by the whole model on one unpadded sequence at a time."""
    with torch.enable_grad():
        for logprobs in plain_rows(policy, rollout):
            logprobs.sum().backward()
    norms = _gradient_norms(policy)
    _drop_gradients(policy)
    return norms


def _compare_norms(policy: Policy, actual: dict[str, float], expected: dict[str, float]) -> None:
    """Refuse gradients that differ by more than rounding, as a share of the largest norm."""
    largest = max(expected.values())
    if largest == 0:
        raise ModelError(
            f"no weight of {name_of(policy)} has a gradient other than 0: its weights may all be "
            "0; give another checkpoint"
        )
    gaps = {name: abs(actual[name] - norm) / largest for name, norm in expected.items()}
    worst = max(gaps, key=gaps.__getitem__)
    # Norm layers compute in float32 whatever the model's dtype: no finer than that.
    if gaps[worst] > max(policy.tolerance, _TOLERANCE):
        raise ModelError(
            f"{name_of(policy)} cannot be trained here: in a padded batch the gradient of {worst} "
            f"has norm {actual[worst]:.4g}, and one sequence at a time {expected[worst]:.4g}"
        )


def _gradient_norms(policy: Policy) -> dict[str, float]:
    gradients = {name: p.grad for name, p in policy.trainable().items() if p.grad is not None}
    return {name: float(gradient.norm()) for name, gradient in gradients.items()}


def _drop_gradients(policy: Policy) -> None:
    for parameter in policy.trainable().values():
        parameter.grad = None
