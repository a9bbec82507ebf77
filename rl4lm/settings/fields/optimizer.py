"""Steps: their size, their number, their memory."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from rl4lm.settings.schema import RULES, option


@dataclass(frozen=True, kw_only=True, config=RULES)
class OptimizerFields:
    """Steps: their size, their number, their memory."""

    learning_rate: float = option("optimizer", 1e-5, "peak learning rate; 0 = weights stay", ge=0)
    optim: Literal["adamw", "adamw_8bit", "sgd"] = option(
        "optimizer",
        "adamw",
        "the optimizer; adamw_8bit holds its moments in 8 bits (extra bnb)",
    )
    adam_beta1: float = option("optimizer", 0.9, "decay of AdamW's first moment", ge=0, lt=1)
    adam_beta2: float = option("optimizer", 0.999, "decay of AdamW's second moment", ge=0, lt=1)
    adam_epsilon: float = option("optimizer", 1e-8, "added to AdamW's denominator", gt=0)
    weight_decay: float = option(
        "optimizer", 0.0, "share of a weight taken off per unit of learning rate; 0 = off", ge=0
    )
    max_grad_norm: float = option(
        "optimizer", 1.0, "the gradient is scaled down to this L2 norm; 0 = off", ge=0
    )
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = option(
        "optimizer", "constant", "course of the learning rate over max_steps"
    )
    warmup_steps: int = option(
        "optimizer", 0, "steps over which the learning rate rises from 0; 0 = off", ge=0
    )
    max_steps: int = option("optimizer", 200, "optimizer steps of the run", ge=1)
    max_time: float | None = option(
        "optimizer",
        None,
        "seconds of training after which the step in hand is the last; none = no limit",
        gt=0,
    )
    max_tokens_per_micro_batch: int = option(
        "optimizer",
        16384,
        "tokens of a forward and backward pass, padding included: bounds memory, never changes the "
        "gradient",
        ge=1,
    )
    fast_path: bool = option(
        "optimizer",
        True,
        "pack training rows without padding, prompts shared by their completions, and decode from "
        "a cache of fixed size, where the model allows it; false = one padded row a completion. "
        "Changes speed and memory, never the gradient",
    )
    activation_checkpointing: bool = option(
        "optimizer", False, "recompute activations in the backward pass: less memory, more time"
    )
