"""Bugs that public toolkits shipped, each shown not to happen here.

Every docstring begins with the public threads. The tests go through the code that trains:
`learner.step()`, `ReinforceTrainer.gradient`, the sampler. What is expected comes from a naive
loop, from a formula written out here, or from another layout of the same work; beside most tests
the bug is planted, and the check must notice. Steps are plain gradient descent in float64, so that
a change of the weights is the gradient.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rl4lm import (
    ReinforceConfig,
    ReinforceTrainer,
    Rollout,
    baselines,
    experience,
    logprobs,
    losses,
    microbatch,
    objective,
    policy,
    preparing,
    sampling,
)
from rl4lm.baselines import BASELINES, BaselineInputs
from rl4lm.config import COMPARES_WITHIN_PROMPT
from rl4lm.console import Screen
from rl4lm.diagnostics import gap_is_suspicious
from rl4lm.errors import ConfigError, ModelError, TrainingError
from rl4lm.experience import Gatherer
from rl4lm.options import parse_options
from rl4lm.types import Experience, Scores, StepStats, TrainState
from rl4lm.verify import verify
from rl4lm.world import World

TIGHT = 1e-10  # on the norm of the difference and on the ratio of norms, float64
NOTICED = 1e-3  # what a planted bug must exceed
VOCABULARY = 11
TEMPERATURE = 0.8
G = 4
PROMPTS = ["t1 t2", "t5", "t7 t3 t9 t0 t4", "t4 t4 t8"]  # t0 is both end token and padding
P = len(PROMPTS)
N = P * G
SPLITS = (1, 20, 60, 10**6)  # padded tokens of a micro-batch: one row each, some, some more, all


def worth(ids: Sequence[int]) -> float:
    """Any reward will do; this one is not linear and takes both signs."""
    return (sum(ids) * 7 % 5) - 0.5 * len(ids)


def by_completion(completion_ids, **kwargs):
    return [worth(ids) for ids in completion_ids]


def with_idle_rows(prompts, completion_ids, **kwargs):
    """All completions of one prompt earn the same; the last of the step has no reward at all."""
    values = zip(prompts, completion_ids, strict=True)
    found: list[float | None] = [1.0 if p == "t5" else worth(ids) for p, ids in values]
    return [*found[:-1], None]


class Run:
    """A trainer on a tiny model, and what its last step moved."""

    def __init__(
        self,
        tiny: Any,
        reward: Any = by_completion,
        model: Any = None,
        prompts: Sequence[str] = PROMPTS,
        tokenizer: Any = None,
        peft_config: Any = None,
        **options: Any,
    ):
        self.tiny = tiny
        if model is None:
            model = tiny.build_model("gpt2", vocabulary=VOCABULARY, dtype=torch.float64)
        sizes = {"prompts_per_step": P, "num_generations": G, "max_completion_length": 6}
        plain = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0, "dtype": "float64"}
        quiet = {"eval_samples": 0, "accuracy_func": "none", "noise_every": 0, "max_steps": 9}
        screen = Screen(quiet=True)
        self.warnings: list[str] = []
        screen.warn = self.warnings.append
        self.trainer = ReinforceTrainer(
            model=model,
            reward_funcs=reward,
            args=ReinforceConfig(
                **{**sizes, **plain, **quiet, "temperature": TEMPERATURE, **options}
            ),
            train_dataset=[{"prompt": prompt} for prompt in prompts],
            processing_class=tokenizer or tiny.build_tokenizer(vocabulary_of(model)),
            peft_config=peft_config,
            screen=screen,
        )
        self.learner = self.trainer.learner
        self.policy = self.trainer.policy

    @property
    def experience(self) -> Experience:
        assert self.learner._experience is not None
        return self.learner._experience

    @property
    def rollout(self) -> Rollout:
        return self.experience.rollout

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.policy.trainable().items()}

    def restart(self, weights: dict[str, Tensor]) -> None:
        """Go back to the first step, with these weights."""
        self.learner.state = TrainState()
        with torch.no_grad():
            for name, parameter in self.policy.trainable().items():
                parameter.copy_(weights[name])

    def disturb(self, size: float = 0.05) -> Run:
        """Move the policy away from where it began."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.policy.trainable().values():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(size * noise)
        return self

    def step(self) -> StepStats:
        """One step; `self.before` is the model that it started from, `self.moved` its gradient."""
        self.before = copy.deepcopy(self.policy.module.causal_lm).eval()
        old = self.weights()
        stats = self.learner.step()
        rate = self.trainer.config.learning_rate
        self.moved = {name: (old[name] - new) / rate for name, new in self.weights().items()}
        return stats

    def naive(self, advantages: Tensor | None = None) -> dict[str, Tensor]:
        """∇L of the last step by a loop over single sequences, with advantages made by hand."""
        if advantages is None:
            advantages = leave_one_out(self.experience.scores)
        temperature = self.trainer.config.temperature
        return self.tiny.naive_gradient(self.before, self.rollout, advantages, temperature)

    def gap(self, expected: dict[str, Tensor] | None = None) -> float:
        return max(self.tiny.gap(self.moved, expected or self.naive()))


