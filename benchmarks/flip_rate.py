"""How often another layout draws another token, in float32 and in float64.

    python benchmarks/flip_rate.py [--steps 20] [--out FILE]

The random numbers of a token do not depend on the layout, but in float32 its probabilities do in
the last bits, since a matrix product adds up in another order for another number of rows. The
built-in model answers the prompts of some steps in one batch and in the batches of 2, 4 and 16
processes. A token is compared as long as all tokens before it agree. Printed are the tokens that
differed, and their expected share: the measure of the uniform numbers for which two cumulative
distributions choose differently, which shows what is too rare to be counted. A minute on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.builtin import model_settings
from rl4lm.commandline.commands import quiet_libraries
from rl4lm.estimator.logprobs import log_softmax
from rl4lm.model.preparing import inference_mode_of
from rl4lm.randomness import Stream
from rl4lm.sampling.drawing import InverseCdf
from rl4lm.sampling.loop import EndRule, generate
from rl4lm.screen.console import Screen

MODEL = "builtin:tiny-arithmetic"
PROCESSES = (2, 4, 16)


class Recorder:
    """Chooses as training does, and keeps the cumulative distribution of every token."""

    def __init__(self, config: ReinforceConfig, step: int, places: range) -> None:
        self._temperature = config.temperature
        self._draw = InverseCdf(
            seed=config.seed,
            stream=Stream.TRAINING,
            step=step,
            places=places,
            num_generations=config.num_generations,
            temperature=config.temperature,
        )
        self.cumulative: dict[tuple[int, int], Tensor] = {}  # (completion, token) -> [V]
        self._first = places[0] * config.num_generations

    def __call__(self, logits: Tensor, rows: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """Pick from logits [b, V] for completions `rows` [b] at index `token`."""
        cumulative = log_softmax(logits, self._temperature).double().exp().cumsum(-1)
        for row, values in zip(rows.tolist(), cumulative, strict=True):
            self.cumulative[self._first + row, token] = values
        return self._draw(logits, rows, token)


def draw(trainer: ReinforceTrainer, prompts: list[Any], step: int, parts: int) -> Any:
    """Completions of a step drawn in `parts` batches, and all cumulative distributions."""
    config, policy = trainer.config, trainer.policy
    completions: list[list[int]] = []
    cumulative: dict[tuple[int, int], Tensor] = {}
    size = len(prompts) // parts
    for k in range(parts):
        recorder = Recorder(config, step, range(k * size, (k + 1) * size))
        with inference_mode_of(policy.module):
            rollout = generate(
                policy,
                policy.codec.encode(prompts[k * size : (k + 1) * size]),
                recorder,
                num_generations=config.num_generations,
                max_completion_length=config.max_completion_length,
                ends=EndRule(policy.end_token_ids),
            )
        completions += rollout.completion_lists()
        cumulative |= recorder.cumulative
    return completions, cumulative


def compare(dtype: str, steps: int) -> dict[str, Any]:
    """Tokens compared, tokens that differed, and the expected share of those."""
    settings = {**model_settings(MODEL), "torch_threads": 1, "eval_samples": 0, "dtype": dtype}
    trainer = ReinforceTrainer(args=ReinforceConfig(**settings), screen=Screen(quiet=True))
    tokens = flips = 0
    expected = 0.0
    for step in range(steps):
        prompts = [e.prompt for e in trainer.learner.gatherer.examples(step)]
        whole, first = draw(trainer, prompts, step, 1)
        for parts in PROCESSES:
            dealt, second = draw(trainer, prompts, step, parts)
            for i, (one, two) in enumerate(zip(whole, dealt, strict=True)):
                for t, (a, b) in enumerate(zip(one, two, strict=False)):
                    tokens += 1
                    expected += float((first[i, t] - second[i, t]).abs().sum())
                    if a != b:
                        flips += 1
                        break
    return {"dtype": dtype, "tokens": tokens, "flips": flips, "expected": expected / tokens}


def main() -> None:
    """Compare in both precisions, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/flip_rate.json"))
    arguments = parser.parse_args()
    quiet_libraries()
    results = [compare(dtype, arguments.steps) for dtype in ("float32", "float64")]
    for r in results:
        print(
            f"{r['dtype']}: {r['flips']} of {r['tokens']:,} tokens differed; expected share "
            f"{r['expected']:.1e}"
        )
    record = {
        "processes": PROCESSES,
        "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
        "torch": torch.__version__,
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
