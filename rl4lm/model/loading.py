"""Read a checkpoint: configuration, tokenizer, weights, adapter.

Everything that can be refused without the weights is refused before they are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rl4lm.builtin import is_builtin, model_path
from rl4lm.errors import ModelError, first_line
from rl4lm.model.adapters import load_adapter, split_adapter
from rl4lm.model.quantized import is_quantised, loading_options
from rl4lm.model.reachable import why_unreachable

_PURE = {"pure_bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint whose configuration and tokenizer have been read, its weights not yet."""

    name: str  # as the user gave it
    path: str  # directory or hub id of the (base) model
    adapter: str | None  # directory of a peft adapter on top of it
    config: Any  # transformers configuration
    tokenizer: Any
    trust_remote_code: bool

    @property
    def context_length(self) -> int | None:
        """Positions that the model can take, or None where its configuration does not say."""
        return context_length(self.config)


def context_length(config: Any) -> int | None:
    """Positions that a model of this configuration can take, or None where it does not say."""
    text_config = config.get_text_config(decoder=True)
    return getattr(text_config, "max_position_embeddings", None)


def open_model(
    name: str | Path, *, trust_remote_code: bool = False, tokenizer: Any = None
) -> ModelSource:
    """Read configuration and tokenizer of a checkpoint, and refuse what cannot be trained.

    Args:
        name: ``builtin:…``, a directory (of a model or of a peft adapter), or a hub id.
        trust_remote_code: let the checkpoint bring its own Python code.
        tokenizer: used instead of the checkpoint's, which is then not read.

    Raises:
        ModelError: no such checkpoint, not a causal language model, or no tokenizer.
    """
    from transformers import AutoConfig

    name = str(name)
    path = str(model_path(name)) if is_builtin(name) else name
    base, adapter = split_adapter(path)
    _check_place(name, base, adapter)
    here = "" if Path(base).exists() else f" (and there is no directory {base!r} here)"
    if here and (reason := why_unreachable(base)):
        raise _no_model(name, reason + here, adapter and base)
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except Exception as error:  # every architecture has checks of its own
        raise _no_model(name, first_line(error) + here, adapter and base) from error
    _check_causal(name, config)
    if tokenizer is None:
        tokenizer = _load_tokenizer(path, base, name, trust_remote_code)
    return ModelSource(
        name=name,
        path=base,
        adapter=adapter,
        config=config,
        tokenizer=tokenizer,
        trust_remote_code=trust_remote_code,
    )


def _no_model(name: str, reason: str, base: str | None = None) -> ModelError:
    advice = "give a directory written by save_pretrained, a hub id, or builtin:tiny-arithmetic"
    if base is not None:
        advice = (
            f"it is an adapter for the base model {base!r}; where that has moved, write its new "
            "place into base_model_name_or_path of the adapter's adapter_config.json"
        )
    return ModelError(f"no model could be read from {name!r}: {reason}\n{advice}")


def _check_place(name: str, base: str, adapter: str | None) -> None:
    """Refuse what is neither a folder of a model nor a name that the hub could know."""
    named = adapter and base
    path = Path(base)
    try:
        exists = path.exists()
    except OSError as error:  # a name that is too long
        raise _no_model(name, error.strerror or str(error), named) from error
    if not exists and (base.startswith(("/", ".", "~")) or base.count("/") > 1):
        raise _no_model(name, f"there is no directory {base!r}", named)
    if path.is_file():
        raise _no_model(name, "it is a file; name the directory that holds config.json", named)
    if exists and not (path / "config.json").is_file():
        raise _no_model(name, _of_run(path) or "there is no config.json in it", named)


