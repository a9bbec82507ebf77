"""Completions from a server, over real HTTP: what is asked, what is taken, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.data.examples import PromptData
from rl4lm.errors import ConfigError, EngineError
from rl4lm.evaluation.evaluate import Evaluation, Exam, evaluate, evaluate_completions
from rl4lm.model.loading import load_model, open_model
from rl4lm.model.preparing import make_policy
from rl4lm.processes.world import World
from rl4lm.randomness import Stream
from rl4lm.replay import replay
from rl4lm.rewarding.lookup import resolve_rewards
from rl4lm.sampling import client as engine_client
from rl4lm.sampling.client import EngineClient
from rl4lm.sampling.engine import EngineSampler, check_engine
from rl4lm.sampling.loop import EndRule
from rl4lm.sampling.offpolicy import check_off_policy
from rl4lm.sampling.sampler import Chance, Draw, PolicySampler
from rl4lm.sampling.served import read_served
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.screen.console import Screen
from rl4lm.settings.address import API_KEY
from rl4lm.text import TextCodec

MODEL = "builtin:tiny-arithmetic"
PROMPTS = [[5, 6], [7], [5, 8, 9, 3]]
CHANCE = Chance(seed=4, stream=Stream.TRAINING, step=2, places=(3, 4, 5), temperature=1.0)
DRAW = Draw(PROMPTS, num_generations=2, max_completion_length=6, ends=EndRule((0,)), chance=CHANCE)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(engine_client, "_PAUSES_S", (0.01, 0.01, 0.01))


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.build_model("llama", dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def arithmetic():
    """The built-in model as a policy, and once more as a server has it."""
    source = open_model(MODEL)
    weights = [load_model(source, dtype="float32", device=torch.device("cpu")) for _ in range(2)]
    return make_policy(weights[0], TextCodec(source.tokenizer), dtype="float32"), weights[1].eval()


def client(server, model="served", timeout_s=30.0):
    return EngineClient(server.url, model, timeout_s)


def ask(server, draw=DRAW, **named):
    return EngineSampler(client(server, **named), vocabulary=97)(draw)


@pytest.mark.parametrize("form", ["token_ids", "token_id:"])
def test_greedy_evaluation_through_a_server_gives_the_numbers_of_the_local_one(
    form, arithmetic, serving
):
    policy, twin = arithmetic
    rows = [
        {"prompt": f"{a}+{b}=", "answer": str(a + b), "family": "small" if a < 30 else "large"}
        for a in (11, 23, 35, 88)
        for b in (12, 34, 56)
    ]
    (accuracy,) = resolve_rewards(["rewards.arithmetic:exact_answer"])
    exams = [Exam("", PromptData(rows, "prompt", "test"), Scorer([accuracy], [1.0]), accuracy)]
    what = Evaluation(samples=100, max_completion_length=6, ends=EndRule(policy.end_token_ids))
    how = (exams, what, RewardContext(0, 0, 0), World())
    local = evaluate(policy, *how)
    with serving.Server(twin, form=form) as server:
        sampler = EngineSampler(client(server), policy.module.vocabulary)
        found = evaluate_completions(sampler, policy.codec, *how)
        assert len(server.bodies) == len(rows)
    assert found == local
    assert 0 < local.metrics["accuracy"] < 1, "all equal would hide mistakes"


def test_ids_log_probs_and_ends_are_those_of_the_server(model, serving, tiny):
    with serving.Server(model) as server:
        rollout = ask(server)
    table = tiny.naive_table(model, rollout)
    assert torch.allclose(rollout.sampling_logprobs, table, atol=1e-12)
    assert rollout.prompt_lists() == PROMPTS
    assert rollout.num_generations == 2
    lists = rollout.completion_lists()
    assert rollout.ended.tolist() == [ids[-1] == 0 for ids in lists]
    assert all(ids.count(0) == (ids[-1] == 0) for ids in lists)
    assert {len(ids) for ids in lists if ids[-1] != 0} <= {6}
    body = server.bodies[0]
    for name, value in {"top_p": 1.0, "temperature": 1.0, "n": 2, "max_tokens": 6}.items():
        assert body[name] == value
    assert sorted(tuple(body["prompt"]) for body in server.bodies) == sorted(map(tuple, PROMPTS))


def test_both_forms_of_token_ids_are_the_same(model, serving):
    found = []
    for form in ("token_ids", "token_id:"):
        with serving.Server(model, form=form) as server:
            found.append(ask(server))
    assert found[0].completion_lists() == found[1].completion_lists()
    assert torch.equal(found[0].sampling_logprobs, found[1].sampling_logprobs)


def test_a_server_that_repeats_repeats_for_the_same_seed_step_and_position(model, serving):
    with serving.Server(model) as server:
        first, again = (ask(server).completion_lists() for _ in range(2))
        assert first == again
        seeds = {body["seed"] for body in server.bodies}
        assert len(seeds) == len(PROMPTS)
        # A process that has the last prompt alone draws for it what the whole would.
        alone = replace(DRAW, prompts=PROMPTS[2:], chance=replace(CHANCE, places=(5,)))
        assert ask(server, alone).completion_lists() == first[4:]
        for other in ({"seed": 5}, {"step": 3}, {"places": (13, 14, 15)}):
            assert ask(server, replace(DRAW, chance=replace(CHANCE, **other))) is not None
            assert not seeds & {body["seed"] for body in server.bodies[-len(PROMPTS) :]}, other


def test_a_stop_string_ends_a_completion_and_its_ids_are_kept(tiny, serving, model):
    tokenizer = tiny.build_tokenizer()
    greedy = replace(DRAW, num_generations=1, chance=None, prompts=PROMPTS[:1])
    with serving.Server(model, tokenizer=tokenizer) as server:
        plain = ask(server, greedy).completion_lists()[0]
        word = f"t{plain[2]}"
        ends = EndRule((0,), lambda ids: word in tokenizer.decode(ids).split())
        sampler = EngineSampler(client(server), 97, [word])
        rollout = sampler(replace(greedy, ends=ends))
        assert server.bodies[-1]["stop"] == [word]
    assert rollout.completion_lists() == [plain[: plain.index(plain[2]) + 1]]
    assert rollout.ended.tolist() == [True]


def test_what_a_server_drew_beyond_an_end_does_not_count(model, serving):
    def forgetful(body_of):
        def change(reply):
            for choice in reply["choices"]:
                choice["token_ids"] = [*choice["token_ids"][:-1], 0, 8, 8]
                listed = choice["logprobs"]["token_logprobs"]
                choice["logprobs"]["token_logprobs"] = [*listed, -1.0, -1.0]
            return reply

        return change

    with serving.Server(model, change=forgetful(None)) as server:
        rollout = ask(server)
    assert all(ids.count(0) == 1 and ids[-1] == 0 for ids in rollout.completion_lists())
    assert rollout.ended.all()


def edited(**fields):
    """A change of the first choice of an answer."""

    def change(reply):
        first = reply["choices"][0]
        for name, value in fields.items():
            place = first["logprobs"] if name in ("token_logprobs", "tokens") else first
            place[name] = value(place.get(name)) if callable(value) else value
        return reply

    return change


BAD_ANSWERS = {
    "no_json": (lambda reply: b"<html>", "something else than JSON: <html>"),
    "no_choices": (lambda reply: {"text": "hello"}, "holds no choices"),
    "a_list": (lambda reply: [1], "holds no choices"),
    "fewer_choices": (
        lambda reply: {**reply, "choices": reply["choices"][:1]},
        "gave 1 completions of a prompt, and 2 were asked for",
    ),
    "another_prompt": (
        edited(prompt_token_ids=lambda ids: [1, *ids]),
        "completed another prompt than it was given: [1, ",
    ),
    "text_only": (
        edited(token_ids=None, tokens=lambda t: ["word"] * len(t)),
        "not its token ids, which cannot be made from text",
    ),
    "ids_that_are_none": (edited(token_ids=["a"]), "token ids that are none"),
    "no_ids": (edited(token_ids=[], token_logprobs=[]), "0 token ids and 0 log-probs"),
    "beyond_the_vocabulary": (
        edited(token_ids=lambda ids: [97, *ids[1:]]),
        "drew token 97, and the model here knows ids below 97",
    ),
    "below_zero": (edited(token_ids=lambda ids: [-1, *ids[1:]]), "drew token -1"),
    "no_log_probs": (edited(logprobs=None), "gives no log-probs"),
    "too_few_log_probs": (
        edited(token_logprobs=lambda values: values[1:]),
        "log-probs of a completion; there must be as many",
    ),
    "a_log_prob_that_is_none": (
        edited(token_logprobs=lambda values: [None, *values[1:]]),
        "gave nan as the log-prob",
    ),
    "a_log_prob_of_infinity": (
        edited(token_logprobs=lambda values: [-math.inf, *values[1:]]),
        "gave -inf as the log-prob",
    ),
    "logits": (
        edited(token_logprobs=lambda values: [3.5, *values[1:]]),
        "gave 3.5 as the log-prob of a token, which must be finite and at most 0",
    ),
    "no_end_token": (
        edited(
            token_ids=[5, 6], token_logprobs=[-1.0, -1.0], finish_reason="stop", stop_reason=None
        ),
        "ended a completion after 2 of 6 tokens (finish_reason 'stop'), with token 6, which ends",
    ),
    "an_end_of_its_own": (
        edited(token_ids=[5, 9], token_logprobs=[-1.0, -1.0], stop_reason=9),
        "stop_reason 9), with token 9, which ends none here (token ids [0] do",
    ),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_that_cannot_be_used_is_refused_with_what_is_wrong(name, model, serving):
    change, said = BAD_ANSWERS[name]
    with serving.Server(model, change=change) as server, pytest.raises(EngineError) as caught:
        ask(server)
    assert said in str(caught.value)


def test_an_answer_that_nothing_is_wrong_with_is_taken(model, serving):
    """The control of the table above."""
    with serving.Server(model, change=edited(text="t9")) as server:
        assert len(ask(server).completion_ids) == 6


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_or_broken_for_a_moment_is_asked_again(status, model, serving):
    with serving.Server(model) as server:
        plain = ask(server).completion_lists()
    with serving.Server(model, status=lambda count: status if count <= 2 else 200) as server:
        assert ask(server).completion_lists() == plain
        assert len(server.bodies) == len(PROMPTS) + 2


@pytest.mark.parametrize(
    ("status", "said", "attempts"),
    [(400, "400 Bad Request", 1), (404, "404", 1), (307, "307", 1), (503, "(4 attempts)", 4)],
)
def test_a_server_that_goes_on_refusing_is_quoted(status, said, attempts, model, serving):
    one = replace(DRAW, prompts=PROMPTS[:1])
    with (
        serving.Server(model, status=lambda count: status) as server,
        pytest.raises(EngineError) as caught,
    ):
        ask(server, one)
    assert said in str(caught.value)
    assert "so it is" in str(caught.value)
    assert len(server.bodies) == attempts


def test_a_server_that_hangs_is_given_up_after_its_time(model, serving):
    import time

    def slow(reply):
        time.sleep(1.0)
        return reply

    one = replace(DRAW, prompts=PROMPTS[:1])
    with serving.Server(model, change=slow) as server, pytest.raises(EngineError) as caught:
        ask(server, one, timeout_s=0.2)
    assert "did not answer /v1/completions within 0.2 s; raise sampler_timeout_s" in str(
        caught.value
    )
    assert len(server.bodies) == 1, "it has enough to do"


def test_a_server_that_is_away_or_serves_another_model_is_refused_at_the_start(model, serving):
    with serving.Server(model) as server:
        check_engine(client(server), None)
        with pytest.raises(ConfigError, match="serves served, not other; if that is the same"):
            check_engine(client(server, "other"), None)
        for url in (f"{server.url}/", f"{server.url}/v1", f"{server.url}/v1/"):
            check_engine(EngineClient(url, "served", 9.0), None)
        with pytest.raises(ConfigError, match="404 Not Found to /v1/models"):
            check_engine(EngineClient(f"{server.url}/elsewhere", "served", 9.0), None)
    with pytest.raises(ConfigError, match=r"127.0.0.1:\d+ cannot be reached: .*refused"):
        check_engine(client(server), None)


def test_a_server_that_cannot_give_ids_is_refused_at_the_start(model, serving):
    with serving.Server(model, form="text") as server, pytest.raises(ConfigError, match="not its"):
        check_engine(client(server), None)


@pytest.mark.parametrize("temperature", [0.5, 0.8, 1.3])
def test_log_probs_that_leave_the_temperature_out_are_found_out_at_the_start(
    temperature, model, serving
):
    with serving.Server(model, processed=True) as server:
        check_engine(client(server), temperature)
    with serving.Server(model, processed=False) as server:
        check_engine(client(server), 1.0)  # where it makes no difference
        check_engine(client(server), None)
        with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs, or set"):
            check_engine(client(server), temperature)


def test_the_key_comes_from_the_environment_and_is_never_shown(
    model, serving, monkeypatch, tmp_path
):
    with serving.Server(model, key="s3cret") as server:
        with pytest.raises(ConfigError, match=f"401 .*environment variable {API_KEY}"):
            check_engine(client(server), None)
        monkeypatch.setenv(API_KEY, "s3cret\n")
        check_engine(client(server), None)
    monkeypatch.setenv(API_KEY, "s3cret\nanother")
    with pytest.raises(ConfigError) as caught:
        check_engine(client(server), None)
    assert "s3cret" not in str(caught.value)


GIVEN = {"sampler_url": "http://localhost:8000", "epsilon": 0.2}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": None}, "without the importance ratio the gradient would be that of another"),
        ({"num_iterations": 2, "epsilon": None}, "set epsilon"),
        ({"beta": 0.1, "kl_in": "loss"}, "use kl_in=reward, which has it"),
        ({"beta": 0.1, "kl_in": "grpo_k3"}, "use kl_in=reward, which has it"),
        ({"entropy_coef": 0.1}, "leave it out"),
    ],
)
def test_what_has_no_ratio_is_refused_in_training_on_a_servers_completions(options, said):
    check_off_policy(ReinforceConfig(**GIVEN))
    check_off_policy(ReinforceConfig(**GIVEN, beta=0.1, kl_in="token_reward", gamma=0.9))
    check_off_policy(ReinforceConfig(**{**options, "sampler_url": None}))
    with pytest.raises(ConfigError) as caught:
        check_off_policy(ReinforceConfig(**{**GIVEN, **options}))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "is no address of a server; write it as http://host:port"),
        ("ftp://host", "is no address of a server"),
        ("http://", "is no address of a server"),
        ("http://host:port", "is no address"),
        ("http://host:80/?a=b", "goes on after its path"),
        ("http://me:s3cret@host", f"put a key into the environment variable {API_KEY}"),
    ],
)
def test_an_address_that_is_none_is_refused_without_showing_a_password(url, said):
    with pytest.raises(ConfigError) as caught:
        ReinforceConfig(sampler_url=url)
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_name_for_a_server_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="set sampler_url too, or leave both out"):
        ReinforceConfig(sampler_model="m")


def test_what_is_read_without_weights_is_what_the_weights_say(arithmetic):
    policy, _ = arithmetic
    data = PromptData([{"prompt": "1+1="}], "prompt", "test")
    found = read_served(ReinforceConfig(model_name_or_path=MODEL, stop_token_ids=[3]), [data])
    assert found.vocabulary == policy.module.vocabulary
    assert list(found.end_token_ids) == sorted({3, *policy.end_token_ids})


def test_the_policys_own_sampler_draws_by_place(tiny, model):
    policy = tiny.build_policy(tiny.build_model("llama", dtype=torch.float64))
    sampler = PolicySampler(policy)
    whole = sampler(DRAW).completion_lists()
    alone = replace(DRAW, prompts=PROMPTS[2:], chance=replace(CHANCE, places=[5]))
    assert sampler(alone).completion_lists() == whole[4:]
    moved = sampler(replace(DRAW, chance=replace(CHANCE, places=(5, 4, 3)))).completion_lists()
    assert moved[2:4] == whole[2:4]
    assert moved != whole
    with pytest.raises(ValueError, match="one for each of the 3 prompts"):
        sampler(replace(DRAW, chance=replace(CHANCE, places=(3, 4))))


def any_reward(completions, **kwargs):
    return [float(sum(map(ord, text)) % 5) for text in completions]


def train(serving, twin, folder, status=lambda count: 200, **options):
    """A short run of the built-in model on what a server of it draws."""
    with serving.Server(twin, MODEL, status=status) as server:
        trainer = ReinforceTrainer(
            args=ReinforceConfig(
                output_dir=str(folder),
                sampler_url=server.url,
                epsilon=0.2,
                prompts_per_step=2,
                num_generations=3,
                max_completion_length=6,
                max_steps=3,
                eval_samples=0,
                learning_rate=1e-3,
                noise_every=2,
                **options,
            ),
            reward_funcs=any_reward,
            screen=Screen(quiet=True),
        )
        return trainer.train()


def test_a_run_leaves_what_every_run_does_and_a_logged_step_can_be_done_again(
    arithmetic, serving, tmp_path
):
    summary = train(serving, arithmetic[1], tmp_path / "run")
    assert summary["steps"] == 3
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert steps[0]["importance_ratio/mean"] == pytest.approx(1.0, abs=1e-4)
    assert abs(steps[2]["importance_ratio/mean"] - 1.0) > 1e-4, "the policy has moved, it has not"
    found = replay(tmp_path / "run", 3)
    assert found.agrees
    assert [step.step for step in found.steps] == [1, 2, 3]


def test_a_server_that_goes_in_mid_run_ends_it_with_the_cause_and_a_checkpoint(
    arithmetic, serving, tmp_path
):
    # 4 requests try the server, and a step makes 2.
    with pytest.raises(EngineError) as caught:
        train(serving, arithmetic[1], tmp_path / "run", status=lambda count: 200 * (count <= 7))
    assert "cannot be reached" in str(caught.value)
    assert "after step 1 of 3; saved in" in str(caught.value)
    assert (tmp_path / "run" / "checkpoint-000001").is_dir()


def test_a_server_that_goes_before_anything_was_learned_leaves_an_earlier_run_alone(
    arithmetic, serving, tmp_path
):
    with pytest.raises(EngineError) as caught:
        train(serving, arithmetic[1], tmp_path / "run", status=lambda count: 200 * (count <= 4))
    assert "saved" not in str(caught.value)
    assert not (tmp_path / "run").exists()
