"""Whether a model can be sampled from: prompts padded on the left, then a cache, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rl4lm.errors import ModelError
from rl4lm.model.policy import Policy
from rl4lm.model.preparing import sampling_mode
from rl4lm.preflight.yardstick import COMPLETION_LENGTHS, gap, name_of, plain_logprobs
from rl4lm.sampling.drawing import greedy
from rl4lm.sampling.loop import EndRule, generate
from rl4lm.types import Rollout

_WHY_OFF = (
    "state-space layers, bidirectional attention and models without position ids or an attention "
    "mask do this"
)
_WHY_NAN = (
    "eager attention in float64 does this on padding; try --attn_implementation sdpa or --dtype "
    "float32"
)


def check_cache(policy: Policy, prompt: list[int]) -> None:
    """Refuse a model that leaves its prompt out of the cache, and would sample without it.

    On fresh weights the log-probs hardly depend on the prompt and would not tell.

    Raises:
        ModelError: says what is wrong with the cache.
    """
    with _refusing_other_caches(policy), torch.no_grad():
        ids = torch.tensor([prompt], device=policy.device)
        _, cache = policy.prefill(ids, torch.ones_like(ids, dtype=torch.bool), room=0)
        held = cache.get_seq_length()
        if held != len(prompt):
            raise RuntimeError(f"of a prompt of {len(prompt)} tokens the cache holds {held}")


def check_decoding(policy: Policy, prompts: list[list[int]]) -> None:
    """Compare the decoding of the path that was chosen with the whole model.

    Raises:
        ModelError: they disagree, or the model cannot be decoded at all.
    """
    with _refusing_other_caches(policy):
        off = decoding_gap(policy, prompts)
    if not off <= policy.tolerance:
        raise ModelError(
            f"{name_of(policy)} cannot be served by the generation loop: with left-padded prompts "
            f"and a cache its log-probabilities are off by {off:.2g} from a plain forward pass "
            f"({_WHY_NAN if math.isnan(off) else _WHY_OFF})"
        )


def decoding_gap(policy: Policy, prompts: list[list[int]]) -> float:
    """Largest difference of log-probs, of greedy decoding and of the whole model."""
    rollout = _decode(policy, prompts)
    return gap(rollout.sampling_logprobs, plain_logprobs(policy, rollout))


def _decode(policy: Policy, prompts: list[list[int]]) -> Rollout:
    with sampling_mode(policy):
        return generate(
            policy,
            prompts,
            greedy,
            num_generations=1,
            max_completion_length=max(COMPLETION_LENGTHS),
            ends=EndRule(()),
        )


@contextmanager
def _refusing_other_caches(policy: Policy) -> Iterator[None]:
    try:
        yield
    except (AttributeError, TypeError, NotImplementedError, IndexError, RuntimeError) as error:
        raise ModelError(
            f"{name_of(policy)} cannot be served by the generation loop, which needs a key-value "
            f"cache of the usual kind: {type(error).__name__}: {error}"
        ) from error
