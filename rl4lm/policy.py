"""The policy π_θ: one module that owns every parameter, and what goes with it.

`PolicyModule` holds backbone and head; its forward runs both, and nothing touches parameters
outside it, so that whatever shards or wraps parameters has one place to do so. Sampling, scoring
and differentiation differ only in the function that reads the hidden states out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rl4lm.logprobs import Head, tiled_gradient, tiled_logprobs
from rl4lm.microbatch import MicroBatch, first_of_equals, micro_batches
from rl4lm.text import TextCodec
from rl4lm.types import Rollout

T = TypeVar("T")
ReadOut = Callable[[Tensor, Head], T]  # (hidden states [b, L, H], head) -> anything


class PolicyModule(nn.Module):
    """A causal language model as backbone and head, run by one forward."""

    def __init__(self, model: nn.Module, separate_head: bool = True) -> None:
        """Wrap a model.

        Args:
            model: a `transformers` causal language model, or a `peft` model around one.
            separate_head: run backbone and head apart, so that logits exist tile by tile and for
                completion tokens only. Without it the whole model runs and its logits stand in
                for hidden states: right for every architecture, at the price of memory.
        """
        super().__init__()
        self.model = model
        self.separate_head = separate_head
        accepted = inspect.signature(self._backbone().forward).parameters
        self._takes_positions = "position_ids" in accepted

    @property
    def causal_lm(self) -> Any:
        """The `transformers` model, without the adapter's wrapper; it shares the adapter layers."""
        get_base = getattr(self.model, "get_base_model", None)
        return self.model if get_base is None else get_base()

    def _backbone(self) -> Any:
        causal_lm = self.causal_lm
        return getattr(causal_lm, causal_lm.base_model_prefix, causal_lm)

    @property
    def vocabulary(self) -> int:
        """V, rows of the head."""
        return self.causal_lm.get_output_embeddings().weight.shape[0]

    def forward(
        self,
        read_out: ReadOut[T],
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        cache: Any = None,
    ) -> T:
        """Run the model and read the result out.

        Args:
            read_out: what is wanted of the hidden states [b, L, H].
            input_ids: int64 [b, L].
            attention_mask: [b, cached + L], non-zero on real tokens.
            position_ids: int64 [b, L].
            cache: a `transformers` cache to extend, or None.
        """
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask.long(),
            "past_key_values": cache,
            "use_cache": cache is not None,
            "return_dict": True,
        }
        if self._takes_positions:
            inputs["position_ids"] = position_ids
        if self.separate_head:
            hidden = self._backbone()(**inputs).last_hidden_state
            return read_out(hidden, self.causal_lm.get_output_embeddings())
        return read_out(self.model(**inputs).logits, _identity)


def _identity(logits: Tensor) -> Tensor:
    return logits


def last_logits(hidden: Tensor, head: Head) -> Tensor:
    """Logits [b, V] after the last token of each row."""
    return head(hidden[:, -1])


