"""Which adapter a run trains: the one that its model has already, or a new one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from rl4lm.config import OPTIONS, ReinforceConfig
from rl4lm.errors import ConfigError
from rl4lm.model.adapters import CONFIG, add_adapter, add_lora

# Option -> its name in peft's configuration; the adapter that is trained on settles them.
_SHAPE = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_target_modules": "target_modules"}


def check_continued(path: str, config: ReinforceConfig) -> None:
    """Refuse options that ask for another shape than that of the adapter which is trained on.

    Args:
        path: folder of the adapter.
        config: an option at its default asks for nothing.

    Raises:
        ConfigError: names what differs.
    """
    settings = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
    for name, key in _SHAPE.items():
        asked, has = getattr(config, name), settings.get(key)
        same = asked == OPTIONS[name].default or _as_set(asked) == _as_set(has)
        if not same:
            raise ConfigError(
                f"{name}={asked} given, but the adapter in {path!r}, which is trained on, has "
                f"{has}; leave {name} out. To put a new adapter on top, or to train all weights, "
                f"merge it first: rl4lm export {path} --out FOLDER"
            )


def _as_set(value: Any) -> Any:
    """Names in any order; all else as it is."""
    return set(value) if isinstance(value, list) else value


def with_adapter(
    config: ReinforceConfig, network: Any, peft_config: Any
) -> tuple[nn.Module, list[str]]:
    """The network with the adapter that was asked for, and lines about it for the log.

    Raises:
        ConfigError: an adapter was handed over for a network that has one.
        ModelError: an adapter that does not fit.
    """
    if hasattr(network, "peft_config"):
        if peft_config is not None:
            raise ConfigError(
                "peft_config asks for an adapter, and the model has one already, which is trained "
                "on; leave peft_config out, or merge the adapter first (rl4lm export)"
            )
        return network, [_continued(config, network)]
    if peft_config is not None:
        return add_adapter(network, peft_config, config.seed), []
    if not config.use_peft:
        return network, []
    adapted = add_lora(
        network,
        r=config.lora_r,
        alpha=config.resolved_lora_alpha,
        target_modules=config.resolved_lora_target_modules,
        seed=config.seed,
    )
    return adapted, []


def _continued(config: ReinforceConfig, network: Any) -> str:
    settings = next(iter(network.peft_config.values()))
    rank = f" of rank {settings.r}" if getattr(settings, "r", None) else ""
    text = f"the model is an adapter{rank} on a base model, and the adapter is trained on"
    return text + ("; the KL is measured from the base model" if config.beta else "")
