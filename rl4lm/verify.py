"""Whether the trainer's gradient is that of the stated objective: by enumeration, on a tiny model.

    rl4lm verify [--config FILE] [--option value ...] [--all] [--json]

A real `ReinforceTrainer`, with the user's estimator options, works on the problem of
`rl4lm.enumeration`, whose every completion has been written down. Nothing of the trainer is copied
here: its sampler, its scoring, its baselines, losses, micro-batches and optimizer step are run as
they are, and what they do is compared with what autograd through the probabilities says.

The expected gradient is linear in the weight of each completion, and a weight is an expectation
over all batches, which the vectorised baselines give exactly. So the whole distribution of steps is
checked by (1) one call of `trainer.gradient` on all completions with their expected weights, and
(2) whole batches through the complete step, each of which must be what linearity predicts.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rl4lm.baselines import (
    BASELINES,
    KEEPS_HISTORY,
    NEEDS_TWO_GENERATIONS,
    SCALES,
    BaselineInputs,
    State,
)
from rl4lm.config import ReinforceConfig
from rl4lm.console import Screen
from rl4lm.enumeration import (
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
from rl4lm.losses import token_weights
from rl4lm.objective import direct_terms, total
from rl4lm.trainer import ReinforceTrainer
from rl4lm.types import Experience, Rollout, Scores

LIMIT = 1e-9  # relative error that float64 rounding stays far below
WHOLE_BATCHES = 50
DRAWS = 2000  # completions of each prompt drawn to test the sampler
_WINDOWS = 6  # samplings whose second update is checked, where there is one
_MOST_BATCHES = 120_000  # enumerated; completions are one token shorter where there would be more
_MOST_GENERATIONS = 3
_LEAST_P = 1e-6  # of the chi-square test
_MOST_Z = 5.0  # standard errors that a mean may be off
_LEARNING_RATE = 0.5
_PAST_STEPS = 30  # that history-keeping baselines have seen where variances are compared


@dataclass(frozen=True)
class Check:
    """One comparison: what was found, and what it must not exceed (or, for p, fall below)."""

    name: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Report:
    """What `verify` found about one set of options."""

    options: Mapping[str, Any]
    verdict: str  # "exact", "another objective" or "failed"
    objective: str  # J, in words
    scale: float  # expected gradient = scale · ∇J
    why: str  # why it is another objective; empty where it is not
    cosine: float  # of the expected gradient to ∇J
    residual: float  # ‖expected / scale - ∇J‖ / ‖∇J‖
    checks: tuple[Check, ...]
    variance: Mapping[str, float]  # baseline -> variance of a step's gradient relative to `none`

    @property
    def passed(self) -> bool:
        """Whether the gradient is that of the stated objective; never so for another one."""
        return self.verdict == "exact"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "verdict": self.verdict,
            "passed": self.passed,
            "objective": self.objective,
            "scale": self.scale,
            "why": self.why,
            "cosine": self.cosine,
            "residual": self.residual,
            "checks": [vars(check) for check in self.checks],
            "variance": dict(self.variance),
            "options": dict(self.options),
        }


def verify(config: ReinforceConfig, token_rewards: bool = False, variances: bool = True) -> Report:
    """Check the estimator that a configuration asks for.

    Args:
        config: its baseline, temperature, LoRA, KL, entropy, discount and clip are taken; model,
            data, rewards and optimizer are the tiny problem's.
        token_rewards: pay every token apart, instead of the completion as a whole.
        variances: compare the variances of all baselines too.

    Returns:
        The checks and the verdict.
    """
    setting = _setting(config)
    bench = _Bench(setting, token_rewards)
    batches = bench.run_whole_batches()  # first: it gives baselines a history
    expected = bench.expected_gradient()
    stated, truth = bench.stated_gradient(), bench.true_gradient()
    scale = SCALES[setting.resolved_baseline](len(PROMPTS), setting.num_generations)
    why = "; ".join(_reasons(setting, scale))
    residual = _relative(expected / scale, truth)
    checks = [
        _at_most("log-probs of every completion", bench.logprob_error(), LIMIT),
        _at_most("expected gradient against the stated one", _relative(expected, stated), LIMIT),
        *([] if why else [_at_most("expected gradient against ∇J", residual, LIMIT)]),
        *batches.checks(stated),
        *bench.check_sampler(),
    ]
    failed = not all(check.passed for check in checks)
    return Report(
        options=_shown(setting, token_rewards),
        verdict="failed" if failed else "another objective" if why else "exact",
        objective=_objective(setting, token_rewards),
        scale=scale,
        why=why,
        cosine=float(torch.cosine_similarity(expected, truth, dim=0)),
        residual=residual,
        checks=tuple(checks),
        variance=bench.variances() if variances else {},
    )


def every_case(config: ReinforceConfig) -> Iterator[tuple[ReinforceConfig, bool]]:
    """Every baseline and estimator option: (configuration, rewards per token)."""
    off = {"gamma": 1.0, "beta": 0.0, "entropy_coef": 0.0, "num_iterations": 1, "epsilon": None}
    for use_peft, temperature in itertools.product((False, True), (1.0, 0.7)):
        base = replace(config, **off, use_peft=use_peft, temperature=temperature, baseline="none")
        for generations, name in itertools.product((1, 2, 3), BASELINES):
            if generations > 1 or name not in NEEDS_TWO_GENERATIONS:
                yield replace(base, baseline=name, num_generations=generations), False
    for use_peft in (False, True):
        base = replace(
            config, **off, use_peft=use_peft, temperature=0.7, baseline="auto", num_generations=2
        )
        yield base, True
        for form in ("reward", "token_reward", "loss", "grpo_k3"):
            yield replace(base, beta=0.3, kl_in=form), False
        for place in ("reward", "loss"):
            yield replace(base, entropy_coef=0.3, entropy_in=place), False
        yield replace(base, beta=0.3, kl_in="token_reward", entropy_coef=0.2), True
        yield replace(base, gamma=0.9), True
        yield replace(base, num_iterations=2), False


def _setting(config: ReinforceConfig) -> ReinforceConfig:
    """The user's estimator on the tiny problem, stepped by plain SGD so that a step shows ∇L."""
    generations = min(config.num_generations, _MOST_GENERATIONS)
    return replace(
        config,
        model_name_or_path="given in Python",
        dtype="float64",
        attn_implementation=None,
        lora_target_modules=None,
        dataset_test_split=None,
        prompt_column="prompt",
        max_prompt_length=None,
        reward_funcs=["rewards.arithmetic:exact_answer"],
        reward_weights=None,
        accuracy_func=None,
        prompts_per_step=len(PROMPTS),
        num_generations=generations,
        max_completion_length=_longest(len(PROMPTS) * generations),
        stop_strings=[],
        stop_token_ids=[],
        optim="sgd",
        learning_rate=_LEARNING_RATE,
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_steps=10**6,
        max_tokens_per_micro_batch=16,  # so that a batch is cut into several
        output_dir=None,
        eval_samples=0,
        noise_every=3,  # so that steps differentiated in halves are checked too
        torch_threads=None,
    )


