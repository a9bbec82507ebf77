"""The command line as a user meets it: whole runs in processes of their own."""

from __future__ import annotations

import json
import os
import pty
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import rl4lm as rl4lm_package
from rl4lm import ReinforceConfig
from rl4lm.cli import main

SIZES = ["--max_steps", 3, "--eval_samples", 20, "--prompts_per_step", 4]
ESCAPE = "\x1b"
BUILT_IN = Path(rl4lm_package.__file__).parent / "builtin" / "tiny-arithmetic"

# What users may rely on, by file.
STEP_METRICS = """
    step reward reward_std rewards/exact_answer/mean completions/mean_length
    completions/clipped_ratio frac_reward_zero_std entropy grad_norm learning_rate
    sampler_gap_mean sampler_gap_max effective_samples tokens_per_second time/sample_s
    time/score_s time/gradient_s time/update_s
"""
ROW_FIELDS = """
    prompt_id sample prompt completion prompt_ids completion_ids reward rewards advantage
    sampling_logprob truncated detail
"""
SUMMARY_KEYS = """
    eval_before eval_after steps samples tokens train_seconds peak_memory_bytes seed version
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def environment(home):
    """One thread, nothing from the network, a cache of its own, a plain terminal."""
    dropped = ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "PYTHONPATH", "PYTHONWARNINGS")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(home / "cache")}
    return {**kept, **own, "TERM": "xterm"}


@pytest.fixture(scope="module")
def rl4lm(home, environment):
    """Run a command line from a folder outside the checkout; it must succeed."""

    def run(*words):
        command = [sys.executable, "-m", "rl4lm", *map(str, words)]
        done = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def twice(home, rl4lm):
    """The main job, run twice: its two directories and the first one's output."""
    first = rl4lm("train", "--output_dir", "first", *SIZES)
    rl4lm("train", "--output_dir", "second", *SIZES)
    return home / "first", home / "second", first


@pytest.fixture(scope="module")
def adapted(home, rl4lm):
    """A run with adapters that prints JSON."""
    done = rl4lm("train", "--output_dir", "lora", "--use_peft", "--lora_r", 2, "--json", *SIZES)
    return home / "lora", done


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def settings(directory):
    return ReinforceConfig(**yaml.safe_load((directory / "config.yaml").read_text()))


