"""The sizes that `rl4lm.costs.estimate` asks for, read off a policy that is ready to train.

What the backward pass keeps of a token is counted on the model itself: a short gradient pass, in
which autograd hands over every tensor that it saves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl4lm.config import ReinforceConfig
from rl4lm.costs.estimate import Sizes
from rl4lm.estimator.losses import TokenWeights
from rl4lm.metrics import peak_memory_bytes
from rl4lm.model.policy import Policy
from rl4lm.types import Rollout

_PROMPT, _COMPLETION = 4, 25  # tokens of the short pass
# Beside what is saved adapters make tensors that are dropped at once, and leave holes: a gradient
# pass took 1.35 to 1.6 times what is saved (models of 17M weights, on a CPU).
_ADAPTERS = 1.5


def sizes_of(policy: Policy, config: ReinforceConfig, prompt_tokens: Sequence[int]) -> Sizes:
    """The sizes of a run, before its first step.

    Args:
        policy: as it will train, its parameters whole.
        config: of the run.
        prompt_tokens: of each of this process's prompts of a step.
    """
    trained = list(policy.trainable().values())
    shape = policy.module.causal_lm.config.get_text_config()
    itemsize, merged = policy.compute_dtype.itemsize, _merged_bytes(policy)
    hidden = policy.module.causal_lm.get_output_embeddings().weight.shape[1]
    layers = getattr(shape, "num_hidden_layers", 1)
    saved = float(saved_bytes_per_token(policy))
    if config.activation_checkpointing:
        saved = itemsize * (layers * hidden + _of_a_layer(shape, hidden))
    elif merged:
        saved *= _ADAPTERS
    return Sizes(
        held=held_bytes(policy.device),
        trained=sum(p.numel() for p in trained),
        trained_bytes=sum(p.numel() * p.element_size() for p in trained),
        copies=merged + _cast_bytes(policy),
        saved_per_token=int(saved),
        cache_per_token=itemsize * layers * _keys_and_values(shape, hidden),
        hidden=hidden,
        vocabulary=policy.module.vocabulary,
        prompt_tokens=prompt_tokens,
        generations=config.num_generations,
        longest=config.max_completion_length,
        micro_batch=config.max_tokens_per_micro_batch,
        packed=policy.module.packs,
        optimizer=config.optim,
        noise=bool(config.noise_every),
        reuses=policy.device.type == "cuda",
    )


def saved_bytes_per_token(policy: Policy) -> int:
    """What a gradient pass keeps of each token for its way back, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in policy.module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rollout = Rollout.from_lists([[0] * _PROMPT] * 2, [[0] * _COMPLETION, [1] * _COMPLETION], 2)
    ones = torch.ones_like(rollout.sampling_logprobs)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        policy.accumulate_gradient(
            rollout, TokenWeights(ones, torch.zeros_like(ones)), 1.0, max_tokens=10**9
        )
    for parameter in policy.trainable().values():
        parameter.grad = None
    prompts = _PROMPT if policy.module.packs else 2 * _PROMPT
    return sum(kept.values()) // (prompts + 2 * (_COMPLETION - 1))


def _of_a_layer(shape: Any, hidden: int) -> int:
    """About how many numbers of a token one layer keeps where it is computed again: 8 H + 4 I."""
    return 8 * hidden + 4 * (getattr(shape, "intermediate_size", None) or 4 * hidden)


def _keys_and_values(shape: Any, hidden: int) -> int:
    """Numbers of a token that a layer holds while decoding."""
    heads = getattr(shape, "num_attention_heads", None) or 1
    width = getattr(shape, "head_dim", None) or hidden // heads
    return 2 * width * (getattr(shape, "num_key_value_heads", None) or heads)


def _merged_bytes(policy: Policy) -> int:
    """Weights that adapters are merged into while sampling, in copies."""
    layers: list[Any] = list(policy.module.modules())
    weights = [
        layer.base_layer.weight
        for layer in layers
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer")
    ]
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _cast_bytes(policy: Policy) -> int:
    """Casts of trained weights that autocast keeps while sampling."""
    if not policy.mixed_precision:
        return 0
    return policy.compute_dtype.itemsize * sum(p.numel() for p in policy.trainable().values())


def held_bytes(device: torch.device) -> int:
    """The memory that this process holds now: of the device, or of the machine on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    path = Path("/proc/self/statm")
    if not path.is_file():  # not Linux: what it has held at the most
        return peak_memory_bytes(device)
    return int(path.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_bytes(device: torch.device) -> int | None:
    """Memory that is there besides what is held; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if not sys.platform.startswith("linux"):
        return None
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    there = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return min([*there, *_free_of_the_group()], default=None)


def _free_of_the_group() -> list[int]:
    """What a container's limit leaves, where there is one (cgroup 2, or 1)."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        if Path(limit).is_file() and Path(used).is_file():
            most = Path(limit).read_text(encoding="ascii").strip()
            if most.isdigit():
                return [max(int(most) - int(Path(used).read_text(encoding="ascii")), 0)]
    return []