def _longest(batch: int) -> int:
    """The longest completions for which all batches of `batch` completions can be enumerated."""
    length = 3
    while length > 1 and len(all_completions(length)) ** batch > _MOST_BATCHES:
        length -= 1
    return length


def _reasons(config: ReinforceConfig, scale: float) -> Iterator[str]:
    """Why a configuration follows another objective than J, by design."""
    if config.beta and config.kl_in == "grpo_k3":
        yield "k3 in the loss is not the gradient of the KL divergence"
    if config.entropy_coef and config.entropy_in == "loss":
        yield "the direct term alone is a regulariser, not the gradient of the entropy"
    if config.gamma < 1:
        yield "discounted returns-to-go are the gradient of no function of the weights"
    if config.resolved_epsilon is not None:
        yield "from the second update on the completions are clipped; the first is exact"
    if scale != 1 and direct_terms(config):
        yield f"the baseline shrinks the reward's part to {scale:.3g}, and the loss's part not"


def _objective(config: ReinforceConfig, token_rewards: bool) -> str:
    """J in words."""
    terms = ["E[Σ_t r_t]" if token_rewards else "E[r]"]
    if config.beta:
        terms.append(f"- {config.beta:g} KL(π‖π_ref)")
    if config.entropy_coef:
        terms.append(f"+ {config.entropy_coef:g} H(π)")
    return " ".join(terms)


