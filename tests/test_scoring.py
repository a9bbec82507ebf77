"""Rewards: how they are found, called, checked and added up."""

from __future__ import annotations

import asyncio
import functools
import math
import pickle

import numpy as np
import pytest
import torch

from rl4lm.errors import RewardError, RewardFailedError
from rl4lm.rewarding.lookup import NamedReward, check_columns, resolve_rewards
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.types import Example

CONTEXT = RewardContext(global_step=4, max_steps=9, seed=1)
TEXTS = ["a", "bb", "ccc", "dddd"]  # two prompts, two completions each


def examples(**columns):
    return [
        Example(f"train-{i}", f"p{i}", {name: values[i] for name, values in columns.items()})
        for i in range(2)
    ]


def score(*rewards, weights=None, rows=None, texts=TEXTS):
    scorer = Scorer(resolve_rewards(rewards), weights or [1.0] * len(rewards))
    ids = [[i] * len(text) for i, text in enumerate(texts)]
    return scorer(rows or examples(answer=["a", "dddd"]), texts, ids, CONTEXT)


def fixed(values, name="fixed"):
    def reward(completions, **kwargs):
        return values

    reward.__name__ = name
    return reward


def test_trl_style_rewards_work_unchanged():
    def length(completions, **kwargs):
        return [float(len(text)) for text in completions]

    def right(prompts, completions, answer, **kwargs):
        return [
            float(text == gold) for _, text, gold in zip(prompts, completions, answer, strict=True)
        ]

    scores = score(length, right, weights=[0.5, 2.0])
    assert scores.parts["length"].tolist() == [[1, 2], [3, 4]]
    assert scores.parts["right"].tolist() == [[1, 0], [0, 1]]  # answers a a dddd dddd
    assert scores.rewards.tolist() == [[2.5, 1.0], [1.5, 4.0]]


def test_a_reward_gets_what_it_names_and_nothing_else():
    seen = {}

    def narrow(completions, completion_ids, trainer_state):
        seen.update(ids=completion_ids, state=trainer_state)
        return [0.0] * len(completions)

    def wide(**kwargs):
        seen["names"] = sorted(kwargs)
        seen["prompts"] = kwargs["prompts"]
        return [0.0] * 4

    score(narrow, wide)
    assert seen["ids"] == [[0], [1, 1], [2, 2, 2], [3, 3, 3, 3]]
    assert pickle.loads(pickle.dumps(seen["state"])) == CONTEXT
    assert seen["prompts"] == ["p0", "p0", "p1", "p1"]
    assert seen["names"] == [
        "answer",
        "completion_ids",
        "completions",
        "log_extra",
        "log_metric",
        "prompts",
        "trainer_state",
    ]


def test_a_conversational_prompt_gets_conversational_completions():
    seen = []

    def reward(completions, **kwargs):
        seen.extend(completions)
        return [0.0] * len(completions)

    chat = [{"role": "user", "content": "p"}]
    score(reward, rows=[Example("0", chat, {}), Example("1", "p", {})])
    assert seen[:2] == [[{"role": "assistant", "content": text}] for text in TEXTS[:2]]
    assert seen[2:] == TEXTS[2:]


@pytest.mark.parametrize(
    "values",
    [
        [True, False, True, False],
        (1, 0, 1, 0),
        np.array([1.0, 0.0, 1.0, 0.0]),
        [np.float32(1), np.int64(0), np.bool_(True), np.float64(0)],
        torch.tensor([1.0, 0.0, 1.0, 0.0]),
        [torch.tensor(1.0), torch.tensor(0), torch.tensor(True), 0.0],
    ],
)
def test_booleans_and_scalars_of_other_libraries_are_rewards(values):
    assert score(fixed(values)).rewards.tolist() == [[1, 0], [1, 0]]


def test_none_drops_out_of_the_sum_and_a_row_of_nones_has_no_reward():
    scores = score(
        fixed([None, 1.0, None, 2.0], "first"),
        fixed([3.0, None, None, 4.0], "second"),
        weights=[10.0, 100.0],
    )
    assert scores.rewards.tolist() == [[300.0, 10.0], [0.0, 420.0]]
    assert scores.valid.tolist() == [[True, True], [False, True]]
    assert math.isnan(scores.parts["first"][0, 0])


def test_async_rewards_run_together_and_keep_their_order():
    running = []

    async def slow(completions, **kwargs):
        running.append("slow")
        while "fast" not in running:  # would never end if one waited for the other
            await asyncio.sleep(0)
        return [1.0] * len(completions)

    async def fast(completions, **kwargs):
        running.append("fast")
        return [2.0] * len(completions)

    scores = score(slow, fixed([5.0] * 4), fast)
    assert [values[0, 0].item() for values in scores.parts.values()] == [1.0, 5.0, 2.0]


