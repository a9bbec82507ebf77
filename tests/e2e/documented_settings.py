"""What takes the place of what the documentation's readers have, and what is not run as it stands.

Keys are commands and parts of them as a page writes them; `tests/test_documented_commands.py` fails
where one no longer occurs.
"""

from __future__ import annotations

from typing import Any

HUB_MODEL = "Qwen/Qwen2.5-0.5B"  # and what begins so: a chat checkpoint made on the spot
SERVER = "http://127.0.0.1:8000"

ONE_THREAD = ["--torch_threads", "1"]
SHORT = ["--max_steps", "2", "--prompts_per_step", "4", "--num_generations", "4"]
SHORT += ["--eval_samples", "4", "--max_completion_length", "8", "--warmup_steps", "0"]
SHORT += ["--sample_table_steps", "0", *ONE_THREAD]
SMALL = {  # by verb, behind what the page says
    "train": SHORT,
    "eval": ["--eval_samples", "4", *ONE_THREAD],
    "sample": ["--num_generations", "2", "--max_completion_length", "8", *ONE_THREAD],
    "export": ["--overwrite_output_dir"],
}

# The tests that run a command in the place of this one, by how it begins.
RUN_BY = {
    "make check": "e2e/test_adding::test_what_was_added_passes_the_checks",
    "make docs": (
        "test_site::test_the_site_builds_strictly_and_its_pages_load_nothing_from_a_network"
    ),
    "rl4lm verify --all": (
        "e2e/test_verify_and_replay::test_every_baseline_and_option_is_verified_on_the_command_line"
    ),
    "rl4lm score --reward rewards.closeness:close": (
        "e2e/test_adding::test_the_added_reward_is_asked"
    ),
    "rl4lm verify --baseline median_of_others": "e2e/test_adding::test_the_added_baseline_is_exact",
    "pytest ": "e2e/test_adding::test_what_was_added_passes_the_tests_that_the_page_names",
    "source <(rl4lm completion zsh)": (
        "test_shell_completion::test_the_shell_itself_can_read_its_script"
    ),
    "accelerate launch recipes/arithmetic.py": (
        "e2e/test_recipes::test_the_arithmetic_recipe_leaves_a_whole_run_behind"
    ),
    "accelerate launch recipes/bandit.py": (
        "e2e/test_recipes::test_the_bandit_recipe_shows_how_each_player_climbs_from_one_half"
    ),
    "accelerate launch recipes/coding.py": (
        "e2e/test_recipes_launched::test_coding_takes_two_steps"
    ),
    "accelerate launch recipes/curriculum.py": (
        "e2e/test_recipes_launched::test_the_curriculum_takes_two_steps"
    ),
    "accelerate launch recipes/custom_reward.py": (
        "e2e/test_recipes::test_the_custom_reward_is_learned"
    ),
    "accelerate launch recipes/format_then_answer.py": (
        "e2e/test_recipes_launched::test_format_then_answer_takes_two_steps"
    ),
    "accelerate launch recipes/gsm8k.py": (
        "e2e/test_recipes_launched::test_gsm8k_takes_two_steps_on_a_folder_with_two_splits"
    ),
    "accelerate launch recipes/mbpp.py": (
        "e2e/test_recipes_launched::test_mbpp_takes_two_steps_and_shows_one_test_of_a_task"
    ),
    "accelerate launch recipes/trl_reward.py": (
        "e2e/test_recipes_launched::test_the_rewards_of_trl_take_two_steps"
    ),
    "python benchmarks/cost_model.py": (
        "test_benchmarks::test_the_rows_of_the_page_on_scaling_are_what_the_cost_model_prints"
    ),
    "python benchmarks/processes.py": (
        "test_benchmarks::test_two_processes_do_the_work_of_one_and_their_collectives_are_counted"
    ),
}

# Why a command is run by no test, by how it begins.
NOT_RUN = {
    "make ": "it sets .venv up from the package index, and CI runs what it is about",
    "bash .ci/run": "it runs this very suite",
    "pip install": "it changes the environment; extras are compared with pyproject.toml",
    "source .venv/bin/activate": "the environment that `make` makes",
    "hf ": "it asks the hub, or for an account of it",
    "vllm serve": "it needs a GPU and vLLM; tests/serving.py stands in for the server",
    "srun ": "it needs Slurm",
    "HOST=$(scontrol": "it needs Slurm",
    "accelerate launch --config_file recipes/accelerate/replicated.yaml": "it needs four GPUs",
    "rl4lm train --output_dir runs/small --use_peft --load_in_4bit": "it needs a GPU",
    "python recipes/make_tiny_": "it makes a built-in model in minutes; its settings are in it",
    "python benchmarks/flip_rate.py": "it measures for minutes",
    "python benchmarks/baselines.py": "it measures for hours",
    "python tests/e2e/world_sizes.py": "test_world_sizes calls its functions",
}

