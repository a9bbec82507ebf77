"""Known bugs of scale: one denominator for a step, whatever the layout (1 to 11).

Every docstring begins with the public threads; conftest.py tells how the tests are made.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rl4lm import ReinforceTrainer, Rollout, objective
from rl4lm.estimator import losses
from rl4lm.model import policy, teacher_forcing
from rl4lm.passes import microbatch
from rl4lm.screen.console import Screen
from rl4lm.types import StepStats

TIGHT = 1e-10  # on the norm of the difference and on the ratio of norms, float64
NOTICED = 1e-3  # what a planted bug must exceed


SPLITS = (1, 10, 20, 10**6)  # tokens of a micro-batch: one row each, some, some more, all


def scale_micro_batches(patch: Any, factor: Callable[[int], float]) -> None:
    """Plant a factor that depends on the tokens n of a micro-batch."""
    tiled = teacher_forcing.tiled_gradient

    def scaled(hidden, head, targets, weights, temperature, vocabulary, entropies=None):
        by = factor(len(targets))
        changed = None if entropies is None else entropies * by
        return tiled(hidden, head, targets, weights * by, temperature, vocabulary, changed)

    patch.setattr(teacher_forcing, "tiled_gradient", scaled)


@pytest.fixture
def shapes(monkeypatch) -> list[list[int]]:
    """The rows of every micro-batch that is built from here on."""
    seen: list[list[int]] = []
    for name in ("_build", "_pack"):
        build = getattr(microbatch, name)

        def noted(rows, sequences, build=build):
            seen.append(list(rows))
            return build(rows, sequences)

        monkeypatch.setattr(microbatch, name, noted)
    return seen


@pytest.mark.parametrize("fast_path", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_one_update_is_the_same_for_every_split_into_micro_batches(
    architecture, fast_path, tiny, shapes, kit
):
    """trl#3021, verl#5625, verl PR#906, verl PR#5641: the loss of a micro-batch was divided by
    its own rows or tokens, so quality fell with the number of accumulated parts. Here with uneven
    lengths, a prompt without advantage, a row without reward, and equal rows merged into one."""
    model = tiny.build_model(architecture, vocabulary=kit.VOCABULARY, dtype=torch.float64, std=0.2)
    options = {"num_generations": 8, "stop_token_ids": [3], "fast_path": fast_path}
    counts = []
    for budget in SPLITS:
        options["max_tokens_per_micro_batch"] = budget
        run = kit.Run(tiny, kit.with_idle_rows, copy.deepcopy(model), **options)
        shapes.clear()
        stats = run.step()
        counts.append(len(shapes))
        assert len(set(run.rollout.lengths.tolist())) > 3
        assert 12 < stats.metrics["effective_samples"] <= 8 * (kit.P - 1) - 1
        assert run.gap() < TIGHT, budget
    assert stats.metrics["effective_samples"] > counts[0], "some rows are equal"
    assert counts[0] > counts[1] > counts[2] > counts[3] == 1


@pytest.mark.parametrize(
    "factor",
    [lambda n: 5 / n, lambda n: 1 / 3, lambda n: n / 20],
    ids=["tokens of the micro-batch", "number of micro-batches", "share of the samples"],
)
def test_a_denominator_of_the_micro_batch_would_be_noticed(factor, tiny, monkeypatch, kit):
    run = kit.Run(tiny, kit.with_idle_rows, max_tokens_per_micro_batch=23)
    scale_micro_batches(monkeypatch, factor)
    run.step()
    assert run.gap() > NOTICED


@pytest.mark.parametrize("budget", [1, 23])
@pytest.mark.parametrize("iterations", [1, 3])
def test_updates_on_one_sampling_keep_their_scale(budget, iterations, tiny, kit):
    """trl PR#6024: losses were scaled 0.5 or 4 times where the updates on one sampling were not
    as many as the accumulated parts."""
    options = {"num_iterations": iterations, "epsilon": 1e6, "learning_rate": 2.0**-7}
    run = kit.Run(tiny, kit.with_idle_rows, max_tokens_per_micro_batch=budget, **options)
    for k in range(iterations):
        run.step()
        sampled = run.rollout.sampling_logprobs
        now = tiny.naive_table(run.before, run.rollout, kit.TEMPERATURE)
        ratio = (now - sampled).sum(dim=1).exp()
        assert bool((ratio - 1).abs().max() > 0.01) == (k > 0)
        advantages = kit.leave_one_out(run.experience.scores)
        # Dividing a change of the weights by the rate costs no digit, but the change is small.
        assert run.gap(run.naive(ratio * advantages)) < TIGHT
    assert run.learner.state.samples == kit.N


def test_the_denominator_is_always_given_and_never_made_up(tiny, monkeypatch, kit):
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
    run = kit.Run(tiny, kit.with_idle_rows, max_tokens_per_micro_batch=1)
    run.step()
    assert set(named) == {kit.N}


@pytest.mark.parametrize("budget", [1, 23, 10**6])
def test_the_loss_is_not_multiplied_by_the_size_of_a_micro_batch(budget, tiny, monkeypatch, kit):
    """verl#3741: the loss of Dr. GRPO came out times the micro-batch size. Closed form, for the
    head alone: ∂L/∂W = -(1/N) Σ_i (r_i - mean) Σ_t (onehot(o_t) - π_t) h_tᵀ / temperature."""
    model = tiny.build_model("gpt2", vocabulary=kit.VOCABULARY, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("lm_head"))
    run = kit.Run(tiny, model=model, baseline="prompt_mean", max_tokens_per_micro_batch=budget)

    def closed_form() -> dict[str, Tensor]:
        rewards = torch.tensor([kit.worth(ids) for ids in run.rollout.completion_lists()]).double()
        centred = rewards.view(kit.P, kit.G) - rewards.view(kit.P, kit.G).mean(dim=1, keepdim=True)
        rows = zip(tiny.prompts_of_rows(run.rollout), run.rollout.completion_lists(), strict=True)
        gradient = torch.zeros(kit.VOCABULARY, 32, dtype=torch.float64)
        for a, (prompt, completion) in zip(centred.flatten(), rows, strict=True):
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *completion[:-1]]])
                h = run.before.transformer(input_ids=ids).last_hidden_state[0, len(prompt) - 1 :]
                pi = (h @ run.before.lm_head.weight.T / kit.TEMPERATURE).softmax(dim=-1)
                chosen = torch.eye(kit.VOCABULARY, dtype=torch.float64)[completion]
                gradient -= a * (chosen - pi).T @ h / kit.TEMPERATURE / kit.N
        return {"lm_head.weight": gradient}

    run.step()
    assert run.gap(closed_form()) < TIGHT
    scale_micro_batches(monkeypatch, lambda n: n)
    run.step()
    assert run.gap(closed_form()) > NOTICED


def test_nobody_divides_by_the_group_or_by_the_accumulation_a_second_time(tiny, monkeypatch, kit):
    """modelscope/ms-swift#10117: the base class divided the gradient once more. Here the same
    rows weigh the same as one group of four or four groups of one, also where the launcher has
    told accelerate to accumulate."""
    prompt = [3, 1]
    completions = [[4, 0], [5, 6, 0], [7], [2, 2, 9, 0]]
    advantages = torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64)
    model = tiny.build_model("gpt2", vocabulary=kit.VOCABULARY, dtype=torch.float64)
    reference = copy.deepcopy(model).eval()
    layouts = [Rollout.from_lists([prompt] * 4, completions, group) for group in (1, 2, 4)]
    expected = tiny.naive_gradient(reference, layouts[0], advantages, kit.TEMPERATURE)

    def worst(trainer: ReinforceTrainer) -> float:
        found = [trainer.gradient(rollout, advantages) for rollout in layouts]
        return max(max(tiny.gap(gradient, expected)) for gradient in found)

    options = {"temperature": kit.TEMPERATURE, "dtype": "float64"}
    assert worst(tiny.build_trainer(copy.deepcopy(model), **options)) < TIGHT
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    parts = Accelerator(cpu=True).gradient_accumulation_steps
    assert parts == 4, "accelerate reads another variable now"
    accumulating = tiny.build_trainer(model, **options)
    assert worst(accumulating) < TIGHT
    # The bug: what `accelerator.backward` does.
    backward = Tensor.backward
    monkeypatch.setattr(Tensor, "backward", lambda states, by: backward(states, by / parts))
    assert worst(accumulating) > NOTICED


@pytest.mark.parametrize("budget", [1, 10**6])
def test_a_token_weighs_the_same_however_long_its_completion_and_however_few_beside_it(
    budget, tiny, kit
):
    """open-instruct PR#1137: with one row in a batch the mean over tokens silently became a mean
    over samples. Here a completion whose first two tokens alone have an advantage gives the
    gradient of those two tokens alone, with rows of many lengths or none beside it."""
    options = {"temperature": kit.TEMPERATURE, "dtype": "float64"}
    model = tiny.build_model("opt", vocabulary=kit.VOCABULARY, dtype=torch.float64)
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
def test_every_term_of_the_loss_is_reduced_alike_for_every_split(options, tiny, monkeypatch, kit):
    """SkyRL#1504: one of two loss paths depended on the micro-batch size."""

    def moved(budget: int) -> dict[str, Tensor]:
        run = kit.Run(
            tiny, kit.with_idle_rows, max_tokens_per_micro_batch=budget, **options
        ).disturb()
        run.step()
        return run.moved

    expected = moved(10**6)
    assert max(max(tiny.gap(moved(budget), expected)) for budget in (1, 23)) < TIGHT
    scale_micro_batches(monkeypatch, lambda n: n / 16)  # 16 are those of the probe
    assert max(tiny.gap(moved(23), expected)) > NOTICED


