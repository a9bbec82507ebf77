"""Adapters merged into copies of the weights they adapt, for the time of a rollout.

A decoding step of a small model spends as long on the two products of every adapter as on the layer
under it. The layers themselves are never touched: peft's way of merging in place changes bits when
it is undone. Only in float32 and better: W + BA rounded to bfloat16 would lose adapters that are
small beside their weights, and sample from another policy than the one that is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_EXACT = (torch.float32, torch.float64)


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Let each LoRA layer of a model be one layer with weight W + (alpha/r)·B·A for a while.

    Layers whose adapter is switched off, is more than two matrices, or is not in float32 or
    float64 are left as they are.
    """
    merged = []
    try:
        for layer in _plain_lora_layers(model):
            layer.forward = _merged_copy(layer).forward  # on the object, in front of its class's
            merged.append(layer)
        yield
    finally:
        for layer in merged:
            del layer.forward


def _plain_lora_layers(model: nn.Module) -> Iterator[Any]:
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.lora.layer import Linear
    from transformers.pytorch_utils import Conv1D

    for layer in model.modules():
        plain = type(layer) is Linear and type(layer.base_layer) in (nn.Linear, Conv1D)
        if plain and _can_be_merged(layer):
            yield layer


def _can_be_merged(layer: Any) -> bool:
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    more = any(name in layer.lora_variant or layer.lora_bias[name] for name in active)
    dtypes = {parameter.dtype for parameter in layer.parameters()}
    exact = len(dtypes) == 1 and dtypes <= set(_EXACT)
    return bool(active) and exact and not (more or layer.disable_adapters or layer.merged)


@torch.no_grad()
def _merged_copy(layer: Any) -> nn.Module:
    """The base layer with a weight of its own; whatever else it has is shared."""
    base = layer.base_layer
    weight = base.weight.detach().clone()
    for name in layer.active_adapters:
        if name in layer.lora_A:
            weight += layer.get_delta_weight(name)
    result = copy.copy(base)
    result._parameters = {**base._parameters, "weight": weight}
    return result
