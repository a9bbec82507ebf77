"""Completions that another policy drew: the gradient is still that of the policy here.

By enumeration: every batch that the other policy can draw goes through a whole step, weighed by how
likely that policy is to draw it. And through real HTTP, against formulas written out here.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from rl4lm import ReinforceConfig, ReinforceTrainer, Rollout
from rl4lm.estimator.baselines import SCALES
from rl4lm.exact.enumeration import (
    PROMPTS,
    Rewards,
    all_completions,
    gradient_of_expectation,
    perturb,
    tiny_model,
    tiny_tokenizer,
)
from rl4lm.sampling.sampler import Draw
from rl4lm.screen.console import Screen

EXACT = 1e-9
WIDE = 1e9  # clips nothing
TEMPERATURE = 0.9


class Bench:
    """A trainer on the enumerable problem, whose completions another policy draws."""

    def __init__(self, generations: int, length: int, tokens: bool = False, **options: Any) -> None:
        self.completions = all_completions(length)
        self.rewards = Rewards.draw(self.completions, 0)
        paid = self.rewards.by_token if tokens else self.rewards.whole
        settings = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0, "dtype": "float64"}
        quiet = {"eval_samples": 0, "accuracy_func": None, "noise_every": 0, "max_steps": 10**6}
        self.trainer = ReinforceTrainer(
            model=tiny_model(0),
            reward_funcs=lambda prompts, completion_ids, **_: paid(prompts, completion_ids),
            args=ReinforceConfig(
                prompts_per_step=len(PROMPTS),
                num_generations=generations,
                max_completion_length=length,
                temperature=TEMPERATURE,
                **{**settings, **quiet, **options},
            ),
            train_dataset=[{"prompt": prompt} for prompt in PROMPTS],
            processing_class=tiny_tokenizer(),
            screen=Screen(quiet=True),
        )
        self.policy = self.trainer.policy
        self.generations = generations
        self.reference = copy.deepcopy(self.policy.module.model).eval()
        perturb(self.policy.trainable().values(), 1, 0.2)
        self.other = tiny_model(0).eval()
        perturb(self.other.parameters(), 2, 0.3)
        self.start = {n: p.detach().clone() for n, p in self.policy.trainable().items()}

    def log_mu(self, tiny: Any, model: Any) -> dict[tuple[str, tuple[int, ...]], torch.Tensor]:
        """(prompt, completion) -> log-probs [T] of a model."""
        with torch.no_grad():
            return {
                (q, o): tiny.naive_logprobs(model, ids, o, TEMPERATURE)
                for q, ids in zip(PROMPTS, ([1], [2, 1, 2]), strict=True)
                for o in self.completions
            }

    def expected(self, tiny: Any) -> torch.Tensor:
        """E over all batches of the other policy of how far a step moves the weights, upwards."""
        table = self.log_mu(tiny, self.other)
        rows = [q for q in PROMPTS for _ in range(self.generations)]
        total = torch.zeros(sum(p.numel() for p in self.start.values()), dtype=torch.float64)
        learner = self.trainer.learner
        for batch in itertools.product(self.completions, repeat=len(rows)):
            logprobs = [table[q, o] for q, o in zip(rows, batch, strict=True)]
            learner.gatherer.sampler = self._drawing(rows, batch, logprobs)
            learner.state = replace(learner.state, step=0)
            learner.step()
            moved = [p.detach() - self.start[n] for n, p in self.policy.trainable().items()]
            chance = torch.cat(logprobs).sum().exp()
            total += chance * torch.cat([part.flatten() for part in moved]) / 0.5
            with torch.no_grad():
                for name, parameter in self.policy.trainable().items():
                    parameter.copy_(self.start[name])
        return total

    def _drawing(self, rows: Any, batch: Any, logprobs: Any) -> Any:
        """A sampler that has drawn this batch, whatever the order of the prompts in the step."""
        drawn = list(zip(rows, batch, logprobs, strict=True))

        def sampler(draw: Draw, finished: Any = None) -> Rollout:
            names = ["t1" if list(ids) == [1] else "t2 t1 t2" for ids in draw.prompts]
            mine = [row for name in names for row in drawn if row[0] == name]
            prompts = [ids for ids in draw.prompts for _ in range(self.generations)]
            rollout = Rollout.from_lists(
                prompts, [list(o) for _, o, _ in mine], self.generations, [True] * len(mine)
            )
            values = torch.zeros(rollout.completion_mask.shape, dtype=torch.float64)
            values[rollout.completion_mask] = torch.cat([values for _, _, values in mine])
            return replace(rollout, sampling_logprobs=values)

        return sampler

    def truth(self, tiny: Any, beta: float = 0.0) -> torch.Tensor:
        """∇(J - β KL), by autograd through the probabilities."""
        model = copy.deepcopy(self.policy.module.model).eval()
        named = dict(model.named_parameters())
        leaves = {name: named[name] for name in self.policy.trainable()}
        reference = self.log_mu(tiny, self.reference)
        paid = self.rewards.per_token.sum(dim=-1)
        return gradient_of_expectation(
            model,
            leaves,
            self.completions,
            TEMPERATURE,
            lambda p, o, log_pi: (
                paid[p, o] - beta * (log_pi - reference[PROMPTS[p], self.completions[o]].sum())
            ),
        )


def off(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize(
    ("generations", "length", "baseline"),
    [
        (1, 2, "none"),
        (1, 2, "batch_mean"),
        (1, 2, "batch_leave_one_out"),
        (2, 1, "prompt_mean"),
        (2, 1, "prompt_leave_one_out"),
        (2, 1, "length_weighted"),
    ],
)
def test_with_the_ratio_the_expected_step_on_another_policys_completions_is_the_gradient(
    generations, length, baseline, tiny
):
    bench = Bench(generations, length, baseline=baseline, epsilon=WIDE)
    scale = SCALES[baseline](len(PROMPTS), generations)
    assert off(bench.expected(tiny), scale * bench.truth(tiny)) < EXACT


def test_rewards_per_token_and_their_kl_are_weighed_by_the_ratio_of_the_whole(tiny):
    bench = Bench(1, 2, tokens=True, baseline="none", epsilon=WIDE, beta=0.3, kl_in="token_reward")
    assert off(bench.expected(tiny), bench.truth(tiny, beta=0.3)) < EXACT


def test_without_the_ratio_it_is_not(tiny):
    bench = Bench(1, 2, baseline="none")
    assert off(bench.expected(tiny), bench.truth(tiny)) > 0.1


def test_with_a_narrow_clip_it_is_another_objective(tiny):
    bench = Bench(1, 2, baseline="none", epsilon=0.2)
    assert off(bench.expected(tiny), bench.truth(tiny)) > 1e-2


def test_a_kl_in_the_reward_is_that_of_the_policy_here(tiny):
    bench = Bench(1, 2, baseline="none", epsilon=WIDE, beta=0.3)
    found = bench.expected(tiny)
    assert off(found, bench.truth(tiny, beta=0.3)) < EXACT
    assert off(found, bench.truth(tiny)) > 1e-2


def test_a_kl_in_the_loss_would_be_averaged_over_the_wrong_policy(tiny):
    """Why `offpolicy` refuses it; options that name no server take it."""
    bench = Bench(1, 2, baseline="none", epsilon=WIDE, beta=0.3, kl_in="loss")
    assert off(bench.expected(tiny), bench.truth(tiny, beta=0.3)) > 1e-2


def served(tiny: Any, kit: Any, serving: Any, model: Any, **options: Any) -> Any:
    """A server for a model in the context, and a subject that trains on what it draws."""
    server = serving.Server(model, processed=True)
    with server:
        named = {"sampler_url": server.url, "sampler_model": "served"}
        subject = kit.Subject(tiny, **{**named, "epsilon": WIDE, **options})
        metrics = subject.step().metrics
    return subject, metrics


@pytest.fixture
def twin(tiny, kit):
    """The model that a subject begins with."""
    return tiny.build_model("gpt2", vocabulary=kit.VOCABULARY, dtype=torch.float64).eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
def test_a_server_with_the_same_weights_gives_the_first_step_of_plain_training(
    dtype, tolerance, tiny, kit, serving, twin
):
    model = twin.to(getattr(torch, dtype))
    subject, metrics = served(tiny, kit, serving, model, dtype=dtype, epsilon=0.2)
    assert subject.gap(kit.plain_loss(subject)) < tolerance
    for name in ("mean", "min", "max", "effective_share"):
        assert metrics[f"importance_ratio/{name}"] == pytest.approx(1.0, abs=tolerance)
    assert metrics["importance_ratio/reward"] == pytest.approx(metrics["reward"], abs=tolerance)
    assert metrics["importance_ratio/kl"] == pytest.approx(0.0, abs=tolerance)
    assert metrics["clip_ratio/region_mean"] == 0.0
    assert not [name for name in metrics if name.startswith("sampler_gap")]


def test_a_server_with_other_weights_is_corrected_for_by_the_ratio_of_the_sequence(
    tiny, kit, serving, twin
):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).double()
    subject, metrics = served(tiny, kit, serving, twin)
    r = subject.rewards
    advantages = [float(r[i]) - b for i, b in enumerate(kit.leave_one_out(r))]
    now, there = subject.logprobs(subject.before), subject.logprobs(twin)
    differences = [(new.sum() - old.sum()).item() for new, old in zip(now, there, strict=True)]
    ratios = torch.tensor(differences, dtype=torch.float64).exp()
    weighted = [float(ratio) * a for ratio, a in zip(ratios, advantages, strict=True)]
    assert subject.gap(kit.reinforce(now, weighted)) < 1e-10
    assert subject.gap(kit.plain_loss(subject)) > 1e-2, "without the ratio it is another gradient"
    assert metrics["importance_ratio/mean"] == pytest.approx(float(ratios.mean()))
    assert metrics["importance_ratio/kl"] == pytest.approx(-sum(differences) / kit.N)
    share = float(ratios.sum() ** 2 / ratios.square().sum() / kit.N)
    assert metrics["importance_ratio/effective_share"] == pytest.approx(share)
    assert 0.1 < share < 0.999
    expected = float((ratios * r).sum() / ratios.sum())
    assert metrics["importance_ratio/reward"] == pytest.approx(expected)
    assert metrics["reward"] == pytest.approx(float(r.mean()))
    assert abs(expected - float(r.mean())) > 1e-3
