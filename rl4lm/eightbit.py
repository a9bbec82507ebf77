"""AdamW with moments of eight bits, by bitsandbytes: an extra that is asked about beforehand.

Blocks of 256 numbers share a scale (Dettmers et al., "8-bit optimizers via block-wise
quantization", 2022). Two bytes a trained weight instead of eight; tensors of fewer than 4,096
entries keep moments of 32 bits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from rl4lm.config import ReinforceConfig
from rl4lm.errors import ConfigError

_PACKAGE = "bitsandbytes"


def check_optimizer(config: ReinforceConfig) -> None:
    """Refuse `optim=adamw_8bit` where its package is missing; loads nothing.

    Raises:
        ConfigError: says what to install.
    """
    if config.optim == "adamw_8bit" and importlib.util.find_spec(_PACKAGE) is None:
        raise ConfigError(
            f"optim=adamw_8bit needs {_PACKAGE}, which is not installed; pip install 'rl4lm[bnb]', "
            "or set optim=adamw, whose moments take 8 bytes a trained weight instead of 2"
        )


def check_replicated(config: ReinforceConfig, sharded: bool) -> None:
    """Refuse moments of eight bits of parameters that are dealt over the processes.

    Raises:
        ConfigError: a block of numbers that share a scale cannot be dealt.
    """
    if config.optim == "adamw_8bit" and sharded:
        raise ConfigError(
            "optim=adamw_8bit keeps moments in blocks that share a scale, which cannot be dealt "
            "over the processes; use optim=adamw with sharded parameters"
        )


def adamw_8bit(config: ReinforceConfig, parameters: Sequence[Any]) -> Any:
    """bitsandbytes' AdamW over the trainable parameters."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