@pytest.mark.parametrize("budget", SPLITS)
def test_the_norm_of_the_gradient_is_finite_and_right_with_accumulation(budget, tiny, kit):
    """unsloth#3006: grad_norm was nan as soon as more than one part was accumulated."""
    run = kit.Run(tiny, kit.with_idle_rows, max_tokens_per_micro_batch=budget)
    for _ in range(2):
        stats = run.step()
        norm = tiny.global_norm(run.naive().values())
        assert stats.metrics["grad_norm"] == pytest.approx(norm, rel=TIGHT)
        assert stats.metrics["updated"]


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_gradient_that_is_not_finite_touches_nothing_and_is_not_carried_on(
    optim, tiny, monkeypatch, kit
):
    """The guard beside it: one micro-batch of several gives nan in the second step."""
    options = {"optim": optim, "max_grad_norm": 1.0, "learning_rate": 1e-3}
    run = kit.Run(tiny, max_tokens_per_micro_batch=23, **options)
    run.step()
    before, kept = run.weights(), copy.deepcopy(run.learner.updates.optimizer.state_dict())
    tiled, calls = teacher_forcing.tiled_gradient, iter(range(10**6))

    def poisoned(hidden, *rest):
        logprobs, gradient = tiled(hidden, *rest)
        return logprobs, gradient * (math.nan if next(calls) == 1 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_forcing, "tiled_gradient", poisoned)
        stats = run.step()
    assert next(calls) > 2, "several micro-batches, one of them poisoned"
    assert math.isnan(stats.metrics["grad_norm"])
    assert not stats.metrics["updated"]
    assert all(torch.equal(value, before[name]) for name, value in run.weights().items())
    state = run.learner.updates.optimizer.state_dict()["state"]
    for key, held in kept["state"].items():
        assert all(torch.equal(held[n], state[key][n]) for n in held if n != "momentum_buffer")
    stats = run.step()
    assert math.isfinite(stats.metrics["grad_norm"])
    assert stats.metrics["updated"]
    monkeypatch.setattr(
        teacher_forcing,
        "tiled_gradient",
        lambda h, *rest: (tiled(h, *rest)[0], h.detach() * math.nan),
    )
    run.step(), run.step(), run.step()
    assert run.learner.non_finite == 3  # after which a run stops: tests/e2e/test_resume.py


