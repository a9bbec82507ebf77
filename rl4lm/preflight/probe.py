"""Checks on the model itself before the first step: a few short forward and backward passes.

They run the very code that trains, on a handful of made-up tokens, and find what would otherwise
show up as a slow, silent failure to learn: an architecture whose head does more than a matrix
product, one whose attention cannot be padded or cached, an adapter that receives no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rl4lm.errors import ModelError, TrainingError
from rl4lm.estimator.logprobs import token_logprobs
from rl4lm.estimator.losses import TokenWeights
from rl4lm.model.policy import Policy
from rl4lm.model.preparing import inference_mode_of, sampling_mode
from rl4lm.preflight.packability import why_not_packable
from rl4lm.randomness import Stream, uniforms
from rl4lm.sampling.drawing import greedy
from rl4lm.sampling.loop import EndRule, generate
from rl4lm.types import Rollout

_PROMPT_LENGTHS = (2, 7)
_COMPLETION_LENGTHS = (5, 3)  # of each prompt
_WHY_OFF = (
    "state-space layers, bidirectional attention and models without position ids or an attention "
    "mask do this"
)
_WHY_NAN = (
    "eager attention in float64 does this on padding; try --attn_implementation sdpa or --dtype "
    "float32"
)
_GRADIENT_TOLERANCE = 1e-3  # difference of norms, as a share of the largest one


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
    rollout = _made_up_rollout(policy)
    prompts = rollout.prompt_lists()
    policy.module.packs = False
    with inference_mode_of(policy.module):
        _check_cache(policy, prompts[-1])
    reference = _plain_logprobs(policy, rollout)
    _check_finite(policy, reference)
    notes = _choose_head(policy, rollout, reference)
    if fast_path:
        notes += _choose_packing(policy, rollout, reference)
    notes += _choose_replaying(policy, prompts)
    _check_decoding(policy, prompts)
    _check_gradients(policy, rollout)
    return notes


def _made_up_rollout(policy: Policy) -> Rollout:
    """Random prompts of two lengths, each with a longer and a shorter random completion."""
    count = len(_PROMPT_LENGTHS) * (1 + len(_COMPLETION_LENGTHS))
    index = torch.arange(count).numpy().astype("uint64")
    longest = max(*_PROMPT_LENGTHS, *_COMPLETION_LENGTHS)
    draws = uniforms(0, Stream.PROBE, 0, index, 0 * index, 0, longest)
    ids = iter((draws * policy.module.vocabulary).astype("int64").tolist())
    prompts, completions = [], []
    for length in _PROMPT_LENGTHS:
        prompt = next(ids)[:length]
        for size in _COMPLETION_LENGTHS:
            prompts.append(prompt)
            completions.append(next(ids)[:size])
    return Rollout.from_lists(prompts, completions, num_generations=len(_COMPLETION_LENGTHS))


def _check_cache(policy: Policy, prompt: list[int]) -> None:
    """Refuse a model that leaves its prompt out of the cache, and would sample without it.

    On fresh weights the log-probs hardly depend on the prompt and would not tell.
    """
    with _refusing_other_caches(policy), torch.no_grad():
        ids = torch.tensor([prompt], device=policy.device)
        _, cache = policy.prefill(ids, torch.ones_like(ids, dtype=torch.bool), room=0)
        held = cache.get_seq_length()
        if held != len(prompt):
            raise RuntimeError(f"of a prompt of {len(prompt)} tokens the cache holds {held}")


def _decode(policy: Policy, prompts: list[list[int]]) -> Rollout:
    with sampling_mode(policy):
        return generate(
            policy,
            prompts,
            greedy,
            num_generations=1,
            max_completion_length=max(_COMPLETION_LENGTHS),
            ends=EndRule(()),
        )


@contextmanager
def _refusing_other_caches(policy: Policy) -> Iterator[None]:
    try:
        yield
    except (AttributeError, TypeError, NotImplementedError, IndexError, RuntimeError) as error:
        raise ModelError(
            f"{_name(policy)} cannot be served by the generation loop, which needs a key-value "
            f"cache of the usual kind: {type(error).__name__}: {error}"
        ) from error


def _plain_logprobs(policy: Policy, rollout: Rollout) -> Tensor:
    """log π [B, T] by the whole model on one unpadded sequence at a time."""
    with torch.no_grad():
        rows = [row.cpu() for row in _plain_rows(policy, rollout)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _check_finite(policy: Policy, reference: Tensor) -> None:
    """Refuse weights that are not numbers, where the log-probs tell of them."""
    if reference.isfinite().all():
        return
    named = policy.module.model.named_parameters()
    broken = [name for name, parameter in named if not parameter.isfinite().all()]
    if broken:
        raise ModelError(
            f"{len(broken)} of the weights of {_name(policy)} hold values that are not finite, "
            f"such as {broken[0]}; give another checkpoint"
        )


def _plain_rows(policy: Policy, rollout: Rollout) -> Iterator[Tensor]:
    """log π [T] of each completion in turn, with gradient where that is on."""
    prompts, group = rollout.prompt_lists(), rollout.num_generations
    for i, completion in enumerate(rollout.completion_lists()):
        prompt = prompts[i // group]
        ids = torch.tensor([prompt + completion], device=policy.device)
        with policy.module.precision():
            outputs = policy.module.model(input_ids=ids, use_cache=False)
        logits = outputs.logits[0, len(prompt) - 1 : -1]  # [T, V]
        targets = torch.tensor(completion, device=policy.device)  # [T]
        yield token_logprobs(logits, targets, temperature=1.0)


def _choose_head(policy: Policy, rollout: Rollout, reference: Tensor) -> list[str]:
    gap = _gap(policy.completion_logprobs(rollout), reference)
    if gap <= policy.tolerance and _head_gives_the_logits(policy, rollout.prompt_lists()[-1]):
        return []
    policy.module.separate_head = False
    plain_gap = _gap(policy.completion_logprobs(rollout), reference)
    if plain_gap > policy.tolerance:
        raise ModelError(
            f"{_name(policy)} gives other log-probabilities in a padded batch than alone "
            f"(largest difference {plain_gap:.2g}); it cannot be trained here"
        )
    return [
        f"{_name(policy)}: its logits are more than the head's output (log-probs differ by "
        f"{gap:.2g}), so the whole model runs and the logits of full sequences are held in memory"
    ]


def _choose_packing(policy: Policy, rollout: Rollout, reference: Tensor) -> list[str]:
    """Switch packed rows on where the model's attention can be replaced; else say why not."""
    policy.module.packs = True
    why = why_not_packable(policy, rollout, reference)
    policy.module.packs = why is None
    if why is None:
        return []
    return [
        f"{_name(policy)}: {why}; its rows are padded, a prompt is computed once for each of its "
        "completions, and its cache grows by copying"
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


def _choose_replaying(policy: Policy, prompts: list[list[int]]) -> list[str]:
    """Leave replayed decoding on where it does what the whole model does; else say why not."""
    policy.module.replays = policy.module.replays and policy.module.packs
    if not policy.module.replays:
        return []
    try:
        gap = _decoding_gap(policy, prompts)
    except RuntimeError as error:
        why = f"its decoding cannot be captured ({str(error).partition(chr(10))[0]})"
    else:
        if gap <= policy.tolerance:
            return []
        why = f"log-probs of replayed decoding are off by {gap:.2g}"
    policy.module.replays = False
    return [f"{_name(policy)}: {why}; every token's kernels are launched one by one"]


def _check_decoding(policy: Policy, prompts: list[list[int]]) -> None:
    """Compare the decoding of the path that was chosen with the whole model."""
    with _refusing_other_caches(policy):
        gap = _decoding_gap(policy, prompts)
    if not gap <= policy.tolerance:
        raise ModelError(
            f"{_name(policy)} cannot be served by the generation loop: with left-padded prompts "
            f"and a cache its log-probabilities are off by {gap:.2g} from a plain forward pass "
            f"({_WHY_NAN if math.isnan(gap) else _WHY_OFF})"
        )


def _decoding_gap(policy: Policy, prompts: list[list[int]]) -> float:
    """Largest difference of log-probs, of greedy decoding and of the whole model."""
    rollout = _decode(policy, prompts)
    return _gap(rollout.sampling_logprobs, _plain_logprobs(policy, rollout))


def _gap(logprobs: Tensor, reference: Tensor) -> float:
    return float((logprobs - reference).abs().max())


def _check_gradients(policy: Policy, rollout: Rollout) -> None:
    """One backward with all advantages 1: every trainable tensor must receive the right gradient.

    Two norms per tensor are compared, of the training pass and of the whole model on one unpadded
    sequence at a time; norms, because a second copy of the gradients may not fit. A's gradient is
    exactly 0 while B is (LoRA starts there), so only its presence is asked for; every lora_B must
    be non-zero.
    """
    trainable = policy.trainable()
    if not trainable:
        raise TrainingError(
            "no parameter is trainable; unfreeze the model, or ask for an adapter with --use_peft"
        )
    _drop_gradients(policy)
    ones = torch.ones_like(rollout.sampling_logprobs)
    weights = TokenWeights(ones, torch.zeros_like(ones))
    policy.accumulate_gradient(rollout, weights, temperature=1.0, max_tokens=10**9)
    silent = [
        name
        for name, parameter in trainable.items()
        if parameter.grad is None
        or not parameter.grad.isfinite().all()
        or ("lora_B" in name and not parameter.grad.any())
    ]
    actual = _gradient_norms(policy)
    _drop_gradients(policy)
    if silent:
        shown = ", ".join(silent[:5]) + (f" and {len(silent) - 5} more" if len(silent) > 5 else "")
        raise TrainingError(
            f"{len(silent)} of {len(trainable)} trainable tensors receive no usable gradient: "
            f"{shown}; freeze them (requires_grad_(False)) or mend the model"
        )
    _compare_norms(policy, actual, _plain_gradient_norms(policy, rollout))


def _plain_gradient_norms(policy: Policy, rollout: Rollout) -> dict[str, float]:
    """Norms of ∇ Σ log π by the whole model on one unpadded sequence at a time."""
    with torch.enable_grad():
        for logprobs in _plain_rows(policy, rollout):
            logprobs.sum().backward()
    norms = _gradient_norms(policy)
    _drop_gradients(policy)
    return norms


def _compare_norms(policy: Policy, actual: dict[str, float], expected: dict[str, float]) -> None:
    """Refuse gradients that differ by more than rounding, as a share of the largest norm."""
    largest = max(expected.values())
    if largest == 0:
        raise ModelError(
            f"no weight of {_name(policy)} has a gradient other than 0: its weights may all be 0; "
            "give another checkpoint"
        )
    gaps = {name: abs(actual[name] - norm) / largest for name, norm in expected.items()}
    worst = max(gaps, key=gaps.__getitem__)
    # Norm layers compute in float32 whatever the model's dtype: no finer than that.
    if gaps[worst] > max(policy.tolerance, _GRADIENT_TOLERANCE):
        raise ModelError(
            f"{_name(policy)} cannot be trained here: in a padded batch the gradient of {worst} "
            f"has norm {actual[worst]:.4g}, and one sequence at a time {expected[worst]:.4g}"
        )


def _gradient_norms(policy: Policy) -> dict[str, float]:
    gradients = {name: p.grad for name, p in policy.trainable().items() if p.grad is not None}
    return {name: float(gradient.norm()) for name, gradient in gradients.items()}


def _drop_gradients(policy: Policy) -> None:
    for parameter in policy.trainable().values():
        parameter.grad = None


def _name(policy: Policy) -> str:
    return type(policy.module.causal_lm).__name__
