"""Attention in which the completions of a prompt share it: packed rows, and decoding.

`transformers` lets a model's attention be replaced by name. In a packed row each prompt stands
once, beside the continuations of its completions; a prompt sees itself, a continuation sees its
prompt and itself. Everything else in a decoder works token by token, so that the unmodified model
computes what it would for each sequence alone, and a prompt only once. When decoding, the prompts'
keys and values are held once too, and only those of the drawn tokens for each completion. What a
model asks of its attention beyond that (a window, a soft cap, a bias) is refused here, and found
by `rl4lm.preflight.packability` before it matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rl4lm.passes.packing import Continuations, Packing

NAME = "rl4lm_shared_prompts"

# What models hand to any attention function; it changes nothing that is computed here.
_HARMLESS = frozenset(
    {"cache_position", "is_causal", "output_attentions", "output_hidden_states", "position_ids"}
    | {"return_dict", "use_cache"}
)


class NotPackableError(Exception):
    """A model whose attention does more than its queries, keys and values say."""


class Layout(Protocol):
    """What the tokens of a forward pass see; one call of `attend` per layer."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention of query [b, heads, L, d] on key and value: [b, L, heads, d']."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """The attention function that `transformers` calls in each layer.

    Args:
        module: the attention layer.
        query: [b, heads, L, d].
        key: [b, key heads, L', d]; heads / key heads queries share a key.
        value: [b, key heads, L', d'].
        attention_mask: not read; who sees whom follows from the layout.
        scaling: of the scores; None means 1/√d.
        dropout: must be 0.
        layout: who sees whom.
        **asked: whatever else the model wants of its attention; what is not known to be harmless
            is refused.

    Returns:
        [b, L, heads, d'], and None for the attention weights.

    Raises:
        NotPackableError: the model wants what is not done here.
    """
    if layout is None:
        raise NotPackableError("it does not hand arguments on to its attention")
    if dropout:
        raise NotPackableError(f"it has attention dropout {dropout}")
    if asked.get("is_causal") is False:
        raise NotPackableError("its attention looks ahead")
    for name, wish in asked.items():
        if name not in _HARMLESS and wish is not None and wish is not False:
            raise NotPackableError(f"it asks its attention for {name}")
    layer = getattr(module, "layer_idx", None)
    if layer is None:  # taken for another layer, it would decode with that one's prompts
        raise NotPackableError("its attention does not say which layer it is")
    return layout.attend(layer, query, key, value, scaling), None


@contextmanager
def shared_prompts(causal_lm: Any) -> Iterator[None]:
    """Let `attend` be a model's attention for a while; its configuration is given back."""
    from transformers import AttentionInterface

    # No mask function goes with it: transformers then makes no mask, and spends no time on one.
    AttentionInterface.register(NAME, attend)
    config = causal_lm.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


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
            _Continuations(c, packing.prompts[c.bucket], device) for c in packing.continuations
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
        pieces, seen = [], []
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


class _Continuations:
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


class PromptStore:
    """Keys and values of prompts, once each, for the completions that are decoded from them."""

    def __init__(self, packing: Packing, order: Sequence[int], device: torch.device) -> None:
        """Prepare to be filled by a packed row of prompts.

        Args:
            packing: prompts only.
            order: for each prompt of the packing its place here.
            device: of the tokens.
        """
        lengths = [length for bucket in packing.prompts for length in bucket]
        places = iter(order)
        self._places = [
            torch.tensor([next(places) for _ in bucket], device=device)
            for bucket in packing.prompts
        ]
        self.device = device
        self.keys: dict[int, Tensor] = {}  # layer -> [D, key heads, Q, d]
        self.values: dict[int, Tensor] = {}
        at = torch.tensor(order).argsort()
        seen = torch.arange(max(lengths)) < torch.tensor(lengths)[at][:, None]  # [D, Q]
        hidden = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        self.hidden = None if bool(seen.all()) else hidden.to(device)[:, None, None]  # [D, 1, 1, Q]
        self._shape = seen.shape

    def add(self, layer: int, bucket: int, keys: Tensor, values: Tensor) -> None:
        """Put the keys and values [n, Q', key heads, d] of a bucket's prompts in their places."""
        for held, new in ((self.keys, keys), (self.values, values)):
            if layer not in held:
                count, width = self._shape
                held[layer] = new.new_zeros(count, new.shape[2], width, new.shape[3])
            held[layer][self._places[bucket], :, : new.shape[1]] = new.transpose(1, 2)

    def keep(self, prompts: Tensor) -> None:
        """Drop all prompts but these, int64 [D']."""
        for held in (self.keys, self.values):
            for layer, tensor in held.items():
                held[layer] = tensor.index_select(0, prompts)
        if self.hidden is not None:
            self.hidden = self.hidden.index_select(0, prompts)


