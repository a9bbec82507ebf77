"""Read a checkpoint: configuration, tokenizer, weights, adapter.

Everything that can be refused without the weights is refused before they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rl4lm.builtin import model_path
from rl4lm.errors import ModelError

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
    path = str(model_path(name)) if name.startswith("builtin:") else name
    base, adapter = _split_adapter(path)
    if not Path(base).exists() and (base.startswith(("/", ".", "~")) or base.count("/") > 1):
        raise ModelError(f"no model could be read from {name!r}: there is no directory {base!r}")
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no model could be read from {name!r}: {_first_line(error)}\n"
            "give a directory written by save_pretrained, a hub id, or builtin:tiny-arithmetic"
        ) from error
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


def _split_adapter(path: str) -> tuple[str, str | None]:
    """(base model, adapter directory or None) of a path that may hold a peft adapter."""
    if not (Path(path) / "adapter_config.json").is_file():
        return path, None
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base:
        raise ModelError(
            f"the adapter in {path!r} does not name its base model; write it into "
            "base_model_name_or_path of its adapter_config.json"
        )
    return str(model_path(base)) if base.startswith("builtin:") else base, path


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


def _load_tokenizer(path: str, base: str, name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    reasons = []
    for place in dict.fromkeys((path, base)):
        try:
            found = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reasons.append(_first_line(error))
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
) -> nn.Module:
    """Read the weights: float32 masters unless a pure precision was asked for by name.

    Args:
        source: of `open_model`.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``pure_bfloat16`` or ``float64``.
        device: where the model goes.
        attn_implementation: as in transformers, or None for its own choice.

    Returns:
        A causal language model, or a peft model with its adapter trainable.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    # A bf16 checkpoint loads as bf16 by default, and AdamW at small rates then changes nothing.
    precision = _PURE.get(dtype, torch.float32)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.path,
            config=source.config,
            dtype=precision,
            trust_remote_code=source.trust_remote_code,
            attn_implementation=attn_implementation,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the weights of {source.name!r} cannot be loaded: {_first_line(error)}"
        ) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{source.name!r} lacks {len(missing)} of the weights of a {type(model).__name__}, "
            f"such as {missing[0]}, which would be made up at random; give a checkpoint of the "
            "whole causal language model"
        )
    if source.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, source.adapter, is_trainable=True)
    return model.to(device)


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
            raise ModelError(f"the adapter does not fit the model: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
