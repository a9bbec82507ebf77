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

from rl4lm.cli import run
from rl4lm.commandline.commands import run_training, settings_for
from rl4lm.options import parse_options

DEFAULTS = {
    "model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct",
    "use_peft": True,
    "lora_r": 32,
    "dataset_name": "openai/gsm8k",
    "dataset_config": "main",  # of these data; a file of one's own has none
    "prompt_column": "question",
    "system_prompt": "Reason step by step, in few words. "
    "End with a line that holds #### and the number alone.",
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


def main() -> None:
    """Read the options, and train."""
    config = parse_options(
        sys.argv[1:],
        prog="recipes/gsm8k.py",
        description="Teach a chat model the word problems of GSM8K.",
        base=DEFAULTS,
        base_for=settings_for,
    )
    run_training(config)


if __name__ == "__main__":
    sys.exit(run(main))