def test_every_token_of_a_step_weighs_its_advantage_over_the_completions(tiny, monkeypatch, kit):
    """trl#2995, trl#3187, trl PR#3138: nobody could tell whether the loss is per sequence or per
    batch, and the wrong one rewards long gibberish. Here the weight of a token is -A/N: it knows
    nothing of lengths, so that a long wrong answer is not punished less for each token."""
    given: list[losses.TokenWeights] = []
    accumulate = policy.Policy.accumulate_gradient

    def noted(self, rollout, weights, *rest, **named):
        given.append(weights)
        return accumulate(self, rollout, weights, *rest, **named)

    monkeypatch.setattr(policy.Policy, "accumulate_gradient", noted)
    run = kit.Run(tiny)
    given.clear()  # those of the probe
    stats = run.step()
    (weights,) = given
    mask, lengths = run.rollout.completion_mask, run.rollout.lengths
    assert len(set(lengths.tolist())) > 2
    advantages = kit.leave_one_out(run.experience.scores)
    expected = (-advantages / kit.N)[:, None].expand(mask.shape)
    assert float((weights.logprobs - expected)[mask].abs().max()) < 1e-15
    assert not weights.entropies.any()
    means = -(advantages / lengths / kit.N)[:, None].expand(mask.shape)
    assert float((weights.logprobs - means)[mask].abs().max()) > NOTICED
    assert stats.metrics["completions/mean_length"] == pytest.approx(float(lengths.double().mean()))


def test_what_is_shown_of_a_step_says_whether_it_learns(tiny, capsys, kit):
    """open-r1#239, trl#2703, trl#3452, trl#3857: "the loss is 0, is it training?". The value of
    the surrogate means nothing, so no person is shown it, and the numbers that mean something
    are there."""
    heard: list[StepStats] = []

    class Listener:
        def on_step_end(self, state, stats):
            heard.append(stats)

    run = kit.Run(tiny, logging_steps=1, max_steps=3, learning_rate=1e-3)
    run.trainer._run.journal.screen = Screen(logging_steps=1)
    run.trainer._run.callbacks.append(Listener())
    run.trainer.train()
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(shown) == 3
    for line, stats in zip(shown, heard, strict=True):
        assert "loss" not in line
        assert f"reward {stats.metrics['reward']:.3f}" in line
        assert f"live {stats.metrics['effective_share']:.0%}" in line
        for name in ("reward_std", "grad_norm", "effective_samples"):
            assert stats.metrics[name] > 0, name
    constant = kit.Run(tiny, lambda completions, **kwargs: [1.0] * len(completions))
    constant.trainer.train()
    assert "changed nothing: no completion had an advantage" in constant.warnings[0]
