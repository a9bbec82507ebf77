"""The optimizer, its learning-rate schedule, and the norm of the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl4lm.config import ReinforceConfig
from rl4lm.eightbit import adamw_8bit
from rl4lm.processes.sharding import whole


def make_optimizer(
    config: ReinforceConfig, parameters: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) or plain SGD over the trainable parameters."""
    return _OPTIMIZERS[config.optim](config, parameters)


def _adamw(config: ReinforceConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        fused=True,  # one pass over weights, gradients and moments, and nothing made on the way
    )


def _sgd(config: ReinforceConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


_OPTIMIZERS = {"adamw": _adamw, "adamw_8bit": adamw_8bit, "sgd": _sgd}


def make_scheduler(config: ReinforceConfig, optimizer: torch.optim.Optimizer) -> Any:
    """The course of the learning rate over `max_steps`, one of transformers' schedules."""
    from transformers import get_scheduler

    return get_scheduler(
        config.lr_scheduler_type,
        optimizer,
        num_warmup_steps=config.warmup_steps,
        num_training_steps=config.max_steps,
    )


def scale_to_norm(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients down to a global L2 norm where they exceed it.

    Args:
        parameters: whose gradients; those without one are left out.
        max_norm: the largest norm that is kept; 0 leaves the gradients alone.

    Returns:
        The norm before scaling, a scalar.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
