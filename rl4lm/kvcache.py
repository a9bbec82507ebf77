"""The key-value cache of decoding: of fixed size, and prompts held once for all completions.

Drawn tokens are written into room that is there from the start, under an unmodified `transformers`
model, through its `Cache` interface. The cache that `transformers` grows by concatenation copies
all keys and values of all layers for every token, and repeats a prompt for each completion.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from rl4lm.attention import Decoding, PromptStore
from rl4lm.head import LastLogits


class FixedLayer(CacheLayerMixin):
    """Keys and values of one layer, [b, key heads, capacity, d]; the first `length` are real."""

    is_sliding = False
    is_compileable = False

    def __init__(self, capacity: int) -> None:
        """Reserve room for `capacity` tokens, once the first ones show shape and dtype."""
        super().__init__()
        self._capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take shape, dtype and device from the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = self._room(key_states, len(key_states))
        self.values = self._room(value_states, len(value_states))
        self.is_initialized = True

    def _room(self, like: Tensor, rows: int) -> Tensor:
        """Uninitialised room for keys or values of `rows` sequences."""
        return like.new_empty(rows, like.shape[1], self._capacity, like.shape[3])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the tokens [b, key heads, L, d] behind those at hand; returns views of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        start, self.length = self.length, self.length + key_states.shape[2]
        if self.length > self._capacity:
            raise IndexError(
                f"{self.length} tokens do not fit a cache made for {self._capacity} of them"
            )
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens that attention sees when `query_length` more come, offset 0)."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def get_max_length(self) -> int:
        """Tokens that fit."""
        return self._capacity

    def get_max_cache_shape(self) -> int:
        """Tokens that fit, by the name of earlier versions of transformers."""
        return self._capacity

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences of these indices, in their order."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = (
            self._chosen(self.keys, indices),
            self._chosen(self.values, indices),
        )

    def _chosen(self, held: Tensor, indices: Tensor) -> Tensor:
        room = self._room(held, len(indices))
        room[:, :, : self.length] = held[:, :, : self.length].index_select(0, indices)
        return room


class SharedCache:
    """Keys and values of prompts, once each, and of the tokens drawn for each completion."""

    def __init__(self, store: PromptStore, room: int) -> None:
        """Begin with one row for each prompt, and room for `room` tokens in each."""
        self.drawn = Cache(layer_class_to_replicate=partial(FixedLayer, room))
        self.layout = Decoding(store)
        self.last_logits = LastLogits()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows of these indices, in their order; a row may come several times."""
        self.drawn.batch_select_indices(indices)
        self.layout.select(indices)