def test_an_async_reward_may_ask_about_its_rows_at_the_same_time():
    async def judge(text, there, everyone):
        there.append(text)
        if len(there) == 4:
            everyone.set()
        await everyone.wait()  # would never end if the rows took turns
        return float(len(text))

    async def gathered(completions, **kwargs):
        there, everyone = [], asyncio.Event()
        return await asyncio.gather(*(judge(text, there, everyone) for text in completions))

    rows = [float(len(text)) for text in ("a", "bb", "ccc", "dddd")]
    example = Example("0", "p", {})
    with Scorer(resolve_rewards([gathered]), [1.0]) as scorer:
        scores = scorer([example], ["a", "bb", "ccc", "dddd"], [[1]] * 4, RewardContext(0, 0, 0))
    assert scores.rewards.flatten().tolist() == rows


def test_an_async_reward_that_raises_ends_the_others_and_is_the_one_that_is_named():
    ended = []

    async def endless(completions, **kwargs):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("endless")

    async def broken(completions, **kwargs):
        await asyncio.sleep(0)
        raise KeyError("gold")

    with pytest.raises(RewardFailedError, match="'broken' raised KeyError"):
        score(endless, broken)
    assert ended == ["endless"]


def test_where_errors_are_masked_the_other_async_rewards_go_on():
    met = []

    async def broken(completions, **kwargs):
        met.append("broken")
        raise KeyError("gold")

    async def later(completions, **kwargs):
        while not met:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    rewards = resolve_rewards([broken, later])
    with Scorer(rewards, [1.0, 1.0], on_error="mask") as scorer:
        scores = scorer([Example("0", "p", {})], ["a", "b"], [[1]] * 2, RewardContext(0, 0, 0))
    assert scores.parts["later"].flatten().tolist() == [1.0, 1.0]
    assert scores.parts["broken"].isnan().all()


def test_async_rewards_run_inside_a_running_event_loop():
    async def one(completions, **kwargs):
        return [1.0] * len(completions)

    async def notebook():
        return score(one)

    assert asyncio.run(notebook()).rewards.sum() == 4


@pytest.mark.parametrize("on_error", ["raise", "mask"])
def test_what_a_reward_ends_by_itself_is_counted_if_it_says_that_it_reports_it(on_error):
    def bounded(completions, log_extra, **kwargs):
        log_extra("lost", ["timeouts", "", "timeouts", "crashes"])
        return [0.0, 1.0, 0.0, 0.0]

    quiet = fixed([1.0] * 4, "quiet")
    bounded.counts_lost = True
    with Scorer(resolve_rewards([bounded, quiet]), [1.0, 1.0], on_error=on_error) as scorer:
        scores = scorer(examples(), TEXTS, [[1]] * 4, CONTEXT)
    assert scores.metrics["rewards/bounded/timeouts"] == 2
    assert scores.metrics["rewards/bounded/crashes"] == 1
    assert "rewards/quiet/timeouts" not in scores.metrics


@pytest.mark.slow
@pytest.mark.parametrize("handed_over", [False, True])
def test_a_formula_that_hangs_costs_its_own_row_and_is_counted(handed_over):
    name = "rewards.symbolic:boxed_math"
    reward = resolve_rewards([name])[0].function if handed_over else name
    texts = ["\\boxed{9^{9^{9}}}", "\\boxed{2\\sqrt{2}}", "\\boxed{3\\sqrt{2}}", "4"]
    with Scorer(resolve_rewards([reward]), [1.0]) as scorer:
        scores = scorer(examples(answer=["\\sqrt{8}"] * 2), texts, [[1]] * 4, CONTEXT)
    assert scores.rewards.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]
    assert scores.metrics["rewards/boxed_math/timeouts"] == 1
    assert "timed out after 3 s" in scores.extra["detail"][0]


def test_what_rewards_log_is_kept():
    def reward(completions, log_extra, log_metric):
        log_extra("note", [text.upper() for text in completions])
        log_metric("share", 0.25)
        return [0.0] * len(completions)

    scores = score(reward)
    assert scores.extra == {"note": ["A", "BB", "CCC", "DDDD"]}
    assert scores.metrics == {"share": 0.25}


