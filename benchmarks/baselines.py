"""Baselines side by side on the main job, and a control that must learn nothing.

    python benchmarks/baselines.py [--steps 100] [--seeds 3] [--out FILE]

Every run starts from the same checkpoint and takes equal steps with equal samples; only the
baseline differs. The control trains on rewards that were shuffled over the batch, so that they say
nothing about the completions they are paid for. Prints a table and writes JSON with the settings,
the machine and the versions. About a minute per run on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rewards.arithmetic import exact_answer
from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.builtin import model_settings
from rl4lm.commands import quiet_libraries
from rl4lm.console import Screen
from rl4lm.scoring import RewardContext

BASELINES = ("none", "batch_mean", "batch_leave_one_out", "prompt_leave_one_out")
CONTROL = "shuffled rewards"
MODEL = "builtin:tiny-arithmetic"


def shuffled(
    completions: list[str], answer: list[str], trainer_state: RewardContext
) -> list[float | None]:
    """The rewards of the step, dealt out at random: same mean and spread, no information."""
    rewards = exact_answer(completions=completions, answer=answer)
    random.Random(f"{trainer_state.seed}/{trainer_state.global_step}").shuffle(rewards)
    return rewards


def run(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """Train once and say how good the greedy answers became, and what the gradient looked like."""
    settings = {**model_settings(MODEL), "max_steps": steps, "seed": seed, "torch_threads": 1}
    settings |= {"sample_table_steps": 0, "logging_steps": 10**6}
    rewards: Any = None
    if variant == CONTROL:
        rewards = shuffled
    else:
        settings["baseline"] = variant
    norms: list[float] = []
    trainer = ReinforceTrainer(
        reward_funcs=rewards,
        args=ReinforceConfig(**settings),
        callbacks=[_Norms(norms)],
        screen=Screen(stderr=True),
    )
    summary = trainer.train()
    before, after = (summary[key]["accuracy"] for key in ("eval_before", "eval_after"))
    return {
        "variant": variant,
        "seed": seed,
        "before": before,
        "after": after,
        "grad_norm": statistics.fmean(norms),
        "train_seconds": summary["train_seconds"],
    }


class _Norms:
    """Keeps the gradient norm of every step."""

    def __init__(self, norms: list[float]) -> None:
        self._norms = norms

    def on_step_end(self, state: Any, stats: Any) -> None:
        self._norms.append(stats.metrics["grad_norm"])


def table(results: list[dict[str, Any]]) -> str:
    """A row per variant: accuracy per seed, mean, and mean gradient norm."""
    lines = [
        "| baseline | before | after, per seed | mean | gradient norm |",
        "|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(r["variant"] for r in results):
        runs = [r for r in results if r["variant"] == variant]
        after = [r["after"] for r in runs]
        each = ", ".join(f"{100 * a:.1f}" for a in after)
        norm = statistics.fmean(r["grad_norm"] for r in runs)
        lines.append(
            f"| {variant} | {100 * runs[0]['before']:.1f} % | {each} | "
            f"{100 * statistics.fmean(after):.1f} % | {norm:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all variants and seeds, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/baselines.json"))
    arguments = parser.parse_args()
    quiet_libraries()
    results = [
        run(variant, seed, arguments.steps)
        for variant in (*BASELINES, CONTROL)
        for seed in range(arguments.seeds)
    ]
    print(table(results))
    record = {
        "steps": arguments.steps,
        "settings": model_settings(MODEL),
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("rl4lm", "torch", "transformers")},
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
