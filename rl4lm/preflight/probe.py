"""Checks on the model itself before the first step: a few short forward and backward passes.

They run the very code that trains, on a handful of made-up tokens, and find what would otherwise
show up as a slow, silent failure to learn: an architecture whose head does more than a matrix
product, one whose attention cannot be padded or cached, an adapter that receives no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl4lm.errors import ModelError, first_line
from rl4lm.model.policy import Policy
from rl4lm.model.preparing import inference_mode_of
from rl4lm.preflight.decodability import check_cache, check_decoding, decoding_gap
from rl4lm.preflight.packability import why_not_packable
from rl4lm.preflight.trainability import check_gradients
from rl4lm.preflight.yardstick import gap, made_up_rollout, name_of, plain_logprobs
from rl4lm.types import Rollout


def probe(policy: Policy, fast_path: bool = True) -> list[str]:
    """Check the policy; switch to the plain path where the fast one disagrees with the model.

    Args:
        policy: as it will train.
        fast_path: pack rows and decode from a cache of fixed size where the model allows it; on a
            GPU, replay the decoding.

    Returns:
        Lines for the log: what was switched and why. Empty where all is as hoped.

    Raises:
        ModelError: left-padded, cached decoding disagrees with a plain forward pass.
        TrainingError: a trainable parameter receives no gradient.
    """
    rollout = made_up_rollout(policy)
    prompts = rollout.prompt_lists()
    policy.module.packs = False
    with inference_mode_of(policy.module):
        check_cache(policy, prompts[-1])
    reference = plain_logprobs(policy, rollout)
    _check_finite(policy, reference)
    notes = _choose_head(policy, rollout, reference)
    if fast_path:
        notes += _choose_packing(policy, rollout, reference)
    notes += _choose_replaying(policy, prompts)
    check_decoding(policy, prompts)
    check_gradients(policy, rollout)
    return notes


def _check_finite(policy: Policy, reference: Tensor) -> None:
    """Refuse weights that are not numbers, where the log-probs tell of them."""
    if reference.isfinite().all():
        return
    named = policy.module.model.named_parameters()
    broken = [name for name, parameter in named if not parameter.isfinite().all()]
    if broken:
        raise ModelError(
            f"{len(broken)} of the weights of {name_of(policy)} hold values that are not finite, "
            f"such as {broken[0]}; give another checkpoint"
        )


def _choose_head(policy: Policy, rollout: Rollout, reference: Tensor) -> list[str]:
    off = gap(policy.completion_logprobs(rollout), reference)
    if off <= policy.tolerance and _head_gives_the_logits(policy, rollout.prompt_lists()[-1]):
        return []
    policy.module.separate_head = False
    plain_off = gap(policy.completion_logprobs(rollout), reference)
    if not plain_off <= policy.tolerance:  # nan is no agreement either
        raise ModelError(
            f"{name_of(policy)} gives other log-probabilities in a padded batch than alone "
            f"(largest difference {plain_off:.2g}); it cannot be trained here"
        )
    return [
        f"{name_of(policy)}: its logits are more than the head's output (log-probs differ by "
        f"{off:.2g}), so the whole model runs and the logits of full sequences are held in memory"
    ]


def _head_gives_the_logits(policy: Policy, prompt: list[int]) -> bool:
    """Whether the head's output is the model's logits, bit for bit.

    A soft cap or a scale after the head can be invisible while logits are small, and grow with
    them; comparing values within a tolerance would miss it on a fresh model.
    """
    seen: list[Tensor] = []
    head = policy.module.causal_lm.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad(), policy.module.precision():
            ids = torch.tensor([prompt], device=policy.device)
            logits = policy.module.model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    return len(seen) == 1 and torch.equal(seen[0].to(logits.logits.dtype), logits.logits)


def _choose_packing(policy: Policy, rollout: Rollout, reference: Tensor) -> list[str]:
    """Switch packed rows on where the model's attention can be replaced; else say why not."""
    policy.module.packs = True
    why = why_not_packable(policy, rollout, reference)
    policy.module.packs = why is None
    if why is None:
        return []
    return [
        f"{name_of(policy)}: {why}; its rows are padded, a prompt is computed once for each of its "
        "completions, and its cache grows by copying"
    ]


def _choose_replaying(policy: Policy, prompts: list[list[int]]) -> list[str]:
    """Leave replayed decoding on where it does what the whole model does; else say why not."""
    policy.module.replays = policy.module.replays and policy.module.packs
    if not policy.module.replays:
        return []
    try:
        off = decoding_gap(policy, prompts)
    except RuntimeError as error:
        why = f"its decoding cannot be captured ({first_line(error)})"
    else:
        if off <= policy.tolerance:
            return []
        why = f"log-probs of replayed decoding are off by {off:.2g}"
    policy.module.replays = False
    return [f"{name_of(policy)}: {why}; every token's kernels are launched one by one"]