# A form, or a command of which a sentence names only the beginning -> what is run.
FORMS = {
    "rl4lm report RUN RUN …": "rl4lm report runs/a runs/b",
    "rl4lm report --png": "rl4lm report runs/mine --png curves.png",
    "rl4lm verify --config": "rl4lm verify --config runs/mine/config.yaml",
    "rl4lm score --data": (
        "rl4lm score --data completions.jsonl --reward rewards.arithmetic:final_number"
    ),
    "python recipes/NAME.py": "python recipes/arithmetic.py",
    "rl4lm doctor RUN_DIR [--json] [--quiet]": "rl4lm doctor runs/mine --json --quiet",
    "rl4lm train --model_name_or_path runs/served/model --sampler_model round-2 ...": (
        "rl4lm train --model_name_or_path runs/served/model --sampler_model round-2 "
        f"--output_dir runs/next --epsilon 0.2 --sampler_url {SERVER} "
        "--dataset_name prompts.jsonl --reward_funcs my_rewards.py:brevity"
    ),
    "rl4lm export … --push_to_hub ORG/NAME [--private]": (
        "rl4lm export runs/mine --out mine --push_to_hub ORG/NAME --private"
    ),
    "rl4lm train --push_to_hub [--hub_model_id ORG/NAME] [--hub_private_repo]": (
        "rl4lm train --output_dir runs/pushed --push_to_hub --hub_model_id ORG/NAME "
        "--hub_private_repo"
    ),
    "rl4lm export RUN --out FOLDER --push_to_hub ORG/NAME": (
        "rl4lm export runs/mine --out mine --push_to_hub ORG/NAME"
    ),
    "rl4lm verify --num_generations G": "rl4lm verify --num_generations 2",
    "rl4lm verify [--config FILE] [--option value ...] [--token_rewards] [--all] [--json]": (
        "rl4lm verify --config runs/mine/config.yaml --gamma 1 --token_rewards --json"
    ),
    "rl4lm replay RUN_DIR --step N": "rl4lm replay runs/mine --step 2",
    "rl4lm sample --model_name_or_path M --prompt ...": (
        "rl4lm sample --model_name_or_path builtin:tiny-arithmetic --prompt 12+34="
    ),
    "python -m rewards.sandbox --self-test [--json]": (
        "python -m rewards.sandbox --self-test --json"
    ),
    "rl4lm score --reward NAME --data rows.jsonl [--out scored.jsonl] [--json] [--quiet]": (
        "rl4lm score --reward rewards.arithmetic:final_number --data rows.jsonl "
        "--out scored.jsonl --json --quiet"
    ),
}

# Part of a command -> what takes its place.
REPLACED = {
    "ORG/NAME": "ann/it",
    "--dataset_name openai/gsm8k --dataset_config main": "--dataset_name problems",
    "--output_dir D": "--output_dir runs/d",
    "--seed S": "--seed 1",
    "--step 40": "--step 2",
    "--checkpoint 150": "--checkpoint 2",
    "step-000010.jsonl": "step-000002.jsonl",
    "--by difficulty": "--by difficulty --dataset_name prompts.jsonl --dataset_test_split train",
    "--resume_from_checkpoint true …": "--resume_from_checkpoint true",
    "-m rl4lm eval …": "-m rl4lm eval --model_name_or_path runs/mine/model",
    "--nproc_per_node 8": "--nproc_per_node 1 --local_addr 127.0.0.1",
    "HOST:": "127.0.0.1:",
    "/shared/mine": "shared/mine",
}

# Of the Python of a page: text -> what takes its place. Blocks go on from one another.
SMALLER = {
    "README.md": {
        "num_generations=8": "prompts_per_step=2, num_generations=2, max_steps=1, "
        "max_completion_length=4, torch_threads=1"
    },
    "docs/tutorial.md": {
        "max_steps=30": "max_steps=1, eval_samples=4",
        "prompts_per_step=128": "prompts_per_step=4",
    },
    "docs/from_trl.md": {
        "max_steps=100": "max_steps=1",
        "length=64": "length=8",
        'GRPOConfig(\n        output_dir="runs/': 'GRPOConfig(\n        output_dir="runs/trl-',
        "batch_size=8,": "batch_size=8, bf16=False, use_cpu=True,",
    },
}
PYTHON_RUN_BY = {
    "docs/architecture.md": "e2e/test_adding::test_what_was_added_passes_the_checks",
    "docs/rewards.md": "test_rewards_page::test_the_code_of_a_section_gives_what_it_says",
    "docs/notebook.md": "e2e/test_notebook::test_the_cells_of_the_page_do_what_it_says",
}

# Runs that a page is about, and does not make, with their options.
RUNS: dict[str, dict[str, list[str]]] = {
    "README.md": {"a": [], "b": []},
    "docs/choosing_a_baseline.md": {"mine": []},
    "docs/debugging.md": {"mine": ["--save_steps", "1"]},
    "docs/doctor.md": {"mine": [], "first": []},
    "docs/evaluation.md": {"mine": []},
    "docs/export.md": {"mine": ["--use_peft", "--save_steps", "1"]},
    "docs/faq.md": {"mine": []},
    "docs/following.md": {"mine": [], "a": [], "b": []},
    "docs/maths.md": {"mine": ["--save_steps", "1"]},
    "docs/scoring.md": {"first": []},
}
_CALL = '{"kind": "call", "entry": "add", "tests": [{"args": [1, 2], "expected": 3}]}'
_GSM8K = {"question": "What is 12+34?", "answer": "12+34=46\n#### 46"}
_SUM: dict[str, Any] = {"prompt": "12+34=", "answer": "46", "difficulty": 1, "target_words": 3}
ROWS: dict[str, dict[str, Any]] = {  # of the files that a page reads
    "docs/chat_models.md": _GSM8K,
    "docs/data.md": _GSM8K,
    "docs/code.md": {"prompt": "# Add two numbers.\ndef add(a, b):\n", "tests": _CALL},
    "docs/scoring.md": {**_SUM, "solution": "$46$"},
}
ROW = _SUM  # of all others
WEAK = """
def contains(completions, answer, **columns):
    return [float(gold in text) for text, gold in zip(completions, answer)]
"""