def vocabulary_of(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[0]


def leave_one_out(scores: Scores) -> Tensor:
    """A [B] by two loops: the reward less the mean of the others of its prompt that have one."""
    advantages = []
    rows = zip(scores.rewards.tolist(), scores.valid.tolist(), strict=True)
    for rewards, valid in rows:
        for i in range(len(rewards)):
            others = [rewards[j] for j in range(len(rewards)) if j != i and valid[j]]
            mean = sum(others) / len(others) if others else 0.0
            advantages.append(rewards[i] - mean if valid[i] else 0.0)
    return torch.tensor(advantages, dtype=torch.float64)


def scale_micro_batches(patch: Any, factor: Callable[[int], float]) -> None:
    """Plant a factor that depends on the tokens n of a micro-batch."""
    tiled = policy.tiled_gradient

    def scaled(hidden, head, targets, weights, temperature, vocabulary, entropies=None):
        by = factor(len(targets))
        changed = None if entropies is None else entropies * by
        return tiled(hidden, head, targets, weights * by, temperature, vocabulary, changed)

    patch.setattr(policy, "tiled_gradient", scaled)


@pytest.fixture
def shapes(monkeypatch) -> list[list[int]]:
    """The rows of every micro-batch that is built from here on."""
    seen: list[list[int]] = []
    build = microbatch._build

    def noted(rows, sequences):
        seen.append(list(rows))
        return build(rows, sequences)

    monkeypatch.setattr(microbatch, "_build", noted)
    return seen


# --- Scale: one denominator for a step, whatever the layout (1 to 11).


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_one_update_is_the_same_for_every_split_into_micro_batches(architecture, tiny, shapes):
    """trl#3021, verl#5625, verl PR#906, verl PR#5641: the loss of a micro-batch was divided by
    its own rows or tokens, so quality fell with the number of accumulated parts. Here with uneven
    lengths, a prompt without advantage, a row without reward, and equal rows merged into one."""
    model = tiny.build_model(architecture, vocabulary=VOCABULARY, dtype=torch.float64, std=0.2)
    options = {"num_generations": 8, "stop_token_ids": [3]}
    counts = []
    for budget in SPLITS:
        options["max_tokens_per_micro_batch"] = budget
        run = Run(tiny, with_idle_rows, copy.deepcopy(model), **options)
        shapes.clear()
        stats = run.step()
        counts.append(len(shapes))
        assert len(set(run.rollout.lengths.tolist())) > 3
        assert 12 < stats.metrics["effective_samples"] <= 8 * (P - 1) - 1
        assert run.gap() < TIGHT, budget
    assert stats.metrics["effective_samples"] > counts[0], "some rows are equal"
    assert counts[0] > counts[1] > counts[2] > counts[3] == 1


@pytest.mark.parametrize(
    "factor",
    [lambda n: 5 / n, lambda n: 1 / 3, lambda n: n / 20],
    ids=["tokens of the micro-batch", "number of micro-batches", "share of the samples"],
)
def test_a_denominator_of_the_micro_batch_would_be_noticed(factor, tiny, monkeypatch):
    run = Run(tiny, with_idle_rows, max_tokens_per_micro_batch=23)
    scale_micro_batches(monkeypatch, factor)
    run.step()
    assert run.gap() > NOTICED


@pytest.mark.parametrize("budget", [1, 23])
@pytest.mark.parametrize("iterations", [1, 3])
def test_updates_on_one_sampling_keep_their_scale(budget, iterations, tiny):
    """trl PR#6024: losses were scaled 0.5 or 4 times where the updates on one sampling were not
    as many as the accumulated parts."""
    options = {"num_iterations": iterations, "epsilon": 1e6, "learning_rate": 2.0**-7}
    run = Run(tiny, with_idle_rows, max_tokens_per_micro_batch=budget, **options)
    for k in range(iterations):
        run.step()
        sampled = run.rollout.sampling_logprobs
        now = tiny.naive_table(run.before, run.rollout, TEMPERATURE)
        ratio = (now - sampled).sum(dim=1).exp()
        assert bool((ratio - 1).abs().max() > 0.01) == (k > 0)
        advantages = leave_one_out(run.experience.scores)
        # Dividing a change of the weights by the rate costs no digit, but the change is small.
        assert run.gap(run.naive(ratio * advantages)) < TIGHT
    assert run.learner.state.samples == N


def test_the_denominator_is_always_given_and_never_made_up(tiny, monkeypatch):
    """verl#7321, verl#7200: without a global count the aggregation fell back to the count of the
    micro-batch. Here no loss has a fallback, and a step names all its completions once."""
    table, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for loss in (
        losses.reinforce_loss,
        losses.clipped_loss,
        losses.kl_squared_loss,
        losses.grpo_k3_loss,
        losses.entropy_loss,
    ):
        given = inspect.signature(loss).parameters["num_completions"]
        assert given.default is inspect.Parameter.empty, loss
    with pytest.raises(ValueError, match="num_completions must be at least 1, got 0"):
        losses.reinforce_loss(table, mask, torch.zeros(2), 0)
    with pytest.raises(TypeError):
        losses.reinforce_loss(table, mask, torch.zeros(2), None)
    named: list[int] = []
    plain = objective.reinforce_loss

    def noted(logprobs, mask, advantages, count):
        named.append(count)
        return plain(logprobs, mask, advantages, count)

    monkeypatch.setattr(objective, "reinforce_loss", noted)
    run = Run(tiny, with_idle_rows, max_tokens_per_micro_batch=1)
    run.step()
    assert set(named) == {N}


@pytest.mark.parametrize("budget", [1, 23, 10**6])
def test_the_loss_is_not_multiplied_by_the_size_of_a_micro_batch(budget, tiny, monkeypatch):
    """verl#3741: the loss of Dr. GRPO came out times the micro-batch size. Closed form, for the
    head alone: ∂L/∂W = -(1/N) Σ_i (r_i - mean) Σ_t (onehot(o_t) - π_t) h_tᵀ / temperature."""
    model = tiny.build_model("gpt2", vocabulary=VOCABULARY, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("lm_head"))
    run = Run(tiny, model=model, baseline="prompt_mean", max_tokens_per_micro_batch=budget)

    def closed_form() -> dict[str, Tensor]:
        rewards = torch.tensor([worth(ids) for ids in run.rollout.completion_lists()]).double()
        centred = rewards.view(P, G) - rewards.view(P, G).mean(dim=1, keepdim=True)
        rows = zip(tiny.prompts_of_rows(run.rollout), run.rollout.completion_lists(), strict=True)
        gradient = torch.zeros(VOCABULARY, 32, dtype=torch.float64)
        for a, (prompt, completion) in zip(centred.flatten(), rows, strict=True):
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *completion[:-1]]])
                h = run.before.transformer(input_ids=ids).last_hidden_state[0, len(prompt) - 1 :]
                pi = (h @ run.before.lm_head.weight.T / TEMPERATURE).softmax(dim=-1)
                chosen = torch.eye(VOCABULARY, dtype=torch.float64)[completion]
                gradient -= a * (chosen - pi).T @ h / TEMPERATURE / N
        return {"lm_head.weight": gradient}

    run.step()
    assert run.gap(closed_form()) < TIGHT
    scale_micro_batches(monkeypatch, lambda n: n)
    run.step()
    assert run.gap(closed_form()) > NOTICED


def test_nobody_divides_by_the_group_or_by_the_accumulation_a_second_time(tiny, monkeypatch):
    """modelscope/ms-swift#10117: the base class divided the gradient once more. Here the same
    rows weigh the same as one group of four or four groups of one, also where the launcher has
    told accelerate to accumulate."""
    prompt = [3, 1]
    completions = [[4, 0], [5, 6, 0], [7], [2, 2, 9, 0]]
    advantages = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64)
    model = tiny.build_model("gpt2", vocabulary=VOCABULARY, dtype=torch.float64)
    reference = copy.deepcopy(model).eval()
    layouts = [Rollout.from_lists([prompt] * 4, completions, group) for group in (1, 2, 4)]
    expected = tiny.naive_gradient(reference, layouts[0], advantages, TEMPERATURE)

    def worst(trainer: ReinforceTrainer) -> float:
        found = [trainer.gradient(rollout, advantages) for rollout in layouts]
        return max(max(tiny.gap(gradient, expected)) for gradient in found)

    options = {"temperature": TEMPERATURE, "dtype": "float64"}
    assert worst(tiny.build_trainer(copy.deepcopy(model), **options)) < TIGHT
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    parts = Accelerator(cpu=True).gradient_accumulation_steps
    assert parts == 4, "accelerate reads another variable now"
    accumulating = tiny.build_trainer(model, **options)
    assert worst(accumulating) < TIGHT
    # The bug: what `accelerator.backward` does.
    backward = Tensor.backward
    monkeypatch.setattr(Tensor, "backward", lambda loss: backward(loss / parts))
    assert worst(accumulating) > NOTICED


