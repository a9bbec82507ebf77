"""The model one token at a time: prompts first, all at once, then each token that was drawn.

In two forms. Packed: a row of prompts without padding, and a cache that holds a prompt once for all
its completions. Padded: prompts padded on the left, and the cache of `transformers`, for models
whose attention cannot be replaced.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from rl4lm.estimator.logprobs import Head
from rl4lm.model.module import PolicyModule
from rl4lm.passes.attention import shared_prompts
from rl4lm.passes.decoding_attention import PromptStore
from rl4lm.passes.kvcache import SharedCache
from rl4lm.passes.packed_attention import PackedRow
from rl4lm.passes.packing import pack
from rl4lm.passes.replayed import cuda_graph


def prefill_packed(
    module: PolicyModule, prompt_ids: Tensor, prompt_mask: Tensor, room: int
) -> tuple[Tensor, SharedCache]:
    """Logits [P, V] after each prompt [P, Q], run as one row, and a cache for `room` tokens."""
    prompts = [
        row[mask].tolist() for row, mask in zip(prompt_ids.cpu(), prompt_mask.cpu(), strict=True)
    ]
    # With completions of one token, of which nothing is fed, the row is prompts only.
    row = pack({k: (prompt, [0]) for k, prompt in enumerate(prompts)}, range(len(prompts)))
    device = module.device
    ends = torch.tensor([row.prompt_ends[k] for k in range(len(prompts))], device=device)
    store = PromptStore(row.packing, row.prompt_order, device)
    with shared_prompts(module.causal_lm), module.precision():
        logits = module(
            lambda hidden, head: head(hidden[0, ends]),
            torch.tensor([row.ids], device=device),
            None,
            torch.tensor([row.positions], device=device),
            layout=PackedRow(row.packing, device, store),
        )
    return logits, SharedCache(store, room, cuda_graph if module.replays else None)


def decode_packed(
    module: PolicyModule, tokens: Tensor, positions: Tensor, cache: SharedCache
) -> Tensor:
    """Logits [b, V] after `tokens` [b] at `positions` [b], by a cache of `prefill_packed`."""
    with shared_prompts(module.causal_lm), module.precision():
        return cache.run(partial(_step, module, cache), tokens, positions)


def _step(module: PolicyModule, cache: SharedCache, tokens: Tensor, positions: Tensor) -> Tensor:
    """What is run for each token, or captured once and replayed."""
    return module(
        cache.last_logits,
        tokens[:, None],
        None,
        positions[:, None],
        cache.drawn,
        layout=cache.layout,
    )


def prefill_padded(
    module: PolicyModule, prompt_ids: Tensor, prompt_mask: Tensor
) -> tuple[Tensor, Any]:
    """Logits [P, V] after each left-padded prompt [P, Q], and a cache that grows."""
    cache = DynamicCache()
    with module.precision():
        logits = module(
            _last_logits, prompt_ids, prompt_mask.long(), _positions(prompt_mask), cache
        )
    return logits, cache


def decode_padded(
    module: PolicyModule, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Any
) -> Tensor:
    """Logits [b, V] after `tokens` [b] at `positions` [b], by a cache of `prefill_padded`.

    The mask is bool [b, Q + t], or None where no prompt is padded.
    """
    mask = None if mask is None else mask.long()
    with module.precision():
        return module(_last_logits, tokens[:, None], mask, positions[:, None], cache)


def prompt_features(module: PolicyModule, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
    """The last hidden state [P, H] of each left-padded prompt [P, Q]."""
    device = module.device
    with module.precision():
        return module(
            _last_hidden,
            prompt_ids.to(device),
            prompt_mask.long().to(device),
            _positions(prompt_mask).to(device),
        )


def _last_logits(hidden: Tensor, head: Head) -> Tensor:
    """Logits [b, V] after the last token of each row."""
    return head(hidden[:, -1])


def _last_hidden(hidden: Tensor, head: Head) -> Tensor:
    """Hidden states [b, H] of the last token of each row."""
    return hidden[:, -1]


def _positions(mask: Tensor) -> Tensor:
    """Position of every token of left-padded prompts [P, Q]; padding has any."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)
