"""The optimizer, its learning-rate schedule, and the norm of the gradient that it is given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl4lm.config import ReinforceConfig
from rl4lm.eightbit import adamw_8bit
from rl4lm.processes.sharding import dealt_like, whole, whole_on_main


class Updates:
    """The updates of a run: clip, step, go on along the schedule."""

    def __init__(self, config: ReinforceConfig, parameters: Sequence[nn.Parameter]) -> None:
        """Begin fresh.

        Args:
            config: names optimizer and schedule.
            parameters: what is updated, by their ``.grad``.
        """
        self._parameters = parameters
        self._max_norm = config.max_grad_norm
        self.optimizer = make_optimizer(config, parameters)
        self._scheduler = make_scheduler(config, self.optimizer)

    def apply(self, live: bool) -> dict[str, Any]:
        """Clip and step the optimizer; without any advantage or a finite gradient, skip it.

        Every process decides alike, because all hold the same advantages and gradient bits.

        Args:
            live: some completion has something to say.

        Returns:
            ``grad_norm`` before the clip, ``grad_clipped``, ``updated``, ``learning_rate``.
        """
        norm = float(scale_to_norm(self._parameters, self._max_norm))
        learning_rate = self._scheduler.get_last_lr()[0]
        updated = live and math.isfinite(norm)
        if updated:
            self.optimizer.step()
        self._step_schedule()
        return {
            "grad_norm": norm,
            "grad_clipped": bool(self._max_norm and norm > self._max_norm),
            "updated": updated,
            "learning_rate": learning_rate,
        }

    def _step_schedule(self) -> None:
        with warnings.catch_warnings():
            # A skipped optimizer step is meant; torch takes it for a mistake in the order of calls.
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step\\(\\).*")
            self._scheduler.step()

    def state_dict(self, keep: bool) -> dict[str, Any]:
        """Moments and schedule, the moments whole on the main process; every process calls it.

        Args:
            keep: False where the result is not needed, to hold no tensor that was put together.
        """
        return {
            "optimizer": whole_on_main(self.optimizer.state_dict(), keep),
            "scheduler": self._scheduler.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, the moments dealt as the parameters are now."""

        def like(value: Any, place: int) -> Any:
            return (
                dealt_like(value, self._parameters[place]) if isinstance(value, Tensor) else value
            )

        state = {
            place: {name: like(value, place) for name, value in moments.items()}
            for place, moments in saved["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**saved["optimizer"], "state": state})
        self._scheduler.load_state_dict(saved["scheduler"])


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
