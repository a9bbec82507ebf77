"""Fine-tune Hugging Face causal language models with REINFORCE on rule-based rewards.

    from rl4lm import ReinforceConfig, ReinforceTrainer
    ReinforceTrainer(args=ReinforceConfig(output_dir="runs/first")).train()

Names are loaded when they are first used, so that the command line answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl4lm.config import ReinforceConfig
    from rl4lm.trainer import ReinforceTrainer
    from rl4lm.types import Rollout

_HOMES = {
    "ReinforceConfig": "rl4lm.config",
    "ReinforceTrainer": "rl4lm.trainer",
    "Rollout": "rl4lm.types",
}

__all__ = ["ReinforceConfig", "ReinforceTrainer", "Rollout"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rl4lm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
