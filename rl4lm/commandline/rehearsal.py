"""``rl4lm train --dry_run``: one step on real data, of which nothing is kept."""

from __future__ import annotations

import time
from typing import Any

from rl4lm.costs.estimate import about
from rl4lm.costs.forecast import forecast
from rl4lm.metrics import peak_memory_bytes
from rl4lm.trainer import ReinforceTrainer


def rehearse(trainer: ReinforceTrainer) -> dict[str, Any]:
    """Sample, score and differentiate once, and say what a run would take.

    Nothing is written. The weights have made the step afterwards: the trainer is for nothing else.

    Returns:
        ``estimated_memory_bytes`` (None where parameters are dealt), ``peak_memory_bytes`` of the
        step, ``step_seconds``, and ``train_seconds`` of all steps at that pace.

    Raises:
        Rl4lmError: whatever the first step of a run would fail with.
    """
    config, learner = trainer.config, trainer.learner
    expected = forecast(trainer.policy, config, learner.gatherer, learner.state.step)
    if expected is not None:
        trainer.screen.note(expected.line)
        if expected.warning is not None:
            trainer.screen.warn(expected.warning)
    with trainer.task.judges.scorer:
        began = time.perf_counter()
        stats = learner.step()
        seconds = time.perf_counter() - began
    peak, whole = peak_memory_bytes(trainer.world.device), seconds * config.max_steps
    trainer.screen.note(
        f"dry run: one step took {seconds:.2g} s and {peak / 1e6:,.0f} MB at most; "
        f"{about(whole)} for {config.max_steps} steps at the pace of the first, which is the "
        "slowest, and evaluations; nothing was kept"
    )
    return {
        "estimated_memory_bytes": None if expected is None else expected.memory.peak,
        "peak_memory_bytes": peak,
        "step_seconds": seconds,
        "train_seconds": whole,
        "reward": stats.metrics["reward"],
    }
