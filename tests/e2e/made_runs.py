"""Run directories of any size, written file by file, for pages that show them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from rl4lm.builtin import model_path

GROUP = 4
REWARDS = ("right", "short")


def make_run(folder: Path, steps: int = 12, prompts: int = 4, seed: int = 0, **config: Any) -> Path:
    """A run of the built-in model that ended: `prompts` x 4 completions in each step."""
    draw = random.Random(seed)
    (folder / "completions").mkdir(parents=True)
    options = {"model_name_or_path": "builtin:tiny-arithmetic", "seed": seed, **config}
    layout = "# processes: 1\n# device: cpu\n"
    (folder / "config.yaml").write_text(layout + yaml.safe_dump(options))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps(_metrics(step, steps, draw)) + "\n")
    for step in range(1, steps + 1):
        rows = [
            _row(step, prompt, sample, draw) for prompt in range(prompts) for sample in range(GROUP)
        ]
        page = folder / "completions" / f"step-{step:06d}.jsonl"
        page.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluations = [_evaluation(0, 0.5), _evaluation(steps, 0.75)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluations))
    summary = {"eval_on": "test", "samples": steps * prompts * GROUP, "train_seconds": 3.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _metrics(step: int, steps: int, draw: random.Random) -> dict[str, Any]:
    return {
        "step": step,
        "reward": 0.4 + 0.5 * step / steps + draw.gauss(0, 0.05),
        "rewards/right/mean": draw.random(),
        "rewards/short/mean": draw.random(),
        "completions/mean_length": 3 + draw.random(),
        "completions/clipped_ratio": 0.01,
        "entropy": 1 / step,
        "grad_norm": 1 + draw.random(),
        "gradient_snr": draw.random() if step % 5 == 1 else None,
        "time/sample_s": 0.2,
        "time/gradient_s": 0.1,
        "tokens_per_second": 1000 + step,
    }


def _row(step: int, prompt: int, sample: int, draw: random.Random) -> dict[str, Any]:
    a, b = 10 + prompt, 20 + step % 50
    right = draw.random() < 0.5
    ids = [draw.randrange(16, 26) for _ in range(2)] + [2]
    logprobs = [-draw.expovariate(2.0) for _ in ids]
    short = float(draw.random() < 0.8)
    return {
        "step": step,
        "prompt_id": f"train-{prompt}",
        "sample": sample,
        "prompt": f"{a}+{b}=",
        "completion": str(a + b if right else a + b + 1),
        "prompt_ids": [1, 2],
        "completion_ids": ids,
        "reward": right + short,
        "rewards": {"right": float(right), "short": short},
        "advantage": (float(right) - 0.5) * (sample > 0),
        "sampling_logprob": math.fsum(logprobs),
        "sampling_logprobs": logprobs,
        "truncated": sample == 3 and prompt == 0,
        "right/detail": "as expected" if right else "one too many",
    }


def _evaluation(step: int, share: float) -> dict[str, Any]:
    error = math.sqrt(share * (1 - share) / 400)
    groups = {"samples/easy": 200, "accuracy/easy": share + 0.1}
    groups |= {"samples/hard": 200, "accuracy/hard": share - 0.1, "accuracy/hard_low": share - 0.2}
    groups |= {"accuracy/hard_high": share}
    outcome = {"accuracy": share, "accuracy_stderr": error, "reward": 2 * share}
    told = {"ended": 1.0, "mean_length": 3.5, "confidence": 0.95}
    return {"step": step, "samples": 400, **outcome, **groups, **told}


def tokenizer_of_the_runs() -> Path:
    """Where the tokenizer is whose ids the completions have."""
    return model_path("builtin:tiny-arithmetic") / "tokenizer.json"
