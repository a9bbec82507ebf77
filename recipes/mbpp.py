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
from rl4lm.commandline.commands import quiet_libraries, settings_for
from rl4lm.data.splits import split_rows
from rl4lm.options import parse_options

DEFAULTS = {
    "model_name_or_path": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "use_peft": True,
    "lora_r": 32,
    "dataset_name": "google-research-datasets/mbpp",
    "dataset_config": "full",  # of these data; a file of one's own has none
    "prompt_template": "{text}\nThe function must pass this test:\n{shown_test}",
    "system_prompt": "Answer with one Python function in a ```python block, and nothing else.",
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


def task(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the one test that the prompt shows, which tells the name of the function."""
    return {**row, "shown_test": next(iter(row.get("test_list") or []), "")}


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
    train, test = split_rows(config, task)
    trainer = rl4lm.ReinforceTrainer(args=config, train_dataset=train, eval_dataset=test)
    trainer.train()
    trainer.world.close()


if __name__ == "__main__":
    sys.exit(run(main))