@pytest.mark.parametrize("budget", [1, 10**6])
def test_a_token_weighs_the_same_however_long_its_completion_and_however_few_beside_it(
    budget, tiny
):
    """open-instruct PR#1137: with one row in a batch the mean over tokens silently became a mean
    over samples. Here a completion whose first two tokens alone have an advantage gives the
    gradient of those two tokens alone, with rows of many lengths or none beside it."""
    options = {"temperature": TEMPERATURE, "dtype": "float64"}
    model = tiny.build_model("opt", vocabulary=VOCABULARY, dtype=torch.float64)
    trainer = tiny.build_trainer(model, max_tokens_per_micro_batch=budget, **options)
    long, others = [5, 6, 7, 8, 9, 1, 0], [[4], [2, 2, 2, 0], [3, 9, 0]]
    short = trainer.gradient(Rollout.from_lists([[3]], [long[:2]]), torch.ones(1).double())
    rows = [long, *others]
    advantages = torch.zeros(4, len(long), dtype=torch.float64)
    advantages[0, :2] = 1.0
    whole = trainer.gradient(Rollout.from_lists([[3]] * 4, rows, 4), advantages)
    times_n = {name: 4 * part for name, part in whole.items()}
    assert max(tiny.gap(times_n, short)) < TIGHT
    mean = trainer.gradient(Rollout.from_lists([[3]] * 4, rows, 4), advantages / len(long))
    assert tiny.gap({name: 4 * part for name, part in mean.items()}, short)[1] > NOTICED


TERMS: dict[str, dict[str, Any]] = {
    "KL in the loss": {"beta": 0.3, "kl_in": "loss"},
    "k3 of GRPO": {"beta": 0.3, "kl_in": "grpo_k3"},
    "entropy in the loss": {"entropy_coef": 0.3, "entropy_in": "loss"},
    "entropy": {"entropy_coef": 0.3},
    "noise measured in halves": {"noise_every": 1},
}


@pytest.mark.parametrize("options", TERMS.values(), ids=TERMS)
def test_every_term_of_the_loss_is_reduced_alike_for_every_split(options, tiny, monkeypatch):
    """SkyRL#1504: one of two loss paths depended on the micro-batch size."""

    def moved(budget: int) -> dict[str, Tensor]:
        run = Run(tiny, with_idle_rows, max_tokens_per_micro_batch=budget, **options).disturb()
        run.step()
        return run.moved

    expected = moved(10**6)
    assert max(max(tiny.gap(moved(budget), expected)) for budget in (1, 23)) < TIGHT
    scale_micro_batches(monkeypatch, lambda n: n / 10)
    assert max(tiny.gap(moved(23), expected)) > NOTICED


