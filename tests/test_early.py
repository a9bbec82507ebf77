"""Rewards of completions that have finished before others: what everything at once would give."""

from __future__ import annotations

import asyncio
import decimal
import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Graded, per_sample
from rl4lm import ReinforceConfig, ReinforceTrainer, early
from rl4lm.early import EarlyScores
from rl4lm.errors import RewardError, RewardFailedError
from rl4lm.metrics import Stopwatch
from rl4lm.model.policy import Policy
from rl4lm.rewarding.lookup import resolve_rewards
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.screen.console import Screen
from rl4lm.types import Example

CONTEXT = RewardContext(global_step=4, max_steps=9, seed=1)
CHAT = [{"role": "user", "content": "p2"}]
EXAMPLES = [Example(f"train-{i}", p, {"limit": i}) for i, p in enumerate(["p0", "p1", CHAT])]
GROUP = 3
IDS = [[1], [2, 2], [3], [4], [5, 5, 5], [6], [7, 7], [8], [9]]
LIMIT_S = 20.0  # for what should come at once; a test that fails must not hang


def decode(ids):
    return ["abcdefghij"[row[0]] * len(row) for row in ids]


@per_sample
def graded(completion, limit, completion_ids):
    if completion == "b":
        return None
    longer = len(completion) > limit
    return Graded(len(completion) / 4 + completion_ids[0], f"over {limit}" if longer else "")


@per_sample
def plain(completion, prompt, **columns):
    return None if completion in ("b", "d") else float(len(prompt)) + columns["limit"]


def batch(completions, prompts, log_extra, log_metric, **columns):
    log_extra("detail", list(range(len(completions))))
    log_metric("count", len(completions))
    return [float(i) * len(p) for i, p in enumerate(prompts)]


def by_token(completion_ids, **columns):
    return [[float(token) for token in ids] for ids in completion_ids]


async def later(completions, **columns):
    await asyncio.sleep(0)
    return [float(len(completions))] * len(completions)


def once(scorer):
    return scorer(EXAMPLES, decode(IDS), IDS, CONTEXT)


def open_scores(scorer):
    return EarlyScores(scorer, EXAMPLES, GROUP, decode, CONTEXT)


def in_parts(scorer, parts):
    """Scores where completions finish in these parts, one after another."""
    with open_scores(scorer) as scores:
        for rows in parts:
            scores.offer(rows, [IDS[row] for row in rows])
        texts, found = scores.finish(IDS)
    assert texts == decode(IDS)
    return found


def make(*rewards, weights=None):
    return Scorer(resolve_rewards(rewards), weights or [1.0] * len(rewards))


def same(one, other):
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(nan=-7.5), other.nan_to_num(nan=-7.5))
    return one == other


@st.composite
def finishing(draw):
    """Some of the rows, in any order and in any parts."""
    order = draw(st.permutations(range(len(IDS))))[: draw(st.integers(0, len(IDS)))]
    cuts = sorted(draw(st.sets(st.integers(0, len(order)))) | {0, len(order)})
    return [order[a:b] for a, b in itertools.pairwise(cuts)]


@pytest.mark.parametrize(
    "rewards",
    [(graded,), (plain, graded), (batch, graded, later, plain), (graded, by_token, batch)],
    ids=lambda rewards: "-".join(r.__name__ for r in rewards),
)
@settings(deadline=None, max_examples=40)
@given(parts=finishing())
def test_the_scores_are_those_of_everything_at_once(rewards, parts):
    scorer = make(*rewards, weights=[0.5, 2.0, -1.0, 3.0][: len(rewards)])
    expected, found = once(scorer), in_parts(scorer, parts)
    assert all(same(value, vars(found)[name]) for name, value in vars(expected).items())