def _shown(config: ReinforceConfig, token_rewards: bool) -> dict[str, Any]:
    names = ["num_generations", "temperature", "use_peft", "gamma", "beta", "kl_in"]
    names += ["entropy_coef", "entropy_in", "num_iterations", "epsilon", "seed"]
    return {
        "baseline": config.resolved_baseline,
        **{name: getattr(config, name) for name in names},
        "token_rewards": token_rewards,
        "completions_of_a_prompt": len(all_completions(config.max_completion_length)),
    }


class _Bench:
    """The trainer on the tiny problem, beside the truth about it."""

    def __init__(self, config: ReinforceConfig, token_rewards: bool) -> None:
        self.config = config
        self.completions = all_completions(config.max_completion_length)
        self.rewards = Rewards.draw(self.completions, config.seed)
        self._token_rewards = token_rewards
        self.trainer = self._make_trainer(tiny_model(config.seed), config)
        self.learner = self.trainer._learner
        self.parameters = self.trainer.policy.trainable()
        model = self.trainer.policy.module.model
        self._reference = copy.deepcopy(model)  # before the policy leaves it
        perturb(self.parameters.values(), config.seed + 1, 0.2)
        self.model = copy.deepcopy(model)
        self.truth = self.measure()
        self.rollout = self._all_completions()
        self.returns = self._exact_returns()  # [P, n, T]

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

    def measure(self) -> Truth:
        """The policy as it is now, written down through a bare model with its weights."""
        model = copy.deepcopy(self.trainer.policy.module.model).eval()
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

    def _exact_returns(self) -> Tensor:
        """What each token is answerable for, [P, n, T], by its definition."""
        config, truth = self.config, self.truth
        paid = torch.zeros_like(truth.logprobs)
        for o, ids in enumerate(self.completions):
            last = len(ids) - 1
            earned, ratio = (
                self.rewards.per_token[:, o],
                truth.logprobs[:, o] - truth.reference[:, o],
            )
            if self._token_rewards:
                paid[:, o] += earned
            else:
                paid[:, o, last] += earned.sum(dim=1)
            if config.kl_in == "reward":
                paid[:, o, last] -= config.beta * ratio.sum(dim=1)
            if config.kl_in == "token_reward":
                paid[:, o] -= config.beta * ratio
            if config.entropy_in == "reward":
                paid[:, o, :last] += config.entropy_coef * truth.entropies[:, o, 1 : last + 1]
        width = paid.shape[-1]
        powers = [
            [config.gamma ** (k - t) if k >= t else 0.0 for k in range(width)] for t in range(width)
        ]
        return (paid @ torch.tensor(powers, dtype=torch.float64).T) * truth.mask

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
        features = self.trainer.policy.prompt_features(
            self.rollout.prompt_ids, self.rollout.prompt_mask
        )
        inputs = BaselineInputs(
            lengths=self.truth.mask.sum(dim=1)[chosen],
            valid=torch.ones_like(rewards, dtype=torch.bool),
            prompt_keys=torch.arange(len(PROMPTS)),
            prompt_features=features,
        )
        baseline = self.learner.gatherer.baseline if name == "own" else BASELINES[name]
        return baseline(rewards, inputs, state)

    def _from_start(self, chosen: Tensor, returns: Tensor) -> Tensor:
        """The return of each completion of each batch, [K, P, G], of returns [P, n, T]."""
        return torch.stack([returns[p, chosen[:, p], 0] for p in range(len(PROMPTS))], dim=1)

    def _trainers_returns(self) -> tuple[Tensor, Scores]:
        """The trainer's own returns of all completions, [P, n, T], and the scores."""
        examples = self.trainer.task.train.examples(range(len(PROMPTS)))
        ids = self.rollout.completion_lists()
        scorer = self.trainer.task.judges.scorer
        scores = scorer(
            examples, self.trainer.policy.codec.decode(ids), ids, self.learner.context()
        )
        gatherer = self.learner.gatherer
        returns = gatherer.returns(self.rollout, scores, gatherer.reference_logprobs(self.rollout))
        if returns.dim() == 1:
            returns = torch.where(self.rollout.completion_mask, returns[:, None], 0.0)
        return returns.view(self.truth.logprobs.shape), scores

    def expected_gradient(self) -> Tensor:
        """E[-∇L] of a step by the trainer's own code, over all batches: [D]."""
        returns, scores = self._trainers_returns()
        chosen, probability = self._batches()
        value, _ = self._baseline(
            "own", self._from_start(chosen, returns), chosen, self.learner.state.baseline_state
        )
        # Of each completion: E[Σ b] over the slots that hold it, and E[slots that hold it].
        subtracted = torch.zeros(self.truth.probability.shape, dtype=torch.float64)
        for p, g in itertools.product(range(len(PROMPTS)), range(self.config.num_generations)):
            subtracted[p].index_add_(0, chosen[:, p, g], probability * value[:, p, g])
        slots = self.config.num_generations * self.truth.probability  # [P, n]
        weights = slots[..., None] * returns - subtracted[..., None]  # [P, n, T]
        rows = len(self.rollout.completion_ids)
        share = (
            rows / self.config.completions_per_step
        )  # `gradient` divides by the rows it is given
        advantages = (share * weights).flatten(0, 1)
        gradient = self.trainer.gradient(self.rollout, advantages)
        return -_flat(gradient) - self._expected_direct_gradient(scores, slots)

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
            reference_logprobs=self.learner.gatherer.reference_logprobs(self.rollout),
            num_completions=self.config.completions_per_step,
            first_completion=0,
        )
        sampled = self.rollout.sampling_logprobs
        weights = token_weights(total(terms, experience), sampled, torch.zeros_like(sampled))
        times = slots.flatten()[:, None]
        expected = replace(
            weights, logprobs=times * weights.logprobs, entropies=times * weights.entropies
        )
        return _flat(self.learner.gradient_of(self.rollout, expected))

    def stated_gradient(self) -> Tensor:
        """E[-∇L] as the documentation states it, from the truth alone: [D]."""
        truth, config = self.truth, self.config
        weight = truth.probability[..., None] / len(PROMPTS)  # [P, n, 1]
        scale = SCALES[config.resolved_baseline](len(PROMPTS), config.num_generations)
        seen = (1 - scale) * self.returns[..., :1]  # what a mean that sees its own sample takes off
        direct = _direct_weights(config, truth)
        slopes = ((self.returns - seen + direct) * weight)[..., None] * truth.slopes
        entropic = config.entropy_coef * weight[..., None] * truth.entropy_slopes
        return slopes.sum(dim=(0, 1, 2)) + entropic.sum(dim=(0, 1, 2))

    def true_gradient(self) -> Tensor:
        """∇J [D] by autograd through the probabilities."""
        named = dict(self.model.named_parameters())
        reference, earned = self.truth.reference.sum(dim=-1), self.rewards.per_token.sum(dim=-1)

        def value(p: int, o: int, log_pi: Tensor) -> Tensor:
            divergence = log_pi - reference[p, o]
            return earned[p, o] - self.config.beta * divergence - self.config.entropy_coef * log_pi

        return gradient_of_expectation(
            self.model.eval(),
            {name: named[name] for name in self.parameters},
            self.completions,
            self.config.temperature,
            value,
        )

    def run_whole_batches(self) -> _Batches:
        """Complete steps on batches that the trainer draws, each beside its prediction."""
        start = {name: p.detach().clone() for name, p in self.parameters.items()}
        found, predicted, later = [], [], []
        for k in range(WHOLE_BATCHES):
            state = self.learner.state.baseline_state
            stats = self.learner.step()
            rows = self.trainer.world.gather_lists(stats.completions)
            advantages, p, o = self._advantages_of(rows, state)
            found.append(self._moved(start))
            predicted.append(self._prediction(p, o, advantages, self.truth))
            for iteration in range(1, self.config.num_iterations):
                before = {name: q.detach().clone() for name, q in self.parameters.items()}
                looked_at = k < _WINDOWS and iteration == 1
                now = self.measure() if looked_at else None
                self.learner.step()
                if now is not None:
                    step = self._prediction(p, o, advantages, now)
                    later.append((self._moved(before), step))
            self._put_back(start)
        return _Batches(torch.stack(found), torch.stack(predicted), later)

    def _advantages_of(self, rows: Any, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Advantages [B, T] of logged completions from the truth, with their places p, o [B]."""
        p = torch.tensor([PROMPTS.index(row["prompt"]) for row in rows])
        o = torch.tensor([self.completions.index(tuple(row["completion_ids"])) for row in rows])
        group = self.config.num_generations
        order = p[::group].argsort()  # the baselines of this file take the prompts in order
        chosen = o.view(-1, group)[order]
        rewards = self._from_start(chosen[None], self.returns)[0]
        value, _ = self._baseline("own", rewards, chosen, state)
        back = value[order.argsort()].flatten()
        return self.returns[p, o] - back[:, None], p, o

    def _prediction(self, p: Tensor, o: Tensor, advantages: Tensor, now: Truth) -> Tensor:
        """-∇L of a batch by linearity, for the policy as `now` says it is: [D]."""
        config, epsilon = self.config, self.config.resolved_epsilon
        ratio = (now.logprobs[p, o].sum(-1) - self.truth.logprobs[p, o].sum(-1)).exp()[:, None]
        weights = advantages * ratio
        if epsilon is not None:
            too_high = (advantages > 0) & (ratio > 1 + epsilon)
            too_low = (advantages < 0) & (ratio < 1 - epsilon)
            weights = weights.masked_fill(too_high | too_low, 0.0)
        weights = weights + _direct_weights(config, now)[p, o]
        slopes = weights[..., None] * now.slopes[p, o]
        entropic = config.entropy_coef * now.entropy_slopes[p, o]
        return (slopes + entropic).sum(dim=(0, 1)) / len(p)

    def _moved(self, before: Mapping[str, Tensor]) -> Tensor:
        """How far the weights went in a step, per unit of learning rate: [D]."""
        way = {name: p.detach() - before[name] for name, p in self.parameters.items()}
        return _flat(way) / _LEARNING_RATE

    @torch.no_grad()
    def _put_back(self, start: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(start[name])

    def check_sampler(self) -> Iterator[Check]:
        """Draw from the trainer's own sampler and compare with π."""
        many = replace(self.config, num_generations=DRAWS, num_iterations=1, beta=0.0)
        trainer = self._make_trainer(self.trainer.policy.module.model, many)
        gatherer = trainer._learner.gatherer
        examples = gatherer.examples(0)
        drawn = gatherer.sample(examples, 0)
        o = torch.tensor([self.completions.index(tuple(i)) for i in drawn.completion_lists()])
        p = torch.tensor([PROMPTS.index(str(e.prompt)) for e in examples])
        exact = self.truth.logprobs[p.repeat_interleave(DRAWS), o]
        gap = (drawn.sampling_logprobs - exact[:, : drawn.sampling_logprobs.shape[1]]).abs().max()
        yield _at_most("log-probs at sampling time", float(gap), LIMIT)
        chances = [
            chi_square(o[k * DRAWS : (k + 1) * DRAWS], self.truth.probability[prompt])
            for k, prompt in enumerate(p.tolist())
        ]
        least = min(chances)
        yield Check("chi-square of the sampler, p", least, _LEAST_P, least >= _LEAST_P)

    def variances(self) -> dict[str, float]:
        """Variance of a step's gradient with each baseline, over its scale², relative to `none`."""
        chosen, probability = self._batches()
        rewards = self._from_start(chosen, self.returns)
        found = {}
        for name in BASELINES:
            if self.config.num_generations > 1 or name not in NEEDS_TWO_GENERATIONS:
                value, _ = self._baseline(name, rewards, chosen, self._past(name, probability))
                scale = SCALES[name](len(PROMPTS), self.config.num_generations)
                found[name] = self._variance(chosen, probability, value) / scale**2
        return {name: value / found["none"] for name, value in found.items()}

    def _past(self, name: str, probability: Tensor) -> State:
        """The state of a baseline after some steps of this policy."""
        if name not in KEEPS_HISTORY:
            return {}
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen, _ = self._batches()
        state: State = {}
        for k in torch.multinomial(probability, _PAST_STEPS, True, generator=generator):
            rewards = self._from_start(chosen[k][None], self.returns)[0]
            _, state = self._baseline(name, rewards, chosen[k], state)
        return state

    def _variance(self, chosen: Tensor, probability: Tensor, value: Tensor) -> float:
        """tr Cov of (1/N) Σ_i (Σ_t G_{i,t} ∇log π_{i,t} - b_i ∇log π_i) over all batches."""
        truth, count = self.truth, chosen[0].numel()
        pulls = (self.returns[..., None] * truth.slopes).sum(dim=2)  # [P, n, D]
        stacked = torch.cat([pulls, truth.scores]).flatten(0, 1)  # [2·P·n, D]
        gram = stacked @ stacked.T
        n = len(self.completions)
        first = (chosen + n * torch.arange(len(PROMPTS))[:, None]).flatten(1)  # [K, B]
        places = torch.cat([first, first + n * len(PROMPTS)], dim=1)  # [K, 2B]
        weights = torch.cat([torch.ones_like(value), -value], dim=1).flatten(1) / count  # [K, 2B]
        squares = torch.zeros_like(probability)
        for i, j in itertools.product(range(2 * count), repeat=2):
            squares += weights[:, i] * weights[:, j] * gram[places[:, i], places[:, j]]
        mean = torch.zeros(len(stacked), dtype=torch.float64)
        mean.index_add_(0, places.flatten(), (probability[:, None] * weights).flatten())
        return float(probability @ squares - (mean @ gram @ mean))


@dataclass(frozen=True)
class _Batches:
    """What whole steps did, beside what was predicted."""

    found: Tensor  # [K, D], -∇L of each first update
    predicted: Tensor  # [K, D]
    later: list[tuple[Tensor, Tensor]]  # (found, predicted) of second updates

    def checks(self, stated: Tensor) -> Iterator[Check]:
        """That each step is as predicted, and that their mean is the stated gradient."""
        usual = float(self.predicted.norm(dim=1).square().mean().sqrt())
        worst = float((self.found - self.predicted).norm(dim=1).max()) / usual
        yield _at_most(f"{len(self.found)} whole batches through the step", worst, LIMIT)
        if self.later:
            gaps = [float((a - b).norm() / b.norm().clamp(min=usual / 100)) for a, b in self.later]
            yield _at_most(f"{len(gaps)} second updates, clipped", max(gaps), 1e-8)
        along = (self.found - stated) @ (stated / stated.norm())  # [K]
        error = float(along.std()) / math.sqrt(len(along))
        z = abs(float(along.mean())) / error if error else math.inf
        yield _at_most("mean of these steps, standard errors off", z, _MOST_Z)


def _direct_weights(config: ReinforceConfig, truth: Truth) -> Tensor:
    """Weights of ∇log π that KL terms of the loss give every token, [P, n, T], as documented."""
    if not config.beta or config.kl_in not in ("loss", "grpo_k3"):
        return torch.zeros_like(truth.logprobs)
    if config.kl_in == "loss":
        return -config.beta * truth.log_ratio[..., None].expand_as(truth.logprobs)
    return -config.beta * (1 - (truth.reference - truth.logprobs).exp())


def chi_square(drawn: Tensor, probability: Tensor) -> float:
    """Pearson's test of draws [m] of 0 … n-1 against their probabilities [n]: the p-value."""
    expected = probability * len(drawn)
    counts = torch.bincount(drawn, minlength=len(probability)).double()
    rare = expected < 5  # put together, since the test is one of large counts
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    statistic = ((counts - expected).square() / expected.clamp(min=1e-300)).sum()
    return float(
        torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2)
    )


def _flat(gradient: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in gradient.values()])


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _at_most(name: str, value: float, limit: float) -> Check:
    return Check(name, value, limit, value <= limit)  # nan passes nothing