@pytest.mark.parametrize("budget", SPLITS)
def test_the_norm_of_the_gradient_is_finite_and_right_with_accumulation(budget, tiny):
    """unsloth#3006: grad_norm was nan as soon as more than one part was accumulated."""
    run = Run(tiny, with_idle_rows, max_tokens_per_micro_batch=budget)
    for _ in range(2):
        stats = run.step()
        norm = tiny.global_norm(run.naive().values())
        assert stats.metrics["grad_norm"] == pytest.approx(norm, rel=TIGHT)
        assert stats.metrics["updated"]


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_gradient_that_is_not_finite_touches_nothing_and_is_not_carried_on(
    optim, tiny, monkeypatch
):
    """The guard beside it: one micro-batch of several gives nan in the second step."""
    options = {"optim": optim, "max_grad_norm": 1.0, "learning_rate": 1e-3}
    run = Run(tiny, max_tokens_per_micro_batch=23, **options)
    run.step()
    before, kept = run.weights(), copy.deepcopy(run.learner._optimizer.state_dict())
    tiled, calls = policy.tiled_gradient, iter(range(10**6))

    def poisoned(hidden, *rest):
        logprobs, gradient = tiled(hidden, *rest)
        return logprobs, gradient * (math.nan if next(calls) == 1 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(policy, "tiled_gradient", poisoned)
        stats = run.step()
    assert next(calls) > 2, "several micro-batches, one of them poisoned"
    assert math.isnan(stats.metrics["grad_norm"])
    assert not stats.metrics["updated"]
    assert all(torch.equal(value, before[name]) for name, value in run.weights().items())
    state = run.learner._optimizer.state_dict()["state"]
    for key, held in kept["state"].items():
        assert all(torch.equal(held[n], state[key][n]) for n in held if n != "momentum_buffer")
    stats = run.step()
    assert math.isfinite(stats.metrics["grad_norm"])
    assert stats.metrics["updated"]
    monkeypatch.setattr(
        policy, "tiled_gradient", lambda h, *rest: (tiled(h, *rest)[0], h.detach() * math.nan)
    )
    run.step(), run.step()
    with pytest.raises(TrainingError, match="not finite for 3 steps in a row"):
        run.step()


def test_every_token_of_a_step_weighs_its_advantage_over_the_completions(tiny, monkeypatch):
    """trl#2995, trl#3187, trl PR#3138: nobody could tell whether the loss is per sequence or per
    batch, and the wrong one rewards long gibberish. Here the weight of a token is -A/N: it knows
    nothing of lengths, so that a long wrong answer is not punished less for each token."""
    given: list[losses.TokenWeights] = []
    accumulate = policy.Policy.accumulate_gradient

    def noted(self, rollout, weights, *rest, **named):
        given.append(weights)
        return accumulate(self, rollout, weights, *rest, **named)

    monkeypatch.setattr(policy.Policy, "accumulate_gradient", noted)
    run = Run(tiny)
    given.clear()  # those of the probe
    stats = run.step()
    (weights,) = given
    mask, lengths = run.rollout.completion_mask, run.rollout.lengths
    assert len(set(lengths.tolist())) > 2
    advantages = leave_one_out(run.experience.scores)
    expected = (-advantages / N)[:, None].expand(mask.shape)
    assert float((weights.logprobs - expected)[mask].abs().max()) < 1e-15
    assert not weights.entropies.any()
    means = -(advantages / lengths / N)[:, None].expand(mask.shape)
    assert float((weights.logprobs - means)[mask].abs().max()) > NOTICED
    assert stats.metrics["completions/mean_length"] == pytest.approx(float(lengths.double().mean()))


def test_what_is_shown_of_a_step_says_whether_it_learns(tiny, capsys):
    """open-r1#239, trl#2703, trl#3452, trl#3857: "the loss is 0, is it training?". The value of
    the surrogate means nothing, so no person is shown it, and the numbers that mean something
    are there."""
    heard: list[StepStats] = []

    class Listener:
        def on_step_end(self, state, stats):
            heard.append(stats)

    run = Run(tiny, logging_steps=1, max_steps=3, learning_rate=1e-3)
    run.trainer.screen = Screen(logging_steps=1)
    run.trainer._callbacks.append(Listener())
    run.trainer.train()
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(shown) == 3
    for line, stats in zip(shown, heard, strict=True):
        assert "loss" not in line
        assert f"reward {stats.metrics['reward']:.3f}" in line
        assert f"live {stats.metrics['effective_share']:.0%}" in line
        for name in ("reward_std", "grad_norm", "effective_samples"):
            assert stats.metrics[name] > 0, name
    constant = Run(tiny, lambda completions, **kwargs: [1.0] * len(completions))
    constant.trainer.train()
    assert "changed nothing: no completion had an advantage" in constant.warnings[0]


# --- Masks, ends, padding, positions, tokens (12 to 17).


def test_a_completion_without_an_end_never_trains_on_padding(tiny):
    """verl#3805: without an end token the response mask was all ones, padding included. Here a
    short completion that has not ended stands beside a long one, pad == eos."""
    model = tiny.build_model("gpt2", vocabulary=VOCABULARY, dtype=torch.float64)
    reference = copy.deepcopy(model).eval()
    trainer = tiny.build_trainer(model, temperature=TEMPERATURE, dtype="float64")
    rows, ended = [[4, 5], [6, 7, 8, 9, 1, 0], [3], [2, 2, 2]], [False, True, False, False]
    rollout = Rollout.from_lists([[1, 2]] * 2 + [[0, 3, 0]] * 2, rows, 2, ended)
    advantages = torch.tensor([1.0, -0.5, 2.0, 0.7], dtype=torch.float64)
    actual = trainer.gradient(rollout, advantages)
    expected = tiny.naive_gradient(reference, rollout, advantages, TEMPERATURE)
    assert max(tiny.gap(actual, expected)) < TIGHT
    for fill in range(VOCABULARY):
        ids = rollout.completion_ids.where(rollout.completion_mask, fill)
        again = trainer.gradient(replace(rollout, completion_ids=ids), advantages)
        assert all(torch.equal(again[name], value) for name, value in actual.items()), fill
    all_ones = rollout.completion_mask | ~rollout.ended[:, None]
    bug = trainer.gradient(replace(rollout, completion_mask=all_ones), advantages)
    assert max(tiny.gap(bug, expected)) > NOTICED


def test_the_pad_token_is_an_ordinary_action_where_it_is_sampled(tiny):
    """trl PR#4970: the mask was guessed by `!= pad_token_id`, which drops real tokens where pad
    and eos are one. Harder here: two other ids end a completion, so that the pad token is drawn
    in the middle of completions, and stands in a prompt."""
    model = tiny.build_model("gpt2", vocabulary=VOCABULARY, dtype=torch.float64)
    model.generation_config.eos_token_id = [5, 7]
    run = Run(tiny, model=model, max_completion_length=8)
    run.step()
    pad = run.trainer.policy.codec.tokenizer.pad_token_id
    assert pad == tiny.EOS
    lists = run.rollout.completion_lists()
    assert sum(ids[:-1].count(pad) for ids in lists) > 3
    for ids, ended in zip(lists, run.rollout.ended.tolist(), strict=True):
        first = next((t for t, token in enumerate(ids) if token in (5, 7)), None)
        assert (first is not None) == ended
        assert len(ids) == (8 if first is None else first + 1)
    assert run.gap() < TIGHT
    guessed = replace(run.rollout, completion_mask=run.rollout.completion_ids != pad)
    advantages = leave_one_out(run.experience.scores)
    spread = advantages[:, None] * guessed.completion_mask
    assert run.gap(run.naive(spread)) > NOTICED


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_left_padding_shifts_no_learned_position(architecture, tiny, monkeypatch):
    """OpenRLHF#217, trl#469, trl#6800: left padding without positions gave the log-probs of other
    places. Here through sampling, the update, and the prompt features of `linear_value`."""
    model = tiny.build_model(architecture, vocabulary=VOCABULARY, dtype=torch.float64)
    run = Run(tiny, model=model, baseline="linear_value")
    stats = run.step()
    assert len(set(run.rollout.prompt_lengths.tolist())) > 2, "prompts must be padded"
    table = tiny.naive_table(run.before, run.rollout, TEMPERATURE)
    assert float((run.rollout.sampling_logprobs - table).abs().max()) < 1e-12
    assert stats.metrics["sampler_gap_max"] < 1e-12
    # In the first step linear_value has no past: b = 0.
    rewards = run.experience.scores.rewards.flatten()
    assert run.gap(run.naive(rewards)) < TIGHT

    def features(rollout: Rollout) -> Tensor:
        return run.policy.prompt_features(rollout.prompt_ids, rollout.prompt_mask)

    together = features(run.rollout)
    for k, prompt in enumerate(run.rollout.prompt_lists()):
        alone = features(Rollout.from_lists([prompt], [[1]]))
        assert float((together[k] - alone[0]).abs().max()) < 1e-12
    # The bug: places are counted from the left edge, padding included.
    monkeypatch.setattr(policy, "_positions", lambda m: torch.arange(m.shape[1]).expand(m.shape))
    assert float((features(run.rollout) - together).abs().max()) > NOTICED
    broken = run.learner.step().metrics
    assert broken["sampler_gap_max"] > NOTICED
    assert gap_is_suspicious(broken, torch.float64)


def test_logits_and_tokens_are_never_one_place_apart(tiny, monkeypatch):
    """trl#3681, prime-rl PR#1525: the completion's logits were cut out one place off. Here at the
    edges: prompts and completions of one token, the smallest tiles, and every micro-batch."""
    rows = [([3], [4]), ([3], [0]), ([1, 2, 0, 5], [6]), ([0], [7, 8, 9]), ([9, 9], [9, 9, 9, 0])]
    rollout = Rollout.from_lists(*map(list, zip(*rows, strict=True)))
    advantages = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0], dtype=torch.float64)
    model = tiny.build_model("opt", vocabulary=VOCABULARY, dtype=torch.float64)
    reference = copy.deepcopy(model).eval()
    trainer = tiny.build_trainer(model, temperature=TEMPERATURE, dtype="float64")
    table = tiny.naive_table(reference, rollout, TEMPERATURE)
    expected = tiny.naive_gradient(reference, rollout, advantages, TEMPERATURE)
    monkeypatch.setattr(logprobs, "TILE_ELEMENTS", 1)
    for budget in (1, 5, 10**6):
        found = trainer.policy.completion_logprobs(rollout, TEMPERATURE, budget)
        assert float((found - table).abs().max()) < 1e-12
    assert max(tiny.gap(trainer.gradient(rollout, advantages), expected)) < TIGHT
    for batch in microbatch.micro_batches(rollout, range(5), 10**6):
        # A target stands right after the place that predicts it, wherever that is an input too.
        following = nn.functional.pad(batch.input_ids[:, 1:], (0, 1))[batch.predicts]
        inside = nn.functional.pad(batch.attention_mask[:, 1:], (0, 1)).bool()[batch.predicts]
        assert inside.sum() == 5
        assert torch.equal(following[inside], batch.targets[inside])
    build = microbatch._build

    def one_off(rows, sequences):
        batch = build(rows, sequences)
        return replace(batch, predicts=batch.predicts.roll(1, dims=1))

    monkeypatch.setattr(microbatch, "_build", one_off)
    assert max(tiny.gap(trainer.gradient(rollout, advantages), expected)) > NOTICED


