"""Rewards that misbehave, in real runs: each ends as it is said to, within its time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from launching import RL4LM, finished

# Each does its mischief at prompts that hold a 7 in the first place, as a policy might provoke it.
REWARDS = """
import ctypes, os, resource, time
from rewards import per_sample

def at(prompt):
    return prompt.startswith("7")

@per_sample
def hangs(prompt, completion, answer):
    while at(prompt):
        time.sleep(1)
    return float(completion == answer)

@per_sample
def crashes(prompt, completion, answer):
    if at(prompt):
        ctypes.string_at(0)
    return float(completion == answer)

@per_sample
def eats(prompt, completion, answer):
    resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
    eaten = []
    while at(prompt):
        eaten.append(bytearray(64 << 20))
    return float(completion == answer)

def lies(completions, answer, **_):
    return ["full marks"] * len(completions)

def slow(completions, answer, **_):
    time.sleep(0.4)
    return [float(a == b) for a, b in zip(completions, answer)]

@per_sample
def raises(prompt, completion, answer):
    return 1.0 / (not at(prompt))
"""
ROWS = [(7, 5), (2, 3), (1, 6), (70, 4)]


def train(
    folder: Path, reward: str, *options: str, code: int = 0
) -> tuple[CompletedProcess, float]:
    (folder / "my.py").write_text(REWARDS)
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [*RL4LM, "train", "--output_dir", "run"]
    command += ["--prompts_per_step", "4", "--num_generations", "2", "--max_steps", "2"]
    command += ["--reward_timeout_s", "1", "--eval_samples", "0", "--torch_threads", "1"]
    command += ["--dataset_name", "rows.jsonl", "--reward_funcs", f"my.py:{reward}", *options]
    began = time.monotonic()
    done = finished(command, folder, code=code, seconds=150)
    return done, time.monotonic() - began


def logged(folder: Path) -> list[dict]:
    return [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("reward", "counter"),
    [
        ("hangs", "timeouts"),
        pytest.param("crashes", "crashes", marks=pytest.mark.slow),
        pytest.param("eats", "crashes", marks=pytest.mark.slow),
    ],
)
def test_a_completion_that_breaks_the_grader_scores_the_least_and_the_run_goes_on(
    reward, counter, tmp_path
):
    _, seconds = train(tmp_path, reward)
    assert seconds < 120
    assert [row[f"rewards/{reward}/{counter}"] for row in logged(tmp_path)] == [4, 4]
    page = (tmp_path / "run" / "completions" / "step-000001.jsonl").read_text()
    provoked = [row for row in map(json.loads, page.splitlines()) if row["prompt"][0] == "7"]
    assert len(provoked) == 4
    for row in provoked:
        assert row["reward"] == 0
        assert "scored 0" in row["detail"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("reward", "code", "words"),
    [
        pytest.param("raises", 1, "ZeroDivisionError", marks=pytest.mark.slow),
        pytest.param("lies", 2, "full marks", marks=pytest.mark.slow),
    ],
)
def test_a_reward_that_is_wrong_stops_the_run_and_what_was_sampled_is_kept(
    reward, code, words, tmp_path
):
    done, _ = train(tmp_path, reward, code=code)
    assert words in done.stderr
    kept = tmp_path / "run" / "unscored" / "step-000001-process-0.jsonl"
    assert f"--data {Path('run') / 'unscored' / kept.name}" in done.stderr
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(rows) == 8
    assert {"prompt", "completion", "answer", "completion_ids"} <= rows[0].keys()
    again = ["--reward", "rewards.arithmetic:exact_answer", "--data", str(kept), "--json"]
    finished([*RL4LM, "score", *again])


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_rows_at_which_a_reward_raises_are_masked_where_that_was_asked_for(tmp_path):
    train(tmp_path, "raises", "--on_reward_error", "mask")
    assert [row["rewards/raises/masked"] for row in logged(tmp_path)] == [4, 4]
    assert [row["rewards_not_applicable"] for row in logged(tmp_path)] == [4, 4]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_slow_reward_within_its_limit_is_only_slow(tmp_path):
    train(tmp_path, "slow")
    assert [row["rewards/slow/timeouts"] for row in logged(tmp_path)] == [0, 0]
    assert all(row["time/score_s"] > 0.35 for row in logged(tmp_path))
