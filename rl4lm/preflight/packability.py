"""Whether the rows of a model can be packed: its attention replaced, its sequences side by side.

Asked of the model itself, by short forward passes. A window, a soft cap or a bias shows in what a
layer asks of its attention; state-space layers, convolutions and whatever else looks at
neighbours show because a token that is changed changes hidden states where it must not. That
holds bit for bit on any weights, fresh ones too, on which values would hardly differ.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rl4lm.model.policy import Policy
from rl4lm.passes.attention import NotPackableError, shared_prompts
from rl4lm.passes.microbatch import MicroBatch, micro_batches
from rl4lm.passes.packed_attention import PackedRow
from rl4lm.passes.packing import Packing
from rl4lm.preflight.yardstick import gap
from rl4lm.types import Rollout


def why_not_packable(policy: Policy, rollout: Rollout, reference: Tensor) -> str | None:
    """What keeps the rows of a model from being packed, or None.

    Args:
        policy: with ``module.packs`` True for the time of the question.
        rollout: prompts with several completions each.
        reference: log π [B, T] of the rollout by the whole model, one sequence at a time.
    """
    (batch,) = micro_batches(rollout, range(len(rollout.completion_ids)), 10**9, packed=True)
    try:
        with shared_prompts(policy.module.causal_lm), torch.no_grad():
            if (calls := _hidden(policy, batch)[1]) != (layers := _layers(policy)):
                return f"{calls} of its {layers} layers let their attention be replaced"
            leak = _leak(policy, batch)
    except NotPackableError as error:
        return str(error)
    if leak is not None:
        return leak
    off = gap(policy.completion_logprobs(rollout), reference)
    return None if off <= policy.tolerance else f"packed log-probs are off by {off:.2g}"


def _layers(policy: Policy) -> int:
    config = policy.module.causal_lm.config.get_text_config(decoder=True)
    return int(config.num_hidden_layers)


def _hidden(policy: Policy, batch: MicroBatch) -> tuple[list[Tensor], int]:
    """Hidden states of a packed row, sequence by sequence; how many layers asked for attention."""
    assert batch.packing is not None
    layout = PackedRow(batch.packing, policy.device)
    with policy.module.precision():
        hidden = policy.module(
            lambda states, head: states[0],
            batch.input_ids.to(policy.device),
            None,
            batch.position_ids.to(policy.device),
            layout=layout,
        )
    return list(hidden.split([size for size, _ in _sequences(batch.packing)])), layout.calls


def _sequences(packing: Packing) -> list[tuple[int, tuple[int, int] | None]]:
    """(tokens, prompt) of each sequence in its order; None where it is a prompt itself."""
    prompts: list[tuple[int, tuple[int, int] | None]] = [
        (size, None) for bucket in packing.prompts for size in bucket
    ]
    for part in packing.continuations:
        each = len(part.lengths) // len(part.prompts)
        owners = [(part.bucket, place) for place in part.prompts for _ in range(each)]
        prompts += zip(part.lengths, owners, strict=True)
    return prompts


def _leak(policy: Policy, batch: MicroBatch) -> str | None:
    """Change the first token of each sequence in turn; who notices must be who sees it."""
    assert batch.packing is not None
    before, _ = _hidden(policy, batch)
    names = [(b, k) for b, bucket in enumerate(batch.packing.prompts) for k in range(len(bucket))]
    owners = [owner for _, owner in _sequences(batch.packing)]
    start = 0
    for k, states in enumerate(before):
        ids = batch.input_ids.clone()
        ids[0, start] = (ids[0, start] + 1) % policy.module.vocabulary
        start += len(states)
        after, _ = _hidden(policy, replace(batch, input_ids=ids))
        for j, (old, new) in enumerate(zip(before, after, strict=True)):
            sees = j == k or (k < len(names) and owners[j] == names[k])
            if sees == torch.equal(old, new):
                return (
                    "a sequence of a packed row does not see its prompt"
                    if sees
                    else "sequences of a packed row see one another"
                )
    return None
