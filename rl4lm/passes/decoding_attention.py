"""Attention of decoding: one more token for each completion, prompts held once for all of theirs.

Only the keys and values of drawn tokens are held for each completion (`rl4lm.passes.kvcache`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rl4lm.passes.packing import Packing


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
        self.count, self._width = len(lengths), max(lengths)  # D, Q
        self.keys: dict[int, Tensor] = {}  # layer -> [D, key heads, Q, d]
        self.values: dict[int, Tensor] = {}
        at = torch.tensor(order).argsort()
        seen = torch.arange(self._width) < torch.tensor(lengths)[at][:, None]  # [D, Q]
        hidden = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        self.hidden = None if bool(seen.all()) else hidden.to(device)[:, None, None]  # [D, 1, 1, Q]

    def add(self, layer: int, bucket: int, keys: Tensor, values: Tensor) -> None:
        """Put the keys and values [n, Q', key heads, d] of a bucket's prompts in their places."""
        for held, new in ((self.keys, keys), (self.values, values)):
            if layer not in held:
                held[layer] = new.new_zeros(self.count, new.shape[2], self._width, new.shape[3])
            held[layer][self._places[bucket], :, : new.shape[1]] = new.transpose(1, 2)

    def keep(self, prompts: Tensor) -> None:
        """Drop all prompts but these, int64 [D']."""
        self.count = len(prompts)
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
        self._owners = list(range(store.count))  # row -> prompt
        self._places: Tensor | None = None  # int64 [b], of each row among [D, W]; None = all full
        self._width = 1  # W, rows of a prompt at most

    def select(self, rows: Tensor) -> None:
        """Keep these rows; a row may come several times."""
        owners = [self._owners[row] for row in rows.tolist()]
        left = sorted(set(owners))
        if len(left) < self._store.count:
            self._store.keep(torch.tensor(left, device=rows.device))
        renamed = {prompt: place for place, prompt in enumerate(left)}
        self._owners = [renamed[owner] for owner in owners]
        self._lay_out(rows.device)

    def _lay_out(self, device: torch.device) -> None:
        """Give each prompt room for W rows, and each row a place in the room of its prompt."""
        counts = [0] * self._store.count
        places = []
        for owner in self._owners:
            places.append((owner, counts[owner]))
            counts[owner] += 1
        self._width = max(counts, default=1)
        flat = [owner * self._width + k for owner, k in places]
        full = flat == list(range(len(counts) * self._width))
        self._places = None if full else torch.tensor(flat, device=device)

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
            room = rows.new_zeros(self._store.count * self._width, *rows.shape[1:])
            rows = room.index_copy_(0, self._places, rows)
        grouped = rows.unflatten(0, (-1, self._width))  # [D, W, key heads, shared, x]
        return grouped.transpose(1, 2).flatten(2, 3)

    def _by_row(self, grouped: Tensor, shared: int) -> Tensor:
        """[D, key heads, W · shared, x] -> [b, key heads, shared, x]."""
        rows = grouped.unflatten(2, (self._width, shared)).transpose(1, 2).flatten(0, 1)
        return rows if self._places is None else rows.index_select(0, self._places)
