"""All steps that there can be on the tiny problem: their mean and their spread, exactly.

A step draws a batch, and there are finitely many. The gradient is linear in what each completion
weighs, and what it weighs is an expectation over the batches that hold it. So one call of the
trainer's own gradient, on all completions with their expected weights, is E[-∇L] of a step.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from rl4lm.estimator.baselines import (
    BASELINES,
    KEEPS_HISTORY,
    NEEDS_TWO_GENERATIONS,
    SCALES,
    State,
)
from rl4lm.estimator.losses import TokenWeights, token_weights
from rl4lm.exact.enumeration import PROMPTS
from rl4lm.exact.testbed import Testbed, flat, from_start
from rl4lm.objective import direct_terms, total
from rl4lm.types import Drawing, Experience, Scores

_PAST_STEPS = 30  # that history-keeping baselines have seen where variances are compared


class Expectation:
    """A step of the trainer, as the policy and its baseline are now, over all batches."""

    def __init__(self, bed: Testbed) -> None:
        """Write the batches down.

        Args:
            bed: of which a history-keeping baseline has seen what it is to have seen.
        """
        self._bed = bed
        self._state = bed.learner.state.baseline_state
        self._chosen, self._probability = _batches(bed)  # [K, P, G] and [K]

    def gradient(self) -> Tensor:
        """E[-∇L] of a step by the trainer's own code: [D]."""
        bed = self._bed
        returns, scores = self._trainers_returns()
        start = from_start(self._chosen, returns)
        value = bed.own_baseline(start, self._chosen, self._state)
        factors, counts = self._trainers_factors(start)
        # Of each completion, over the slots that hold it: E[Σ b w/s], E[Σ w/s], E[Σ w].
        subtracted, scaled, slots = (
            self._over_slots(each) for each in (value * factors, factors, counts)
        )  # [P, n]
        weights = scaled[..., None] * returns - subtracted[..., None]  # [P, n, T]
        rows = len(bed.rollout.completion_ids)
        # `gradient` divides by the rows that it is given, and a step by its completions.
        advantages = (rows / bed.config.completions_per_step * weights).flatten(0, 1)
        gradient = bed.trainer.gradient(bed.rollout, advantages)
        return -flat(gradient) - self._direct_gradient(scores, slots)

    def stated(self) -> Tensor:
        """E[-∇L] by the documentation: [D]. By formula, or batch by batch where w/s is drawn."""
        if not self._bed.stated.is_shaped:
            return self._bed.stated.expected()
        return self._bed.stated.expected_over(self._chosen, self._probability, self._own_value())

    def spread(self, direction: Tensor) -> float:
        """Exact standard deviation of a step's -∇L along a direction [D]."""
        value = self._own_value()
        return self._bed.stated.spread(direction, self._chosen, self._probability, value)

    def variances(self) -> dict[str, float]:
        """Variance of a step's gradient with each baseline, over its scale², relative to `none`."""
        bed, rewards, found = self._bed, self._stated_start(), {}
        for name, baseline in BASELINES.items():
            if bed.config.num_generations > 1 or name not in NEEDS_TWO_GENERATIONS:
                value, _ = bed.baseline_of(baseline, rewards, self._chosen, self._past(name))
                scale = SCALES[name](len(PROMPTS), bed.config.num_generations)
                variance = bed.stated.variance(self._chosen, self._probability, value)
                found[name] = variance / scale**2
        return {name: value / found["none"] for name, value in found.items()}

    def _past(self, name: str) -> State:
        """The state of a baseline after some steps of this policy."""
        if name not in KEEPS_HISTORY:
            return {}
        generator = torch.Generator().manual_seed(self._bed.config.seed)
        state: State = {}
        for k in torch.multinomial(self._probability, _PAST_STEPS, True, generator=generator):
            chosen = self._chosen[k]
            rewards = from_start(chosen[None], self._bed.stated.returns)[0]
            _, state = self._bed.baseline_of(BASELINES[name], rewards, chosen, state)
        return state

    def _stated_start(self) -> Tensor:
        """The stated return of each completion of each batch, [K, P, G]."""
        return from_start(self._chosen, self._bed.stated.returns)

    def _own_value(self) -> Tensor:
        """The run's own baseline on the stated returns, [K, P, G]."""
        return self._bed.own_baseline(self._stated_start(), self._chosen, self._state)

    def _over_slots(self, values: Tensor) -> Tensor:
        """E[Σ over the slots of a batch that hold a completion] of values [K, P, G]: [P, n]."""
        result = torch.zeros(self._bed.truth.probability.shape, dtype=torch.float64)
        generations = self._bed.config.num_generations
        for p, g in itertools.product(range(len(PROMPTS)), range(generations)):
            result[p].index_add_(0, self._chosen[:, p, g], self._probability * values[:, p, g])
        return result

    def _trainers_factors(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """The trainer's own w/s and w of the completions of batches, [K, P, G] each."""
        bed, shaping = self._bed, self._bed.centre.shaping
        lengths, ended = bed.truth.mask.sum(dim=1), bed.stated.ended
        weights = shaping.weights(lengths[self._chosen], ended[self._chosen])
        valid = torch.ones_like(start, dtype=torch.bool)
        return weights / shaping.scales(start, valid), weights

    def _trainers_returns(self) -> tuple[Tensor, Scores]:
        """The trainer's own returns of all completions, [P, n, T], and the scores."""
        bed, earnings, task = self._bed, self._bed.centre.earnings, self._bed.trainer.task
        examples = task.train.examples(range(len(PROMPTS)))
        ids = bed.rollout.completion_lists()
        texts = bed.trainer.policy.codec.decode(ids)
        scores = task.judges.scorer(examples, texts, ids, bed.learner.context())
        policy = earnings.policy_logprobs(bed.rollout)
        reference = earnings.reference_logprobs(bed.rollout)
        returns = earnings.returns(bed.rollout, scores, policy, reference)
        if returns.dim() == 1:
            returns = torch.where(bed.rollout.completion_mask, returns[:, None], 0.0)
        return returns.view(bed.truth.logprobs.shape), scores

    def _direct_gradient(self, scores: Scores, slots: Tensor) -> Tensor:
        """E[∇] of the loss terms that do not go through the reward, by the trainer's code: [D].

        Args:
            scores: of all completions.
            slots: how many slots of a batch hold each of them, in expectation and weighed, [P, n].
        """
        bed, terms = self._bed, direct_terms(self._bed.config)
        if not terms:
            return torch.zeros(sum(p.numel() for p in bed.parameters.values())).double()
        sampled = bed.rollout.sampling_logprobs
        loss = total(terms, _experience(bed, scores))
        weights = token_weights(loss, sampled, torch.zeros_like(sampled))
        # Every process hands in all rows here, and their gradients are summed.
        times = slots.flatten()[:, None] / bed.trainer.world.size
        expected = TokenWeights(times * weights.logprobs, times * weights.entropies)
        return flat(bed.learner.backward.by_name(bed.rollout, expected))


def _batches(bed: Testbed) -> tuple[Tensor, Tensor]:
    """Every batch as completion indices [K, P, G], and its probability [K]."""
    group, count = bed.config.num_generations, len(bed.completions)
    places = torch.cartesian_prod(*[torch.arange(count)] * (len(PROMPTS) * group))
    chosen = places.view(-1, len(PROMPTS), group)
    probability = bed.truth.probability  # [P, n]
    each = torch.stack([probability[p][chosen[:, p]] for p in range(len(PROMPTS))], dim=1)
    return chosen, each.flatten(1).prod(dim=1)


def _experience(bed: Testbed, scores: Scores) -> Experience:
    """All completions as the experience of a step, for terms that no advantage goes into."""
    rows, rollout = len(bed.rollout.completion_ids), bed.rollout
    return Experience(
        examples=[],
        rollout=rollout,
        texts=[],
        scores=scores,
        measures=torch.zeros(0),
        returns=torch.zeros(rows),
        advantages=torch.zeros(rows),
        weights=torch.ones(rows).double(),
        policy_logprobs=rollout.sampling_logprobs,
        reference_logprobs=bed.centre.earnings.reference_logprobs(rollout),
        num_completions=bed.config.completions_per_step,
        places=range(len(rollout.prompt_ids)),
        keys=range(len(rollout.prompt_ids)),
        drawing=Drawing(completions=rows, tokens=0),
    )
