"""Make a policy of a model: dropout off, every gradient open, ends and precision set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from rl4lm.errors import ModelError
from rl4lm.model.merging import merged_adapters
from rl4lm.model.module import PolicyModule
from rl4lm.model.policy import Policy
from rl4lm.model.quantized import values_in
from rl4lm.text import TextCodec


def make_policy(
    model: nn.Module,
    codec: TextCodec,
    *,
    dtype: str,
    stop_token_ids: Sequence[int] = (),
    activation_checkpointing: bool = False,
) -> Policy:
    """Wrap a model for sampling and training: dropout off, train mode, ends and precision set."""
    mixed = dtype == "bfloat16" or (
        dtype == "auto" and next(model.parameters()).device.type == "cuda"
    )
    module = PolicyModule(model, autocast_dtype=torch.bfloat16 if mixed else None)
    causal_lm = module.causal_lm
    switch_dropout_off(model)
    give_padding_its_gradient(model)
    # train(), because eval() silently disables activation checkpointing; nothing else differs
    # once every dropout probability is 0.
    model.train()
    if activation_checkpointing:
        _enable_checkpointing(causal_lm)
    ends = end_token_ids(causal_lm, codec.tokenizer, stop_token_ids, module.vocabulary)
    return Policy(module, codec, end_token_ids=ends)


def _enable_checkpointing(causal_lm: Any) -> None:
    enable = getattr(causal_lm, "activation_checkpointing_enable", None)
    if enable is None:  # transformers before it had this name
        enable = causal_lm.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def end_token_ids(
    causal_lm: Any, tokenizer: Any, stop_token_ids: Sequence[int], vocabulary: int
) -> list[int]:
    """The ids that end a completion: the model's own, else its tokenizer's, and those asked for.

    Raises:
        ModelError: the checkpoint names an end that the model cannot draw.
    """
    generation = getattr(causal_lm, "generation_config", None)
    for owner in (generation, causal_lm.config, tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        if ids is not None:
            declared = list(ids) if isinstance(ids, (list, tuple)) else [ids]
            # A tokenizer may know more than the model; a checkpoint that denies itself is broken.
            if owner is not tokenizer and all(token >= vocabulary for token in declared):
                raise ModelError(
                    f"the end token {', '.join(map(str, declared))} of the {type(owner).__name__} "
                    f"can never be drawn: the model knows ids below {vocabulary}; set eos_token_id "
                    "in its generation_config.json to the end token of its tokenizer"
                )
            return sorted({*declared, *stop_token_ids})
    return sorted(set(stop_token_ids))


def switch_dropout_off(model: nn.Module) -> None:
    """Set every dropout probability of the modules to 0; the configuration keeps its own.

    Modules read a dropout probability from `nn.Dropout.p`, from an attribute of their own
    (`attention_dropout`, `layerdrop`), never again from the configuration once they are built.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def give_padding_its_gradient(model: nn.Module) -> None:
    """Let the embedding of the pad token be learned like any other.

    `nn.Embedding(padding_idx=…)` silently drops the gradient of that row, and where pad is also
    the end token or begins a prompt, that row is a real input. True padding is masked anyway.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None


@contextmanager
def inference_mode_of(model: nn.Module) -> Iterator[None]:
    """Eval mode for the time of sampling: transformers drops the cache in train mode otherwise.

    With activation checkpointing on, a module in train mode recomputes its activations and
    silently ignores the key-value cache.
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def sampling_mode(policy: Policy) -> Iterator[None]:
    """The context to draw completions in: eval mode, one precision, adapters merged into copies."""
    adapters = nullcontext() if policy.mixed_precision else merged_adapters(policy.module.model)
    with (
        inference_mode_of(policy.module),
        policy.shards.gathered(),
        adapters if policy.module.packs else nullcontext(),
        policy.module.precision(),
    ):
        yield


def describe(model: nn.Module) -> Mapping[str, int]:
    """How many parameters there are, and how many are trained."""
    sizes = [(values_in(p), p.requires_grad) for p in model.parameters()]
    return {
        "parameters": sum(size for size, _ in sizes),
        "trainable": sum(size for size, trained in sizes if trained),
    }
