"""A real trainer on the tiny problem of `rl4lm.exact.enumeration`: what it does, in numbers.

The left hand of every comparison that `verify` makes: the trainer's own code, run as it is. The
right hand is in `rl4lm.exact.stated`.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rl4lm.config import ReinforceConfig
from rl4lm.estimator.baselines import (
    BASELINES,
    KEEPS_HISTORY,
    NEEDS_TWO_GENERATIONS,
    SCALES,
    BaselineInputs,
    State,
)
from rl4lm.estimator.losses import token_weights
from rl4lm.exact.enumeration import (
    PROMPTS,
    Rewards,
    Truth,
    all_completions,
    gradient_of_expectation,
    measure,
    perturb,
    tiny_model,
    tiny_tokenizer,
)
from rl4lm.exact.stated import Stated
from rl4lm.objective import direct_terms, total
from rl4lm.screen.console import Screen
from rl4lm.trainer import ReinforceTrainer
from rl4lm.types import Drawing, Experience, Rollout, Scores

_PAST_STEPS = 30  # that history-keeping baselines have seen where variances are compared
_WINDOWS = 6  # samplings whose second update is compared, where there is one


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


class Testbed:
    """The trainer on the tiny problem, beside the truth about it."""

    def __init__(self, config: ReinforceConfig, token_rewards: bool) -> None:
        """Make both.

        Args:
            config: fits the tiny problem; steps are plain SGD, so that they show the gradient.
            token_rewards: pay every token apart.
        """
        self.config = config
        self.completions = all_completions(config.max_completion_length)
        self.rewards = Rewards.draw(self.completions, config.seed)
        self._token_rewards = token_rewards
        self.trainer = self._make_trainer(tiny_model(config.seed), config)
        self.learner = self.trainer.learner
        self.parameters = self.trainer.policy.trainable()
        self._reference = self._bare_model()  # before the policy leaves it
        perturb(self.parameters.values(), config.seed + 1, 0.2)
        self.model = self._bare_model()
        self.truth = self.measure()
        self.rollout = self._all_completions()
        self.stated = Stated(config, self.truth, self.rewards, token_rewards)
        self._features = self.trainer.policy.prompt_features(
            self.rollout.prompt_ids, self.rollout.prompt_mask
        )  # of the policy as it is now; steps are taken back

    def _make_trainer(self, model: Any, config: ReinforceConfig) -> ReinforceTrainer:
        reward = self.rewards.by_token if self._token_rewards else self.rewards.whole

        def table(prompts: Any, completion_ids: Any, **_: Any) -> Any:
            return reward(prompts, completion_ids)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out")  # peft, of GPT-2's layers
            return ReinforceTrainer(
                model=model,
                reward_funcs=table,
                args=config,
                train_dataset=[{"prompt": prompt} for prompt in PROMPTS],
                processing_class=tiny_tokenizer(),
                screen=Screen(quiet=True),
            )

    def _bare_model(self) -> Any:
        """A copy of the policy's model as it is now, on the CPU: the truth is worked out there."""
        return copy.deepcopy(self.trainer.policy.module.model).cpu().eval()

    def measure(self) -> Truth:
        """The policy as it is now, written down through a bare model with its weights."""
        model = self._bare_model()
        named = dict(model.named_parameters())
        leaves = {name: named[name] for name in self.parameters}
        return measure(model, leaves, self._reference, self.completions, self.config.temperature)

    def _all_completions(self) -> Rollout:
        """Every completion of every prompt as one rollout, in the order of the truth."""
        prompts = self.trainer.policy.codec.encode(PROMPTS)
        rollout = Rollout.from_lists(
            [ids for ids in prompts for _ in self.completions],
            [list(ids) for _ in prompts for ids in self.completions],
            num_generations=len(self.completions),
        )
        logprobs = self.trainer.policy.completion_logprobs(rollout, self.config.temperature)
        return replace(rollout, sampling_logprobs=logprobs)

    def logprob_error(self) -> float:
        """Largest difference of the policy's log-probs from the truth."""
        truth = self.truth.logprobs.flatten(0, 1)  # [P·n, T]
        return float((self.rollout.sampling_logprobs - truth).abs().max())

    def _batches(self) -> tuple[Tensor, Tensor]:
        """Every batch as completion indices [K, P, G], and its probability [K]."""
        group, count = self.config.num_generations, len(self.completions)
        places = torch.cartesian_prod(*[torch.arange(count)] * (len(PROMPTS) * group))
        chosen = places.view(-1, len(PROMPTS), group)
        probability = self.truth.probability  # [P, n]
        each = torch.stack([probability[p][chosen[:, p]] for p in range(len(PROMPTS))], dim=1)
        return chosen, each.flatten(1).prod(dim=1)

    def _baseline(self, name: str, rewards: Tensor, chosen: Tensor, state: State) -> Any:
        """A baseline of the trainer's on batches [..., P, G]: values and new state."""
        inputs = BaselineInputs(
            lengths=self.truth.mask.sum(dim=1)[chosen],
            valid=torch.ones_like(rewards, dtype=torch.bool),
            prompt_keys=torch.arange(len(PROMPTS)),
            prompt_features=self._features,
        )
        baseline = self.learner.gatherer.centre.baseline if name == "own" else BASELINES[name]
        return baseline(rewards, inputs, state)

    def _from_start(self, chosen: Tensor, returns: Tensor) -> Tensor:
        """The return of each completion of each batch, [K, P, G], of returns [P, n, T]."""
        return torch.stack([returns[p, chosen[:, p], 0] for p in range(len(PROMPTS))], dim=1)

    def _trainers_factors(self, chosen: Tensor, returns: Tensor) -> tuple[Tensor, Tensor]:
        """The trainer's own w/s and w of the completions of batches, [..., P, G] each."""
        shaping, lengths = self.learner.gatherer.centre.shaping, self.truth.mask.sum(dim=1)
        weights = shaping.weights(lengths[chosen], self.stated.ended[chosen])
        valid = torch.ones_like(returns, dtype=torch.bool)
        return weights / shaping.scales(returns, valid), weights

    def _trainers_returns(self) -> tuple[Tensor, Scores]:
        """The trainer's own returns of all completions, [P, n, T], and the scores."""
        examples = self.trainer.task.train.examples(range(len(PROMPTS)))
        ids = self.rollout.completion_lists()
        scorer = self.trainer.task.judges.scorer
        scores = scorer(
            examples, self.trainer.policy.codec.decode(ids), ids, self.learner.context()
        )
        gatherer = self.learner.gatherer
        policy = gatherer.centre.earnings.policy_logprobs(self.rollout)
        reference = gatherer.centre.earnings.reference_logprobs(self.rollout)
        returns = gatherer.centre.earnings.returns(self.rollout, scores, policy, reference)
        if returns.dim() == 1:
            returns = torch.where(self.rollout.completion_mask, returns[:, None], 0.0)
        return returns.view(self.truth.logprobs.shape), scores

    def expected_gradient(self) -> Tensor:
        """E[-∇L] of a step by the trainer's own code, over all batches: [D]."""
        returns, scores = self._trainers_returns()
        chosen, probability = self._batches()
        start = self._from_start(chosen, returns)
        value, _ = self._baseline("own", start, chosen, self.learner.state.baseline_state)
        factors, counts = self._trainers_factors(chosen, start)
        # Of each completion, over the slots that hold it: E[Σ b w/s], E[Σ w/s], E[Σ w].
        subtracted, scaled, slots = (
            self._over_slots(each, chosen, probability)
            for each in (value * factors, factors, counts)
        )  # [P, n]
        weights = scaled[..., None] * returns - subtracted[..., None]  # [P, n, T]
        rows = len(self.rollout.completion_ids)
        # `gradient` divides by the rows that it is given, and a step by its completions.
        advantages = (rows / self.config.completions_per_step * weights).flatten(0, 1)
        gradient = self.trainer.gradient(self.rollout, advantages)
        return -_flat(gradient) - self._expected_direct_gradient(scores, slots)

    def _over_slots(self, values: Tensor, chosen: Tensor, probability: Tensor) -> Tensor:
        """E[Σ over the slots of a batch that hold a completion] of values [K, P, G]: [P, n]."""
        total = torch.zeros(self.truth.probability.shape, dtype=torch.float64)
        for p, g in itertools.product(range(len(PROMPTS)), range(self.config.num_generations)):
            total[p].index_add_(0, chosen[:, p, g], probability * values[:, p, g])
        return total

    def stated_gradient(self) -> Tensor:
        """E[-∇L] by the documentation: [D]. By formula, or batch by batch where w/s is drawn."""
        if not self.stated.is_shaped:
            return self.stated.expected()
        chosen, probability = self._batches()
        start = self._from_start(chosen, self.stated.returns)
        value, _ = self._baseline("own", start, chosen, self.learner.state.baseline_state)
        return self.stated.expected_over(chosen, probability, value)

    def _expected_direct_gradient(self, scores: Scores, slots: Tensor) -> Tensor:
        """E[∇] of the loss terms that do not go through the reward, by the trainer's code: [D]."""
        terms, rows = direct_terms(self.config), len(self.rollout.completion_ids)
        if not terms:
            return torch.zeros(sum(p.numel() for p in self.parameters.values())).double()
        experience = Experience(
            examples=[],
            rollout=self.rollout,
            texts=[],
            scores=scores,
            measures=torch.zeros(0),
            returns=torch.zeros(rows),
            advantages=torch.zeros(rows),
            weights=torch.ones(rows).double(),
            policy_logprobs=self.rollout.sampling_logprobs,
            reference_logprobs=self.learner.gatherer.centre.earnings.reference_logprobs(
                self.rollout
            ),
            num_completions=self.config.completions_per_step,
            places=range(len(self.rollout.prompt_ids)),
            keys=range(len(self.rollout.prompt_ids)),
            drawing=Drawing(completions=rows, tokens=0),
        )
        sampled = self.rollout.sampling_logprobs
        weights = token_weights(total(terms, experience), sampled, torch.zeros_like(sampled))
        # Every process hands in all rows here, and their gradients are summed.
        times = slots.flatten()[:, None] / self.trainer.world.size
        expected = replace(
            weights, logprobs=times * weights.logprobs, entropies=times * weights.entropies
        )
        return _flat(self.learner.backward.by_name(self.rollout, expected))

    def spread(self, direction: Tensor) -> float:
        """Exact standard deviation of a step's -∇L along a direction [D], by the present state."""
        chosen, probability = self._batches()
        rewards = self._from_start(chosen, self.stated.returns)
        value, _ = self._baseline("own", rewards, chosen, self.learner.state.baseline_state)
        return self.stated.spread(direction, chosen, probability, value)

    def true_gradient(self) -> Tensor:
        """∇J [D] by autograd through the probabilities."""
        named = dict(self.model.named_parameters())
        reference, earned = self.truth.reference.sum(dim=-1), self.rewards.per_token.sum(dim=-1)

        def value(p: int, o: int, log_pi: Tensor) -> Tensor:
            divergence = log_pi - reference[p, o]
            return earned[p, o] - self.config.beta * divergence - self.config.entropy_coef * log_pi

        return gradient_of_expectation(
            self.model,
            {name: named[name] for name in self.parameters},
            self.completions,
            self.config.temperature,
            value,
        )

    def run_whole_batches(self, count: int) -> Batches:
        """Complete steps on batches that the trainer draws, each beside its prediction."""
        start = self._weights()
        found, predicted, later = [], [], []
        for k in range(count):
            state = self.learner.state.baseline_state
            stats = self.learner.step()
            rows = self.trainer.world.gather_lists(stats.completions)
            batch = self._stated_batch(rows, state)
            found.append(self._moved(start))
            predicted.append(self.stated.of_batch(*batch, self.truth))
            for iteration in range(1, self.config.num_iterations):
                if k < _WINDOWS and iteration == 1:
                    before, now = self._weights(), self.measure()
                    self.learner.step()
                    later.append((self._moved(before), self.stated.of_batch(*batch, now)))
                else:
                    self.learner.step()
            self._put_back(start)
        return Batches(torch.stack(found), torch.stack(predicted), later)

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _stated_batch(self, rows: Any, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of logged completions by the truth: places p, o [B], advantages [B, T], weights [B]."""
        p = torch.tensor([PROMPTS.index(row["prompt"]) for row in rows])
        o = torch.tensor([self.completions.index(tuple(row["completion_ids"])) for row in rows])
        group = self.config.num_generations
        order = p[::group].argsort()  # the baselines of this file take the prompts in order
        chosen = o.view(-1, group)[order]
        rewards = self._from_start(chosen[None], self.stated.returns)[0]
        value, _ = self._baseline("own", rewards, chosen, state)
        factors, weights = self.stated.factors(chosen, rewards)
        back, scaled, counts = (
            each[order.argsort()].flatten() for each in (value, factors, weights)
        )
        return p, o, scaled[:, None] * (self.stated.returns[p, o] - back[:, None]), counts

    def _moved(self, before: Mapping[str, Tensor]) -> Tensor:
        """How far the weights went in a step, per unit of learning rate: [D]."""
        way = {name: p.detach() - before[name] for name, p in self.parameters.items()}
        return _flat(way) / self.config.learning_rate

    @torch.no_grad()
    def _put_back(self, start: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(start[name])

    def draw(self, count: int) -> list[Draws]:
        """Draw completions of each prompt from the trainer's own sampler."""
        many = replace(self.config, num_generations=count, num_iterations=1, beta=0.0)
        gatherer = self._make_trainer(self.trainer.policy.module.model, many).learner.gatherer
        deal, examples = gatherer.deal(gatherer.prompt_keys(0))
        drawn = gatherer.sample(examples, 0, deal.mine)
        o = torch.tensor([self.completions.index(tuple(i)) for i in drawn.completion_lists()])
        found = []
        for k, example in enumerate(examples):
            rows = slice(k * count, (k + 1) * count)
            p = PROMPTS.index(str(example.prompt))
            exact = self.truth.logprobs[p, o[rows]][:, : drawn.sampling_logprobs.shape[1]]
            gap = float((drawn.sampling_logprobs[rows] - exact).abs().max())
            found.append(Draws(o[rows], self.truth.probability[p], gap))
        return self.trainer.world.gather_lists(found)

    def variances(self) -> dict[str, float]:
        """Variance of a step's gradient with each baseline, over its scale², relative to `none`."""
        chosen, probability = self._batches()
        rewards = self._from_start(chosen, self.stated.returns)
        found = {}
        for name in BASELINES:
            if self.config.num_generations > 1 or name not in NEEDS_TWO_GENERATIONS:
                value, _ = self._baseline(name, rewards, chosen, self._past(name, probability))
                scale = SCALES[name](len(PROMPTS), self.config.num_generations)
                found[name] = self.stated.variance(chosen, probability, value) / scale**2
        return {name: value / found["none"] for name, value in found.items()}

    def _past(self, name: str, probability: Tensor) -> State:
        """The state of a baseline after some steps of this policy."""
        if name not in KEEPS_HISTORY:
            return {}
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen, _ = self._batches()
        state: State = {}
        for k in torch.multinomial(probability, _PAST_STEPS, True, generator=generator):
            rewards = self._from_start(chosen[k][None], self.stated.returns)[0]
            _, state = self._baseline(name, rewards, chosen[k], state)
        return state


def _flat(gradient: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in gradient.values()]).cpu()