def _of_run(path: Path) -> str | None:
    """Where the weights of a run are, in words; None where the folder is none of a run."""
    if not os.path.isfile(path / "config.yaml"):  # False too for a name that is too long
        return None
    saved = sorted(
        path.glob("checkpoint-*[0-9]"), key=lambda folder: (len(folder.name), folder.name)
    )
    told = [f"whose newest checkpoint is {str(at)!r}" for at in saved if _has_weights(at)][-1:]
    if _has_weights(path / "model"):
        told.insert(0, f"whose final weights are in {str(path / 'model')!r}")
    return "it is the directory of a run, " + (" and ".join(told) or "which has saved no weights")


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _check_causal(name: str, config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = [a for a in config.architectures or [] if "MaskedLM" in a or "PreTraining" in a]
    if config.is_encoder_decoder or masked or not (known or remote):
        kind = (config.architectures or [config.model_type])[0]
        raise ModelError(
            f"{name!r} is a {kind}, not a causal language model; rl4lm trains decoder-only models "
            "that AutoModelForCausalLM loads (GPT-2, OPT, Llama, Qwen, Gemma, Mistral, …)"
        )


def open_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint, or of a folder that holds nothing else.

    Raises:
        ModelError: there is none.
    """
    path = str(model_path(name)) if is_builtin(name) else name
    base, _ = split_adapter(path)
    if of_run := _of_run(Path(base)):
        raise ModelError(f"no tokenizer could be read from {name!r}: {of_run}")
    return _load_tokenizer(path, base, name, trust_remote_code)


def _load_tokenizer(path: str, base: str, name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    reasons = []
    for place in dict.fromkeys((path, base)):
        try:
            found = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reasons.append(first_line(error))
            continue
        if found.vocab_size:
            return found
        # Without any file, transformers makes up a tokenizer that knows no token.
        reasons.append("there are no tokenizer files")
    raise ModelError(
        f"no tokenizer could be read from {name!r}: {reasons[-1]}\n"
        "save one beside the model (tokenizer.save_pretrained), or, in Python, hand it to "
        "ReinforceTrainer(processing_class=...)"
    )


def load_model(
    source: ModelSource,
    *,
    dtype: str,
    device: torch.device,
    attn_implementation: str | None = None,
    bits: int | None = None,
) -> nn.Module:
    """Read the weights: float32 masters unless a pure precision was asked for by name.

    Args:
        source: of `open_model`.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``pure_bfloat16`` or ``float64``.
        device: where the model goes.
        attn_implementation: as in transformers, or None for its own choice.
        bits: 4 or 8 for quantised base weights, of `rl4lm.model.quantized.asked_bits`.

    Returns:
        A causal language model, or a peft model with its adapter trainable.
    """
    # A bf16 checkpoint loads as bf16 by default, and AdamW at small rates then changes nothing.
    options: dict[str, Any] = {"dtype": _PURE.get(dtype, torch.float32)}
    compute = torch.float32 if dtype == "float32" else torch.bfloat16
    options |= loading_options(bits, compute, device)
    model, report = _read_weights(source, attn_implementation=attn_implementation, **options)
    _check_weights(source, model, report)
    if source.adapter is not None:
        model = load_adapter(model, source.adapter)
    return model if is_quantised(model) else model.to(device)


def _read_weights(source: ModelSource, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """The base model, and what `from_pretrained` reports of the keys that it met."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            source.path,
            config=source.config,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_weights` refuses them, by name
            **options,
        )
    except (OSError, ValueError, ImportError, RuntimeError, EOFError) as error:
        raise _bad_weights(source, first_line(error)) from error
    except (SafetensorError, UnpicklingError) as error:
        raise _bad_weights(source, f"a file is broken or cut short: {first_line(error)}") from error


def _check_weights(source: ModelSource, model: nn.Module, report: Mapping[str, Any]) -> None:
    """Refuse weights of other shapes, and weights that are not there."""
    if report["mismatched_keys"]:
        key, saved, expected = sorted(report["mismatched_keys"])[0]
        raise _bad_weights(
            source,
            f"{len(report['mismatched_keys'])} have other shapes than config.json says, such as "
            f"{key}: {list(saved)} in the file, {list(expected)} expected",
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{source.name!r} lacks {len(missing)} of the weights of a {type(model).__name__}, "
            f"such as {missing[0]}, which would be made up at random; give a checkpoint of the "
            "whole causal language model"
        )


def _bad_weights(source: ModelSource, reason: str) -> ModelError:
    return ModelError(
        f"the weights of {source.name!r} cannot be loaded: {reason}; give a directory as "
        "save_pretrained wrote it (or fetch it again), and options that suit this machine"
    )


def without_weights(source: ModelSource) -> Any:
    """The model of a checkpoint with shapes and no numbers, and with the checkpoint's own ends."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            source.config, trust_remote_code=source.trust_remote_code
        )
    with suppress(OSError):  # a checkpoint without one keeps what its configuration gives
        model.generation_config = GenerationConfig.from_pretrained(source.path)
    return model


def placed(model: nn.Module, dtype: str, device: torch.device) -> nn.Module:
    """A model object in the precision of `set_precision`, and on its device."""
    return model if is_quantised(model) else set_precision(model, dtype).to(device)


def set_precision(model: nn.Module, dtype: str) -> nn.Module:
    """Give a model object the parameters that `load_model` would: float32 masters, or as named.

    A model object is bf16 where its checkpoint is, and nobody asked for that; one in float32 or
    float64 is left alone by ``auto``. Buffers stay: rotary frequencies must not lose digits.
    """
    half = (torch.bfloat16, torch.float16)
    if dtype == "auto" and not any(p.dtype in half for p in model.parameters()):
        return model
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(_PURE.get(dtype, torch.float32))
    return model