def test_a_run_leaves_one_line_of_metrics_for_each_step(twice):
    metrics = lines(twice[0] / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        assert set(line) >= set(STEP_METRICS.split())
        assert line["sampler_gap_max"] < 1e-4
        assert 0 <= line["learning_rate"] <= settings(twice[0]).learning_rate


def test_a_run_leaves_the_completions_of_each_step_and_their_advantages(twice):
    files = sorted((twice[0] / "completions").iterdir())
    assert [file.name for file in files] == [f"step-00000{k}.jsonl" for k in (1, 2, 3)]
    metrics = lines(twice[0] / "metrics.jsonl")
    group_size = settings(twice[0]).num_generations
    for file, line in zip(files, metrics, strict=True):
        rows = lines(file)
        assert len(rows) == 4 * group_size
        assert all(set(row) >= set(ROW_FIELDS.split()) for row in rows)
        assert sum(row["reward"] for row in rows) / len(rows) == pytest.approx(line["reward"])
        tokens = sum(len(row["completion_ids"]) for row in rows)
        total = -sum(row["sampling_logprob"] for row in rows)
        assert total / tokens == pytest.approx(line["entropy"], rel=1e-5)
        for row in rows:
            group = [r["reward"] for r in rows if r["prompt_id"] == row["prompt_id"]]
            others = (sum(group) - row["reward"]) / (group_size - 1)
            assert row["advantage"] == pytest.approx(row["reward"] - others, abs=1e-12)


def test_a_run_leaves_its_evaluations_and_a_summary(twice):
    summary = json.loads((twice[0] / "summary.json").read_text())
    assert set(summary) >= set(SUMMARY_KEYS.split())
    samples = 3 * 4 * settings(twice[0]).num_generations
    assert (summary["steps"], summary["samples"], summary["seed"]) == (3, samples, 0)
    before, after = lines(twice[0] / "eval.jsonl")
    assert before == {"step": 0, **summary["eval_before"]}
    assert after == {"step": 3, **summary["eval_after"]}
    assert (before["samples"], 0 <= before["accuracy"] <= 1) == (20, True)
    sampled = sum(len(row["completion_ids"]) for row in _all_rows(twice[0]))
    assert summary["tokens"] == sampled


def _all_rows(directory):
    return [row for file in sorted((directory / "completions").iterdir()) for row in lines(file)]


def test_a_run_leaves_weights_that_transformers_loads(twice):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(twice[0] / "model")
    model = AutoModelForCausalLM.from_pretrained(twice[0] / "model")
    ids = tokenizer("12+34=", return_tensors="pt")["input_ids"]
    assert model(ids).logits.isfinite().all()
    start = load_file(BUILT_IN / "model.safetensors")
    end = load_file(twice[0] / "model" / "model.safetensors")
    assert start.keys() == end.keys()
    assert not any(torch.equal(start[name], end[name]) for name in start)


def test_a_run_leaves_a_configuration_that_starts_it_again(twice):
    text, config = (twice[0] / "config.yaml").read_text(), settings(twice[0])
    assert config.to_dict() == yaml.safe_load(text)
    assert (config.max_steps, config.prompts_per_step, config.output_dir) == (3, 4, "first")
    assert f"# torch_threads: {config.torch_threads}" in text


def test_the_same_command_gives_the_same_bits(twice):
    first, second, _ = twice

    def untimed(directory):
        return [
            {k: v for k, v in line.items() if not k.startswith(("time/", "tokens_per_second"))}
            for line in lines(directory / "metrics.jsonl")
        ]

    assert untimed(first) == untimed(second)
    for name in ("eval.jsonl", "model/model.safetensors", "completions/step-000003.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_in_a_file_the_output_is_plain_short_lines(twice):
    done = twice[2]
    assert ESCAPE not in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 200
    assert re.search(r"step 1/3  reward 0\.\d+ ", done.stdout)
    assert re.search(r"^ +before +after", done.stdout, re.MULTILINE)
    assert done.stderr == ""


def test_json_output_is_json_and_nothing_else(adapted):
    directory, done = adapted
    assert json.loads(done.stdout) == json.loads((directory / "summary.json").read_text())
    assert "step 1/3" in done.stderr
    assert "Warning" not in done.stderr


def test_an_adapter_is_saved_alone_and_evaluates_as_it_was_trained(adapted, verb):
    from peft import AutoPeftModelForCausalLM

    directory, _ = adapted
    model = AutoPeftModelForCausalLM.from_pretrained(directory / "model")
    moved = [p.abs().sum() > 0 for n, p in model.named_parameters() if "lora_B" in n]
    assert moved
    assert all(moved)
    assert not (directory / "model" / "model.safetensors").exists()
    # The built-in model's settings belong to its name; a folder says what it wants.
    where = ["--model_name_or_path", directory / "model", "--max_completion_length", 6]
    found = json.loads(verb("eval", *where, "--eval_samples", 20, "--json").out)
    assert found == json.loads((directory / "summary.json").read_text())["eval_after"]


def test_samples_are_a_json_object_each(verb):
    prompts = ["--prompt", "1+1=", "--prompt", "20-3="]
    said = verb("sample", *prompts, "--num_generations", 3, "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["1+1="] * 3 + ["20-3="] * 3
    assert all(set(row) == {"prompt", "completion", "logprob", "truncated"} for row in rows)
    assert all(row["logprob"] < 0 for row in rows)


def test_completions_of_a_run_can_be_scored_again(twice, home, verb):
    page = twice[0] / "completions" / "step-000001.jsonl"
    rows = lines(page)
    for row in rows:
        row |= row.pop("columns")  # what the data have, beside what the run has logged
        left, sign, right = re.split(r"([+-])", row["prompt"].rstrip("="))
        assert int(row["answer"]) == int(left) + int(sign + right)
    words = ["--reward", "rewards.arithmetic:exact_answer", "--data", page, "--json"]
    found = json.loads(verb("score", *words, "--out", home / "scored.jsonl").out)
    assert found["mean"] == statistics.fmean(row["reward"] for row in rows)
    assert lines(home / "scored.jsonl") == rows  # the same reward and detail as in training


def test_on_a_terminal_a_users_own_reward_and_data_train_with_a_bar(home, environment, twice):
    """Weighted rewards from a file and a package, local data, and the configuration of a run."""
    (home / "my.py").write_text(
        "def brevity(completions, **kwargs):\n    return [-float(len(c)) for c in completions]\n"
    )
    rows = [{"prompt": f"{a}+1=", "answer": a + 1} for a in range(10, 16)]
    (home / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = "train --config first/config.yaml --output_dir own --dataset_name own.jsonl"
    words += " --reward_funcs my.py:brevity rewards.arithmetic:exact_answer"
    words += " --reward_weights 0.1 1.0 --eval_steps 2"
    output = _under_a_terminal([sys.executable, "-m", "rl4lm", *words.split()], home, environment)
    assert ESCAPE in output
    assert "━" in output
    assert "step 3/3" in output
    assert "there is no split 'test'" in output
    drawn = _all_rows(home / "own")
    for row in drawn:
        short, right = row["rewards"]["brevity"], row["rewards"]["exact_answer"]
        assert short == -len(row["completion"])
        assert row["reward"] == pytest.approx(0.1 * short + right)
    assert {row["prompt"] for row in drawn} <= {row["prompt"] for row in rows}
    assert [line["step"] for line in lines(home / "own" / "eval.jsonl")] == [0, 2, 3]


def _under_a_terminal(command, folder, environment):
    """The output of a command whose standard output is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux says EIO where the other end is closed
                break
            if not chunk:
                break
            output += chunk
    os.close(ours)
    assert process.returncode == 0, output.decode()
    return output.decode()


def test_a_dry_run_keeps_nothing_and_asks_for_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--prompts_per_step", "2", "--max_completion_length", "4", "--torch_threads", "1"]
    assert main(["train", "--dry_run", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["step_seconds"] > 0
    assert list(tmp_path.iterdir()) == []
    assert main(["train", *words]) == 2
    assert "name a folder with --output_dir" in capsys.readouterr().err
