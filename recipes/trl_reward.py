r"""Rewards written for TRL, used as they are: two of TRL's own and one in its style.

    accelerate launch recipes/trl_reward.py [--key value ...]

`python recipes/trl_reward.py` does the same in one process. A chat model is to think in
`<think>...</think>` and to box its result. `trl.rewards:think_format_reward` pays for the tags,
`trl.rewards:accuracy_reward` for the result (it needs math-verify), and `boxed_once` below for one
box: each by name and unchanged, so each in a process of its own with a time limit. Needs `pip
install trl math-verify`; model and data (GSM8K) come from the hub, or `--dataset_name FILE` takes
rows with `question` and `solution`, such as `$18$`, or with `answer` as in GSM8K.

One GPU with 24 GB. **Not run by us on a GPU**: the model of docs/scaling.md, at an RTX 4090's
nominal rates and 250 tokens a completion, expects 7 s a step and 14 GB, so 23 minutes. No accuracy
is promised for the same reason. Look at `rewards/<name>/mean` of each reward apart, before and
after.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rl4lm
from rl4lm.cli import run
from rl4lm.commandline.commands import quiet_libraries, settings_for
from rl4lm.data.splits import split_rows
from rl4lm.errors import ConfigError
from rl4lm.options import parse_options

DEFAULTS = {
    "model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct",
    "use_peft": True,
    "lora_r": 32,
    "dataset_name": "openai/gsm8k",
    "dataset_config": "main",  # of these data; a file of one's own has none
    "prompt_column": "question",
    "system_prompt": "Think first, within <think> and </think>. "
    r"Then give the result once, as in \boxed{42}.",
    "reward_funcs": [
        "trl.rewards:think_format_reward",
        "trl.rewards:accuracy_reward",
        f"{Path(__file__).resolve()}:boxed_once",
    ],
    "reward_weights": [0.2, 1.0, 0.1],
    "accuracy_func": None,
    "prompts_per_step": 32,
    "num_generations": 8,
    "max_completion_length": 512,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "max_steps": 200,
    "max_tokens_per_micro_batch": 8192,
    "save_steps": 50,
    "save_total_limit": 2,
    "output_dir": "runs/trl_reward",
}


def boxed_once(completions: Sequence[Any], **kwargs: Any) -> list[float]:
    r"""1 for a completion with one `\boxed{`, else 0; a list of messages each, as TRL has it."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(text.count(r"\boxed{") == 1) for text in texts]


def problem(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the column `solution` that TRL's reward reads."""
    return {**row, "solution": solution(row)}


def solution(row: Mapping[str, Any]) -> str | None:
    """The right result alone: of whole solutions, math-verify reads some as another number."""
    if "solution" in row or "answer" not in row:
        return row.get("solution")
    return "$" + row["answer"].rpartition("####")[2].strip().replace(",", "") + "$"


def check_installed() -> None:
    """Refuse to begin without the libraries that these rewards are from, or need."""
    for module, package in {"trl": "trl", "math_verify": "math-verify"}.items():
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"this recipe takes its rewards from TRL, which need {package}, and it is not "
                "installed; install them by: pip install trl math-verify"
            )


def main() -> None:
    """Read the options and the problems, train, and leave the other processes in good order."""
    config = parse_options(
        sys.argv[1:],
        prog="recipes/trl_reward.py",
        description="Train with rewards that were written for TRL.",
        base=DEFAULTS,
        base_for=settings_for,
    )
    check_installed()
    quiet_libraries()
    train, test = split_rows(config, problem)
    trainer = rl4lm.ReinforceTrainer(args=config, train_dataset=train, eval_dataset=test)
    trainer.train()
    trainer.world.close()


if __name__ == "__main__":
    sys.exit(run(main))
