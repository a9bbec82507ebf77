"""Baselines side by side on the main job, and a control that must learn nothing.

    python benchmarks/baselines.py [--steps 100] [--seeds 3] [--out FILE]

Every run starts from the same checkpoint and takes equal steps with equal samples; only the
baseline differs. The control trains on rewards that were shuffled over the batch, so that they say
nothing about the completions they are paid for. The variance of a step's gradient is measured
apart, with the weights of the start held fixed: the same rollouts are differentiated with every
baseline, so that nothing but the baseline differs. Prints a table and writes JSON with the
settings, the machine and the versions. About 40 seconds per run on one core, and three minutes for
the variances.
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
from rl4lm.commandline.commands import quiet_libraries
from rl4lm.estimator.baselines import BASELINES, SCALES
from rl4lm.metrics import Stopwatch
from rl4lm.scoring import RewardContext
from rl4lm.screen.console import Screen

CONTROL = "shuffled rewards"
MODEL = "builtin:tiny-arithmetic"
LEARNING_RATE = 5e-4


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
    settings |= {"learning_rate": LEARNING_RATE}
    settings |= {"sample_table_steps": 0, "logging_steps": 10**6}
    rewards: Any = None
    if variant == CONTROL:
        rewards = shuffled
    else:
        settings["baseline"] = variant
    listener = _Listener()
    trainer = ReinforceTrainer(
        reward_funcs=rewards,
        args=ReinforceConfig(**settings),
        callbacks=[listener],
        screen=Screen(stderr=True),
    )
    summary = trainer.train()
    before, after = (summary[key]["accuracy"] for key in ("eval_before", "eval_after"))
    return {
        "variant": variant,
        "seed": seed,
        "before": before,
        "after": after,
        "grad_norm": listener.mean("grad_norm"),
        "effective_share": listener.mean("effective_share"),
        "train_seconds": summary["train_seconds"],
    }


class _Listener:
    """Keeps the metrics of every step."""

    def __init__(self) -> None:
        self._metrics: list[Any] = []

    def on_step_end(self, state: Any, stats: Any) -> None:
        self._metrics.append(stats.metrics)

    def mean(self, name: str) -> float:
        return statistics.fmean(metrics[name] for metrics in self._metrics)


def gradient_variances(rollouts: int, past: int) -> dict[str, float]:
    """tr Cov of a step's gradient over scale², by baseline, relative to `none`: start weights.

    Args:
        rollouts: independent steps that are differentiated with every baseline.
        past: steps before them that baselines with a history have seen.
    """
    settings = {**model_settings(MODEL), "torch_threads": 1, "eval_samples": 0}
    config = ReinforceConfig(**settings, baseline="linear_value")  # so that there are features
    trainer = ReinforceTrainer(args=config, screen=Screen(quiet=True))
    gatherer, context = trainer.learner.gatherer, trainer.learner.context()
    states: dict[str, Any] = {name: {} for name in BASELINES}
    sums = {name: [torch.zeros(()), 0.0] for name in BASELINES}  # Σ g, Σ |g|²
    for step in range(past + rollouts):
        e, _ = gatherer.gather(step, {}, context, Stopwatch())
        keys = gatherer.prompt_keys(step)
        inputs = gatherer.centre.inputs(keys, gatherer.deal(keys)[0], e.rollout, e.measures)
        for name, baseline in BASELINES.items():
            value, states[name] = baseline(e.measures[..., 0], inputs, states[name])
            if step >= past:
                centred = (e.measures[..., 0] - value).flatten()
                gradient = trainer.gradient(e.rollout, centred)
                flat = torch.cat([part.flatten() for part in gradient.values()]).double()
                sums[name] = [sums[name][0] + flat, sums[name][1] + float(flat.square().sum())]
    shape = config.prompts_per_step, config.num_generations
    variances = {}
    for name, (total, squares) in sums.items():
        spread = (squares - float(total.square().sum()) / rollouts) / (rollouts - 1)
        variances[name] = spread / SCALES[name](*shape) ** 2
    return {name: value / variances["none"] for name, value in variances.items()}


def table(results: list[dict[str, Any]], variances: dict[str, float]) -> str:
    """A row per variant: accuracy per seed, their mean, and what the steps were like."""
    lines = [
        "| baseline | after, per seed | mean | gradient variance, none = 1 | "
        "live samples | gradient norm |",
        "|---|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(r["variant"] for r in results):
        runs = [r for r in results if r["variant"] == variant]
        after = [r["after"] for r in runs]
        each = ", ".join(f"{100 * a:.1f}" for a in after)

        def mean(name: str, runs: list[dict[str, Any]] = runs) -> float:
            return statistics.fmean(r[name] for r in runs)

        variance = f"{variances[variant]:.2f}" if variant in variances else ""
        lines.append(
            f"| {variant} | {each} | {100 * statistics.fmean(after):.1f} % | {variance} | "
            f"{100 * mean('effective_share'):.0f} % | {mean('grad_norm'):.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all variants and seeds, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=24, help="to measure the variances")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/baselines.json"))
    arguments = parser.parse_args()
    quiet_libraries()
    variances = gradient_variances(arguments.rollouts, past=10)
    results = [
        run(variant, seed, arguments.steps)
        for variant in (*BASELINES, CONTROL)
        for seed in range(arguments.seeds)
    ]
    print(table(results, variances))
    record = {
        "steps": arguments.steps,
        "settings": model_settings(MODEL),
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("rl4lm", "torch", "transformers")},
        "gradient_variances": variances,
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
