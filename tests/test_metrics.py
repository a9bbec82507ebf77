"""The numbers of a step against numbers counted by hand."""

from __future__ import annotations

import datetime
import json
import math
import statistics
from dataclasses import replace

import pytest
import torch

from rl4lm.metrics import (
    Stopwatch,
    completion_rows,
    pack,
    peak_memory_bytes,
    rollout_metrics,
)
from rl4lm.rundir.lines import plain
from rl4lm.types import Drawing, Example, Experience, Rollout, Scores

NAN = math.nan
LENGTHS = [1, 3, 2, 2]  # two prompts, two completions each
LOGPROBS = [[-1.0], [-0.5, -0.25, -0.125], [-2.0, -1.0], [-4.0, -3.0]]


def rollout():
    mask = torch.arange(3) < torch.tensor(LENGTHS)[:, None]
    logprobs = torch.zeros(4, 3)
    for i, values in enumerate(LOGPROBS):
        logprobs[i, : len(values)] = torch.tensor(values)
    return Rollout(
        prompt_ids=torch.tensor([[0, 5], [6, 7]]),
        prompt_mask=torch.tensor([[False, True], [True, True]]),
        completion_ids=torch.tensor([[1, 0, 0], [2, 3, 4], [5, 6, 0], [7, 8, 0]]),
        completion_mask=mask,
        sampling_logprobs=logprobs,
        ended=torch.tensor([True, True, False, True]),
    )


def scores(values=((1.0, 3.0), (2.0, 2.0)), second=((NAN, 1.0), (NAN, NAN)), **extra):
    first, other = torch.tensor(values).double(), torch.tensor(second).double()
    return Scores(
        rewards=first.nan_to_num(),
        valid=~first.isnan(),
        parts={"first": first, "second": other},
        extra=extra,
    )


def metrics(**changes):
    judged = scores(**changes)
    packed = pack(rollout(), judged, returns=judged.rewards.flatten() - 9)
    assert torch.equal(packed[..., 0], judged.rewards - 9)
    return rollout_metrics(packed, ["first", "second"])


EXAMPLES = (Example("a", "p", {}), Example("b", "q", {}))


def experience(judged, advantages, examples=EXAMPLES):
    return Experience(
        examples=list(examples),
        rollout=rollout(),
        texts=list("wxyz"),
        scores=judged,
        measures=pack(rollout(), judged, judged.rewards.flatten()),
        returns=judged.rewards.flatten(),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        weights=torch.ones(4).double(),
        policy_logprobs=rollout().sampling_logprobs,
        reference_logprobs=torch.zeros(4, 0),
        num_completions=4,
        places=range(len(examples)),
        keys=range(len(examples)),
        drawing=Drawing(completions=4, tokens=0),
    )


def test_a_step_is_described_by_its_completions():
    found = metrics()
    assert found["reward"] == pytest.approx(2.0)
    assert found["reward_std"] == pytest.approx(statistics.stdev([1, 3, 2, 2]))
    assert found["completions/mean_length"] == sum(LENGTHS) / 4
    assert (found["completions/min_length"], found["completions/max_length"]) == (1, 3)
    assert found["completions/clipped_ratio"] == 0.25  # one of four did not end
    assert found["frac_reward_zero_std"] == 0.5  # the second prompt's rewards are equal
    assert found["rewards_not_applicable"] == 0


def test_entropy_is_the_mean_of_minus_log_p_over_tokens():
    total = sum(map(sum, LOGPROBS))
    assert metrics()["entropy"] == pytest.approx(-total / sum(LENGTHS))


def test_each_reward_is_described_over_the_rows_that_it_applies_to():
    found = metrics()
    assert found["rewards/first/mean"] == 2.0
    assert found["rewards/second/mean"] == 1.0
    assert found["rewards/second/std"] is None  # of one value


