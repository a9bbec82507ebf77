"""Steps with little or no signal, and the numbers that tell how much there is."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import rl4lm.diagnostics
from rl4lm.rewarding.calls import COMPLETION_FIELDS, METRIC_NAMES
from rl4lm.sampling import drawing

TIGHT = 1e-10
BETA = 0.7
COEFFICIENT = 0.3


def test_rows_without_a_reward_have_no_advantage_with_rewards_per_token_either(tiny, kit):
    def reward(completion_ids, **kwargs):
        return [None if i in (1, 6) else kit.token_worth(r) for i, r in enumerate(completion_ids)]

    subject = kit.Subject(tiny, reward, beta=BETA, kl_in="token_reward")
    subject.disturb()
    stats = subject.step()
    reference = [row.detach() for row in subject.logprobs(subject.initial)]
    now = subject.logprobs(subject.before)
    paid = [torch.tensor(kit.token_worth(r)).double() for r in subject.rollout.completion_lists()]
    returns = [
        kit.to_go(r - BETA * (row - ref).detach())
        for r, row, ref in zip(paid, now, reference, strict=True)
    ]
    advantages = []
    for i, row in enumerate(returns):
        others = [
            float(returns[j][0])
            for j in range(kit.N)
            if j // kit.G == i // kit.G and j not in (i, 1, 6)
        ]
        advantages.append(0 * row if i in (1, 6) else row - sum(others) / len(others))
    assert subject.gap(kit.reinforce(now, advantages)) < TIGHT  # N stays
    assert [i for i, row in enumerate(stats.completions) if row["reward"] is None] == [1, 6]
    assert [stats.completions[i]["advantage"] for i in (1, 6)] == [0.0, 0.0]
    assert stats.metrics["effective_samples"] == kit.N - 2


def constant(completion_ids, **kwargs):
    return [0.1] * len(completion_ids)


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
@pytest.mark.parametrize("gamma", [1.0, 0.0])
def test_a_step_without_any_advantage_leaves_weights_and_optimizer_as_they_are(
    optim, gamma, tiny, kit
):
    def reward(completion_ids, trainer_state, **kwargs):
        if trainer_state.global_step == 1:
            return [None] * len(completion_ids)
        return kit.by_completion(completion_ids)

    subject = kit.Subject(tiny, reward, optim=optim, gamma=gamma, weight_decay=0.1)
    optimizer = subject.learner.updates.optimizer
    assert subject.step().metrics["updated"]
    before, kept = subject.weights(), copy.deepcopy(optimizer.state_dict())
    stats = subject.step()
    assert not stats.metrics["updated"]
    assert stats.metrics["grad_norm"] == 0.0
    assert kit.same_bits(before, subject.weights())
    after = optimizer.state_dict()["state"]
    assert after.keys() == kept["state"].keys()
    for key, held in kept["state"].items():
        assert all(torch.equal(held[n], after[key][n]) for n in held if n != "momentum_buffer")
    state = subject.trainer.state
    assert (state.step, state.skipped_steps, state.samples) == (2, 1, 2 * kit.N)
    assert subject.step().metrics["updated"]
    assert not kit.same_bits(before, subject.weights())


@pytest.mark.parametrize(
    "options",
    [
        {"beta": BETA, "kl_in": "loss"},
        {"beta": BETA, "kl_in": "grpo_k3"},
        {"entropy_coef": COEFFICIENT, "entropy_in": "loss"},
    ],
)
@pytest.mark.parametrize(
    "reward", [constant, lambda completion_ids, **_: [None] * len(completion_ids)]
)
def test_a_term_of_the_loss_acts_although_no_completion_has_an_advantage(
    options, reward, tiny, kit
):
    subject = kit.Subject(tiny, reward, **options)
    subject.disturb()
    stats = subject.step()
    assert stats.metrics["effective_samples"] == 0
    assert stats.metrics["updated"]
    assert subject.trainer.state.skipped_steps == 0
    now = subject.logprobs(subject.before)
    reference = [row.detach() for row in subject.logprobs(subject.initial)]
    pairs = list(zip(now, reference, strict=True))
    if options.get("kl_in") == "loss":
        loss = BETA * sum((a - b).sum() ** 2 / 2 for a, b in pairs) / kit.N
    elif options.get("kl_in") == "grpo_k3":
        loss = BETA * sum(((b - a).exp() - 1 - (b - a)).sum() for a, b in pairs) / kit.N
    else:
        loss = -COEFFICIENT * sum(row.sum() for row in subject.entropies(subject.before)) / kit.N
    assert subject.gap(loss) < TIGHT


def test_the_noise_is_measured_every_so_many_steps_and_changes_the_gradient_by_rounding(tiny, kit):
    plain, measured = (kit.Subject(tiny, noise_every=every) for every in (0, 2))
    found = []
    for _ in range(4):
        plain_stats, stats = plain.step(), measured.step()
        assert "gradient_noise_scale" not in plain_stats.metrics
        found.append("gradient_noise_scale" in stats.metrics and "gradient_snr" in stats.metrics)
        assert max(tiny.gap(measured.moved, plain.moved)) < 1e-12
        assert measured.rollout.completion_lists() == plain.rollout.completion_lists()
        assert stats.metrics["sampler_gap_max"] < 1e-12
    assert found == [True, False, True, False]


@pytest.mark.parametrize(
    "options",
    [{"prompts_per_step": 5}, {"prompts_per_step": 6, "entropy_coef": 2.0, "entropy_in": "loss"}],
)
def test_the_noise_scale_is_that_of_the_gradients_of_two_halves_of_the_prompts(options, tiny, kit):
    def easy(completion_ids, **kwargs):  # a strong signal, so that the scale is defined
        return [10.0 * (ids[0] == 3) for ids in completion_ids]

    group = 16
    subject = kit.Subject(tiny, easy, noise_every=1, num_generations=group, **options)
    subject.disturb()
    stats = subject.step()
    prompts = options["prompts_per_step"]
    count = prompts * group
    rewards = [10.0 * (ids[0] == 3) for ids in subject.rollout.completion_lists()]
    now, entropies = subject.logprobs(subject.before), subject.entropies(subject.before)

    def mean_gradient(of: list[int]) -> Tensor:
        """∇ of the mean loss of the completions of some prompts, all parameters in a row."""
        loss = torch.zeros((), dtype=torch.float64)
        rows = [i for i in range(count) if i // group in of]
        for i in rows:
            mates = [j for j in rows if j // group == i // group and j != i]
            advantage = rewards[i] - sum(rewards[j] for j in mates) / len(mates)
            loss = loss - advantage * now[i].sum() / len(rows)
            loss = loss - options.get("entropy_coef", 0.0) * entropies[i].sum() / len(rows)
        return torch.cat([g.flatten() for g in subject.gradient(loss).values()])

    even = mean_gradient([p for p in range(prompts) if p % 2 == 0])
    odd = mean_gradient([p for p in range(prompts) if p % 2 == 1])
    sizes = [math.ceil(prompts / 2) * group, prompts // 2 * group]
    signal = float(even @ odd)
    variance = float((even - odd) @ (even - odd)) / (1 / sizes[0] + 1 / sizes[1])
    assert signal > 0
    metrics = stats.metrics
    assert metrics["gradient_noise_scale"] == pytest.approx(variance / signal, rel=1e-8)
    assert metrics["gradient_snr"] == pytest.approx(signal / (variance / count), rel=1e-8)


@pytest.mark.parametrize("options", [{"prompts_per_step": 1}, {"optim": "adamw"}])
def test_the_noise_is_undefined_with_one_prompt_or_without_any_gradient(options, tiny, kit):
    reward = kit.by_completion if "prompts_per_step" in options else constant
    metrics = kit.Subject(tiny, reward, noise_every=1, **options).step().metrics
    assert metrics["gradient_noise_scale"] is None
    assert metrics["gradient_snr"] is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mismatch", [True, False])
def test_a_sampler_that_draws_from_another_policy_is_noticed_on_the_screen(
    mismatch, dtype, tiny, monkeypatch, kit
):
    subject = kit.Subject(tiny, temperature=0.7, dtype=dtype, max_steps=5, learning_rate=1e-3)
    if mismatch:
        plain = drawing.softmax_in_place
        monkeypatch.setattr(drawing, "softmax_in_place", lambda logits, _: plain(logits, 1.0))
    subject.trainer.train()
    differing = [text for text in subject.warnings if "sampling and training differ" in text]
    assert len(differing) == (3 if mismatch else 0)
    for step, text in enumerate(differing, start=1):
        assert text.startswith(f"step {step}: ")
        assert dtype in text
    # Nothing else is said, but that a model which was never trained does not end by itself.
    others = [text for text in subject.warnings if text not in differing]
    assert {text.split(": ")[1] for text in others} <= {"completions_cut_off"}


def test_every_number_of_a_step_has_a_name_that_rewards_cannot_take(tiny, kit):
    families = ("rewards/", "time/", "completions/", "importance_ratio/", "clip_ratio/")
    options = {"beta": 0.1, "entropy_coef": 0.1, "epsilon": 0.2, "noise_every": 1}
    stats = kit.Subject(tiny, kit.by_token, **options).step()
    names = {name for name in stats.metrics if not name.startswith(families)}
    assert names <= set(METRIC_NAMES)
    assert set(stats.completions[0]) == set(COMPLETION_FIELDS)


def test_what_the_baseline_does_to_the_variance_is_measured_on_the_gradient_without_it(tiny, kit):
    """The same step with baseline none has the variance that the default is compared with."""
    default, none = (
        kit.Subject(tiny, kit.by_token, noise_every=1, baseline=name)
        for name in ("prompt_leave_one_out", "none")
    )
    metrics, plain = default.step().metrics, none.step().metrics
    assert default.rollout.completion_lists() == none.rollout.completion_lists()
    assert plain["variance_reduction"] is None  # there is nothing to compare with
    first, second = variances(kit, default), variances(kit, none)
    assert metrics["variance_reduction"] == pytest.approx(1 - first / second, rel=1e-8)
    assert metrics["effective_samples"] == kit.N
    assert metrics["effective_share"] == 1.0


def variances(kit: Any, subject: Any) -> float:
    """tr Σ of a subject's step, from naive gradients of the two halves of its prompts."""
    returns = [kit.to_go(kit.token_worth(ids)) for ids in subject.rollout.completion_lists()]
    weights = returns if subject.trainer.config.baseline == "none" else kit.centred(returns)
    now = subject.logprobs(subject.before)
    group = subject.rollout.num_generations
    halves = []
    for parity in (0, 1):
        rows = [i for i in range(kit.N) if (i // group) % 2 == parity]
        loss = -sum((weights[i] * now[i]).sum() for i in rows) / len(rows)
        gradient = subject.gradient(loss)
        halves.append((torch.cat([g.flatten() for g in gradient.values()]), len(rows)))
    (even, first), (odd, second) = halves
    return float((even - odd).square().sum()) / (1 / first + 1 / second)


def test_the_noise_may_be_measured_on_a_part_of_the_tensors(tiny, monkeypatch, kit):
    plain, whole = kit.Subject(tiny), kit.Subject(tiny, noise_every=1)
    everything = whole.step().metrics
    sizes = [parameter.numel() for parameter in whole.weights().values()]
    monkeypatch.setattr(rl4lm.diagnostics, "_MEASURED_ELEMENTS", sum(sizes) // 3)
    part = kit.Subject(tiny, noise_every=1)
    metrics = part.step().metrics
    plain.step()
    assert max(tiny.gap(part.moved, plain.moved)) < 1e-12
    assert metrics["gradient_noise_scale"] != everything["gradient_noise_scale"]
