"""Whole steps of the trainer on the tiny problem, and completions that its sampler draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rl4lm.estimator.baselines import State
from rl4lm.exact.enumeration import PROMPTS
from rl4lm.exact.testbed import Testbed, flat, from_start

_WINDOWS = 6  # samplings whose second update is compared, where there is one

_Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # as `Stated.of_batch` takes it


@dataclass(frozen=True)
class Batches:
    """What whole steps did, beside what was predicted."""

    found: Tensor  # [K, D], -∇L of each first update
    predicted: Tensor  # [K, D]
    later: list[tuple[Tensor, Tensor]]  # (found, predicted) of second updates


@dataclass(frozen=True)
class Draws:
    """Completions of one prompt, drawn by the trainer's sampler."""

    completions: Tensor  # int64 [m], indices of completions
    probability: Tensor  # float64 [n], of each completion, exactly
    gap: float  # largest difference of a token's log-prob at sampling time from the truth


def run_whole_batches(bed: Testbed, count: int) -> Batches:
    """Complete steps on batches that the trainer draws, each beside its prediction."""
    start = _weights(bed)
    found, predicted, later = [], [], []
    for k in range(count):
        state = bed.learner.state.baseline_state
        stats = bed.learner.step()
        batch = _stated_batch(bed, bed.trainer.world.gather_lists(stats.completions), state)
        found.append(_moved(bed, start))
        predicted.append(bed.stated.of_batch(*batch, bed.truth))
        if k < _WINDOWS and bed.config.num_iterations > 1:
            later.append(_second_update(bed, batch))
        while bed.learner.in_window:
            bed.learner.step()
        _put_back(bed, start)
    return Batches(torch.stack(found), torch.stack(predicted), later)


def _second_update(bed: Testbed, batch: _Batch) -> tuple[Tensor, Tensor]:
    """-∇L [D] of a further update on a batch, found and predicted from where it begins."""
    before, now = _weights(bed), bed.measure()
    bed.learner.step()
    return _moved(bed, before), bed.stated.of_batch(*batch, now)


def _weights(bed: Testbed) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in bed.parameters.items()}


def _stated_batch(bed: Testbed, rows: Any, state: State) -> _Batch:
    """Of logged completions by the truth: places p, o [B], advantages [B, T], weights [B]."""
    p = torch.tensor([PROMPTS.index(row["prompt"]) for row in rows])
    o = torch.tensor([bed.completions.index(tuple(row["completion_ids"])) for row in rows])
    group, returns = bed.config.num_generations, bed.stated.returns
    order = p[::group].argsort()  # the baselines of the testbed take the prompts in order
    chosen = o.view(-1, group)[order]
    rewards = from_start(chosen[None], returns)[0]
    value = bed.own_baseline(rewards, chosen, state)
    factors, weights = bed.stated.factors(chosen, rewards)
    back, scaled, counts = (each[order.argsort()].flatten() for each in (value, factors, weights))
    return p, o, scaled[:, None] * (returns[p, o] - back[:, None]), counts


def _moved(bed: Testbed, before: Mapping[str, Tensor]) -> Tensor:
    """How far the weights went in a step, per unit of learning rate: [D]."""
    way = {name: p.detach() - before[name] for name, p in bed.parameters.items()}
    return flat(way) / bed.config.learning_rate


@torch.no_grad()
def _put_back(bed: Testbed, start: Mapping[str, Tensor]) -> None:
    for name, parameter in bed.parameters.items():
        parameter.copy_(start[name])


def draw(bed: Testbed, count: int) -> list[Draws]:
    """Draw completions of each prompt from the trainer's own sampler."""
    many = replace(bed.config, num_generations=count, num_iterations=1, beta=0.0)
    gatherer = bed.make_trainer(bed.trainer.policy.module.model, many).learner.gatherer
    deal, examples = gatherer.deal(gatherer.prompt_keys(0))
    drawn = gatherer.sample(examples, 0, deal.mine)
    o = torch.tensor([bed.completions.index(tuple(i)) for i in drawn.completion_lists()])
    found = []
    for k, example in enumerate(examples):
        rows = slice(k * count, (k + 1) * count)
        p = PROMPTS.index(str(example.prompt))
        exact = bed.truth.logprobs[p, o[rows]][:, : drawn.sampling_logprobs.shape[1]]
        gap = float((drawn.sampling_logprobs[rows] - exact).abs().max())
        found.append(Draws(o[rows], bed.truth.probability[p], gap))
    return bed.trainer.world.gather_lists(found)
