"""Adapters of peft: read from disk with their base model, or put on a model anew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rl4lm.builtin import builtin_name, is_builtin, model_path
from rl4lm.errors import ModelError, first_line

CONFIG = "adapter_config.json"


def split_adapter(path: str) -> tuple[str, str | None]:
    """(base model, adapter directory or None) of a path that may hold a peft adapter.

    Raises:
        ModelError: the adapter's configuration cannot be read, or names no base model.
    """
    try:
        if not (Path(path) / CONFIG).is_file():
            return path, None
        settings = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
        base = settings.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{CONFIG} of the adapter in {path!r} cannot be read: {first_line(error)}; give the "
            "adapter as save_pretrained wrote it"
        ) from error
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"the adapter in {path!r} does not name its base model; write it into "
            f"base_model_name_or_path of its {CONFIG}"
        )
    # The folder of a shipped model moves with the installation.
    shipped = builtin_name(base) or base
    return str(model_path(shipped)) if is_builtin(shipped) else base, path


def load_adapter(model: nn.Module, path: str) -> nn.Module:
    """Put the adapter in a folder on its base model, trainable.

    Raises:
        ModelError: files that are missing, broken, incomplete or of another model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    files = [Path(path) / f"adapter_model.{ending}" for ending in ("safetensors", "bin")]
    if not any(file.is_file() for file in files):  # peft would ask the hub for them
        raise ModelError(
            f"the adapter in {path!r} has no weights: there is no {files[0].name}; give the "
            "folder as save_pretrained wrote it"
        )
    try:
        adapted = PeftModel.from_pretrained(model, path, is_trainable=True)
        saved = load_peft_weights(path, device="cpu")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the adapter in {path!r} cannot be put on its base model: {type(error).__name__}: "
            f"{first_line(error)}; give the adapter as save_pretrained wrote it, and the base "
            f"model that it was trained on (base_model_name_or_path of its {CONFIG})"
        ) from error
    missing = sorted(get_peft_model_state_dict(adapted).keys() - saved.keys())
    if missing:
        raise ModelError(
            f"the adapter in {path!r} lacks {len(missing)} of its weights, such as {missing[0]}, "
            "which would be made up; give the adapter as save_pretrained wrote it"
        )
    return adapted


def add_lora(
    model: nn.Module,
    *,
    r: int,
    alpha: float,
    target_modules: Sequence[str] | str,
    seed: int,
) -> nn.Module:
    """Put a LoRA adapter on a model and freeze the rest; the same seed gives the same adapter.

    Hu et al., "LoRA: Low-rank adaptation of large language models" (2021): W + (alpha/r)·B·A with
    B = 0 at the start, so that the adapted model begins as the base model.
    """
    from peft import LoraConfig

    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=r, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0
    )
    return add_adapter(model, config, seed)


def add_adapter(model: nn.Module, peft_config: Any, seed: int) -> nn.Module:
    """Put the adapter of a peft configuration on a model.

    Raises:
        ModelError: the configuration has dropout, which makes the sampled and the differentiated
            policy differ, or peft cannot apply it to this model.
    """
    from peft import get_peft_model

    if getattr(peft_config, "lora_dropout", 0.0):
        raise ModelError(
            f"lora_dropout={peft_config.lora_dropout} is refused: dropout would make the policy "
            "that is differentiated another one than the policy that sampled; set it to 0"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, peft_config)
        except ValueError as error:
            raise ModelError(f"the adapter does not fit the model: {first_line(error)}") from error


def merge_adapter(adapted: Any, name: str) -> nn.Module:
    """The base model with the adapter added into its weights; the adapted model is used up.

    Args:
        adapted: of `load_adapter`, in the precision that the sum is to be computed in.
        name: of the adapter, as the user gave it.

    Raises:
        ModelError: an adapter that is no change of weights, or is not finite.
    """
    _untie(adapted.get_base_model())
    try:
        merged: Any = adapted.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError) as error:  # ValueError: it is not finite
        raise ModelError(
            f"the adapter {name!r} cannot be merged into its base model: {first_line(error)}; "
            "export it as it is with --adapter_only"
        ) from error
    head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        merged.config.tie_word_embeddings = False  # or the head would be lost in loading
    return merged


def _untie(model: Any) -> None:
    """Give an adapted head or embedding a weight of its own, where both are one tensor.

    peft adds an adapter of one of them to the tensor that is also the other's weight, which is
    another model than the adapted one.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    plain = [getattr(layer, "base_layer", layer) for layer in (head, embedding)]
    if plain[0] is head and plain[1] is embedding:
        return
    if plain[0] is not None and plain[0].weight is plain[1].weight:
        plain[0].weight = nn.Parameter(plain[0].weight.detach().clone())


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The context in which the adapter is off.

    peft makes the whole adapter trainable on its way back; what was frozen stays frozen.
    """
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, required in trained:
            parameter.requires_grad_(required)
