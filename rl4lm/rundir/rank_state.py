"""What every process of a run keeps for itself, as tensors and plain values for a checkpoint.

The random numbers of sampling and of the data are functions of the seed and of where training
stands, and need no saving. The generators of Python, numpy and torch are saved for the user's own
functions, which may draw from them. Between the updates of one sampling, the experience that they
learn from is saved too.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from rl4lm.types import Drawing, Example, Experience, Rollout, Scores


def random_states() -> dict[str, Any]:
    """The states of this process's global generators."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    name, keys, position, has_gauss, cached = legacy
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Go on from what `random_states` gave."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])


def experience_state(e: Experience) -> dict[str, Any]:
    """An experience without what the data give again: its prompts, and notes already logged."""
    scores = e.scores
    return {
        "rollout": asdict(e.rollout),
        "texts": list(e.texts),
        "scores": {
            "rewards": scores.rewards,
            "valid": scores.valid,
            "parts": dict(scores.parts),
            "token_rewards": scores.token_rewards,
            "metrics": dict(scores.metrics),
        },
        "measures": e.measures,
        "returns": e.returns,
        "advantages": e.advantages,
        "weights": e.weights,
        "policy_logprobs": e.policy_logprobs,
        "reference_logprobs": e.reference_logprobs,
        "num_completions": e.num_completions,
        "places": list(e.places),
        "keys": list(e.keys),
        "drawing": asdict(e.drawing),
    }


def experience_from(state: Mapping[str, Any], examples: Sequence[Example]) -> Experience:
    """The experience that `experience_state` was taken from, and its prompts."""
    rest = {k: v for k, v in state.items() if k not in ("rollout", "scores", "drawing")}
    return Experience(
        examples=examples,
        rollout=Rollout(**state["rollout"]),
        scores=Scores(**state["scores"]),
        drawing=Drawing(**state["drawing"]),
        **rest,
    )
