"""Base weights in 4 or 8 bits by bitsandbytes, for adapters that are trained on top of them.

Dettmers et al., "QLoRA: Efficient finetuning of quantized LLMs" (2023). Written against the
interfaces of transformers and tested with stand-ins: **it has not been run on a GPU yet**.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from rl4lm.config import ReinforceConfig
from rl4lm.errors import ConfigError


def asked_bits(config: ReinforceConfig) -> int | None:
    """4 or 8, or None for weights as they are."""
    return 4 if config.load_in_4bit else 8 if config.load_in_8bit else None


def check_quantisation(config: ReinforceConfig, device: torch.device, sharded: bool) -> None:
    """Refuse quantised weights where they cannot be had, before any are read.

    Raises:
        ConfigError: not on a CUDA device, without bitsandbytes, or with parameters that are dealt
            over processes.
    """
    bits = asked_bits(config)
    if bits is None:
        return
    name = f"load_in_{bits}bit"
    if device.type != "cuda":
        raise ConfigError(f"{name} needs a CUDA GPU, and this process runs on {device.type}")
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{name} needs bitsandbytes: pip install 'rl4lm[bnb]'")
    if sharded:
        raise ConfigError(
            f"{name} is not offered with parameters sharded by FSDP; start replicated processes "
            "(recipes/accelerate/replicated.yaml), each of which holds the small weights whole"
        )


def loading_options(bits: int | None, compute: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told besides: nothing for weights as they are.

    Args:
        bits: of `asked_bits`.
        compute: the type that products are computed in.
        device: where the weights go; quantised ones are put there as they are read.
    """
    if bits is None:
        return {}
    from transformers import BitsAndBytesConfig

    if bits == 8:
        quantisation = BitsAndBytesConfig(load_in_8bit=True)
    else:
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    # Embeddings, norms and head are not quantised. They are frozen: no masters are needed.
    return {"quantization_config": quantisation, "device_map": {"": device}, "dtype": compute}


def is_quantised(model: nn.Module) -> bool:
    """Whether a model holds weights of bitsandbytes, which neither move nor change their type."""
    return bool(getattr(model, "is_loaded_in_4bit", False)) or bool(
        getattr(model, "is_loaded_in_8bit", False)
    )


def values_in(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for: two in a byte of 4-bit weights."""
    packed = type(parameter).__name__ == "Params4bit"
    return 2 * parameter.numel() * parameter.element_size() if packed else parameter.numel()
