"""A run through the Python API: what it learns from, tells, writes and leaves alone."""

from __future__ import annotations

import json
import shutil

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rl4lm import ReinforceConfig, ReinforceTrainer, Rollout
from rl4lm.builtin import model_path
from rl4lm.errors import ConfigError, DataError, ModelError, OutputError, RewardError
from rl4lm.processes.world import World
from rl4lm.screen.console import Screen

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in (3, 14) for b in (5, 27, 8)]
SHAPE = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path("builtin:tiny-arithmetic"))


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """A directory with a model of one layer."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


class Listener:
    """A callback that keeps what it hears."""

    def __init__(self):
        self.heard = []

    def on_step_end(self, state, stats):
        self.heard.append((state, stats))

    @property
    def metrics(self):
        return [stats.metrics for _, stats in self.heard]

    @property
    def rows(self):
        return [row for _, stats in self.heard for row in stats.completions]


def digits(completions, **kwargs):
    """A dense reward: the share of digits."""
    return [sum(c.isdigit() for c in text) / 8 for text in completions]


@pytest.fixture
def make(model):
    """A quiet trainer, and the listener on it, with small sizes unless told otherwise."""

    def make(rewards=digits, data=ROWS, where=model, options=None, **objects):
        sizes = {"prompts_per_step": 2, "num_generations": 3, "max_completion_length": 8}
        few = {"max_steps": 2, "eval_samples": 0, "torch_threads": 1}
        listener, screen = Listener(), Screen()
        screen.note = screen.warn = lambda text: None
        trainer = ReinforceTrainer(
            where,
            rewards,
            ReinforceConfig(**{**sizes, **few, **(options or {})}),
            data,
            callbacks=[listener],
            screen=screen,
            **objects,
        )
        return trainer, listener

    return make


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.policy.module.model.named_parameters()}


@pytest.mark.parametrize("data", [ROWS, datasets.Dataset.from_list(ROWS)])
def test_rows_may_be_a_list_or_a_dataset_and_callbacks_hear_of_every_step(data, make):
    trainer, listener = make(data=data)
    summary = trainer.train()
    assert [(state.step, stats.step) for state, stats in listener.heard] == [(1, 1), (2, 2)]
    assert listener.heard[-1][0].samples == summary["samples"] == 12
    assert summary["tokens"] == sum(len(row["completion_ids"]) for row in listener.rows)
    assert (summary["steps"], summary["eval_before"]) == (2, {})
    assert {row["prompt"] for row in listener.rows} <= {row["prompt"] for row in ROWS}


def test_a_step_of_sgd_is_the_gradient_of_the_logged_completions_times_the_rate(make):
    options = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0, "max_steps": 1}
    trainer, listener = make(options={**options, "dtype": "float64"})
    before = weights(trainer)
    trainer.train()
    after, rows = weights(trainer), listener.rows
    for row in rows:  # the baseline of the default, by hand
        others = [
            other["reward"]
            for other in rows
            if other["prompt_id"] == row["prompt_id"] and other is not row
        ]
        assert row["advantage"] == pytest.approx(row["reward"] - sum(others) / len(others))
    assert any(row["advantage"] for row in rows)
    fresh, _ = make(options={"dtype": "float64"})
    gradient = fresh.gradient(
        Rollout.from_lists(
            [row["prompt_ids"] for row in rows], [row["completion_ids"] for row in rows], 3
        ),
        torch.tensor([row["advantage"] for row in rows]),
    )
    for name, value in gradient.items():
        torch.testing.assert_close(after[name], before[name] - 0.5 * value, rtol=0, atol=1e-12)
    norm = torch.cat([value.flatten() for value in gradient.values()]).norm().item()
    assert listener.metrics[0]["grad_norm"] == pytest.approx(norm, rel=1e-9)


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_a_learning_rate_of_zero_leaves_every_bit_of_the_weights(optim, make):
    trainer, listener = make(options={"optim": optim, "learning_rate": 0})
    before = weights(trainer)
    trainer.train()
    assert all(metrics["updated"] for metrics in listener.metrics)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    moved, _ = make(options={"optim": optim, "learning_rate": 1e-3})
    moved.train()
    assert not any(torch.equal(value, before[name]) for name, value in weights(moved).items())


def test_rows_without_any_reward_have_no_advantage_and_are_counted(make):
    def sometimes(completions, **kwargs):
        return [None if i == 0 else float(i) for i in range(len(completions))]

    trainer, listener = make(sometimes)
    trainer.train()
    first = listener.rows[:6]
    assert [row["reward"] for row in first] == [None, 1.0, 2.0, 3.0, 4.0, 5.0]
    # Of the first prompt two are left, each compared with the other.
    assert [row["advantage"] for row in first] == [0.0, -1.0, 1.0, -1.5, 0.0, 1.5]
    assert listener.metrics[0]["rewards_not_applicable"] == 1
    assert listener.metrics[0]["effective_samples"] == 4


def test_a_step_without_any_advantage_changes_nothing_and_is_counted(make):
    trainer, listener = make(lambda completions, **kwargs: [None] * len(completions))
    before = weights(trainer)
    summary = trainer.train()
    assert summary["skipped_steps"] == 2
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert [m["updated"] for m in listener.metrics] == [False, False]
    assert listener.metrics[0]["sampler_gap_max"] is None


def test_rewards_are_told_where_training_stands_and_may_log(make):
    def curious(completions, trainer_state, log_extra, log_metric, **kwargs):
        log_extra("seen", [f"{trainer_state.global_step}/{trainer_state.max_steps}"] * 6)
        log_metric("curious/share", 0.25)
        return [float(i) for i in range(len(completions))]

    trainer, listener = make([curious, curious])
    trainer.train()
    for name in ("curious_0", "curious_1"):  # two rewards never overwrite one another's notes
        assert [row[f"{name}/seen"] for row in listener.rows] == ["0/2"] * 6 + ["1/2"] * 6
        assert listener.metrics[1][f"{name}/curious/share"] == 0.25
    assert listener.metrics[1]["rewards/curious_1/mean"] == 2.5
    assert listener.metrics[1]["reward"] == 5.0


def test_time_limits_and_stop_strings_end_runs_and_completions(make):
    stops = [str(digit) for digit in range(10)]
    trainer, listener = make(
        options={"max_steps": 1000, "max_time": 1e-3, "stop_strings": stops, "num_generations": 16}
    )
    assert trainer.train()["steps"] == 1
    stopped = [row for row in listener.rows if any(s in row["completion"] for s in stops)]
    assert stopped
    for row in stopped:
        assert not row["truncated"]
        assert sum(row["completion"].count(s) for s in stops) == 1
        assert row["completion"][-1] in stops


def test_evaluations_between_steps_write_lines_of_their_own(make, tmp_path):
    options = {"max_steps": 4, "eval_steps": 2, "eval_samples": 3, "output_dir": str(tmp_path)}
    trainer, _ = make(options=options, eval_dataset=ROWS[:4])
    summary = trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert [(line["step"], line["samples"]) for line in lines] == [(0, 3), (2, 3), (4, 3)]
    assert lines[-1].items() >= summary["eval_after"].items()
    assert summary["eval_on"] == "test"


def test_messages_go_through_the_chat_template_once(make, tokenizer, model, tmp_path):
    chatty = AutoTokenizer.from_pretrained(model)
    chatty.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}={% endfor %}"
    seen = []

    def reward(prompts, completions, **kwargs):
        seen.extend([prompts[0], completions[0]])
        return [float(i) for i in range(len(completions))]

    rows = [{"prompt": [{"role": "user", "content": "1+1"}]}]
    trainer, listener = make(reward, rows, processing_class=chatty)
    trainer.train()
    written = tokenizer("1+1=", add_special_tokens=False)["input_ids"]
    assert listener.rows[0]["prompt_ids"] == [tokenizer.bos_token_id, *written]
    assert seen[0] == rows[0]["prompt"]
    assert seen[1] == [{"role": "assistant", "content": listener.rows[0]["completion"]}]


def test_a_broken_reward_costs_an_earlier_run_nothing(make, tmp_path):
    options = {"output_dir": str(tmp_path / "run"), "eval_samples": 2}
    make(options=options)[0].train()
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="already holds a run"):
        make(options=options)
    again = {**options, "overwrite_output_dir": True}
    trainer, _ = make(lambda completions, **kwargs: [1.0], options=again)
    with pytest.raises(RewardError, match="returned 1 values for 2"):
        trainer.train()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_a_model_object_and_a_directory_train_alike(make, model, tokenizer):
    first, heard = make()
    second, again = make(
        where=AutoModelForCausalLM.from_pretrained(model), processing_class=tokenizer
    )
    first.train(), second.train()
    assert heard.rows == again.rows
    assert all(torch.equal(value, weights(second)[n]) for n, value in weights(first).items())


def test_a_tokenizer_may_come_from_elsewhere(make, model, tokenizer, tmp_path):
    shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    make(where=str(tmp_path / "bare"), processing_class=tokenizer)
    with pytest.raises(ModelError, match="hand it over as processing_class"):
        make(where=AutoModelForCausalLM.from_pretrained(model))


def test_prompts_that_are_too_long_are_counted_and_refused(make):
    with pytest.raises(DataError, match=r"4 of the 6 .* max_prompt_length=4 .*row 4, has 6"):
        make(options={"max_prompt_length": 4})
    with pytest.raises(ModelError, match=r"context of 24 .* lower the latter to at most 18"):
        make(options={"max_completion_length": 19})
    make(options={"max_completion_length": 18})


def test_prompts_can_be_dealt_evenly_or_are_refused():
    world = World()
    world.check_divides(5, "prompts_per_step")
    world.size = 4
    world.check_divides(8, "prompts_per_step")
    with pytest.raises(ConfigError, match=r"prompts_per_step=6 .* to 4 processes.*as 4 or 8"):
        world.check_divides(6, "prompts_per_step")
    with pytest.raises(ConfigError, match=r"such as 4$"):
        world.check_divides(3, "prompts_per_step")
