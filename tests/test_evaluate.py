"""Evaluation: the same prompts each time, greedy and by chance, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rl4lm.data.examples import PromptData
from rl4lm.evaluation.estimates import mean_interval, pass_at_k
from rl4lm.evaluation.evaluate import Chances, Evaluation, Exam, _batches, evaluate
from rl4lm.evaluation.outcomes import outcomes, summarize
from rl4lm.model.loading import load_model, open_model
from rl4lm.model.preparing import make_policy, sampling_mode
from rl4lm.randomness import Stream
from rl4lm.rewarding.lookup import resolve_rewards
from rl4lm.sampling.drawing import InverseCdf
from rl4lm.sampling.loop import EndRule, generate
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.text import TextCodec
from rl4lm.workbench.bench import score_rows

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


def run(policy, samples=100, world=None, rewards=(lengths,), length=6, **changes):
    exam = {"label": "", "data": PromptData(ROWS, "prompt", "test"), "accuracy": None}
    exam |= {name: changes.pop(name) for name in ("accuracy", "metrics", "data") if name in changes}
    scorer = Scorer(resolve_rewards(rewards), [1.0] * len(rewards))
    ends = EndRule(policy.end_token_ids)
    what = Evaluation(samples, length, ends, **{"by": ["family"], **changes})
    found = evaluate(
        policy, [Exam(scorer=scorer, **exam)], what, RewardContext(0, 0, 0), world or World()
    )
    assert found.metrics.keys() >= {"samples", "reward", "ended", "mean_length"}
    return found


def exact():
    return resolve_rewards(["rewards.arithmetic:exact_answer"])[0]


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
    found = run(policy, accuracy=exact()).metrics
    assert found["samples"] == len(ROWS)
    assert found["accuracy"] == pytest.approx(sum(right) / 12)
    share = sum(right) / 12
    assert found["accuracy_stderr"] == pytest.approx((share * (1 - share) / 12) ** 0.5)
    assert found["accuracy/small"] == pytest.approx(sum(right[:3]) / 3)
    assert found["accuracy/large"] == pytest.approx(sum(right[3:]) / 9)
    assert (found["samples/small"], found["samples/large"]) == (3.0, 9.0)
    interval = mean_interval(right, 0.95, 0)
    assert (found["accuracy_low"], found["accuracy_high"]) == interval
    assert found["reward"] == found["rewards/lengths/mean"]
    assert found["reward"] == pytest.approx(sum(map(len, texts)) / 12)
    assert found["mean_length"] == pytest.approx(sum(map(len, drawn)) / 12)
    assert found["ended"] == 1.0


def test_the_same_prompts_give_the_same_numbers(policy):
    torch.manual_seed(1)
    first = run(policy, samples=5, chances=Chances(3, 1.0))
    torch.manual_seed(2)
    assert run(policy, samples=5, chances=Chances(3, 1.0)) == first
    assert first.metrics["samples"] == 5
    assert policy.module.training


def test_completions_that_are_cut_off_have_not_ended(policy):
    found = run(policy, length=1)
    assert (found.metrics["ended"], found.metrics["mean_length"]) == (0.0, 1.0)
    assert all(row["truncated"] for row in found.rows)


def test_processes_share_the_prompts(policy):
    def sent(rank=0, size=1):
        world = World(rank, size)
        run(policy, samples=7, world=world, accuracy=exact(), chances=Chances(2, 1.0))
        return sorted(world.sent, key=lambda r: (r["place"], not r["greedy"], r["sample"]))

    parts = [sent(rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [9, 6, 6]
    together = [record for part in parts for record in part]
    assert sorted(together, key=lambda r: r["place"]) == sent()


def by_chance(policy, seed, count, temperature=1.0, step=0):
    """Completions of every prompt by the generation loop itself."""
    rule = InverseCdf(
        seed=seed,
        stream=Stream.EVALUATION,
        step=step,
        places=range(len(ROWS)),
        num_generations=count,
        temperature=temperature,
    )
    prompts = policy.codec.encode([row["prompt"] for row in ROWS])
    ends = EndRule(policy.end_token_ids)
    with sampling_mode(policy):
        drawn = generate(
            policy, prompts, rule, num_generations=count, max_completion_length=6, ends=ends
        )
    return policy.codec.decode(drawn.completion_lists())


def test_pass_at_k_is_that_of_completions_of_the_evaluation_stream(policy):
    found = run(policy, accuracy=exact(), chances=Chances(6, 1.3), pass_at_k=[1, 3, 6], seed=5)
    texts = by_chance(policy, 5, 6, 1.3)
    sampled = [row for row in found.rows if not row["greedy"]]
    assert [row["completion"] for row in sampled] == texts
    right = [text == ROWS[i // 6]["answer"] for i, text in enumerate(texts)]
    passed = [sum(right[i * 6 : i * 6 + 6]) for i in range(12)]
    assert 0 < sum(passed) < 72, "all equal would hide mistakes"
    for k in (1, 3, 6):
        each = [pass_at_k(c, 6, k) for c in passed]
        assert found.outcomes[f"pass@{k}"] == each
        assert found.metrics[f"pass@{k}"] == pytest.approx(sum(each) / 12)
        low, high = (found.metrics[f"pass@{k}_{end}"] for end in ("low", "high"))
        assert low <= found.metrics[f"pass@{k}"] <= high
    assert found.metrics["sampled/accuracy"] == pytest.approx(sum(right) / 72)
    assert found.metrics["pass@3/small"] == pytest.approx(sum(found.outcomes["pass@3"][:3]) / 3)
    assert (found.metrics["samples"], found.metrics["sampled/completions"]) == (12.0, 6.0)
    greedy = run(policy, accuracy=exact(), seed=5).metrics
    assert greedy.items() <= found.metrics.items(), "what is drawn changes no greedy number"


def test_completions_do_not_depend_on_how_many_are_drawn_at_once(policy, monkeypatch):
    whole = run(policy, chances=Chances(5, 1.0), pass_at_k=[1])
    for most in (2, 7):  # fewer than the samples of a prompt, and a few prompts
        monkeypatch.setattr("rl4lm.evaluation.evaluate._BATCH", most)
        assert run(policy, chances=Chances(5, 1.0), pass_at_k=[1]) == whole


def test_no_more_completions_are_drawn_at_once_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr("rl4lm.evaluation.evaluate._BATCH", 8)
    for samples, sizes in ((3, [2, 2, 1]), (8, [1] * 5), (20, [1] * 5)):
        batches = list(_batches(range(5), Chances(samples, 1.0)))[1:]
        assert all(len(b.places) * b.count <= 8 for b in batches)
        assert sum(len(b.places) * b.count for b in batches) == 5 * samples
        assert [len(b.places) for b in batches if b.first == 0] == sizes


def test_the_most_likely_token_alone_is_the_greedy_one(policy):
    found = run(policy, chances=Chances(2, 1.0, top_k=1))
    greedy = [row["completion"] for row in found.rows if row["greedy"]]
    sampled = [row["completion"] for row in found.rows if not row["greedy"]]
    assert sampled == [text for text in greedy for _ in range(2)]
    nucleus = run(policy, chances=Chances(2, 1.0, top_p=1e-6))
    assert [row["completion"] for row in nucleus.rows if not row["greedy"]] == sampled
    free = run(policy, chances=Chances(2, 1.0))
    assert [row["completion"] for row in free.rows if not row["greedy"]] != sampled


def test_rows_can_be_scored_again(policy):
    found = run(policy, samples=4, accuracy=exact(), chances=Chances(2, 1.0))
    scored = score_rows(found.rows, "rewards.arithmetic:exact_answer")
    assert [row["reward"] for row in scored] == [row["metrics"]["accuracy"] for row in found.rows]
    assert found.rows[0].keys() >= {"answer", "family", "prompt_id", "rewards", "truncated"}
    assert [(row["greedy"], row["sample"]) for row in found.rows[3:6]] == [
        (True, 0),
        (False, 0),
        (False, 1),
    ]


def evens(completions, **kwargs):
    """A metric that applies to some rows only."""
    return [float(len(c) % 2 == 0) if c.isdigit() else None for c in completions]


def test_held_out_metrics_are_told_beside_the_reward_and_change_no_other_number(policy):
    metrics = resolve_rewards([evens, lengths])
    found = run(policy, metrics=metrics)
    assert found.metrics["metrics/lengths"] == found.metrics["reward"]
    by_hand = evens([row["completion"] for row in found.rows])
    present = [value for value in by_hand if value is not None]
    assert found.metrics["metrics/evens"] == pytest.approx(sum(present) / len(present))
    assert "metrics/evens/small" in found.metrics
    assert run(policy).metrics.items() <= found.metrics.items()


def test_a_column_that_the_rows_lack_gives_no_groups_and_several_name_themselves(policy):
    assert "accuracy/small" not in run(policy, by=["nothing"], accuracy=exact()).metrics
    several = run(policy, by=["family", "answer"], accuracy=exact()).metrics
    assert {"accuracy/family=small", "accuracy/answer=23"} <= several.keys()


def test_data_sets_are_told_under_their_own_names(policy):
    scorer = Scorer(resolve_rewards([lengths]), [1.0])
    parts = {"": ROWS[:5], "other": ROWS[5:]}
    exams = [
        Exam(label, PromptData(rows, "prompt", "test"), scorer, exact())
        for label, rows in parts.items()
    ]
    what = Evaluation(100, 6, EndRule(policy.end_token_ids))
    found = evaluate(policy, exams, what, RewardContext(0, 0, 0), World())
    apart = [run(policy, data=exam.data, accuracy=exact(), by=[]) for exam in exams]
    both = {**apart[0].metrics, **{f"other/{n}": v for n, v in apart[1].metrics.items()}}
    assert found.metrics == both
    assert [row["dataset"] for row in found.rows] == [""] * 5 + ["other"] * 7
    assert found.outcomes["other/accuracy"] == apart[1].outcomes["accuracy"]


def record(place=0, reward=math.nan, accuracy=math.nan, sample=0, greedy=True):
    plain = {"completion": "", "completion_ids": [1], "ended": True, "rewards": {"r": reward}}
    where = {"place": place, "sample": sample, "greedy": greedy}
    return {**plain, **where, "reward": reward, "metrics": {"accuracy": accuracy}}


def numbers(records, prompts, ks=(), threshold=1.0):
    values = outcomes(records, prompts, ks, threshold)
    return summarize(records, values, {}, 0.95, 0)


def test_what_applies_to_no_row_is_left_out_or_nan():
    found = numbers([record()], 1)
    assert math.isnan(found["reward"])
    assert math.isnan(found["rewards/r/mean"])
    assert not [name for name in found if name.startswith("accuracy")]


def test_rows_without_a_reward_do_not_count_in_its_mean():
    rewards = (1.0, math.nan, 0.0)
    assert numbers([record(i, value) for i, value in enumerate(rewards)], 3)["reward"] == 0.5


def test_a_prompt_with_too_few_scores_has_no_pass_at_k():
    greedy = [record(i, 1.0) for i in range(2)]
    drawn = [record(0, 1.0, sample=i, greedy=False) for i in range(4)]
    drawn += [record(1, value, sample=i, greedy=False) for i, value in enumerate((1.0, math.nan))]
    found = outcomes([*greedy, *drawn], 2, [1, 2], 1.0)
    assert found["pass@1"] == [1.0, 1.0]
    assert found["pass@2"][0] == 1.0
    assert math.isnan(found["pass@2"][1])


def test_a_completion_passes_from_the_threshold_on():
    greedy, scores = [record(0, 1.0)], (0.4, 0.5, 0.6, 1.0)
    drawn = [record(0, value, sample=i, greedy=False) for i, value in enumerate(scores)]
    for threshold, share in ((1.0, 0.25), (0.5, 0.75), (2.0, 0.0)):
        assert numbers([*greedy, *drawn], 1, [1], threshold)["pass@1"] == share