def test_what_is_compared_there_has_notes_nones_and_numbers():
    scores = once(make(batch, graded, later, plain))
    assert math.isnan(scores.parts["graded"][0, 0])
    assert {*scores.extra["graded/detail"]} == {"", "over 0", "over 1"}
    assert scores.metrics == {"batch/count": 9.0}
    assert not same(scores.parts, once(make(batch, graded, plain, later)).parts)


def test_each_completion_is_asked_about_once_and_decoded_once():
    asked, decoded = [], []

    @per_sample
    def counted(completion):
        asked.append(completion)
        return 0.0

    def counting(ids):
        decoded.extend(ids)
        return decode(ids)

    with EarlyScores(make(counted), EXAMPLES, GROUP, counting, CONTEXT) as scores:
        scores.offer([8, 0], [IDS[8], IDS[0]])
        scores.offer([4], [IDS[4]])
        scores.finish(IDS)
    assert asked[:3] == ["j", "b", "fff"]
    assert sorted(asked) == sorted(decode(IDS))
    assert decoded == [IDS[row] for row in (8, 0, 4, 1, 2, 3, 5, 6, 7)]


def test_only_per_sample_rewards_listen(monkeypatch):
    async def awaited(completions):
        return [0.0] * len(completions)

    awaited.per_sample = True
    monkeypatch.setattr(early, "_WORTH_S", 0.0)
    for rewards in [(batch,), (later, by_token), (awaited,)]:
        assert open_scores(make(*rewards)).listener is None
    assert open_scores(make(batch, graded)).listener is not None


def test_rewards_listen_that_have_taken_their_time():
    @per_sample
    def slow(completion):
        time.sleep(0.015)  # nine of them take more than 0.1 s
        return 0.0

    def slow_too(completions):
        time.sleep(0.2)
        return [0.0] * len(completions)

    for rewards, listens in [((slow, graded), True), ((slow_too, graded), False)]:
        scorer, threads = make(*rewards), threading.active_count()
        with open_scores(scorer) as scores:
            assert scores.listener is None, "nothing is known of it yet"
            scores.finish(IDS)
            assert threading.active_count() <= threads, "a thread for nothing"
        assert (open_scores(scorer).listener is not None) == listens


def test_a_reward_that_logs_a_number_for_the_step_sees_everything():
    def share(completions, log_metric):
        log_metric("share", sum(text == "b" for text in completions) / len(completions))
        return [0.0] * len(completions)

    share.per_sample = True  # which is not true
    assert in_parts(make(share), [[0], [3, 4]]).metrics == once(make(share)).metrics


def test_the_reward_is_called_while_others_wait_and_in_the_callers_context():
    called, threads, digits = threading.Event(), [], []

    @per_sample
    def recorded(completion):
        threads.append(threading.current_thread())
        digits.append(decimal.getcontext().prec)
        called.set()
        return 1.0

    with decimal.localcontext() as local, open_scores(make(recorded)) as scores:
        local.prec = 77
        scores.offer([5], [IDS[5]])
        assert called.wait(LIMIT_S)
        scores.finish(IDS)
    assert {t is threading.main_thread() for t in threads[:1]} == {False}
    assert {t is threading.main_thread() for t in threads[1:]} == {True}
    assert set(digits) == {77}


def test_rewards_never_run_beside_one_another():
    running, overlaps, started = threading.Lock(), [], threading.Event()

    def alone(values):
        overlaps.append(not running.acquire(blocking=False))
        started.set()
        time.sleep(0.01)
        running.release()
        return values

    @per_sample
    def one(completion):
        return alone(1.0)

    @per_sample
    def two(completion):
        return alone(2.0)

    def three(completions):
        return alone([3.0] * len(completions))

    async def four(completions):
        return alone([4.0] * len(completions))

    with open_scores(make(three, one, four, two)) as scores:
        for row in range(6):
            scores.offer([row], [IDS[row]])
        assert started.wait(LIMIT_S)
        _, found = scores.finish(IDS)
    assert (found.rewards == 10).all()
    assert len(overlaps) == 9 + 9 + 2
    assert not any(overlaps)


