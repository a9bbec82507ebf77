"""Teach a chat model to write the functions of MBPP, by running what it writes on their asserts.

    accelerate launch recipes/mbpp.py [--key value ...]

`python recipes/mbpp.py` does the same in one process. The prompt is the task and the first of its
asserts, which tells the function's name; `rewards.programs:mbpp` pays 1 where every assert holds.
The others are not shown, so that a function which answers by heart earns nothing. Model and data
come from the hub (1 GB); `--dataset_name FILE` takes rows with `text` and `test_list` instead, a
folder with a file for each split too. Tasks that the sandbox cannot judge are left out and counted.

Linux, as the sandbox needs it, and one GPU with 24 GB. **Not run by us on a GPU**: the model of
docs/scaling.md, at an RTX 4090's nominal rates and 120 tokens a completion, expects 4 s a step and
14 GB, so 10 minutes, if programs keep up while others are sampled. No share of solved tasks is
promised for the same reason. Look at `rewards/mbpp/mean`, before and after, on the 500 tasks of the
test split.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import rl4lm
from rl4lm.cli import run
from rl4lm.commands import quiet_libraries, settings_for
from rl4lm.config import ReinforceConfig
from rl4lm.errors import MissingSplitError
from rl4lm.options import parse_options
from rl4lm.sources import check_prompts, load_rows

HUB = "google-research-datasets/mbpp"
SYSTEM = "Answer with one Python function in a ```python block, and nothing else."
DEFAULTS = {
    "model_name_or_path": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "use_peft": True,
    "lora_r": 32,
    "dataset_name": HUB,
    "prompt_column": "text",
    "reward_funcs": ["rewards.programs:mbpp"],
    "prompts_per_step": 32,
    "num_generations": 8,
    "max_completion_length": 300,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "max_steps": 150,
    "max_tokens_per_micro_batch": 8192,
    "save_steps": 50,
    "save_total_limit": 2,
    "output_dir": "runs/mbpp",
}

Rows = list[dict[str, Any]]


def tasks(config: ReinforceConfig, split: str) -> Rows:
    """The rows of a split, the task of each as chat messages."""
    if config.dataset_name == HUB:
        import datasets

        rows = datasets.load_dataset(HUB, "full", split=split)
    else:
        rows = load_rows(config.dataset_name, split)
    return [{**row, config.prompt_column: chat(row, config.prompt_column)} for row in rows]


def chat(row: Mapping[str, Any], column: str) -> list[dict[str, str]]:
    """A task as the model is asked it."""
    asked = f"{row[column]}\nThe function must pass this test:\n{row['test_list'][0]}"
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]


def held_out(config: ReinforceConfig) -> Rows | None:
    """The tasks to evaluate on; None where there is one split only."""
    if config.dataset_test_split is None:
        return None
    try:
        return tasks(config, config.dataset_test_split)
    except MissingSplitError:
        return None


def main() -> None:
    """Read the options and the tasks, train, and leave the other processes in good order."""
    config = parse_options(
        sys.argv[1:],
        prog="recipes/mbpp.py",
        description="Teach a chat model to write the functions of MBPP, by running them.",
        base=DEFAULTS,
        base_for=settings_for,
    )
    quiet_libraries()
    check_prompts(config.dataset_name, config.prompt_column)
    train = tasks(config, config.dataset_train_split)
    trainer = rl4lm.ReinforceTrainer(
        args=config, train_dataset=train, eval_dataset=held_out(config)
    )
    trainer.train()
    trainer.world.close()


if __name__ == "__main__":
    sys.exit(run(main))