def merging_tokenizer() -> Any:
    """ "a" and "b" side by side are read back as the one token "ab", and the end is not written."""
    vocabulary = {"<e>": 0, "a": 1, "b": 2, "ab": 3, "c": 4, "ca": 5}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("c", "a")]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", pad_token="<e>")


def test_a_completion_is_never_made_of_its_text_again(tiny, monkeypatch):
    """trl#5224: completions were decoded and tokenised again, so that the log-probs were those of
    other tokens. Here with a tokenizer whose round trip merges tokens and loses the end."""
    tokenizer = merging_tokenizer()
    seen: list[list[list[int]]] = []

    def reward(completions, completion_ids, **kwargs):
        seen.append(completion_ids)
        return [worth(ids) for ids in completion_ids]

    model = tiny.build_model("gpt2", vocabulary=6, dtype=torch.float64)
    prompts = ["ab", "c", "ac", "bbb"]
    run = Run(tiny, reward, model, prompts, tokenizer, max_completion_length=9)
    encoded: list[str] = []
    plain = type(tokenizer).__call__

    def noted(self, text, **kwargs):
        encoded.extend(text)
        return plain(self, text, **kwargs)

    monkeypatch.setattr(type(tokenizer), "__call__", noted)
    stats = run.step()
    assert set(encoded) == set(prompts), "only prompts are tokenised"
    lists = run.rollout.completion_lists()
    assert lists == seen[0] == [row["completion_ids"] for row in stats.completions]
    texts = [row["completion"] for row in stats.completions]
    again = [tokenizer(text)["input_ids"] if text else [] for text in map(str, texts)]
    changed = [i for i in range(N) if again[i] != lists[i] and again[i]]
    assert len(changed) > 3, "the round trip is not the identity"
    assert run.gap() < TIGHT
    other = [again[i] or lists[i] for i in range(N)]
    prompts = tiny.prompts_of_rows(run.rollout)
    advantages = leave_one_out(run.experience.scores)
    retokenised = Rollout.from_lists(prompts, other, G)
    wrong = tiny.naive_gradient(run.before, retokenised, advantages, TEMPERATURE)
    assert run.gap(wrong) > NOTICED


@pytest.mark.parametrize("end", [0, 6, "stop string"])
def test_stopping_is_reinforced(end, tiny):
    """unsloth-zoo PR#832: the sampled end token was dropped from the loss, so that stopping was
    never learned. Here for the end token (which is the padding too), a second end id, and the
    ids that complete a stop string."""
    ends = {0: {}, 6: {"stop_token_ids": [6]}, "stop string": {"stop_strings": ["t6"]}}[end]
    last = 6 if end == "stop string" else end

    def stops(completion_ids, **kwargs):
        return [float(ids[-1] == last) for ids in completion_ids]

    run = Run(tiny, stops, learning_rate=0.5, num_generations=8, **ends)
    prompts = [run.policy.codec.encode([prompt])[0] for prompt in PROMPTS]
    rows = Rollout.from_lists(prompts, [[last]] * P)

    def chance() -> float:
        return float(run.policy.completion_logprobs(rows, TEMPERATURE).exp().mean())

    first = chance()
    run.step()
    assert (run.rollout.completion_ids == last)[run.rollout.completion_mask].any()
    assert run.gap() < TIGHT
    # The bug: the last token of what ended has no weight.
    places = torch.arange(run.rollout.completion_ids.shape[1])
    is_last = (places == run.rollout.lengths[:, None] - 1) & run.rollout.ended[:, None]
    spread = leave_one_out(run.experience.scores)[:, None] * ~is_last
    assert run.gap(run.naive(spread)) > NOTICED
    for _ in range(5):
        run.step()
    assert chance() > 1.5 * first
    only_end = torch.ones(P, 1, dtype=torch.float64)
    assert tiny.global_norm(run.trainer.gradient(rows, only_end).values()) > NOTICED


# --- The policy that samples is the policy that is differentiated (18 to 23).


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "granite"])
@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_the_temperature_is_in_the_sampling_log_probs_too(
    architecture, temperature, tiny, monkeypatch
):
    """trl#4159: a temperature other than 1 was missing from the sampler's log-probs. Here also
    where the head caps or scales its logits first."""
    exact = architecture == "gpt2"  # the norms of the others compute in float32 anyhow
    dtype, limit = (torch.float64, 1e-12) if exact else (torch.float32, 1e-4)
    model = tiny.build_model(architecture, vocabulary=VOCABULARY, dtype=dtype)
    run = Run(tiny, model=model, temperature=temperature, dtype="float64" if exact else "float32")
    stats = run.step()
    table = tiny.naive_table(run.before, run.rollout, temperature)
    assert float((run.rollout.sampling_logprobs - table).abs().max()) < limit
    assert stats.metrics["sampler_gap_max"] < limit
    plain = sampling.log_softmax
    monkeypatch.setattr(sampling, "log_softmax", lambda logits, t: plain(logits, 1.0))
    broken = run.learner.step().metrics
    assert broken["sampler_gap_max"] > 0.05
    assert gap_is_suspicious(broken, dtype)


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0.9), ("top_k", 50), ("min_p", 0.1), ("repetition_penalty", 1.2)],
)
def test_training_refuses_to_truncate_the_distribution(name, value, tiny, monkeypatch, tmp_path):
    """trl#6789: top_p, top_k and min_p made the log-probs those of another function. Here the
    options are refused in Python, on the command line and in a file; the full vocabulary stays
    drawable; and a sampler that truncates all the same is noticed."""
    why = f"{name} is not offered, because training differentiates exactly the distribution it"
    with pytest.raises(ConfigError, match=why):
        ReinforceConfig(**{name: value})
    file = tmp_path / "options.yaml"
    file.write_text(f"{name}: {value}\n")
    for arguments in ([f"--{name}", str(value)], ["--config", str(file)]):
        with pytest.raises(ConfigError, match="training differentiates exactly the distribution"):
            _parse(arguments)
    if name != "top_k":
        return
    run = Run(tiny, num_generations=64)
    run.step()
    drawn = run.rollout.completion_ids[run.rollout.completion_mask]
    assert set(drawn.tolist()) == set(range(VOCABULARY))
    keep = sampling.keep_most_likely(3, 1.0)
    call = sampling.InverseCdf.__call__
    monkeypatch.setattr(
        sampling.InverseCdf, "__call__", lambda self, logits, *rest: call(self, keep(logits), *rest)
    )
    assert gap_is_suspicious(run.learner.step().metrics, torch.float64)


def _parse(arguments: list[str]) -> Any:
    return parse_options(arguments, prog="rl4lm train", description="")


NEAR_GREEDY = {"do_sample": True, "top_k": 1, "temperature": 0.01, "repetition_penalty": 5.0}


