"""Evaluation: greedy, the same prompts each time, counted by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from rl4lm.data import PromptData
from rl4lm.evaluate import evaluate, summarize
from rl4lm.loading import load_model, open_model
from rl4lm.preparing import make_policy
from rl4lm.reward_lookup import resolve_rewards
from rl4lm.sampling import EndRule
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.text import TextCodec

MODEL = "builtin:tiny-arithmetic"
ROWS = [
    {"prompt": f"{a}+{b}=", "answer": str(a + b), "family": "small" if a < 20 else "large"}
    for a in (11, 23, 35, 47)
    for b in (12, 34, 56)
]


@pytest.fixture(scope="module")
def policy():
    source = open_model(MODEL)
    model = load_model(source, dtype="float32", device=torch.device("cpu"))
    return make_policy(model, TextCodec(source.tokenizer), dtype="float32")


class World:
    """A process among others that only hands over what it has itself."""

    def __init__(self, rank=0, size=1):
        self.rank, self.size, self.sent = rank, size, []

    def gather_lists(self, items):
        self.sent = list(items)
        return self.sent


def lengths(completions, **kwargs):
    return [float(len(text)) for text in completions]


def run(policy, samples=100, world=None, rewards=(lengths,), accuracy=None, length=6):
    return evaluate(
        policy,
        PromptData(ROWS, "prompt", "test"),
        Scorer(resolve_rewards(rewards), [1.0] * len(rewards)),
        accuracy,
        samples=samples,
        max_completion_length=length,
        ends=EndRule(policy.end_token_ids),
        context=RewardContext(0, 0, 0),
        world=world or World(),
    )


def greedy_by_hand(policy, prompt, length):
    """The most likely tokens, by whole forward passes on one growing text."""
    (ids,) = policy.codec.encode([prompt])
    drawn: list[int] = []
    while len(drawn) < length and (not drawn or drawn[-1] not in policy.end_token_ids):
        with torch.no_grad():
            logits = policy.module.model(torch.tensor([ids + drawn])).logits[0, -1]
        drawn.append(int(logits.argmax()))
    return drawn


def test_completions_are_greedy_and_scores_are_counted(policy):
    drawn = [greedy_by_hand(policy, row["prompt"], 6) for row in ROWS]
    texts = policy.codec.decode(drawn)
    right = [float(text == row["answer"]) for text, row in zip(texts, ROWS, strict=True)]
    assert 0 < sum(right) < len(right), "all equal would hide mistakes"
    (accuracy,) = resolve_rewards(["rewards.arithmetic:exact_answer"])
    found = run(policy, accuracy=accuracy)
    assert found["samples"] == len(ROWS)
    assert found["accuracy"] == pytest.approx(sum(right) / 12)
    share = sum(right) / 12
    assert found["accuracy_stderr"] == pytest.approx((share * (1 - share) / 12) ** 0.5)
    assert found["accuracy/small"] == pytest.approx(sum(right[:3]) / 3)
    assert found["accuracy/large"] == pytest.approx(sum(right[3:]) / 9)
    assert found["reward"] == found["rewards/lengths/mean"]
    assert found["reward"] == pytest.approx(sum(map(len, texts)) / 12)
    assert found["mean_length"] == pytest.approx(sum(map(len, drawn)) / 12)
    assert found["ended"] == 1.0


def test_the_same_prompts_give_the_same_numbers(policy):
    torch.manual_seed(1)
    first = run(policy, samples=5)
    torch.manual_seed(2)
    assert run(policy, samples=5) == first
    assert first["samples"] == 5
    assert policy.module.training


def test_completions_that_are_cut_off_have_not_ended(policy):
    found = run(policy, length=1)
    assert (found["ended"], found["mean_length"]) == (0.0, 1.0)


def test_processes_share_the_prompts(policy):
    (accuracy,) = resolve_rewards(["rewards.arithmetic:exact_answer"])

    def sent(rank=0, size=1):
        world = World(rank, size)
        run(policy, samples=7, world=world, accuracy=accuracy)
        return world.sent

    parts = [sent(rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert [parts[i % 3][i // 3] for i in range(7)] == sent()


def test_what_applies_to_no_row_is_left_out_or_nan():
    record = {"group": None, "reward": math.nan, "parts": {"r": math.nan}, "accuracy": math.nan}
    found = summarize([{**record, "ended": 1.0, "length": 2}], ["r"])
    assert math.isnan(found["reward"])
    assert not [name for name in found if name.startswith("accuracy")]


def test_rows_without_a_reward_do_not_count_in_its_mean():
    base = SimpleNamespace(group="a", parts={}, accuracy=math.nan, ended=0.0, length=1)
    rows = [{**vars(base), "reward": value} for value in (1.0, math.nan, 0.0)]
    assert summarize(rows, [])["reward"] == 0.5