def message(error, scorer, *arguments):
    with pytest.raises((RewardError, RewardFailedError)) as caught:
        scorer(*arguments)
    assert type(caught.value) is error
    return str(caught.value), type(caught.value.__cause__)


@per_sample
def nan_for_some(completion):
    return math.nan if completion in ("d", "g") else 0.0


@per_sample
def raises_for_some(completion):
    return {"b": 1.0, "g": 0.0}[completion] if completion in "bcdg" else 0.0


def no_batch_either(completions):
    raise KeyError("batch")


def short(completions):
    return [0.0] * (len(completions) - 1)


short.per_sample = True


@pytest.mark.parametrize(
    ("error", "rewards", "words"),
    [
        (RewardFailedError, (nan_for_some,), "nan_for_some returned nan for completion 2;"),
        (RewardFailedError, (raises_for_some,), "'raises_for_some' raised KeyError: 'd'"),
        (RewardFailedError, (no_batch_either, nan_for_some), "'no_batch_either' raised"),
        (RewardError, (graded, short), "'short' returned 8 values for 9 completions"),
    ],
)
@pytest.mark.parametrize("parts", [[[5, 2], [1]], [[8, 7]], [[5, 2, 1, 0, 3, 4, 6, 7, 8]]])
def test_an_error_has_the_words_it_has_for_everything_at_once(error, rewards, words, parts):
    scorer = make(*rewards)
    expected = message(error, once, scorer)
    assert words in expected[0]
    assert message(error, in_parts, scorer, parts) == expected


def test_after_a_failure_nothing_more_is_asked_before_the_end():
    failing, asked = threading.Event(), []

    @per_sample
    def first(completion):
        failing.set()
        raise ValueError("broken reference")

    @per_sample
    def second(completion):
        asked.append(completion)
        return 0.0

    with open_scores(make(first, second)) as scores:
        scores.offer([7], [IDS[7]])
        assert failing.wait(LIMIT_S)
        scores.offer([0, 1], [IDS[0], IDS[1]])  # nothing is raised here
        with pytest.raises(RewardFailedError, match="'first' raised ValueError: broken reference"):
            scores.finish(IDS)
    assert asked == []


def test_a_failure_on_the_thread_alone_is_not_lost_and_says_what_to_do():
    @per_sample
    def needs_the_main_thread(completion):
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        return 1.0

    scorer = make(needs_the_main_thread)
    with pytest.raises(RewardFailedError, match=r"main thread of the main.*`per_sample`.*False"):
        in_parts(scorer, [[0]])
    needs_the_main_thread.per_sample = False
    with open_scores(scorer) as scores:
        assert scores.listener is None
        assert (scores.finish(IDS)[1].rewards == 1).all()


def test_an_interrupt_of_the_reward_is_none_of_its_failures():
    @per_sample
    def stops(completion):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_parts(make(stops), [[0]])


class Blocked:
    """A per-sample reward that is stuck until it is let go."""

    def __init__(self):
        self.called, self.release, self.asked = threading.Event(), threading.Event(), []

    @property
    def reward(self):
        @per_sample
        def blocked(completion):
            self.asked.append(completion)
            self.called.set()
            assert self.release.wait(LIMIT_S)
            return 0.0

        return blocked

    def sampling_ends_with(self, error):
        with open_scores(make(self.reward)) as scores:
            scores.offer([0], [IDS[0]])
            assert self.called.wait(LIMIT_S)
            scores.offer([1, 2], [IDS[1], IDS[2]])
            if not isinstance(error, KeyboardInterrupt):
                threading.Timer(0.2, self.release.set).start()
            raise error


def test_when_sampling_fails_the_call_in_hand_is_the_last():
    blocked = Blocked()
    with pytest.raises(MemoryError):
        blocked.sampling_ends_with(MemoryError())
    assert blocked.release.is_set(), "the call in hand was not waited for"
    time.sleep(0.1)
    assert blocked.asked == ["b"]