def test_settings_for_generation_in_the_checkpoint_do_not_reach_training(tiny, tmp_path):
    """trl#5783: the checkpoint's generation_config was merged in, and samples became near-greedy:
    4 of 8 were identical. Only its end tokens are taken here."""
    for folder, settings in (("plain", {}), ("greedy", NEAR_GREEDY)):
        model = tiny.build_model("gpt2", dtype=torch.float64)
        for name, value in {**settings, "eos_token_id": [0, 7]}.items():
            setattr(model.generation_config, name, value)
        model.save_pretrained(tmp_path / folder)
        tiny.build_tokenizer().save_pretrained(tmp_path / folder)
    plain, greedy = (
        Run(tiny, model=str(tmp_path / folder), num_generations=8, tokenizer=tiny.build_tokenizer())
        for folder in ("plain", "greedy")
    )
    plain.step(), greedy.step()
    lists = greedy.rollout.completion_lists()
    assert lists == plain.rollout.completion_lists()
    assert greedy.policy.end_token_ids == (0, 7)
    table = tiny.naive_table(greedy.before, greedy.rollout, TEMPERATURE)
    assert float((greedy.rollout.sampling_logprobs - table).abs().max()) < 1e-12
    different = [len({tuple(row) for row in lists[8 * k : 8 * k + 8]}) for k in range(P)]
    assert min(different) >= 7
    # What those settings do where they are obeyed.
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "greedy", dtype=torch.float64)
    obeyed = loaded.generate(torch.tensor([[1, 2]] * 8), max_new_tokens=6, pad_token_id=0)
    assert len({tuple(row) for row in obeyed.tolist()}) == 1


@pytest.fixture
def lying_sampler(monkeypatch) -> None:
    """The sampler's log-probs are half a nat off for every token; its tokens are the same."""
    call = sampling.InverseCdf.__call__

    def off(self, *given):
        tokens, logprobs = call(self, *given)
        return tokens, logprobs + 0.5

    monkeypatch.setattr(sampling.InverseCdf, "__call__", off)


LONG = {"max_completion_length": 40, "num_generations": 2, "learning_rate": 1e-3}


def long_run(tiny: Any, **options: Any) -> Run:
    return Run(tiny, model=tiny.build_model("gpt2", dtype=torch.float64), **LONG, **options)


def test_a_sampler_that_is_slightly_off_scales_no_gradient(tiny, lying_sampler):
    """trl#4772, trl#5814, NeMo-RL#2269, Liger PR#1088: a product of ratios over a long sequence
    blew gradients up or shrank them 17 times. Here the first update on a sampling has no ratio,
    and the gap between sampler and policy is told instead of corrected."""
    run = long_run(tiny)
    stats = run.step()
    assert int(run.rollout.lengths.max()) == 40
    assert run.gap() < 1e-9  # a small rate costs digits
    assert stats.metrics["sampler_gap_mean"] == pytest.approx(0.5, abs=1e-9)
    assert gap_is_suspicious(stats.metrics, torch.float64)
    # Where the ratio is asked for, it is logged as it is, and not after a clamp.
    asked = long_run(tiny, num_iterations=2)
    metrics = asked.step().metrics
    assert metrics["importance_ratio/min"] == pytest.approx(math.exp(-0.5 * 40), rel=1e-6)
    assert asked.gap(run.naive()) > NOTICED


def test_the_ratio_starts_at_one_for_long_completions_too(tiny):
    """The honest sampler: same model, same log-probs, so the first update of a window is plain."""
    run = long_run(tiny, num_iterations=2)
    metrics = run.step().metrics
    assert abs(metrics["importance_ratio/max"] - 1) < 1e-11
    assert abs(metrics["importance_ratio/min"] - 1) < 1e-11
    assert run.gap() < 1e-9


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapter"])
@pytest.mark.parametrize("architecture", ["opt", "llama"])
def test_sampling_and_training_see_no_dropout(architecture, lora, tiny, monkeypatch):
    """trl#3000, trl PR#3234: dropout was on in rollouts, or in the adapter, and the ratio was not
    1. Here with half of everything dropped by the configuration, checkpointed activations, and
    adapters."""
    dropping = {
        "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
        "llama": {"attention_dropout": 0.5},
    }[architecture]

    def build(**settings: Any) -> Any:
        return tiny.build_model(
            architecture, vocabulary=VOCABULARY, dtype=torch.float64, **settings
        ).train()

    def adapter(**settings: Any) -> LoraConfig | None:
        targets = {"task_type": "CAUSAL_LM", "r": 3, "target_modules": "all-linear"}
        return LoraConfig(**targets, **settings) if lora else None

    options = {"activation_checkpointing": True, "learning_rate": 2.0**-5}
    runs = [
        Run(tiny, model=model, peft_config=adapter(), **options)
        for model in (build(**dropping), build())
    ]
    metrics = [run.step().metrics for run in runs]
    assert metrics[0]["sampler_gap_max"] < 1e-6  # llama's norms compute in float32
    assert runs[0].rollout.completion_lists() == runs[1].rollout.completion_lists()
    assert runs[0].gap(runs[1].moved) < TIGHT
    if lora:
        with pytest.raises(ModelError, match=r"lora_dropout=0.1 is refused: dropout would make"):
            Run(tiny, model=build(), peft_config=adapter(lora_dropout=0.1))
        with pytest.raises(ConfigError, match="lora_dropout is not offered, because dropout"):
            ReinforceConfig(lora_dropout=0.1)
    monkeypatch.setattr(preparing, "switch_dropout_off", lambda model: None)
    monkeypatch.setattr("rl4lm.assembly.probe", lambda policy: [])  # it would refuse
    broken = Run(tiny, model=build(**dropping), peft_config=adapter(), **options).step().metrics
    assert broken["sampler_gap_max"] > NOTICED
    assert gap_is_suspicious(broken, torch.float64)


