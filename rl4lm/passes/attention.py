"""A model's attention replaced by one in which the completions of a prompt share it.

`transformers` lets a model's attention be replaced by name. Everything else in a decoder works
token by token, so that the unmodified model computes what it would for each sequence alone, and a
prompt only once. Who sees whom is said by a layout: of a packed row
(`rl4lm.passes.packed_attention`) or of decoding (`rl4lm.passes.decoding_attention`). What a model
asks of its attention beyond that (a window, a soft cap, a bias) is refused here, and found by
`rl4lm.preflight.packability` before it matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

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