class Policy:
    """A policy module with its text codec, its precision and its ends."""

    def __init__(
        self,
        module: PolicyModule,
        codec: TextCodec,
        *,
        end_token_ids: Sequence[int],
        autocast_dtype: torch.dtype | None,
    ) -> None:
        """Put the parts together; `rl4lm.preparing.make_policy` is the usual way to get one.

        Args:
            module: owns the parameters.
            codec: between text and its token ids.
            end_token_ids: ids that end a completion.
            autocast_dtype: compute dtype under autocast, None for the parameters' own.
        """
        self.module = module
        self.codec = codec
        self.end_token_ids = tuple(end_token_ids)
        self._autocast_dtype = autocast_dtype
        dtypes = {parameter.dtype for parameter in module.parameters()}
        self._log_dtype = torch.float64 if dtypes == {torch.float64} else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    @property
    def tolerance(self) -> float:
        """Largest difference of two log-probs that rounding explains, by compute dtype."""
        if self._autocast_dtype is not None or self._log_dtype != torch.float64:
            coarse = self._autocast_dtype or next(self.module.parameters()).dtype
            return 1e-3 if coarse == torch.float32 else 0.25
        return 1e-9

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that receive gradients, by their plain names in the model."""
        named = self.module.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Any]:
        """Logits [P, V] after each left-padded prompt [P, Q], and the cache that holds it."""
        from transformers import DynamicCache

        cache = DynamicCache()
        positions = (prompt_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        with self.precision():
            logits = self.module(last_logits, prompt_ids, prompt_mask, positions, cache)
        return logits, cache

    def decode(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits [b, V] after `tokens` [b] at `positions` [b]; mask [b, Q + t] covers them."""
        with self.precision():
            return self.module(last_logits, tokens[:, None], mask, positions[:, None], cache)

    @torch.no_grad()
    def completion_logprobs(
        self, rollout: Rollout, temperature: float = 1.0, max_tokens: int = 16384
    ) -> Tensor:
        """log π of every completion token by a teacher-forced forward pass.

        Args:
            rollout: B completions.
            temperature: of the distribution, > 0.
            max_tokens: padded tokens of one forward pass; does not change the result.

        Returns:
            [B, T] on the CPU, 0 outside the completion mask, without gradient; float32, or float64
            where the model is.
        """

        def read(hidden: Tensor, head: Head) -> Tensor:
            return tiled_logprobs(
                hidden[batch.predicts.to(hidden.device)],
                head,
                batch.targets.to(hidden.device),
                temperature,
                self.module.vocabulary,
            )

        result = torch.zeros(rollout.completion_mask.shape, dtype=self._log_dtype)
        for batch in micro_batches(rollout, range(len(rollout.completion_ids)), max_tokens):
            _scatter(result, batch, rollout, self._run(batch, read))
        return result

    def accumulate_gradient(
        self,
        rollout: Rollout,
        weights: Tensor,
        temperature: float,
        max_tokens: int,
    ) -> Tensor:
        """Add ∂/∂θ of ``Σ weights · log π`` to the parameters' gradients.

        Completions whose weights are all zero contribute nothing and are not run; of equal
        completions of a prompt one is run for all.

        Args:
            rollout: B completions.
            weights: [B, T], ∂L/∂log π of every token; read inside the completion mask only.
            temperature: of the distribution, > 0.
            max_tokens: padded tokens of one micro-batch; does not change the result.

        Returns:
            The log-probs met on the way, [B, T] on the CPU without gradient; nan on completions
            that were not run, 0 outside the mask.
        """

        def read(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
            chosen = hidden[batch.predicts.to(hidden.device)]  # [n, H]
            row_weights = summed[batch.rows][rollout.completion_mask[batch.rows]]  # [n]
            logprobs, gradient = tiled_gradient(
                chosen,
                head,
                batch.targets.to(hidden.device),
                row_weights.to(hidden.device),
                temperature,
                self.module.vocabulary,
            )
            # Its gradient with respect to the backbone is that of Σ weights · log π.
            return logprobs, (chosen * gradient).sum()

        owners = first_of_equals(rollout)  # int64 [B]
        summed = torch.zeros_like(weights).index_add_(0, owners, weights)  # [B, T]
        live = (summed.ne(0) & rollout.completion_mask).any(dim=1).nonzero().flatten().tolist()
        result = torch.full(rollout.completion_mask.shape, float("nan"), dtype=self._log_dtype)
        result.masked_fill_(~rollout.completion_mask, 0.0)
        for batch in micro_batches(rollout, live, max_tokens):
            logprobs, surrogate = self._run(batch, read)
            if surrogate.requires_grad:  # not so where only the head is trained
                surrogate.backward()
            _scatter(result, batch, rollout, logprobs)
        return result[owners]

    def _run(self, batch: MicroBatch, read_out: ReadOut[T]) -> T:
        device = self.device
        with self.precision():
            return self.module(
                read_out,
                batch.input_ids.to(device),
                batch.attention_mask.to(device),
                batch.position_ids.to(device),
            )

    def precision(self) -> AbstractContextManager[Any]:
        """The context that computations run in: autocast, or nothing."""
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)


def _scatter(result: Tensor, batch: MicroBatch, rollout: Rollout, logprobs: Tensor) -> None:
    """Write flat log-probs [n] of a micro-batch to their places in result [B, T]."""
    mask = rollout.completion_mask[batch.rows]  # [b, T]
    values = torch.zeros(mask.shape, dtype=result.dtype)
    values[mask] = logprobs.to("cpu", result.dtype)
    result[batch.rows] = values
