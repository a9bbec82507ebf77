"""The commands of README, tutorial and how-to pages are run, in order, with small settings.

Of the others `test_documented_commands` says that they can be meant; recipes, launchers, uploads
and servers have tests of their own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_templates import CHATML, save_chat_checkpoint
from documented import FILE, blocks, commands, results, write_files

from rl4lm.cli import main

HUB_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
ONE_THREAD = ["--torch_threads", "1"]
SHORT = ["--max_steps", "2", "--prompts_per_step", "4", "--num_generations", "4"]
SHORT += ["--eval_samples", "4", "--max_completion_length", "8", "--warmup_steps", "0"]
SHORT += ["--sample_table_steps", "0", *ONE_THREAD, "--overwrite_output_dir"]
SMALL = {
    "train": SHORT,
    "eval": ["--eval_samples", "4", *ONE_THREAD],
    "sample": ["--num_generations", "2", "--max_completion_length", "8", *ONE_THREAD],
}
RUNS = {  # that a page is about, and does not make
    "docs/debugging.md": ["mine"],
    "docs/following.md": ["mine", "a", "b"],
    "docs/evaluation.md": ["mine"],
    "docs/export.md": ["mine"],
    "docs/doctor.md": ["first"],
}
# What a command holds -> where it is run instead.
ELSEWHERE = {
    "--all": "test_verify runs every case",
    "ORG/NAME": "test_publishing has a stand-in for the hub",
    "--sampler_url": "test_engines has a server",
    "python": "test_recipes launches the recipes, tests/attacks the self-test of the sandbox",
    "accelerate": "test_recipes_launched, test_two_processes",
    "…": "a form to fill in",
    "RUN_DIR": "the same",
    "--checkpoint": "test_export has a run that is long enough",
    "--report_to": "test_trackers has stand-ins for the trackers",
    "--by": "the column is one of the reader's; test_evaluating has such rows",
    "pip": "the extras are those of pyproject.toml",
    "make": "the target that runs this, or sets it up",
}
ROWS = {
    "README.md": {"prompt": "12+34=", "target_words": 3, "answer": "46"},
    "docs/chat_models.md": {"question": "What is 12+34?", "answer": "12+34=46\n#### 46"},
    "docs/debugging.md": {"prompt": "12+34=", "target_words": 3, "answer": "46"},
    "docs/code.md": {
        "prompt": "# Add two numbers.\ndef add(a, b):\n",
        "tests": '{"kind": "call", "entry": "add", "tests": [{"args": [1, 2], "expected": 3}]}',
    },
}
PAGES = ["README.md", "docs/tutorial.md", "docs/lora.md", "docs/chat_models.md", "docs/code.md"]
PAGES += ["docs/debugging.md", "docs/from_trl.md", "docs/following.md", "docs/evaluation.md"]
PAGES += ["docs/export.md", "docs/doctor.md", "docs/choosing_a_baseline.md"]


def elsewhere(words):
    return any(words[0] == each or any(each in word for word in words) for each in ELSEWHERE)


def run(words, chat_model):
    """Run one command with small settings; the exit code."""
    _, verb, *rest = [str(chat_model) if word == HUB_MODEL else word for word in words]
    return main([verb, *rest, *SMALL.get(verb, [])])


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to work in, and a chat model in the place of the hub's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return save_chat_checkpoint(tmp_path / "chat", CHATML, context=8192)


def prepare(page, folder):
    """The files that a page tells its readers to have."""
    write_files("README.md", folder)
    write_files(page, folder)
    row = ROWS.get(page, {})
    for name in ("prompts", "tasks"):
        split = folder / f"{name}.jsonl"
        split.write_text("".join(json.dumps(row) + "\n" for _ in range(6)), encoding="utf-8")
    answered = row | {"completion": "46", "prompt": row.get("prompt", row.get("question", ""))}
    (folder / "rows.jsonl").write_text(json.dumps(answered) + "\n", encoding="utf-8")


def run_page(page, chat_model):
    folder = Path.cwd()
    prepare(page, folder)
    for name in RUNS.get(page, ()):
        words = ["rl4lm", "train", "--output_dir", f"runs/{name}", "--save_steps", "1"]
        assert run(words, chat_model) == 0
    ran = 0
    for words in commands(page):
        if not elsewhere(words):
            assert run(words, chat_model) == 0, " ".join(words)
            ran += 1
    assert ran


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, workplace, capfd):
    run_page(page, workplace)


def test_the_tutorials_program_runs(workplace, capsys):
    write_files("docs/tutorial.md", Path.cwd())
    program = next(block for block in blocks("docs/tutorial.md") if "ReinforceTrainer" in block)
    assert "max_steps=30" in program
    small = program.replace("max_steps=30", "max_steps=1, eval_samples=4")
    small = small.replace("prompts_per_step=128", "prompts_per_step=4")
    exec(small, {"__name__": "program"})
    assert json.loads(Path("runs/python/summary.json").read_text())["steps"] == 1


def test_the_tutorials_rewards_pay_what_the_page_says():
    namespace = {"__name__": "rewards_of_the_tutorial"}
    for block in blocks("docs/tutorial.md"):
        if FILE.match(block):
            exec(block, namespace)
    said = ["46", "47", "45", "48", "the number 46", ""]
    assert namespace["even"](completions=said) == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    near = namespace["near"](completions=said, answer=["46"] * 6)
    assert near == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert namespace["near"](completions=["46", "48"], answer=["47"] * 2) == [1.0, 1.0]


def test_the_values_of_the_page_about_programs_are_so():
    pairs = [pair for block in blocks("docs/code.md") for pair in results(block, {})]
    assert pairs
    assert all(given == written for given, written in pairs)


@pytest.mark.slow
def test_the_adapter_of_the_page_about_adapters_can_be_made():
    for block in blocks("docs/lora.md"):
        namespace = {"__name__": "program"}
        exec(block, namespace)
        assert namespace["trainer"].policy is not None