def test_a_reward_may_pay_token_by_token_and_others_pay_at_the_last_token():
    by_token = fixed([[1.0], [0.5, -0.5], None, np.ones(4)], "by_token")
    whole = fixed([10.0, None, 30.0, 40.0], "whole")
    scores = score(by_token, whole, weights=[2.0, 1.0])
    assert scores.token_rewards.tolist() == [
        [12.0, 0.0, 0.0, 0.0],
        [1.0, -1.0, 0.0, 0.0],
        [0.0, 0.0, 30.0, 0.0],
        [2.0, 2.0, 2.0, 42.0],
    ]
    assert torch.equal(scores.rewards.flatten(), scores.token_rewards.sum(dim=1))
    assert scores.valid.all()
    assert scores.parts["by_token"].flatten().tolist()[:2] == [1.0, 0.0]
    assert math.isnan(scores.parts["by_token"][1, 0])
    assert score(whole).token_rewards is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0], "'fixed' returned 1 values for 4 completions"),
        ([0.0, math.nan, 0.0, 0.0], r"'fixed' returned nan for row 1 \(prompt train-0\)"),
        ([0.0, 0.0, math.inf, 0.0], r"'fixed' returned inf for row 2 \(prompt train-1\)"),
        ([0.0, 0.0, 0.0, "1"], r"'fixed' returned '1' for row 3 .* not a number"),
        ([[1.0, 2.0], 0.0, 0.0, 0.0], "a list of 2 for row 0 .*, whose completion has 1 tokens"),
        ([0.0, [1.0, None], 0.0, 0.0], "returned None for token 1 of row 1 .* not a number"),
        ([0.0, [math.nan, 1.0], 0.0, 0.0], "returned nan for token 0 of row 1"),
        ([1j, 0.0, 0.0, 0.0], "row 0 .* not a number"),
        ("1111", "'fixed' must return a list .* got str"),
        (1.0, "'fixed' must return a list .* got float"),
        (None, "'fixed' must return a list .* got NoneType"),
        ((x for x in [0.0] * 4), "'fixed' must return a list .* got generator"),
        ({0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, "'fixed' must return a list .* got dict"),
        ({1.0, 2.0, 3.0, 4.0}, "'fixed' must return a list .* got set"),
    ],
)
def test_what_is_no_list_of_rewards_is_refused_with_function_and_row(values, words):
    with pytest.raises(RewardError, match=words):
        score(fixed(values))


@pytest.mark.parametrize("failure", [KeyError("gold"), SystemExit(0)])
def test_a_reward_that_raises_is_named_with_its_cause(failure):
    def broken(completions, **kwargs):
        raise failure

    with pytest.raises(RewardFailedError, match=f"'broken' raised {type(failure).__name__}") as e:
        score(broken)
    assert e.value.__cause__ is failure


def test_an_async_reward_that_raises_is_named_with_its_cause():
    async def broken(completions, **kwargs):
        raise KeyError("gold")

    with pytest.raises(RewardFailedError, match="'broken' raised KeyError") as caught:
        score(fixed([0.0] * 4), broken)
    assert isinstance(caught.value.__cause__, KeyError)


def test_rewards_of_one_name_are_told_apart():
    names = [r.name for r in resolve_rewards([fixed([]), fixed([]), fixed([], "other")])]
    assert names == ["fixed_0", "fixed_1", "other"]
    assert resolve_rewards([functools.partial(fixed([]))])[0].name == "partial"


def test_the_columns_that_rewards_need_must_be_there():
    def needs(completions, solution, optional=None, **kwargs):
        return []

    @functools.wraps(needs)
    def wrapper(**kwargs):
        return needs(**kwargs)

    for function in (needs, wrapper):
        rewards = [NamedReward("needs", function)]
        check_columns(rewards, ["solution"])
        words = r"'needs' needs the column 'solution'.*did you mean solutions.*: solutions"
        with pytest.raises(RewardError, match=words):
            check_columns(rewards, ["solutions"])


def test_there_is_one_weight_for_each_reward():
    with pytest.raises(RewardError, match="2 rewards and 1 weights"):
        Scorer(resolve_rewards([fixed([]), fixed([], "other")]), [1.0])
    with pytest.raises(RewardError, match="0 rewards"):
        Scorer([], [])


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (lambda extra, metric: extra("reward", ["a"]), "'reward' is a name of the log's own"),
        (lambda extra, metric: extra("detail", ["a", "b"]), "got 2 values for 1 completions"),
        (lambda extra, metric: metric("time/sample_s", 1.0), "is a name of the log's own"),
    ],
)
def test_a_reward_cannot_overwrite_the_log_or_leave_rows_out(log, message):
    def noisy(completions, log_extra, log_metric):
        log(log_extra, log_metric)
        return [1.0]

    scorer = Scorer(resolve_rewards([noisy]), [1.0])
    with pytest.raises(RewardFailedError, match=message):
        scorer([Example("0", "1+1=", {})], ["2"], [[1]], RewardContext(0, 1, 0))
