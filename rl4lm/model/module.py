"""The module that owns every parameter of the policy: backbone and head, run by one forward.

Nothing touches parameters outside of it, so that whatever shards or wraps them has one place to do
so. Sampling, scoring and differentiation differ only in the function that reads the hidden states
out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rl4lm.estimator.logprobs import Head
from rl4lm.passes.attention import Layout, shared_prompts
from rl4lm.passes.microbatch import MicroBatch
from rl4lm.passes.packed_attention import PackedRow

T = TypeVar("T")
ReadOut = Callable[[Tensor, Head], T]  # (hidden states [b, L, H], head) -> anything


class PolicyModule(nn.Module):
    """A causal language model as backbone and head, and the precision that it computes in.

    Three attributes say how it may be run; `rl4lm.preflight.probe` finds them out.
    """

    def __init__(self, model: nn.Module, autocast_dtype: torch.dtype | None = None) -> None:
        """Wrap a model.

        Args:
            model: a `transformers` causal language model, or a `peft` model around one.
            autocast_dtype: compute dtype under autocast, None for the parameters' own.
        """
        super().__init__()
        self.model = model
        self.autocast_dtype = autocast_dtype
        # Whether backbone and head are run apart, so that logits exist tile by tile and for
        # completion tokens only. Else the whole model runs and its logits stand in for hidden
        # states: right for every architecture, at the price of memory.
        self.separate_head = True
        self.packs = False  # whether its attention can be replaced, so that rows share prompts
        # Whether decoding with that attention is captured and replayed.
        self.replays = any(parameter.is_cuda for parameter in model.parameters())
        accepted = inspect.signature(self._backbone().forward).parameters
        self._takes_positions = "position_ids" in accepted
        dtypes = {parameter.dtype for parameter in model.parameters()}
        self.logprob_dtype = torch.float64 if dtypes == {torch.float64} else torch.float32

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

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

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

    def run(self, batch: MicroBatch, read_out: ReadOut[T]) -> T:
        """Run a micro-batch and read the result out; a packed one in the context of `packing`."""
        device = self.device
        with self.precision():
            return self(
                read_out,
                batch.input_ids.to(device),
                None if batch.packing else batch.attention_mask.to(device),
                batch.position_ids.to(device),
                layout=PackedRow(batch.packing, device) if batch.packing else None,
            )

    def packing(self) -> AbstractContextManager[None]:
        """The context in which packed rows can be run, where the model can be packed."""
        return shared_prompts(self.causal_lm) if self.packs else nullcontext()

    def precision(self) -> AbstractContextManager[Any]:
        """The context that computations run in: autocast, or nothing.

        Autocast keeps its casts of trainable weights until the outermost context ends, outside of
        inference mode: a rollout inside one casts them once, and not for every token.
        """
        # Frozen weights are cast at every use all the same. Under an adapter that is most of them,
        # and a token then reads float32 masters; pure_bfloat16 has no such cost.
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)


def _identity(logits: Tensor) -> Tensor:
    return logits
