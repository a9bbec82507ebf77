"""The policy π_θ: one module that owns every parameter, and what goes with it.

`PolicyModule` holds backbone and head; its forward runs both, and nothing touches parameters
outside it, so that whatever shards or wraps parameters has one place to do so. Sampling, scoring
and differentiation differ only in the function that reads the hidden states out.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from rl4lm.estimator.logprobs import Head, tiled_entropies, tiled_gradient, tiled_logprobs
from rl4lm.estimator.losses import TokenWeights
from rl4lm.model.adapters import adapter_off
from rl4lm.passes.attention import Layout, PackedRow, PromptStore, shared_prompts
from rl4lm.passes.kvcache import SharedCache
from rl4lm.passes.microbatch import MicroBatch, first_of_equals, micro_batches
from rl4lm.passes.packing import pack
from rl4lm.passes.replayed import cuda_graph
from rl4lm.processes.sharding import Shards
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
        self.packs = False  # whether its attention can be replaced; `preflight.probe` finds out
        # Whether decoding with that attention is captured and replayed; the probe compares.
        self.replays = any(parameter.is_cuda for parameter in model.parameters())
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
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: Any = None,
        layout: Layout | None = None,
    ) -> T:
        """Run the model and read the result out.

        Args:
            read_out: what is wanted of the hidden states [b, L, H].
            input_ids: int64 [b, L].
            attention_mask: [b, cached + L], non-zero on real tokens, or bool [b, 1, L, cached + L],
                True where a token is seen; None where all are real.
            position_ids: int64 [b, L].
            cache: a `transformers` cache to extend, or None.
            layout: who sees whom, in the context of `rl4lm.passes.attention.shared_prompts` only.
        """
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "past_key_values": cache,
            "use_cache": cache is not None,
            "return_dict": True,
        }
        if self._takes_positions:
            inputs["position_ids"] = position_ids
        if layout is not None:
            inputs["layout"] = layout
        if self.separate_head:
            hidden = self._backbone()(**inputs).last_hidden_state
            return read_out(hidden, self.causal_lm.get_output_embeddings())
        return read_out(self.model(**inputs).logits, _identity)


def _identity(logits: Tensor) -> Tensor:
    return logits


def last_logits(hidden: Tensor, head: Head) -> Tensor:
    """Logits [b, V] after the last token of each row."""
    return head(hidden[:, -1])


def last_hidden(hidden: Tensor, head: Head) -> Tensor:
    """Hidden states [b, H] of the last token of each row."""
    return hidden[:, -1]


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
        """Put the parts together; `rl4lm.model.preparing.make_policy` is the usual way to get one.

        Args:
            module: owns the parameters.
            codec: between text and its token ids.
            end_token_ids: ids that end a completion.
            autocast_dtype: compute dtype under autocast, None for the parameters' own.
        """
        self.module = module
        self.shards = Shards()  # `rl4lm.assembly` deals the parameters where the launcher asks
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
    def mixed_precision(self) -> bool:
        """Whether computations run in another precision than that of the weights."""
        return self._autocast_dtype is not None

    @property
    def compute_dtype(self) -> torch.dtype:
        """The precision of the computation: that of autocast, or the parameters' coarsest."""
        if self._autocast_dtype is not None:
            return self._autocast_dtype
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
            return self._prefill_packed(prompt_ids, prompt_mask, room)
        cache = DynamicCache()
        with self.precision():
            logits = self.module(
                last_logits, prompt_ids, prompt_mask.long(), _positions(prompt_mask), cache
            )
        return logits, cache

    def _prefill_packed(
        self, prompt_ids: Tensor, prompt_mask: Tensor, room: int
    ) -> tuple[Tensor, SharedCache]:
        """`prefill` of a packed row of prompts, none of them padded."""
        prompts = [
            row[mask].tolist()
            for row, mask in zip(prompt_ids.cpu(), prompt_mask.cpu(), strict=True)
        ]
        row = pack({k: (prompt, [0]) for k, prompt in enumerate(prompts)}, range(len(prompts)))
        ends = torch.tensor([row.prompt_ends[k] for k in range(len(prompts))], device=self.device)
        store = PromptStore(row.packing, row.prompt_order, self.device)
        with shared_prompts(self.module.causal_lm), self.precision():
            logits = self.module(
                lambda hidden, head: head(hidden[0, ends]),
                torch.tensor([row.ids], device=self.device),
                None,
                torch.tensor([row.positions], device=self.device),
                layout=PackedRow(row.packing, self.device, store),
            )
        return logits, SharedCache(store, room, cuda_graph if self.module.replays else None)

    def decode(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        """Logits [b, V] after `tokens` [b] at `positions` [b].

        The mask, bool [b, Q + t], covers the prompt and all tokens up to these; None means that no
        prompt is padded.
        """
        if isinstance(cache, SharedCache):
            with shared_prompts(self.module.causal_lm), self.precision():
                return cache.run(partial(self._step, cache), tokens, positions)
        mask = None if mask is None else mask.long()
        with self.precision():
            return self.module(last_logits, tokens[:, None], mask, positions[:, None], cache)

    def _step(self, cache: SharedCache, tokens: Tensor, positions: Tensor) -> Tensor:
        """`decode` with prompts that are shared."""
        return self.module(
            cache.last_logits,
            tokens[:, None],
            None,
            positions[:, None],
            cache.drawn,
            layout=cache.layout,
        )

    @torch.no_grad()
    def prompt_features(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Tensor:
        """The last hidden state of each left-padded prompt [P, Q]: float64 [P, H] on the CPU."""
        with self.shards.gathered(), self.precision():
            hidden = self.module(
                last_hidden,
                prompt_ids.to(self.device),
                prompt_mask.long().to(self.device),
                _positions(prompt_mask).to(self.device),
            )
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
        return self._read_tokens(
            rollout,
            lambda hidden, head, targets: tiled_logprobs(
                hidden, head, targets, temperature, self.module.vocabulary
            ),
            max_tokens,
        )

    def completion_entropies(
        self, rollout: Rollout, temperature: float = 1.0, max_tokens: int = 16384
    ) -> Tensor:
        """Entropy of the distribution that each completion token was drawn from, in nats.

        As `completion_logprobs`, with ``H_t = -Σ_v π(v | q, o_<t) log π(v | q, o_<t)``.
        """
        return self._read_tokens(
            rollout,
            lambda hidden, head, targets: tiled_entropies(
                hidden, head, temperature, self.module.vocabulary
            ),
            max_tokens,
        )

    @torch.no_grad()
    def _read_tokens(
        self,
        rollout: Rollout,
        read_tokens: Callable[[Tensor, Head, Tensor], Tensor],
        max_tokens: int,
    ) -> Tensor:
        """A number per completion token, [B, T], from hidden states [n, H] and targets [n]."""

        def read(hidden: Tensor, head: Head) -> Tensor:
            chosen = hidden.flatten(0, 1)[batch.predicts.to(hidden.device)]
            return read_tokens(chosen, head, batch.targets.to(hidden.device))

        result = torch.zeros(rollout.completion_mask.shape, dtype=self._log_dtype)
        rows = range(len(rollout.completion_ids))
        with self.shards.gathered(), self._packing():
            for batch in micro_batches(rollout, rows, max_tokens, self.module.packs):
                _scatter(result, batch, rollout, self._run(batch, read))
        return result

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

        def of_tokens(table: Tensor) -> Tensor:
            """[n], the entries of a [B, T] table at the tokens that the micro-batch predicts."""
            values = table[batch.rows][rollout.completion_mask[batch.rows]].to(self.device)
            return values if counts else torch.zeros_like(values)

        def read(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
            flat = hidden.flatten(0, 1)  # [S·L, H]
            predicts = batch.predicts.to(hidden.device)  # int64 [n]
            logprobs, gradient = tiled_gradient(
                flat.detach()[predicts],
                head,
                batch.targets.to(hidden.device),
                of_tokens(of_logprobs),
                temperature,
                self.module.vocabulary,
                of_tokens(of_entropies) if with_entropies else None,
            )
            if self.shards:  # the way back sums gradients: it must begin here, and not in a view
                flat = flat.clone() if flat.requires_grad else flat.detach().requires_grad_()
            return logprobs, flat, torch.zeros_like(flat).index_add_(0, predicts, gradient)

        mask = rollout.completion_mask
        owners = first_of_equals(rollout)  # int64 [B]
        of_logprobs, of_entropies = (
            torch.zeros_like(table).index_add_(0, owners, table)  # [B, T]
            for table in (weights.logprobs, weights.entropies)
        )
        with_entropies = bool((of_entropies.ne(0) & mask).any())
        live = ((of_logprobs.ne(0) | of_entropies.ne(0)) & mask).any(dim=1)  # bool [B]
        result = torch.full(mask.shape, float("nan"), dtype=self._log_dtype)
        result.masked_fill_(~mask, 0.0)
        rows = live.nonzero().flatten().tolist()
        batches = list(micro_batches(rollout, rows, max_tokens, self.module.packs))
        passes = [(batch, True) for batch in batches]
        if more := self.shards.most(len(batches)) - len(batches):
            passes += [(self._shortest(rollout), False)] * more
        # The backward pass is in it too, since it may compute activations again.
        with self._packing(), self.shards.passing():
            for batch, counts in passes:
                logprobs, hidden, gradient = self._run(batch, read)
                if hidden.requires_grad:  # not so where only the head is trained
                    hidden.backward(gradient)
                if counts:
                    _scatter(result, batch, rollout, logprobs)
                del hidden, gradient  # or they live on beside the next micro-batch
        return result[owners]

    def _shortest(self, rollout: Rollout) -> MicroBatch:
        """A micro-batch of the shortest sequence."""
        group = rollout.num_generations
        lengths = rollout.lengths + rollout.prompt_lengths.repeat_interleave(group)
        return next(micro_batches(rollout, [int(lengths.argmin())], 1, self.module.packs))

    def _run(self, batch: MicroBatch, read_out: ReadOut[T]) -> T:
        device = self.device
        with self.precision():
            return self.module(
                read_out,
                batch.input_ids.to(device),
                None if batch.packing else batch.attention_mask.to(device),
                batch.position_ids.to(device),
                layout=PackedRow(batch.packing, device) if batch.packing else None,
            )

    def _packing(self) -> AbstractContextManager[None]:
        """The context in which packed rows can be run, where the model can be packed."""
        return shared_prompts(self.module.causal_lm) if self.module.packs else nullcontext()

    def without_adapter(self) -> AbstractContextManager[None]:
        """The context in which the adapter is off: the base model."""
        return adapter_off(self.module.model)

    def frozen_copy(self) -> Policy:
        """The policy as it is now, with parameters of its own that no gradient reaches."""
        module = copy.deepcopy(self.module).requires_grad_(False)
        return Policy(
            module,
            self.codec,
            end_token_ids=self.end_token_ids,
            autocast_dtype=self._autocast_dtype,
        )

    def precision(self) -> AbstractContextManager[Any]:
        """The context that computations run in: autocast, or nothing.

        Autocast keeps its casts of trainable weights until the outermost context ends, outside of
        inference mode: a rollout inside one casts them once, and not for every token.
        """
        # Frozen weights are cast at every use all the same. Under an adapter that is most of them,
        # and a token then reads float32 masters; pure_bfloat16 has no such cost.
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)


def _positions(mask: Tensor) -> Tensor:
    """Position of every token of left-padded prompts [P, Q]; padding has any."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _scatter(result: Tensor, batch: MicroBatch, rollout: Rollout, logprobs: Tensor) -> None:
    """Write flat log-probs [n] of a micro-batch to their places in result [B, T]."""
    mask = rollout.completion_mask[batch.rows]  # [b, T]
    values = torch.zeros(mask.shape, dtype=result.dtype)
    values[mask] = logprobs.to("cpu", result.dtype)
    result[batch.rows] = values
