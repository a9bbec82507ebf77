"""Named rewards in processes of their own: what they do there cannot hang or crash a run."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.early import EarlyScores
from rl4lm.errors import RewardError, RewardFailedError
from rl4lm.rewarding import launch as reward_launch
from rl4lm.rewarding import retries as reward_retries
from rl4lm.rewarding.lookup import resolve_rewards
from rl4lm.rewarding.worker import _end_with_the_trainer
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.screen.console import Screen
from rl4lm.types import Example

CONTEXT = RewardContext(global_step=4, max_steps=9, seed=1)
LIMIT_S = 0.3
SOON_S = 20.0  # for what should come at once; a test that fails must not hang

# A completion says what the reward does about it; a number is its score.
REWARDS = '''
import asyncio, os, random, re, resource, signal, subprocess, sys, time
from pathlib import Path
from rewards import Graded, per_sample

FOLDER = Path(__file__).parent
calls = []

def act(word):
    calls.append(word)
    match word:
        case "sleep":
            time.sleep(600)
        case "spin":
            while True:
                pass
        case "regex":  # never comes back from C
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "exit":
            os._exit(3)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "closes":
            os.closerange(3, 100)
            time.sleep(600)
        case "noise":
            for fd in range(3, 100):
                try:
                    os.write(fd, b"!" * 64)
                except OSError:
                    pass
        case "memory":
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
            bytearray(1 << 34)
        case "child":
            pid = subprocess.Popen(["sleep", "600"]).pid
            (FOLDER / "new").write_text(str(pid))
            (FOLDER / "new").rename(FOLDER / "child")
            time.sleep(600)
        case "fork":
            os.fork()
            return 1.0
        case "flaky":
            if not (FOLDER / "flag").exists():
                (FOLDER / "flag").touch()
                os._exit(1)
            return 0.5
        case "raise":
            raise KeyError("gold")
        case "interrupt":
            raise KeyboardInterrupt
        case "none":
            return None
        case "pid":
            return float(os.getpid())
    return float(word)

@per_sample
def alone(completion):
    return act(completion)

@per_sample
def graded(completion):
    return Graded(act(completion), f"was {completion}")

def batch(completions, **columns):
    return [act(text) for text in completions]

def ranks(completions, **columns):
    scores = [act(text) for text in completions]
    if len(scores) < 2:
        raise ValueError("ranks of one row")
    return [float(sorted(scores).index(score)) for score in scores]

def nine(completions, **columns):
    return [9.0] * len(completions)

def declared(completions, **columns):
    return batch(completions)
declared.minimum, declared.maximum = -7.0, 70.0

def thorough(completions, **columns):
    time.sleep(2 * 0.3)  # twice the limit of these tests
    return [1.0] * len(completions)

def bounded(completions, **columns):
    return thorough(completions)
bounded.seconds_per_sample = 5.0

def sulky(completions, **columns):
    """Hangs whenever it sees several rows."""
    if len(completions) > 1:
        time.sleep(600)
    return [1.0]

def echo(completions, prompts, answer, completion_ids, trainer_state, log_extra, log_metric):
    print("noise on stdout", flush=True)
    os.write(1, b"and below Python" * 99)
    log_extra("note", [f"{a}/{c}" for a, c in zip(answer, completions)])
    log_metric("step", trainer_state.global_step)
    return [[float(t) for t in ids] for ids in completion_ids]

def draws(completions, **columns):
    return [random.random() for _ in completions]

def draws_by_numpy(completions, **columns):
    import numpy
    return [numpy.random.random() for _ in completions]

def own(completions, **columns):
    generator = globals().setdefault("mine", random.Random(0))
    return [generator.random() for _ in completions]

def text(completions, **columns):
    return "1" * len(completions)

def generator(completions, **columns):
    return (1.0 for _ in completions)

def short(completions, **columns):
    return [1.0]

def not_finite(completions, **columns):
    return [float(text) for text in completions]

def odd_notes(completions, log_extra, **columns):
    log_extra("kinds", [lambda: 0, object, None, 1.5][: len(completions)])
    return [1.0] * len(completions)

def lean(completions, **columns):
    return [float("torch" in sys.modules or "transformers" in sys.modules)] * len(completions)

async def one(completions, **columns):
    return await meet("one", "two", len(completions))

async def two(completions, **columns):
    return await meet("two", "one", len(completions))

async def waits(completions, **columns):
    async def judged(text):
        await asyncio.sleep(3600.0 if text == "hang" else 0.0)
        return float(text)

    return await asyncio.gather(*map(judged, completions))

async def meet(own, other, rows):
    (FOLDER / own).touch()
    while not (FOLDER / other).exists():
        await asyncio.sleep(0.01)
    return [1.0] * rows
'''


@pytest.fixture
def scorer(tmp_path):
    """Makes scorers of rewards in a file of their own, and closes them."""
    (tmp_path / "mine.py").write_text(REWARDS)
    made = []

    def make(*names, weights=None, timeout_s=LIMIT_S, on_error="raise", **options):
        rewards = resolve_rewards([f"{tmp_path}/mine.py:{name}" for name in names])
        weights = weights or [1.0] * len(rewards)
        made.append(Scorer(rewards, weights, timeout_s, on_error, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def score(scorer, *texts):
    """The scores of completions of one prompt."""
    example = Example("train-0", "p", {"answer": "a"})
    return scorer([example], list(texts), [[1] * (i + 1) for i in range(len(texts))], CONTEXT)


def counted(scores, name):
    names = ("timeouts", "crashes", "retried", "masked")
    return tuple(int(scores.metrics[f"rewards/{name}/{each}"]) for each in names)


def pid_of(scorer):
    return int(score(scorer, "pid").rewards[0, 0])


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid):
    until = time.monotonic() + SOON_S
    while is_running(pid):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_a_worker_says_what_the_function_says_in_this_process(scorer):
    apart = scorer("echo", "graded", weights=[2.0, -0.5])
    here = Scorer(resolve_rewards([r.function for r in apart.rewards]), [2.0, -0.5])
    words = ["3", "none", "-1.5", "0"]
    one, other = score(apart, *words), score(here, *words)
    assert one.rewards.tolist() == other.rewards.tolist()
    assert one.token_rewards.tolist() == other.token_rewards.tolist()
    assert one.extra == other.extra
    assert one.extra["echo/note"] == ["a/3", "a/none", "a/-1.5", "a/0"]
    logged = {n: v for n, v in one.metrics.items() if not n.startswith("rewards/")}
    assert logged == other.metrics == {"echo/step": 4.0}


def test_counts_are_always_there_for_named_rewards_and_only_for_them(scorer):
    scores = score(scorer("batch", "alone"), "1", "2")
    assert counted(scores, "batch") == counted(scores, "alone") == (0, 0, 0, 0)
    here = Scorer(resolve_rewards([nine]), [1.0])
    assert score(here, "1").metrics == {}


def nine(completions, **columns):
    return [9.0] * len(completions)


@pytest.mark.parametrize(
    ("word", "note", "counts"),
    [
        ("sleep", "timed out after 0.3 s; scored 0", (1, 0)),
        ("spin", "timed out after 0.3 s; scored 0", (1, 0)),
        ("regex", "timed out after 0.3 s; scored 0", (1, 0)),
        ("exit", "crashed: exit status 3; scored 0", (0, 1)),
        ("segv", "crashed: killed by SIGSEGV; scored 0", (0, 1)),
        ("closes", "crashed: killed by SIGKILL, perhaps for want of memory; scored 0", (0, 1)),
        ("noise", "crashed: its reply cannot be read; scored 0", (0, 1)),
        pytest.param("memory", "ran out of memory; scored 0", (0, 1), marks=linux),
    ],
)
def test_a_row_that_keeps_the_reward_from_answering_scores_the_least(word, note, counts, scorer):
    scores = score(scorer("batch"), "2", word, "0.5", "3")
    assert scores.rewards.tolist() == [[2.0, 0.0, 0.5, 3.0]]
    assert scores.valid.all()
    assert scores.extra["detail"] == ["", note, "", ""]
    assert counted(scores, "batch") == (*counts, 4, 0)


def test_one_row_of_sixty_four_is_found_and_no_row_gets_the_score_of_another(scorer):
    words = [str(float(i)) for i in range(64)]
    words[17] = "sleep"
    mine = scorer("graded")
    scores = score(mine, *words)
    assert scores.rewards[0].tolist() == [0.0 if i == 17 else float(i) for i in range(64)]
    assert scores.extra["detail"][16:19] == [
        "was 16.0",
        "timed out after 0.3 s; scored 0",
        "was 18.0",
    ]
    assert counted(scores, "graded") == (1, 0, 64, 0)
    assert counted(score(mine, "1", "2"), "graded") == (0, 0, 0, 0), "counts are those of a step"


@pytest.mark.parametrize("name", ["alone", "batch"])
def test_what_does_not_happen_again_is_only_counted(name, scorer):
    scores = score(scorer(name), "2", "flaky", "0")
    assert scores.rewards.tolist() == [[2.0, 0.5, 0.0]]
    assert scores.extra == {}
    assert counted(scores, name) == (0, 1, 3, 0)


def test_a_lost_row_never_scores_more_than_any_other_has(scorer):
    mine = scorer("batch")
    assert score(mine, "-2", "exit").rewards.tolist() == [[-2.0, -2.0]]
    assert score(mine, "5", "exit").rewards.tolist() == [[5.0, -2.0]], "of earlier batches too"
    assert mine.worst == [-2.0]
    assert score(scorer("batch"), "5", "exit").rewards.tolist() == [[5.0, 0.0]]
    again = scorer("batch")
    again.worst = mine.worst  # as after a checkpoint
    assert score(again, "5", "exit").rewards.tolist() == [[5.0, -2.0]]


def test_where_a_reward_counts_negatively_the_least_is_its_most(scorer):
    """A penalty of 0 for a completion that makes the grader hang would be a prize."""
    mine = scorer("batch", "declared", weights=[-2.0, -1.0])
    scores = score(mine, "3", "exit", "1")
    assert scores.parts["batch"].tolist() == [[3.0, 3.0, 1.0]]
    assert scores.parts["declared"].tolist() == [[3.0, 70.0, 1.0]]
    assert scores.rewards.argmin() == 1


def test_a_reward_can_declare_its_minimum(scorer):
    scores = score(scorer("declared"), "3", "exit", "1")
    assert scores.rewards.tolist() == [[3.0, -7.0, 1.0]]


def test_a_reward_that_ends_what_hangs_by_itself_is_given_the_time_for_it(scorer):
    assert counted(score(scorer("bounded"), "a", "b"), "bounded") == (0, 0, 0, 0)
    with pytest.raises(RewardFailedError, match="timed out after"):  # the control
        score(scorer("thorough"), "a", "b")


def test_a_minimum_that_is_no_number_is_refused():
    def odd(completions):
        return [1.0] * len(completions)

    for value in ("low", math.inf, None, True):
        odd.minimum = value
        with pytest.raises(
            RewardError, match="'minimum' of the reward 'odd' must be a finite number"
        ):
            Scorer(resolve_rewards([odd]), [1.0])


def test_a_reward_of_whole_batches_scores_the_rows_that_are_left_together(scorer):
    scores = score(scorer("ranks"), "5", "sleep", "3", "4")
    assert scores.rewards.tolist() == [[2.0, 0.0, 0.0, 1.0]]
    assert counted(scores, "ranks") == (1, 0, 4, 0)


def test_a_reward_that_hangs_at_no_row_alone_stops_the_run(scorer):
    with pytest.raises(RewardFailedError, match=r"'sulky' timed out.*about 3 rows; .* alone"):
        score(scorer("sulky"), "1", "2", "3")


@pytest.mark.parametrize("name", ["alone", "batch"])
def test_a_reward_that_answers_about_no_row_stops_the_run(name, scorer):
    with pytest.raises(
        RewardFailedError, match=f"'{name}' answers about none of 3 rows.* it timed"
    ):
        score(scorer(name, timeout_s=0.2), "sleep", "spin", "sleep")
    assert score(scorer(name), "exit").rewards.tolist() == [[0.0]], "one row is no evidence"


def test_a_reward_that_answers_nothing_for_long_is_not_asked_about_every_row(scorer, monkeypatch):
    monkeypatch.setattr(reward_retries, "_NO_ANSWER_S", 0.5)
    began = time.monotonic()
    with pytest.raises(RewardFailedError, match="answers about none of"):
        score(scorer("alone", timeout_s=0.3), *["sleep"] * 1000)
    assert time.monotonic() - began < SOON_S


def test_an_exception_stops_the_run_and_names_row_and_place(scorer):
    with pytest.raises(RewardFailedError) as caught:
        score(scorer("alone"), "1", "2", "raise")
    words = (
        "the reward 'alone' raised KeyError: 'gold' for row 2 (prompt train-0), completion 'raise'"
    )
    assert str(caught.value) == words
    assert 'raise KeyError("gold")' in str(caught.value.__cause__), "the worker's traceback"
    with pytest.raises(RewardFailedError, match="KeyError: 'gold' in a call about 3 rows"):
        score(scorer("batch"), "1", "raise", "2")
    with pytest.raises(RewardFailedError, match="raised KeyboardInterrupt"):
        score(scorer("batch"), "1", "interrupt")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", ["alone", "batch"])
def test_rows_at_which_a_reward_raises_can_be_masked(name, named, scorer):
    mine = scorer(name, on_error="mask")
    if not named:
        functions = [reward.function for reward in mine.rewards]
        mine = Scorer(resolve_rewards(functions), [1.0], on_error="mask")
    scores = score(mine, "2", "raise", "none", "3")
    assert scores.valid.tolist() == [[True, False, False, True]]
    assert scores.rewards[0, [0, 3]].tolist() == [2.0, 3.0]
    assert scores.extra["detail"] == ["", "raised KeyError: 'gold'", "", ""]
    assert scores.metrics[f"rewards/{name}/masked"] == 1
    assert scores.metrics[f"rewards/{name}/retried"] == 4


def test_masking_is_for_exceptions_and_not_for_hangs(scorer):
    scores = score(scorer("alone", on_error="mask"), "2", "raise", "sleep", "3")
    assert scores.valid.tolist() == [[True, False, True, True]]
    assert scores.rewards[0, 2] == 0
    assert counted(scores, "alone") == (1, 0, 4, 1)


@pytest.mark.parametrize("on_error", ["raise", "mask"])
@pytest.mark.parametrize(
    ("name", "texts", "words"),
    [
        ("text", ["1", "2"], "'text' must return a list .* got str"),
        ("generator", ["1", "2"], "'generator' must return a list .* got generator"),
        ("short", ["1", "2"], "'short' returned 1 values for 2 completions"),
        ("not_finite", ["1", "nan"], r"'not_finite' returned nan for row 1 \(prompt train-0\)"),
    ],
)
def test_a_reward_that_lies_is_refused_and_neither_retried_nor_masked(
    name, texts, words, on_error, scorer
):
    with pytest.raises(RewardError, match=words):
        score(scorer(name, on_error=on_error), *texts)


def test_a_bad_result_of_a_row_alone_bears_the_number_of_the_row(scorer):
    with pytest.raises(RewardError, match=r"'batch' returned inf for row 2 "):
        score(scorer("batch"), "1", "sleep", "inf", "4")


def test_notes_that_cannot_be_pickled_come_as_text(scorer):
    kinds = score(scorer("odd_notes"), "1", "2", "3", "4").extra["kinds"]
    assert kinds[1:] == ["<class 'object'>", None, 1.5]
    assert "lambda" in kinds[0]


def test_what_a_reward_draws_follows_from_seed_step_and_rows(scorer):
    """So that a run that is repeated or resumed goes on alike."""

    def drawn(judge, step=4, texts="abc", seed=1):
        context = RewardContext(global_step=step, max_steps=9, seed=seed)
        examples = [Example(f"train-{text}", "p", {"answer": ""}) for text in texts]
        return judge(examples, list(texts), [[1]] * len(texts), context).rewards.flatten().tolist()

    for name in ("draws", "draws_by_numpy"):
        judge = scorer(name, timeout_s=SOON_S)
        drawn(judge)  # numpy is imported by the first call
        first = drawn(judge)
        assert len(set(first)) == 3
        others = [drawn(judge, step=5), drawn(judge, seed=2), drawn(judge, texts="abd")]
        assert all(other != first for other in others)
        assert drawn(judge) == first
    free = scorer("draws", seeded=False)
    assert drawn(free) != drawn(free)
    alone = scorer("own")
    assert drawn(alone) != drawn(alone)  # a generator of its own goes on by itself


@pytest.mark.slow
def test_a_resumed_run_draws_in_its_rewards_what_the_run_would_have_drawn(scorer, tmp_path):
    def rewards(folder, **options):
        config = ReinforceConfig(
            output_dir=str(tmp_path / folder),
            reward_funcs=[f"{tmp_path}/mine.py:draws"],
            prompts_per_step=4,
            num_generations=4,
            eval_samples=0,
            save_steps=2,
            max_steps=4,
            **options,
        )
        ReinforceTrainer(args=config, screen=Screen(quiet=True)).train()
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return {row["step"]: row["reward"] for row in map(json.loads, lines)}

    whole = rewards("whole")
    assert len(set(whole.values())) == 4
    resumed = rewards("resumed", resume_from_checkpoint=str(tmp_path / "whole/checkpoint-000002"))
    assert resumed == {step: whole[step] for step in (3, 4)}
    assert rewards("again") == whole


def test_columns_that_cannot_be_pickled_are_refused_in_words(scorer):
    with pytest.raises(RewardError, match="'batch' asks for cannot be sent to its process"):
        scorer("batch")([Example("0", "p", {"odd": lambda: 0})], ["1"], [[1]], CONTEXT)


def test_a_reward_that_forks_and_comes_back_twice_answers_once(scorer):
    mine = scorer("batch")
    assert score(mine, "fork", "2").rewards.tolist() == [[1.0, 2.0]]
    assert score(mine, "3", "4").rewards.tolist() == [[3.0, 4.0]]


def test_async_rewards_run_at_the_same_time_each_in_its_own_process(scorer):
    scores = score(scorer("one", "nine", "two", timeout_s=SOON_S), "1", "2")
    assert scores.rewards.tolist() == [[11.0, 11.0]]
    assert counted(scores, "one") == (0, 0, 0, 0)


def test_an_async_reward_that_waits_for_ever_costs_the_completion_it_does_so_on(scorer):
    scores = score(scorer("waits"), "1", "hang", "3")
    assert scores.rewards.tolist() == [[1.0, 0.0, 3.0]]
    assert counted(scores, "waits") == (1, 0, 3, 0)


def test_an_async_reward_in_a_process_runs_beside_one_that_was_handed_over(tmp_path):
    (tmp_path / "mine.py").write_text(REWARDS)

    async def two(completions, **columns):
        (tmp_path / "two").touch()
        while not (tmp_path / "one").exists():
            await asyncio.sleep(0.01)
        return [10.0] * len(completions)

    rewards = resolve_rewards([f"{tmp_path}/mine.py:one", two])
    with Scorer(rewards, [1.0, 1.0], SOON_S) as mine:
        assert score(mine, "1", "2").rewards.tolist() == [[11.0, 11.0]]


def test_a_worker_is_kept_and_is_lean_and_is_shared_with_the_same_reward_beside(scorer):
    mine = scorer("batch")
    assert pid_of(mine) == pid_of(mine) != os.getpid()
    assert pid_of(scorer("batch")) != pid_of(mine)
    assert pid_of(mine.beside(resolve_rewards([mine.rewards[0].asked_as])[0])) == pid_of(mine)
    assert score(scorer("lean"), "1").rewards.tolist() == [[0.0]]
    assert mine.describe() == "batch in its own process, 0.3 s a call"


@linux
def test_a_hang_leaves_nothing_behind(scorer, tmp_path):
    score(scorer("alone"), "1", "child")
    assert gone(int((tmp_path / "child").read_text()))


@linux
@pytest.mark.parametrize("how", ["close", "forgotten"])
def test_a_scorer_that_is_closed_or_forgotten_leaves_no_process(how, scorer, tmp_path):
    (tmp_path / "mine.py").write_text(REWARDS)
    mine = Scorer(resolve_rewards([f"{tmp_path}/mine.py:batch"]), [1.0])
    pid = pid_of(mine)
    assert is_running(pid)
    if how == "close":
        mine.close()
        assert pid_of(mine) != pid, "a closed one starts anew when it is called"
        mine.close()
    del mine
    gc.collect()
    assert gone(pid)


@linux
def test_a_forked_copy_of_the_trainer_leaves_its_workers_alone_and_has_its_own(scorer):
    mine = scorer("batch", timeout_s=SOON_S)
    pid = pid_of(mine)
    copy = os.fork()
    if copy == 0:
        own = pid_of(mine)
        mine.close()
        gc.collect()
        os._exit(0 if own != pid and not is_running(own) and is_running(pid) else 1)
    assert os.waitpid(copy, 0)[1] == 0
    assert pid_of(mine) == pid
    copy = os.fork()
    if copy == 0:
        mine.close()
        os._exit(0)
    os.waitpid(copy, 0)
    assert pid_of(mine) == pid


def test_closing_ends_a_call_that_hangs_on_another_thread(scorer):
    mine, failures = scorer("batch", timeout_s=None), []

    def call():
        try:
            score(mine, "sleep", "1")
        except RewardFailedError as failure:
            failures.append(str(failure))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    time.sleep(0.5)
    mine.close()
    thread.join(SOON_S)
    assert len(failures) == 1
    assert "was closed" in failures[0]


def test_an_interrupt_does_not_spoil_the_next_call(scorer):
    mine = scorer("batch", timeout_s=None)
    score(mine, "1")
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        score(mine, "sleep", "1")
    assert score(mine, "3", "4").rewards.tolist() == [[3.0, 4.0]]


TRAINER = """
import sys
from rl4lm.rewarding.calls import Call
from rl4lm.rewarding.process import RewardProcess

