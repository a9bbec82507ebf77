"""Attention within a packed row: a prompt sees itself, a continuation its prompt and itself.

Each prompt stands once, beside the continuations of its completions (`rl4lm.passes.packing`). A
bucket of sequences of similar length is made rows of equal length for one call of torch's
attention, and taken apart again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rl4lm.passes.decoding_attention import PromptStore
from rl4lm.passes.packing import Continuations, Packing


class PackedRow:
    """The layout of a packed row, [1, L]."""

    def __init__(
        self, packing: Packing, device: torch.device, store: PromptStore | None = None
    ) -> None:
        """Prepare the index tensors and masks that all layers use.

        Args:
            packing: what stands where.
            device: of the tokens.
            store: filled with the prompts' keys and values, layer by layer, where it is given.
        """
        self._prompts = [_Padding(bucket, device) for bucket in packing.prompts]
        self._continuations = [
            _ContinuationRows(c, packing.prompts[c.bucket], device) for c in packing.continuations
        ]
        self._sizes = packing.sizes
        self._store = store
        self.calls = 0  # one per layer

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention of every sequence on itself and on its prompt: [1, L, heads, d']."""
        self.calls += 1
        queries, keys, values = (
            x[0].transpose(0, 1).split(self._sizes) for x in (query, key, value)
        )  # of each bucket [tokens, heads, d]
        pieces: list[Tensor] = []  # of each bucket [tokens, heads, d']
        seen: list[tuple[Tensor, Tensor]] = []  # keys and values of its prompts, [n, Q, heads, d]
        for k, padding in enumerate(self._prompts):
            q, prompt_k, prompt_v = (padding.rows(x[k]) for x in (queries, keys, values))
            seen.append((prompt_k, prompt_v))
            pieces.append(padding.flat(_attend(q, prompt_k, prompt_v, None, scaling)))
            if self._store is not None:
                self._store.add(layer, k, prompt_k, prompt_v)
        for k, part in enumerate(self._continuations, start=len(self._prompts)):
            q, own_k, own_v = (part.padding.rows(x[k]) for x in (queries, keys, values))
            prompt_k, prompt_v = (part.of_prompts(x) for x in seen[part.bucket])
            all_k, all_v = torch.cat([prompt_k, own_k], 1), torch.cat([prompt_v, own_v], 1)
            out = _attend(q, all_k, all_v, part.mask(q, own_k), scaling)
            pieces.append(part.padding.flat(out))
        return torch.cat(pieces)[None]


class _Padding:
    """Sequences side by side as rows of equal length, and back."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self._shape = (len(lengths), max(lengths))
        self._inside: Tensor | None = None  # int64 [n·Q], where the tokens of the rows come from
        self._kept: Tensor | None = None  # int64 [tokens], their places among the rows
        if min(lengths) < max(lengths):
            sizes = torch.tensor(lengths)
            places = torch.arange(max(lengths))
            # Padding repeats the last token: it stands on the right, where nobody looks back at it.
            inside = (sizes.cumsum(0) - sizes)[:, None] + torch.minimum(places, sizes[:, None] - 1)
            self._inside = inside.flatten().to(device)
            self._kept = (places < sizes[:, None]).flatten().nonzero().squeeze(-1).to(device)

    def rows(self, flat: Tensor) -> Tensor:
        """[tokens, heads, d] -> [n, Q, heads, d]."""
        chosen = flat if self._inside is None else _take(flat, self._inside)
        return chosen.unflatten(0, self._shape)

    def flat(self, rows: Tensor) -> Tensor:
        """[n, Q, heads, d] -> [tokens, heads, d]."""
        flat = rows.flatten(0, 1)
        return flat if self._kept is None else _take(flat, self._kept)


def _take(flat: Tensor, index: Tensor) -> Tensor:
    """Rows of [n, heads, d]; as an embedding, whose backward pass is the quick one on a CPU."""
    shape = flat.shape[1:]
    return nn.functional.embedding(index, flat.flatten(1)).unflatten(1, shape)


class _ContinuationRows:
    """The continuations of a bucket, g of each of its prompts."""

    def __init__(
        self, given: Continuations, prompt_lengths: Sequence[int], device: torch.device
    ) -> None:
        self.bucket = given.bucket
        self.padding = _Padding(given.lengths, device)
        self._each = len(given.lengths) // len(given.prompts)  # g
        everyone = given.prompts == tuple(range(len(prompt_lengths)))
        self._prompts = None if everyone else torch.tensor(given.prompts, device=device)
        self._device = device
        width, longest = max(given.lengths), max(prompt_lengths)
        seen = torch.ones(width, longest + width, dtype=torch.bool).tril(longest)
        lengths = torch.tensor([prompt_lengths[p] for p in given.prompts])
        if int(lengths.min()) < longest:
            of_prompt = torch.arange(longest + width) < lengths[:, None]  # [n / g, Q + C]
            own = torch.arange(longest + width) >= longest
            seen = seen & (of_prompt | own)[:, None, None].repeat_interleave(self._each, 0)
        self._seen = seen  # bool [C, Q + C] or [n, 1, C, Q + C]
        self._masks: dict[tuple[torch.dtype, int], Tensor] = {}

    def of_prompts(self, rows: Tensor) -> Tensor:
        """What each continuation sees of its prompt: [prompts, Q, heads, d] -> [n, Q, heads, d]."""
        chosen = rows if self._prompts is None else rows.index_select(0, self._prompts)
        return chosen[:, None].expand(-1, self._each, -1, -1, -1).flatten(0, 1)

    def mask(self, query: Tensor, key: Tensor) -> Tensor:
        """0 or -inf, added to the scores; once below the other for queries that share a key head.

        Its dtype is that of the queries, as attention asks.
        """
        shared = query.shape[2] // key.shape[2]
        kind = (query.dtype, shared)
        if kind not in self._masks:
            zeros = torch.zeros(self._seen.shape, dtype=query.dtype)
            mask = zeros.masked_fill(~self._seen, -torch.inf)
            self._masks[kind] = torch.cat([mask] * shared, dim=-2).to(self._device)
        return self._masks[kind]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attention of [n, C, heads, d] on [n, K, key heads, d]; without a mask it is causal, C = K.

    With a mask, queries that share a key head stand below one another, so that no key is copied
    for them.
    """
    width, heads = query.shape[1:3]
    shared = heads // key.shape[2]  # query heads of a key head
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    if mask is None or shared == 1:
        out = scaled_dot_product_attention(
            query.transpose(1, 2),
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=shared > 1,
        )
        return out.transpose(1, 2)
    folded = query.unflatten(2, (-1, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    out = scaled_dot_product_attention(  # [n, key heads, shared · C, d']
        folded, key, value, attn_mask=mask, scale=scaling
    )
    return out.unflatten(2, (shared, width)).permute(0, 3, 1, 2, 4).flatten(2, 3)