def test_an_interrupt_waits_for_nothing():
    blocked, began = Blocked(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        blocked.sampling_ends_with(KeyboardInterrupt())
    assert time.monotonic() - began < LIMIT_S / 2
    blocked.release.set()
    time.sleep(0.1)
    assert blocked.asked == ["b"]


def make_trainer(rewards):
    """A trainer of the built-in model, and the list that its completions come to."""
    rows, screen = [], Screen()
    screen.note = screen.warn = lambda text: None

    class Listener:
        def on_step_end(self, state, stats):
            rows.extend(stats.completions)

    sizes = {"prompts_per_step": 16, "num_generations": 4, "max_steps": 2, "eval_samples": 0}
    config = ReinforceConfig(**sizes, torch_threads=1)
    return ReinforceTrainer(None, rewards, config, callbacks=[Listener()], screen=screen), rows


@pytest.mark.parametrize("alone", [True, False])
def test_in_a_run_slow_rewards_are_called_before_sampling_ends(alone, monkeypatch):
    called, heard = threading.Event(), []

    def decode_token(self, tokens, mask, positions, cache):
        if len(positions) < 64:  # some completions have finished and left the batch
            heard.append(called.wait(LIMIT_S) if alone else called.is_set())
        return plain_decode(self, tokens, mask, positions, cache)

    @per_sample
    def slow(completion, answer):
        called.set()
        time.sleep(0.002)
        return Graded(float(completion == answer), f"expected {answer}")

    slow.per_sample = alone
    trainer, _ = make_trainer(slow)
    gatherer, state = trainer.learner.gatherer, trainer.learner.state.baseline_state
    gatherer.gather(0, state, CONTEXT, Stopwatch())
    called.clear()
    plain_decode = Policy.decode
    monkeypatch.setattr(Policy, "decode", decode_token)
    gatherer.gather(1, state, CONTEXT, Stopwatch())
    assert heard
    assert set(heard) == {alone}


def test_a_run_is_the_same_with_and_without_listening(monkeypatch):
    threads = set()

    @per_sample
    def right(completion, answer):
        threads.add(threading.current_thread())
        close = completion[:1] == str(answer)[:1]
        return Graded(float(completion == str(answer)) + close / 2, "close" if close else "")

    found = []
    for worth in (0.0, math.inf):
        monkeypatch.setattr(early, "_WORTH_S", worth)
        trainer, rows = make_trainer([right, batch_length])
        trainer.train()
        found.append(rows)
    assert threads - {threading.main_thread()}, "nobody has listened"
    assert found[0] == found[1]
    assert {row["right/detail"] for row in found[0]} == {"", "close"}


def batch_length(completions, **columns):
    return [0.01 * len(text) for text in completions]


STUCK = """
import time
from rewards import per_sample

called = []

def hang():
    open("called", "w").close()
    time.sleep(600)

@per_sample
def alone(completion):
    called.append(completion)
    time.sleep(0.01)
    return 0.0 if len(called) <= 16 else hang()  # 16 in the first step; others come early

async def awaited(completions, **columns):
    return hang()
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("function", "number", "code"),
    [
        ("alone", signal.SIGTERM, 143),
        pytest.param("awaited", signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param("alone", signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param("awaited", signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_reward_that_hangs_does_not_keep_a_run_from_stopping(function, number, code, tmp_path):
    (tmp_path / "my.py").write_text(STUCK)
    asked = ["--output_dir", "run", "--reward_funcs", f"my.py:{function}", "--eval_samples", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rl4lm", "train", *asked, "--prompts_per_step", "4"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        while not (tmp_path / "called").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        time.sleep(0.5)  # so that sampling is over, and the run waits for the reward
        process.send_signal(number)  # lets the step end, which it does after the time limit
        time.sleep(0.2)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in err