def of_rank(run: Run, rank: int, size: int) -> Gatherer:
    """The gatherer of one process among several; sampling needs nothing of the others."""
    world = World()
    world.rank, world.size = rank, size
    trainer = run.trainer
    return Gatherer(trainer.config, run.policy, trainer.task, trainer._ends, None, world)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_never_draw_the_same_samples(size, tiny, monkeypatch):
    """trl PR#2824, trl#2803, trl#3098: ranks drew identical samples, or mixed them up. Here every
    prompt of the step is the same text, so that nothing but the random numbers can differ."""
    run = Run(tiny, prompts=["t1 t2"], max_completion_length=12)

    def drawn(ranks: int, step: int) -> list[list[int]]:
        found: list[list[int]] = []
        for rank in range(ranks):
            gatherer = of_rank(run, rank, ranks)
            found += gatherer.sample(gatherer.examples(step), step).completion_lists()
        return found

    whole = drawn(1, 0)
    assert len(whole) == N
    assert drawn(size, 0) == whole
    assert drawn(1, 1) != whole, "another step draws other samples"
    repeats = N - len({tuple(row) for row in whole})
    assert repeats <= 4, "short ones may be equal by chance"
    # The bug: every rank counts its prompts from 0.
    choose = experience.InverseCdf
    monkeypatch.setattr(
        experience, "InverseCdf", lambda **given: choose(**{**given, "first_prompt": 0})
    )
    mixed = drawn(size, 0)
    assert mixed[: N // size] == mixed[N // size : 2 * (N // size)]


# --- Advantages (38 to 43).


def three_right_one_wrong(completion_ids, **kwargs):
    return [0.0 if i % G == G - 1 else 1.0 for i in range(len(completion_ids))]


def scaled_by_the_others(rewards: Tensor, baseline: Tensor, valid: Tensor) -> Tensor:
    """The bug: leave-one-out advantages over the leave-one-out standard deviation, plus 1e-6."""
    groups = rewards.view(-1, G)
    others = [torch.cat([groups[:, :i], groups[:, i + 1 :]], dim=1).std(dim=1) for i in range(G)]
    return torch.where(valid, rewards - baseline, 0.0) / (torch.stack(others, 1).flatten() + 1e-6)


def test_an_advantage_is_never_larger_than_the_spread_of_the_rewards(tiny, monkeypatch):
    """NeMo-RL#1518, NeMo-RL PR#4158: leave-one-out with a standard deviation exploded to ±1e6
    where all others earned the same. Here advantages stay within the spread, and are linear:
    rewards that differ by 1e-9 give the 1e-9th part of the step."""
    run = Run(tiny, three_right_one_wrong)
    run.step()
    assert float(run.experience.advantages.abs().max()) == 1.0
    whole, small = Run(tiny), Run(tiny, lambda **given: _nearly_equal(**given))
    for each in (whole, small):
        each.step()
    magnified = {name: 1e9 * part for name, part in small.moved.items()}
    assert max(tiny.gap(magnified, whole.moved)) < 1e-5  # 1 + 1e-9 x holds seven digits of x
    rewards = small.experience.scores.rewards
    spread = float((rewards.amax(dim=1) - rewards.amin(dim=1)).max())
    assert float(small.experience.advantages.abs().max()) <= spread * (1 + 1e-12) < 1e-7
    monkeypatch.setattr(experience, "advantages", scaled_by_the_others)
    broken = Run(tiny, three_right_one_wrong)
    broken.step()
    assert float(broken.experience.advantages.abs().max()) > 1e5


def _nearly_equal(completion_ids, **kwargs):
    return [1.0 + 1e-9 * worth(ids) for ids in completion_ids]


@pytest.mark.parametrize("name", [n for n in BASELINES if n not in baselines.KEEPS_HISTORY])
def test_advantages_are_what_the_name_says_and_nothing_is_normalised_behind_it(name, tiny):
    """OpenRLHF#856, OpenRLHF#924, OpenRLHF#830: "the mean advantage is always positive", "where is
    the normalisation?". Here the logged advantage is the logged reward less the function of that
    name, and what is centred has a mean of zero over completions, whatever their lengths."""
    run = Run(tiny, baseline=name)
    stats = run.step()
    rewards, found = (
        torch.tensor([row[column] for row in stats.completions], dtype=torch.float64).view(P, G)
        for column in ("reward", "advantage")
    )
    inputs = BaselineInputs(
        lengths=torch.tensor([len(row["completion_ids"]) for row in stats.completions]).view(P, G),
        valid=torch.ones(P, G, dtype=torch.bool),
        prompt_keys=torch.arange(P),
        prompt_features=torch.zeros(P, 0, dtype=torch.float64),
    )
    assert BASELINES[name].__name__ == name
    expected, _ = BASELINES[name](rewards, inputs, {})
    assert float((found - (rewards - expected)).abs().max()) < 1e-14
    assert run.gap(run.naive(found.flatten())) < TIGHT
    if name.startswith("prompt_"):
        assert float(found.sum(dim=1).abs().max()) < 1e-12
    if name.startswith("batch_"):
        assert abs(float(found.sum())) < 1e-12
    if name == "none":
        assert torch.equal(found, rewards)
    assert abs(float(found.std()) - 1) > NOTICED, "no whitening"


OTHERS_SEEN = {
    "prompt_leave_one_out": lambda i, j: j // G == i // G,
    "batch_leave_one_out": lambda i, j: True,
    "prompt_mean": lambda i, j: j // G == i // G,
    "batch_mean": lambda i, j: True,
    "length_weighted": lambda i, j: j // G == i // G,
}


@pytest.mark.parametrize("name", OTHERS_SEEN)
def test_every_sample_counts_in_the_mean(name, tiny, monkeypatch):
    """PipelineRL PR#54: only the first rollout was used for the mean, and "the whole thing still
    kinda works". Here one reward after the other is raised by 1: it must lower the advantage of
    exactly those that are compared with it."""
    expected = [(i, j) for i in range(N) for j in range(N) if i != j and OTHERS_SEEN[name](i, j)]
    assert compared(tiny, name, range(N)) == expected

    def first_only(rewards, inputs, state):
        return rewards[..., :1].expand_as(rewards), state

    monkeypatch.setitem(BASELINES, name, first_only)
    assert compared(tiny, name, range(G)) != [(i, j) for i, j in expected if j < G]
    if name.startswith("prompt_"):
        # With the first sample for the mean of its prompt the expectation is (G-1)/G of the
        # gradient, which is just what `prompt_mean` states: there only the count above can tell.
        found = verify(ReinforceConfig(num_generations=2, baseline=name), variances=False)
        assert found.verdict == ("exact" if name == "prompt_mean" else "failed")


def compared(tiny: Any, baseline: str, others: Iterable[int]) -> list[tuple[int, int]]:
    """The pairs (i, j) of which i loses advantage when the reward of j in `others` is raised."""
    raised: list[int] = []

    def reward(completion_ids, **kwargs):
        return [worth(ids) + (i in raised) for i, ids in enumerate(completion_ids)]

    run = Run(tiny, reward, baseline=baseline)
    start = run.weights()

    def advantages() -> Tensor:
        run.restart(start)
        run.step()
        return run.experience.advantages

    before, pairs = advantages(), []
    for j in others:
        raised[:] = [j]
        change = advantages() - before
        pairs += [(i, j) for i in range(N) if i != j and change[i] < -1e-6]
    return sorted(pairs)


@pytest.mark.parametrize("name", sorted(COMPARES_WITHIN_PROMPT))
def test_a_group_of_one_is_not_compared_with_itself(name, tiny):
    """rllm#916: with one sample of a prompt all advantages were 0 and no error was raised. Here
    what compares within a prompt is refused, and what is chosen instead learns."""
    message = rf"baseline={name} compares the completions of one prompt, but num_generations=1"
    with pytest.raises(ConfigError, match=message):
        ReinforceConfig(num_generations=1, baseline=name)
    run = Run(tiny, num_generations=1)
    assert run.trainer.config.resolved_baseline == "batch_leave_one_out"
    stats = run.step()
    assert stats.metrics["effective_samples"] == P
    rewards = run.experience.scores.rewards.flatten()
    by_hand = (rewards - rewards.mean()) * P / (P - 1)
    assert run.gap(run.naive(by_hand)) < TIGHT
    assert stats.metrics["updated"]
    # The bug, behind the back of the configuration.
    run.learner.gatherer.baseline = BASELINES["prompt_mean"]
    broken = run.learner.step()
    assert broken.metrics["effective_samples"] == 0
    assert not broken.metrics["updated"]


def test_prompts_whose_completions_all_earn_the_same_cost_nothing_and_move_nothing(
    tiny, monkeypatch
):
    """trl#5588, trl PR#5598, trl PR#5640, trl#6367: groups of constant reward were run forward and
    backward all the same, and with a weight on the KL they moved the model by the KL alone."""
    ran: list[int] = []
    cut = policy.micro_batches

    def counted(rollout, rows, max_tokens):
        ran.extend(rows)
        return cut(rollout, rows, max_tokens)

    monkeypatch.setattr(policy, "micro_batches", counted)

    def reward(prompts, completion_ids, **kwargs):
        same = {"t5": 0.1 + 0.2, "t1 t2": -7.3}  # neither is a sum of powers of two
        pairs = zip(prompts, completion_ids, strict=True)
        return [same[p] if p in same else worth(ids) for p, ids in pairs]

    run = Run(tiny, reward, max_tokens_per_micro_batch=23)
    ran.clear()
    stats = run.step()
    rows = range(N)
    idle = {i for i in rows if run.experience.examples[i // G].prompt in ("t5", "t1 t2")}
    assert len(idle) == 2 * G
    assert ran
    assert not set(ran) & idle
    assert stats.metrics["frac_reward_zero_std"] == 0.5
    live = int(leave_one_out(run.experience.scores).count_nonzero())
    assert 0 < stats.metrics["effective_samples"] == live <= N - 2 * G
    assert run.gap() < TIGHT  # N counts them
    constant = Run(tiny, lambda completions, **kwargs: [0.3] * len(completions))
    ran.clear()
    before = constant.weights()
    assert not constant.step().metrics["updated"]
    assert ran == []
    assert all(torch.equal(value, before[name]) for name, value in constant.weights().items())


def test_a_weight_on_the_kl_moves_the_model_by_the_kl_alone_only_towards_the_reference(tiny):
    """The other half: with beta > 0 and equal rewards the step is that of the KL's own gradient,
    zero at the reference, and exact away from it."""
    options = {"beta": 0.3, "reward": lambda completions, **kwargs: [0.3] * len(completions)}
    still = Run(tiny, **options)
    initial = copy.deepcopy(still.policy.module.causal_lm).eval()
    assert still.step().metrics["grad_norm"] < 1e-13, "rounding in the log-ratio, nothing more"
    run = Run(tiny, **options).disturb()
    assert run.step().metrics["grad_norm"] > NOTICED
    now, then = (tiny.naive_table(m, run.rollout, TEMPERATURE) for m in (run.before, initial))
    paid = -0.3 * (now - then).sum(dim=1).view(P, G)
    valid = torch.ones(P, G, dtype=torch.bool)
    assert run.gap(run.naive(leave_one_out(Scores(paid, valid, {})))) < TIGHT


@pytest.mark.parametrize("kl_in", ["reward", "token_reward", "loss"])
def test_at_the_reference_equal_rewards_move_no_weight_with_adam_either(kl_in, tiny):
    """There is nothing to learn: the policy is the reference, and all earned the same. What is
    left is the rounding between cached and uncached log-probs, 1e-7 in float32, and AdamW divides
    a gradient by its own size: it must not become a step of the whole learning rate."""
    run = Run(
        tiny,
        lambda completions, **kwargs: [0.3] * len(completions),
        tiny.build_model("gpt2", vocabulary=VOCABULARY),
        **{"dtype": "float32", "optim": "adamw", "learning_rate": 1e-3, "beta": 0.1},
        kl_in=kl_in,
    )
    run.step()
    rates = max(float(part.abs().max()) for part in run.moved.values())
    assert rates < 0.01, f"a weight moved by {rates:.2f} of the learning rate"


def test_an_estimator_of_the_kl_that_does_not_follow_it_is_refused(tiny):
    """trl#7086, trl#5889: which estimator of the KL is right was in dispute. Here k1 and k3 in the
    loss are refused with the reason; the next test settles the rest by enumeration."""
    for value in ("k1", "k1_loss"):
        with pytest.raises(ConfigError, match=r"expected gradient of k1 .* is exactly zero"):
            ReinforceConfig(beta=0.1, kl_in=value)
    for value in ("k3", "k3_loss"):
        with pytest.raises(ConfigError, match="k3 in the loss does not follow the gradient"):
            ReinforceConfig(beta=0.1, kl_in=value)


WORDS = 5


def expected_kl_step(
    tiny: Any, patch: Any, kl_in: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Σ_o π(o) · (the step on o alone), over all one-token completions; and ∇ β KL by autograd."""
    model = tiny.build_model("gpt2", vocabulary=WORDS, dtype=torch.float64)
    initial = copy.deepcopy(model).eval()
    sizes = {"prompts_per_step": 1, "num_generations": 1, "max_completion_length": 1}
    options = {"beta": 0.3, "kl_in": kl_in, "baseline": "none", **sizes}
    nothing = lambda completions, **kwargs: [0.0] * len(completions)  # noqa: E731
    run = Run(tiny, nothing, model, ["t1 t2"], **options).disturb(0.3)
    start = run.weights()
    prompt = torch.tensor([[1, 2]])

    def log_pi(of: Any) -> Tensor:
        return (of(input_ids=prompt).logits[0, -1] / TEMPERATURE).log_softmax(0)

    expected = {name: torch.zeros_like(value) for name, value in start.items()}
    for token in range(WORDS):
        rows = Rollout.from_lists([[1, 2]], [[token]])
        sampled = run.policy.completion_logprobs(rows, TEMPERATURE)
        rows = replace(rows, sampling_logprobs=sampled)
        patch.setattr(experience, "generate", lambda *given, _rows=rows, **named: _rows)
        run.step()
        run.restart(start)
        for name, part in run.moved.items():
            expected[name] += float(sampled.exp()) * part
    now, then = log_pi(run.before), log_pi(initial).detach()
    named = dict(run.before.named_parameters())
    divergence = 0.3 * (now.exp() * (now - then)).sum()
    parts = torch.autograd.grad(divergence, list(named.values()))
    return expected, dict(zip(named, parts, strict=True))


@pytest.mark.parametrize("kl_in", ["reward", "token_reward", "loss"])
def test_the_expected_pull_of_the_kl_is_its_gradient(kl_in, tiny, monkeypatch):
    """By enumeration of every completion, through whole steps."""
    assert max(tiny.gap(*expected_kl_step(tiny, monkeypatch, kl_in))) < 1e-9


def test_k3_in_the_loss_and_k1_in_the_loss_pull_elsewhere(tiny, monkeypatch):
    """The negative controls of the test above."""
    assert max(tiny.gap(*expected_kl_step(tiny, monkeypatch, "grpo_k3"))) > NOTICED

    def first(logprobs, reference, mask, count):
        return torch.where(mask, logprobs - reference, 0.0).sum() / count

    monkeypatch.setattr(objective, "kl_squared_loss", first)
    found, true = expected_kl_step(tiny, monkeypatch, "loss")
    assert tiny.global_norm(found.values()) < 1e-9 * tiny.global_norm(true.values())