process = RewardProcess("mine.py:batch", None)
for word in ("pid", sys.argv[1]):
    answer = process.ask(Call("batch", {"completions": [word]}, [0], ["0"], [1], ""))
    print(int(answer.values[0]), flush=True)
"""


@linux
@pytest.mark.parametrize("word", ["sleep", "regex", "child", "7"])
def test_a_trainer_that_is_killed_or_leaves_keeps_no_process_alive(word, tmp_path):
    (tmp_path / "mine.py").write_text(REWARDS)
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, word], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    pids = [int(trainer.stdout.readline())]
    assert pids[0] != trainer.pid
    if word == "7":
        assert trainer.stdout.readline() == "7\n"
    else:
        while word == "child" and not (tmp_path / "child").exists():
            time.sleep(0.02)
        time.sleep(0.3)
        assert all(map(is_running, pids))
        trainer.kill()
    if word == "child":
        pids.append(int((tmp_path / "child").read_text()))
    assert trainer.wait(SOON_S) == (0 if word == "7" else -signal.SIGKILL)
    assert all(map(gone, pids))
    trainer.stdout.close()


WATCHED = """
import os, sys, time
from rl4lm.rewarding import worker
if sys.argv[1] == "thread":
    del worker.fcntl.FASYNC
os.setsid()
worker._end_with_the_trainer(0)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("by", ["kernel", "thread"])
def test_the_lifeline_works_by_the_kernel_and_by_a_thread(by):
    assert callable(_end_with_the_trainer)
    watched = subprocess.Popen(
        [sys.executable, "-c", WATCHED, by], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert watched.stdout.readline() == b"ready\n"
    assert watched.poll() is None
    watched.stdin.close()
    assert watched.wait(SOON_S) == -signal.SIGKILL
    watched.stdout.close()


def test_a_worker_that_does_not_find_what_the_trainer_found_says_why(scorer, tmp_path):
    mine = scorer("batch")
    (tmp_path / "mine.py").write_text("import nowhere_to_be_found")
    words = "not by its own process: .*No module named 'nowhere_to_be_found'"
    with pytest.raises(RewardFailedError, match=words):
        score(mine, "1", "2")


def test_a_worker_that_cannot_start_is_no_rows_fault(scorer, tmp_path, monkeypatch):
    mine = scorer("batch")
    (tmp_path / "mine.py").write_text("import os; os._exit(9)")
    with pytest.raises(RewardFailedError, match=r"cannot start: crashed: exit status 9"):
        score(mine, "1", "2")
    (tmp_path / "mine.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(reward_launch, "_START_S", 0.4)
    with pytest.raises(RewardFailedError, match=r"cannot start: timed out after 0.4 s"):
        score(mine, "1", "2")
    (tmp_path / "mine.py").write_text(REWARDS)
    monkeypatch.setattr(reward_launch, "_START_S", SOON_S)
    assert score(mine, "1", "2").rewards.tolist() == [[1.0, 2.0]]
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RewardFailedError, match=r"cannot start: .*/nowhere/python"):
        score(scorer("batch"), "1")


def test_a_worker_finds_what_the_trainer_finds_by_its_path(tmp_path, monkeypatch):
    """As with `accelerate launch recipes/x.py`, which puts `recipes` on the path and not `.`."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "beside_the_recipe.py").write_text(REWARDS)
    (tmp_path / "in_the_folder.py").write_text(
        "import beside_the_recipe\nfrom beside_the_recipe import nine\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path / "recipes"), *sys.path])
    monkeypatch.chdir(tmp_path)
    names = ["beside_the_recipe:nine", "in_the_folder.nine", "./in_the_folder.py:nine"]
    with Scorer(resolve_rewards(names), [1.0] * 3) as mine:
        monkeypatch.chdir("/")  # later, and of no consequence
        assert score(mine, "1", "2").rewards.tolist() == [[27.0, 27.0]]
    for module in ("beside_the_recipe", "in_the_folder"):
        sys.modules.pop(module)


def in_parts(scorer, words, parts):
    """Scores where completions finish in these parts, one after another."""
    texts = dict(enumerate(words))
    ids = [[i] for i in texts]
    example = Example("train-0", "p", {})

    def decode(rows):
        return [texts[row[0]] for row in rows]

    with EarlyScores(scorer, [example], len(words), decode, CONTEXT) as scores:
        for rows in parts:
            scores.offer(rows, [ids[row] for row in rows])
        return scores.finish(ids)[1]


def test_early_scores_are_those_of_everything_at_once_also_where_rows_are_lost(scorer):
    words = ["2", "exit", "none", "-1", "exit", "3"]
    found = in_parts(scorer("graded"), words, [[1, 4], [0], [5]])
    whole = score(scorer("graded"), *words)
    assert found.rewards.tolist() == whole.rewards.tolist() == [[2, -1, 0, -1, -1, 3]]
    assert found.valid.tolist() == whole.valid.tolist()
    assert found.extra == whole.extra
    assert counted(found, "graded")[:2] == counted(whole, "graded")[:2] == (0, 2)


def test_a_per_sample_reward_is_asked_in_its_process_while_sampling_goes_on(scorer):
    mine = scorer("alone", timeout_s=0.6)
    score(mine, "1")
    began = time.monotonic()
    with EarlyScores(
        mine, [Example("0", "p", {})], 2, lambda ids: ["sleep"] * len(ids), CONTEXT
    ) as scores:
        scores.offer([0], [[1]])
        assert time.monotonic() - began < 0.5
        with pytest.raises(RewardFailedError, match="answers about none of 2 rows"):
            scores.finish([[1], [1]])


# What a policy learns that may answer right, wrong, or in a way that stops the grader.


def expected_gradient(scorer, counted_as=None):
    """E[Σ_i A_i ∇ log π(a_i)] by action, for two completions with each other's reward as baseline.

    The three actions are equally likely, so ∇ log π(a) is 1 at a less 1/3, whatever the parameters.
    """
    actions = ["1", "-1", "exit"]
    gradient = dict.fromkeys(actions, 0.0)
    for first in actions:
        for second in actions:
            if first == second:
                continue  # equal rewards: no advantage
            scores = score(scorer, first, second)
            rewards, valid = scores.rewards[0].tolist(), scores.valid[0].tolist()
            if counted_as is not None:
                valid = [word != "exit" for word in (first, second)]
            for i, word in enumerate((first, second)):
                advantage = rewards[i] - rewards[1 - i] if all(valid) else 0.0
                for action in actions:
                    gradient[action] += advantage * ((action == word) - 1 / 3) / 9
    return gradient


def test_to_stop_the_grader_is_never_learned_instead_of_being_wrong(scorer):
    mine = scorer("batch")
    mine.worst = [-1.0]  # being wrong has been seen before
    gradient = expected_gradient(mine)
    assert gradient["1"] > 0 > gradient["-1"]
    assert gradient["exit"] <= gradient["-1"]
    none = expected_gradient(mine, counted_as="none")  # the negative control
    assert none["exit"] > none["-1"]
    assert math.isclose(sum(none.values()), 0.0, abs_tol=1e-12)
