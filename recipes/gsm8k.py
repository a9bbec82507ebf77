"""Teach a chat model of half a billion weights the word problems of GSM8K, with LoRA on one GPU.

    accelerate launch recipes/gsm8k.py [--key value ...]

`python recipes/gsm8k.py` does the same in one process. The question becomes a chat prompt with the
instruction below, and `rewards.mathematics:gsm8k` pays 1 for the number that the answer declares as
its result. Model and data come from the hub (1 GB); `--dataset_name FILE` takes rows with
`question` and `answer` instead, a folder with a file for each split too.

One GPU with 24 GB. **Not run by us on a GPU**: the model of docs/scaling.md, at an RTX 4090's
nominal rates and 200 tokens a completion, expects 5 s a step and 14 GB, so 18 minutes. No accuracy
is promised for the same reason. Look at `rewards/gsm8k/mean` and `accuracy`, before and after, on
500 held-out problems.
"""

from __future__ import annotations

import sys
from typing import Any

import rl4lm
from rl4lm.cli import run
from rl4lm.commands import quiet_libraries, settings_for
from rl4lm.config import ReinforceConfig
from rl4lm.errors import MissingSplitError
from rl4lm.options import parse_options
from rl4lm.sources import check_prompts, load_rows

HUB = "openai/gsm8k"
SYSTEM = "Reason step by step, in few words. End with a line that holds #### and the number alone."
DEFAULTS = {
    "model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct",
    "use_peft": True,
    "lora_r": 32,
    "dataset_name": HUB,
    "prompt_column": "question",
    "reward_funcs": ["rewards.mathematics:gsm8k"],
    "accuracy_func": "rewards.mathematics:gsm8k",
    "prompts_per_step": 32,
    "num_generations": 8,
    "max_completion_length": 400,
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "max_steps": 200,
    "max_tokens_per_micro_batch": 8192,
    "save_steps": 50,
    "save_total_limit": 2,
    "output_dir": "runs/gsm8k",
}

Rows = list[dict[str, Any]]


def problems(config: ReinforceConfig, split: str) -> Rows:
    """The rows of a split, the question of each as chat messages."""
    if config.dataset_name == HUB:
        import datasets

        rows = datasets.load_dataset(HUB, "main", split=split)
    else:
        rows = load_rows(config.dataset_name, split)
    return [{**row, config.prompt_column: chat(row[config.prompt_column])} for row in rows]


def chat(question: str) -> list[dict[str, str]]:
    """A question as the model is asked it."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def held_out(config: ReinforceConfig) -> Rows | None:
    """The problems to evaluate on; None where there is one split only."""
    if config.dataset_test_split is None:
        return None
    try:
        return problems(config, config.dataset_test_split)
    except MissingSplitError:
        return None


def main() -> None:
    """Read the options and the problems, train, and leave the other processes in good order."""
    config = parse_options(
        sys.argv[1:],
        prog="recipes/gsm8k.py",
        description="Teach a chat model the word problems of GSM8K.",
        base=DEFAULTS,
        base_for=settings_for,
    )
    quiet_libraries()
    check_prompts(config.dataset_name, config.prompt_column)
    train = problems(config, config.dataset_train_split)
    trainer = rl4lm.ReinforceTrainer(
        args=config, train_dataset=train, eval_dataset=held_out(config)
    )
    trainer.train()
    trainer.world.close()


if __name__ == "__main__":
    sys.exit(run(main))
