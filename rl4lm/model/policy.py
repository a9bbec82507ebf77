"""The policy π_θ: what a language model is to the rest of the program.

The parameters are in `rl4lm.model.module`. `rl4lm.model.decoding` runs them a token at a time, to
sample; `rl4lm.model.teacher_forcing` runs them on completions as they stand, for log-probs and for
the gradient. This class holds what both need, and says what each is asked.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from rl4lm.estimator.losses import TokenWeights
from rl4lm.model import decoding, teacher_forcing
from rl4lm.model.adapters import adapter_off
from rl4lm.model.module import PolicyModule
from rl4lm.passes.kvcache import SharedCache
from rl4lm.processes.sharding import Shards
from rl4lm.text import TextCodec
from rl4lm.types import Rollout


class Policy:
    """A policy module with its text codec and its ends."""

    def __init__(
        self, module: PolicyModule, codec: TextCodec, *, end_token_ids: Sequence[int]
    ) -> None:
        """Put the parts together; `rl4lm.model.preparing.make_policy` is the usual way to get one.

        Args:
            module: owns the parameters.
            codec: between text and its token ids.
            end_token_ids: ids that end a completion.
        """
        self.module = module
        self.shards = Shards()  # `rl4lm.assembly` deals the parameters where the launcher asks
        self.codec = codec
        self.end_token_ids = tuple(end_token_ids)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.module.device

    @property
    def mixed_precision(self) -> bool:
        """Whether computations run in another precision than that of the weights."""
        return self.module.autocast_dtype is not None

    @property
    def compute_dtype(self) -> torch.dtype:
        """The precision of the computation: that of autocast, or the parameters' coarsest."""
        if self.module.autocast_dtype is not None:
            return self.module.autocast_dtype
        dtypes = {p.dtype for p in self.module.parameters() if p.is_floating_point()}
        return min(dtypes, key=lambda dtype: dtype.itemsize)

    @property
    def tolerance(self) -> float:
        """Largest difference of two log-probs that rounding explains, by compute dtype."""
        return {torch.float64: 1e-9, torch.float32: 1e-3}.get(self.compute_dtype, 0.25)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that receive gradients, by their plain names in the model."""
        named = self.module.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor, room: int) -> tuple[Tensor, Any]:
        """Logits [P, V] after each left-padded prompt [P, Q], and the cache that holds it.

        Args:
            prompt_ids: int64 [P, Q].
            prompt_mask: bool [P, Q].
            room: tokens that are to be decoded after the prompts, at most.
        """
        if self.module.packs:
            return decoding.prefill_packed(self.module, prompt_ids, prompt_mask, room)
        return decoding.prefill_padded(self.module, prompt_ids, prompt_mask)

    def decode(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        """Logits [b, V] after `tokens` [b] at `positions` [b], by a cache of `prefill`.

        The mask, bool [b, Q + t], covers the prompt and all tokens up to these; None means that no
        prompt is padded.
        """
        if isinstance(cache, SharedCache):
            return decoding.decode_packed(self.module, tokens, positions, cache)
        return decoding.decode_padded(self.module, tokens, mask, positions, cache)

    @torch.no_grad()
    def prompt_features(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """The last hidden state of each left-padded prompt [P, Q]: float64 [P, H] on the CPU."""
        with self.shards.gathered():
            hidden = decoding.prompt_features(self.module, prompt_ids, prompt_mask)
        return hidden.double().cpu()

    def completion_logprobs(
        self, rollout: Rollout, temperature: float = 1.0, max_tokens: int = 16384
    ) -> Tensor:
        """log π of every completion token by a teacher-forced forward pass.

        Args:
            rollout: B completions.
            temperature: of the distribution, > 0.
            max_tokens: input tokens of one forward pass; does not change the result.

        Returns:
            [B, T] on the CPU, 0 outside the completion mask, without gradient; float32, or float64
            where the model is.
        """
        with self.shards.gathered():
            return teacher_forcing.completion_logprobs(
                self.module, rollout, temperature, max_tokens
            )

    def completion_entropies(
        self, rollout: Rollout, temperature: float = 1.0, max_tokens: int = 16384
    ) -> Tensor:
        """Entropy of the distribution that each completion token was drawn from, in nats.

        As `completion_logprobs`, with ``H_t = -Σ_v π(v | q, o_<t) log π(v | q, o_<t)``.
        """
        with self.shards.gathered():
            return teacher_forcing.completion_entropies(
                self.module, rollout, temperature, max_tokens
            )

    def accumulate_gradient(
        self,
        rollout: Rollout,
        weights: TokenWeights,
        temperature: float,
        max_tokens: int,
    ) -> Tensor:
        """Add ∂/∂θ of ``Σ weights.logprobs · log π + Σ weights.entropies · H`` to the gradients.

        Completions whose weights are all zero contribute nothing and are not run; of equal
        completions of a prompt one is run for all. Where parameters are dealt over the processes,
        all run as many micro-batches as the one that has most: the rest without any weight.

        Args:
            rollout: B completions.
            weights: two times [B, T], the derivative of the loss by what is known of every token;
                read inside the completion mask only.
            temperature: of the distribution, > 0.
            max_tokens: input tokens of one micro-batch; does not change the result.

        Returns:
            The log-probs met on the way, [B, T] on the CPU without gradient; nan on completions
            that were not run, 0 outside the mask.
        """
        return teacher_forcing.accumulate_gradient(
            self.module, self.shards, rollout, weights, temperature, max_tokens
        )

    def without_adapter(self) -> AbstractContextManager[None]:
        """The context in which the adapter is off: the base model."""
        return adapter_off(self.module.model)

    def frozen_copy(self) -> Policy:
        """The policy as it is now, with parameters of its own that no gradient reaches."""
        module = copy.deepcopy(self.module).requires_grad_(False)
        return Policy(module, self.codec, end_token_ids=self.end_token_ids)
