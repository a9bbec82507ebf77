"""The model and its adapters."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from rl4lm.settings.schema import RULES, option


@dataclass(frozen=True, kw_only=True, config=RULES)
class ModelFields:
    """The model and its adapters."""

    model_name_or_path: str = option(
        "model", "builtin:tiny-arithmetic", "checkpoint: builtin:NAME, a folder or a hub id"
    )
    dtype: Literal["auto", "float32", "bfloat16", "pure_bfloat16", "float64"] = option(
        "model",
        "auto",
        "precision of the computation; auto is float32 on a CPU and bfloat16 autocast on a GPU. "
        "Trained parameters are float32 but for pure_bfloat16 and float64",
    )
    trust_remote_code: bool = option("model", False, "run model code that the checkpoint brings")
    attn_implementation: str | None = option(
        "model", None, "attention of transformers, such as sdpa or eager; none = its own choice"
    )

    use_peft: bool = option("adapters", False, "train LoRA adapters; false = all parameters")
    lora_r: int = option("adapters", 16, "rank of the adapters", ge=1, le=16384)
    lora_alpha: float | None = option(
        "adapters",
        None,
        "scale of the adapters, applied as lora_alpha / lora_r; none = 2 lora_r",
        gt=0,
    )
    lora_target_modules: list[str] | None = option(
        "adapters",
        None,
        "names of the layers to adapt; none = all linear layers but the head",
        min_length=1,
    )
    load_in_4bit: bool = option(
        "adapters",
        False,
        "hold the base model's weights in 4 bits (nf4); with use_peft, on a CUDA GPU, by the extra "
        "bnb",
    )
    load_in_8bit: bool = option(
        "adapters", False, "hold the base model's weights in 8 bits; as above"
    )
