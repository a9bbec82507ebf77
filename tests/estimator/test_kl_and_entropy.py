"""The pull towards the reference and the entropy: where they act, and against what formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

TIGHT = 1e-10
BETA = 0.7
COEFFICIENT = 0.3
Rows = list[Tensor]  # one tensor [T_i] for each completion


@pytest.mark.parametrize("where", ["reward", "token_reward", "loss", "grpo_k3"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_where_training_starts_there_is_no_divergence_and_no_pull(lora, where, tiny, kit):
    plain, pulled = (kit.Subject(tiny, lora=lora, beta=beta, kl_in=where) for beta in (0.0, 0.5))
    without, with_kl = plain.step(), pulled.step()
    assert "kl" not in without.metrics
    assert abs(with_kl.metrics["kl"]) < 1e-12
    assert abs(with_kl.metrics["kl_sequence"]) < 1e-12
    assert max(tiny.gap(pulled.moved, plain.moved)) < TIGHT
    plain.step()
    away = pulled.step()
    assert away.metrics["kl"] > 1e-6
    assert max(tiny.gap(pulled.moved, plain.moved)) > 1e-4


def kl_in_reward(kit: Any, s: Any, reference: Rows) -> Tensor:
    now = s.logprobs(s.before)
    shaped = [
        float(r - BETA * (row.detach() - ref).sum())
        for r, row, ref in zip(s.rewards, now, reference, strict=True)
    ]
    return kit.reinforce(
        now, [a - b for a, b in zip(shaped, kit.leave_one_out(shaped), strict=True)]
    )


def kl_in_token_reward(kit: Any, s: Any, reference: Rows) -> Tensor:
    now = s.logprobs(s.before)
    paid = [(-BETA * (row - ref)).tolist() for row, ref in zip(now, reference, strict=True)]
    for row, r in zip(paid, s.rewards.tolist(), strict=True):
        row[-1] += r
    return kit.reinforce(now, kit.centred([kit.to_go(row) for row in paid]))


def kl_in_loss(kit: Any, s: Any, reference: Rows) -> Tensor:
    now = s.logprobs(s.before)
    squares = [(row - ref).sum() ** 2 / 2 for row, ref in zip(now, reference, strict=True)]
    return kit.plain_loss(s) + BETA * sum(squares) / kit.N


def kl_as_grpo(kit: Any, s: Any, reference: Rows) -> Tensor:
    now = s.logprobs(s.before)
    k3 = [(ref - row).exp() - 1 - (ref - row) for row, ref in zip(now, reference, strict=True)]
    return kit.plain_loss(s) + BETA * sum(row.sum() for row in k3) / kit.N


KL_LOSSES: dict[str, Callable[[Any, Any, Rows], Tensor]] = {
    "reward": kl_in_reward,
    "token_reward": kl_in_token_reward,
    "loss": kl_in_loss,
    "grpo_k3": kl_as_grpo,
}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("where", KL_LOSSES)
def test_the_divergence_acts_where_it_is_asked_for_and_nowhere_else(where, lora, tiny, kit):
    subject = kit.Subject(tiny, lora=lora, beta=BETA, kl_in=where)
    subject.disturb()
    stats = subject.step()
    reference = [row.detach() for row in subject.logprobs(subject.initial)]
    assert subject.gap(KL_LOSSES[where](kit, subject, reference)) < TIGHT
    for other in KL_LOSSES.keys() - {where}:
        assert subject.gap(KL_LOSSES[other](kit, subject, reference)) > 1e-3
    moved_along = [row.detach() for row in subject.logprobs(subject.before)]
    assert subject.gap(KL_LOSSES[where](kit, subject, moved_along)) > 1e-3
    now = [row.detach() for row in subject.logprobs(subject.before)]
    k1 = [float((row - ref).sum()) for row, ref in zip(now, reference, strict=True)]
    k3 = [
        math.exp(float(b) - float(a)) - 1 - float(b) + float(a)
        for row, ref in zip(now, reference, strict=True)
        for a, b in zip(row, ref, strict=True)
    ]
    assert stats.metrics["kl_sequence"] == pytest.approx(sum(k1) / kit.N, rel=1e-9)
    assert stats.metrics["kl"] == pytest.approx(sum(k3) / len(k3), rel=1e-9)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_reference_stays_where_training_started(lora, tiny, kit):
    subject = kit.Subject(tiny, lora=lora, beta=BETA, learning_rate=0.02)
    for _ in range(4):
        subject.step()
        expected = tiny.naive_table(subject.initial, subject.rollout, kit.TEMPERATURE)
        found = subject.experience.reference_logprobs
        assert float((found - expected).abs().max()) < 1e-11
    now = tiny.naive_table(subject.before, subject.rollout, kit.TEMPERATURE)
    assert float((found - now).abs().max()) > 1e-3


def test_the_divergence_in_the_reward_is_paid_per_token_where_rewards_are(tiny, kit):
    subject = kit.Subject(tiny, kit.by_token, beta=BETA, gamma=0.5)
    subject.disturb()
    subject.step()
    reference = [row.detach() for row in subject.logprobs(subject.initial)]
    now = subject.logprobs(subject.before)
    paid = [kit.token_worth(ids) for ids in subject.rollout.completion_lists()]
    for row, logprobs, ref in zip(paid, now, reference, strict=True):
        row[-1] -= BETA * float(
            (logprobs.detach() - ref).sum()
        )  # what belongs to the whole comes last
    assert (
        subject.gap(kit.reinforce(now, kit.centred([kit.to_go(row, 0.5) for row in paid]))) < TIGHT
    )


@pytest.mark.parametrize("reward", ["by_completion", "by_token"])
@pytest.mark.parametrize("where", ["loss", "reward"])
def test_the_entropy_acts_where_it_is_asked_for(where, reward, tiny, kit):
    subject = kit.Subject(tiny, getattr(kit, reward), entropy_coef=COEFFICIENT, entropy_in=where)
    subject.step()
    logprobs, entropies = subject.logprobs(subject.before), subject.entropies(subject.before)
    lists = subject.rollout.completion_lists()
    direct = -COEFFICIENT * sum(row.sum() for row in entropies) / kit.N

    def earned(bonus: bool) -> Tensor:
        paid = [
            kit.token_worth(ids)
            if reward == "by_token"
            else [0.0] * (len(ids) - 1) + [kit.worth(ids)]
            for ids in lists
        ]
        returns = [
            torch.tensor(
                [
                    sum(row[t:]) + bonus * COEFFICIENT * sum(h.item() for h in later[t + 1 :])
                    for t in range(len(row))
                ],
                dtype=torch.float64,
            )
            for row, later in zip(paid, entropies, strict=True)
        ]
        return kit.reinforce(logprobs, kit.centred(returns))

    assert subject.gap(earned(where == "reward") + direct) < TIGHT
    for other in (earned(where != "reward") + direct, earned(True), earned(False)):
        assert subject.gap(other) > 1e-3


def test_the_reference_leaves_what_is_trained_as_it_is(tiny, kit):
    """Half of an adapter is frozen by its owner; switching it off and on must not thaw it."""
    plain, with_kl = (kit.Subject(tiny, lora=True, beta=beta, kl_in="loss") for beta in (0.0, 0.5))
    for subject in (plain, with_kl):
        for name, parameter in subject.model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
        before = list(subject.weights())
        subject.learner.step()
        assert list(subject.weights()) == before
