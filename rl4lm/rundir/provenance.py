"""What a run's results depend on besides its options: the layout, and what came from Python."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch

from rl4lm.processes.world import World

_LIBRARIES = ("rl4lm", "torch", "transformers", "accelerate", "peft")


def layout(world: World) -> dict[str, Any]:
    """What else bit-for-bit repetition depends on: processes, device, threads, versions."""
    return {
        "processes": world.size,
        "device": str(world.device),
        "parameters": "dealt by FSDP2" if world.sharding else "whole on each process",
        "torch_threads": torch.get_num_threads(),
        **{name: version(name) for name in _LIBRARIES},
    }


def given_in_python(**things: Any) -> dict[str, str]:
    """What was handed over as an object instead of being named in the configuration."""
    return {
        f"{name} given in Python": _name(thing)
        for name, thing in things.items()
        if thing is not None
    }


def _name(thing: Any) -> str:
    if isinstance(thing, str):
        return thing
    if isinstance(thing, list) and all(callable(each) or isinstance(each, str) for each in thing):
        return ", ".join(_name(each) for each in thing)
    if hasattr(thing, "__qualname__"):
        return f"{thing.__module__}:{thing.__qualname__}"
    return type(thing).__name__