def test_rows_without_a_reward_are_counted_and_left_out():
    found = metrics(values=((NAN, 3.0), (1.0, 2.0)))
    assert found["rewards_not_applicable"] == 1
    assert found["reward"] == pytest.approx(2.0)
    assert found["frac_reward_zero_std"] == 0.5  # one reward alone is equal to itself
    nothing = metrics(values=((NAN, NAN), (NAN, NAN)))
    assert nothing["rewards_not_applicable"] == 4
    assert nothing["reward"] is nothing["reward_std"] is nothing["rewards/first/mean"] is None
    assert nothing["frac_reward_zero_std"] == 1.0


def test_completions_are_logged_row_by_row():
    examples = [Example("train-4", "p", {}), Example("train-9", "q", {})]
    judged = scores(detail=["a", None, object, "d"], short=[1])
    rows = completion_rows(7, experience(judged, [-1.0, 1.0, 0.0, 0.0], examples))
    assert rows[1] == {
        "step": 7,
        "prompt_id": "train-4",
        "sample": 1,
        "prompt": "p",
        "completion": "x",
        "prompt_ids": [5],
        "completion_ids": [2, 3, 4],
        "reward": 3.0,
        "rewards": {"first": 3.0, "second": 1.0},
        "advantage": 1.0,
        "sampling_logprob": -0.875,
        "sampling_logprobs": [-0.5, -0.25, -0.125],
        "truncated": False,
        "columns": {},
        "detail": None,
    }
    assert [r["prompt_id"] for r in rows] == ["train-4", "train-4", "train-9", "train-9"]
    assert [r["sample"] for r in rows] == [0, 1, 0, 1]
    assert [r["truncated"] for r in rows] == [False, False, True, False]
    assert rows[2]["detail"] == str(object)  # what JSON cannot say becomes text
    assert [r.get("short") for r in rows] == [1, None, None, None]


def test_columns_of_the_data_are_logged_the_long_ones_once_for_each_prompt():
    day, program = datetime.date(2026, 11, 22), "assert f(1) == 2\n" * 100
    examples = [
        Example("train-4", "p", {"answer": 3, "step": "own", "tests": program, "day": day}),
        Example("train-9", "q", {"answer": {(1, 2): 3}, "half": "\ud800", "none": float("nan")}),
    ]
    rows = completion_rows(7, experience(scores(), [0.0] * 4, examples))
    first = {"answer": 3, "step": "own", "tests": program, "day": "2026-11-22"}
    assert rows[0]["columns"] == first
    assert rows[1]["columns"] == {n: v for n, v in first.items() if n != "tests"}
    assert rows[0]["step"] == 7  # the log's own name is another one
    assert rows[2]["columns"]["answer"] == "{(1, 2): 3}"
    for row in rows:
        json.dumps(plain(row), ensure_ascii=False, allow_nan=False).encode()


def test_a_row_without_a_reward_logs_none():
    judged = scores(values=((NAN, 3.0), (1.0, 2.0)))
    rows = completion_rows(1, experience(judged, [0.0] * 4))
    assert [r["reward"] for r in rows] == [None, 3.0, 1.0, 2.0]


def test_rewards_per_token_are_logged_without_padding_and_the_first_advantage_with_them():
    paid = torch.arange(12, dtype=torch.float64).view(4, 3)
    judged = replace(scores(), token_rewards=paid)
    rows = completion_rows(1, experience(judged, (paid - 1).tolist()))
    assert [r["token_rewards"] for r in rows] == [[0.0], [3.0, 4.0, 5.0], [6.0, 7.0], [9.0, 10.0]]
    assert [r["advantage"] for r in rows] == [-1.0, 2.0, 5.0, 8.0]


def test_laps_add_up_by_name(monkeypatch):
    clock = iter([10.0, 11.0, 13.0, 17.0])
    monkeypatch.setattr("rl4lm.metrics.time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    for part in ("a", "b", "a"):
        watch.lap(part)
    assert watch.seconds == {"time/a_s": 1.0 + 4.0, "time/b_s": 2.0}


def test_peak_memory_is_in_bytes():
    assert 50e6 < peak_memory_bytes(torch.device("cpu")) < 1e12
