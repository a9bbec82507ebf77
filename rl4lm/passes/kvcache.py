"""The key-value cache of decoding: of fixed size, and prompts held once for all completions.

Drawn tokens are written into room that is there from the start, under an unmodified `transformers`
model, through its `Cache` interface. The cache that `transformers` grows by concatenation copies
all keys and values of all layers for every token, and repeats a prompt for each completion. Where
steps are replayed (`rl4lm.passes.replayed`) attention is given the whole room, so that no shape
changes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from rl4lm.estimator.head import LastLogits
from rl4lm.passes.decoding_attention import Decoding, PromptStore
from rl4lm.passes.replayed import Capture, Front, Replay, Step


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

    get_max_cache_shape = get_max_length  # its name in earlier versions of transformers

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


class StaticLayer(CacheLayerMixin):
    """Keys and values of one layer, [b, key heads, capacity, d], written at a front.

    Attention sees all of the room, and hides what is not written yet.
    """

    is_sliding = False
    is_compileable = False

    def __init__(self, front: Front) -> None:
        """Reserve room for as many tokens as the front passes, once the first ones show shapes."""
        super().__init__()
        self._front = front

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take shape, dtype and device from the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = self._room(key_states), self._room(value_states)
        self.is_initialized = True

    def _room(self, like: Tensor) -> Tensor:
        """Room of zeros: what is hidden has weight 0, and 0 · nan is nan."""
        return like.new_zeros(len(like), like.shape[1], self._front.capacity, like.shape[3])

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token [b, key heads, 1, d] at the front; returns all of the room."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.keys.index_copy_(2, self._front.at, key_states)
        self.values.index_copy_(2, self._front.at, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(places that attention is given, offset 0)."""
        return self._front.capacity, 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self._front.length

    def get_max_length(self) -> int:
        """Tokens that fit."""
        return self._front.capacity

    get_max_cache_shape = get_max_length  # its name in earlier versions of transformers

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the sequences of these indices, in their order."""
        assert self.keys is not None
        assert self.values is not None
        self.keys = self.keys.index_select(0, indices)
        self.values = self.values.index_select(0, indices)


class SharedCache:
    """Keys and values of prompts, once each, and of the tokens drawn for each completion."""

    def __init__(self, store: PromptStore, room: int, capture: Capture | None = None) -> None:
        """Begin with one row for each prompt.

        Args:
            store: the prompts.
            room: tokens that each row can take.
            capture: by which a step is replayed; None where each one is run.
        """
        self.last_logits = LastLogits()
        self._replay: Replay | None = None
        if capture is None:
            self.drawn = Cache(layer_class_to_replicate=partial(FixedLayer, room))
            self.layout = Decoding(store)
        else:
            front = Front(room, store.device)
            self.drawn = Cache(layer_class_to_replicate=partial(StaticLayer, front))
            self.layout = Decoding(store, front.hidden)
            self._replay = Replay(capture, front)

    def run(self, step: Step, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [b, V] after tokens [b] at positions [b], by a step on this cache or its replay.

        They are good until the next call.
        """
        if self._replay is None:
            return step(tokens, positions)
        return self._replay(step, tokens, positions)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows of these indices, in their order; a row may come several times."""
        if self._replay is not None:
            self._replay.forget()
        self.drawn.batch_select_indices(indices)
        self.layout.select(indices)