class Decoding:
    """The layout of one more token for each of b completions of the prompts of a store."""

    def __init__(self, store: PromptStore, own_hidden: Tensor | None = None) -> None:
        """Begin with one row for each prompt.

        Args:
            store: the prompts, and their keys and values.
            own_hidden: [1, 1, 1, t], added to the scores of drawn tokens, where some of the t
                places at hand are not written yet.
        """
        self._store = store
        self._own_hidden = own_hidden
        self._owners = list(range(len(next(iter(store.keys.values())))))  # row -> prompt
        self._places: Tensor | None = None  # int64 [b], of each row among [D, W]; None = all full
        self._prompts = len(self._owners)  # D
        self._width = 1  # W, rows of a prompt at most

    def select(self, rows: Tensor) -> None:
        """Keep these rows; a row may come several times."""
        owners = [self._owners[row] for row in rows.tolist()]
        left = sorted(set(owners))
        if len(left) < len(set(self._owners)):
            self._store.keep(torch.tensor(left, device=rows.device))
        renamed = {prompt: place for place, prompt in enumerate(left)}
        self._owners, self._prompts = [renamed[owner] for owner in owners], len(left)
        counts = [0] * len(left)
        places = []
        for owner in self._owners:
            places.append((owner, counts[owner]))
            counts[owner] += 1
        self._width = max(counts, default=1)
        flat = [owner * self._width + k for owner, k in places]
        full = flat == list(range(len(left) * self._width))
        self._places = None if full else torch.tensor(flat, device=rows.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
    ) -> Tensor:
        """Attention of query [b, heads, 1, d] on the prompts and on the drawn tokens at hand.

        The scores against a prompt are one matrix product for all its rows.
        """
        prompt_k, prompt_v = self._store.keys[layer], self._store.values[layer]
        heads, size = query.shape[1], query.shape[3]
        shared = heads // key.shape[1]  # query heads of a key head
        scale = size**-0.5 if scaling is None else scaling
        query = (query * scale).reshape(len(query), key.shape[1], shared, size)
        scores = torch.matmul(self._by_prompt(query), prompt_k.transpose(2, 3))
        if self._store.hidden is not None:
            scores = scores + self._store.hidden.to(scores.dtype)
        length = scores.shape[3]  # Q
        own = torch.matmul(query, key.transpose(2, 3))  # [b, key heads, shared, t]
        if self._own_hidden is not None:
            own = own + self._own_hidden.to(own.dtype)
        both = torch.cat([self._by_row(scores, shared), own], dim=3)
        exact = torch.float64 if both.dtype == torch.float64 else torch.float32
        weights = torch.softmax(both, dim=3, dtype=exact).to(value.dtype)
        of_prompt = torch.matmul(self._by_prompt(weights[..., :length]), prompt_v)
        of_own = torch.matmul(weights[..., length:], value)
        out = self._by_row(of_prompt, shared) + of_own  # [b, key heads, shared, d']
        return out.flatten(1, 2)[:, None]

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """[b, key heads, shared, x] -> [D, key heads, W · shared, x]."""
        if self._places is not None:
            room = rows.new_zeros(self._prompts * self._width, *rows.shape[1:])
            rows = room.index_copy_(0, self._places, rows)
        grouped = rows.unflatten(0, (-1, self._width))  # [D, W, key heads, shared, x]
        return grouped.transpose(1, 2).flatten(2, 3)

    def _by_row(self, grouped: Tensor, shared: int) -> Tensor:
        """[D, key heads, W · shared, x] -> [b, key heads, shared, x]."""
        rows = grouped.unflatten(2, (self._width, shared)).transpose(1, 2).flatten(0, 1)
        return rows if self._places is None else rows.index_select(0, self._places)
