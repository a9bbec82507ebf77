"""What the options of the estimator do to a step of the trainer, against formulas written out here.

The steps are plain gradient descent in float64, so that a change of the weights is the gradient.
The naive side runs one sequence at a time through `transformers` and differentiates by autograd.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

import rl4lm.diagnostics
import rl4lm.sampling
from rl4lm import ReinforceConfig, ReinforceTrainer, Rollout, policy
from rl4lm.console import Screen
from rl4lm.data import stream_indices
from rl4lm.errors import ModelError
from rl4lm.policy import PolicyModule
from rl4lm.scoring import COMPLETION_FIELDS, METRIC_NAMES
from rl4lm.types import StepStats

VOCABULARY = 11
P, G = 3, 4
N = P * G
TEMPERATURE = 0.8
RATE = 0.125  # a power of two: dividing a change of the weights by it costs no digit
PROMPTS = ["t1 t2", "t5", "t7 t3 t9", "t4 t4", "t8 t1 t6", "t2", "t10 t3"]
TIGHT = 1e-10
Rows = list[Tensor]  # one tensor [T_i] for each completion


def worth(ids: list[int]) -> float:
    """Any reward will do; this one is not linear and takes both signs."""
    return (sum(ids) * 7 % 5) - 0.5 * len(ids)


def token_worth(ids: list[int]) -> list[float]:
    return [(token * 3 % 4) - 1.25 + 0.5 * t for t, token in enumerate(ids)]


def by_completion(completion_ids, **kwargs):
    return [worth(ids) for ids in completion_ids]


def by_token(completion_ids, **kwargs):
    return [token_worth(ids) for ids in completion_ids]


class Subject:
    """A trainer on a tiny model, with what its steps moved."""

    def __init__(self, tiny: Any, reward: Any = by_completion, lora: bool = False, **options: Any):
        dtype = options.get("dtype", "float64")
        self.tiny = tiny
        model = tiny.build_model("gpt2", vocabulary=VOCABULARY, dtype=getattr(torch, dtype))
        self.initial = copy.deepcopy(model).eval()
        adapter = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear")
        adapter.fan_in_fan_out = True
        sizes = {"prompts_per_step": P, "num_generations": G, "max_completion_length": 5}
        plain = {"optim": "sgd", "learning_rate": RATE, "max_grad_norm": 0, "temperature": 0.8}
        quiet = {"eval_samples": 0, "accuracy_func": "none", "noise_every": 0, "max_steps": 9}
        self.screen = Screen(quiet=True)
        self.warnings: list[str] = []
        self.screen.warn = self.warnings.append
        self.trainer = ReinforceTrainer(
            model=model,
            reward_funcs=reward,
            args=ReinforceConfig(**{**sizes, **plain, **quiet, "dtype": dtype, **options}),
            train_dataset=[{"prompt": prompt} for prompt in PROMPTS],
            processing_class=tiny.build_tokenizer(VOCABULARY),
            peft_config=adapter if lora else None,
            screen=self.screen,
        )
        self.learner = self.trainer.learner

    @property
    def model(self) -> Any:
        return self.trainer.policy.module.model

    @property
    def experience(self) -> Any:
        return self.learner._experience

    @property
    def rollout(self) -> Rollout:
        return self.experience.rollout

    @property
    def rewards(self) -> Tensor:
        """float64 [B], by the reward's own rule."""
        values = [worth(ids) for ids in self.rollout.completion_lists()]
        return torch.tensor(values, dtype=torch.float64)

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.trainer.policy.trainable().items()}

    def disturb(self, size: float = 0.05) -> None:
        """Move the policy away from where it began."""
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.trainer.policy.trainable().values():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(size * noise)

    def step(self) -> StepStats:
        """One step; `self.before` is the model that it started from, `self.moved` its gradient."""
        self.before = copy.deepcopy(self.model).eval()
        old = self.weights()
        stats = self.learner.step()
        rate = self.trainer.config.learning_rate
        self.moved = {name: (old[name] - new) / rate for name, new in self.weights().items()}
        return stats

    def gap(self, loss: Tensor) -> float:
        """How far the last step was from the gradient of a naive loss on `self.before`."""
        return max(self.tiny.gap(self.moved, self.gradient(loss)))

    def gradient(self, loss: Tensor) -> dict[str, Tensor]:
        named = {n: p for n, p in self.before.named_parameters() if p.requires_grad}
        parts = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
        return dict(zip(named, parts, strict=True))

    def logprobs(self, model: Any) -> Rows:
        return [logits_of(model, *row)[1] for row in self._sequences()]

    def entropies(self, model: Any) -> Rows:
        return [logits_of(model, *row)[0] for row in self._sequences()]

    def _sequences(self) -> Iterator[tuple[list[int], list[int]]]:
        prompts = self.tiny.prompts_of_rows(self.rollout)
        return zip(prompts, self.rollout.completion_lists(), strict=True)


def logits_of(model: Any, prompt: list[int], completion: list[int]) -> tuple[Tensor, Tensor]:
    """Entropy and log-prob [T] of each token of one sequence, alone and without padding."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0] / TEMPERATURE
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    log_pi = torch.stack([logits[k] - logits[k].logsumexp(0) for k in places])  # [T, V]
    entropies = -(log_pi.exp() * log_pi).sum(1)
    return entropies, log_pi[range(len(completion)), completion]


def leave_one_out(values: list[float] | Tensor) -> list[float]:
    """The mean of the others of the same prompt, for each completion."""
    listed = [float(value) for value in values]
    return [
        sum(listed[j] for j in range(N) if j // G == i // G and j != i) / (G - 1) for i in range(N)
    ]


def reinforce(logprobs: Rows, advantages: Any) -> Tensor:
    """-(1/N) Σ_i Σ_t A log π with one A for each completion or one for each token."""
    return -sum((a * row).sum() for a, row in zip(advantages, logprobs, strict=True)) / N


def to_go(paid: Any, gamma: float = 1.0) -> Tensor:
    """G_t = Σ_{k≥t} γ^{k-t} r_k, by two loops."""
    values = [float(value) for value in paid]
    return torch.tensor(
        [
            sum(gamma ** (k - t) * values[k] for k in range(t, len(values)))
            for t in range(len(values))
        ],
        dtype=torch.float64,
    )


def centred(returns: Rows) -> Rows:
    """Each token's return less the mean return from the start of the others of the prompt."""
    baseline = leave_one_out([row[0] for row in returns])
    return [row - b for row, b in zip(returns, baseline, strict=True)]


def plain_loss(subject: Subject) -> Tensor:
    r = subject.rewards
    advantages = [r[i] - b for i, b in enumerate(leave_one_out(r))]
    return reinforce(subject.logprobs(subject.before), advantages)


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


class Call:
    """One call of a policy module's forward."""

    def __init__(self, module: PolicyModule, input_ids: Tensor):
        self.module = module
        self.rows, self.width = input_ids.shape
        self.differentiates = torch.is_grad_enabled()
        layers = [m for m in module.modules() if hasattr(m, "lora_A")]
        self.adapter_off = any(layer.disable_adapters for layer in layers)


@pytest.fixture
def calls(monkeypatch) -> list[Call]:
    """Every forward from here on; the gradient's tiles are counted in `tiles`."""
    seen: list[Call] = []
    forward = PolicyModule.forward

    def counted(self, read_out, input_ids, *rest):
        seen.append(Call(self, input_ids))
        return forward(self, read_out, input_ids, *rest)

    monkeypatch.setattr(PolicyModule, "forward", counted)
    return seen


@pytest.fixture
def gradients(monkeypatch) -> list[int]:
    """Rows of every call of the head's gradient from here on."""
    seen: list[int] = []
    tiled = policy.tiled_gradient

    def counted(hidden, *rest):
        seen.append(len(hidden))
        return tiled(hidden, *rest)

    monkeypatch.setattr(policy, "tiled_gradient", counted)
    return seen


def forwards(subject: Subject, calls: list[Call]) -> tuple[Counter[str], int]:
    """The kinds of the forwards of a step besides sampling, and how many of them differentiate."""
    kinds: Counter[str] = Counter()
    steps = subject.rollout.completion_ids.shape[1]
    prompt_width = subject.rollout.prompt_ids.shape[1]
    first, *decodes = calls[:steps]  # one prefill and a decode for each token but the last
    assert (first.rows, first.width) == (P, prompt_width)
    assert all(call.width == 1 and not call.differentiates for call in decodes)
    for call in calls[steps:]:
        if call.differentiates:
            kinds["gradient"] += 1
        elif call.module is not subject.trainer.policy.module:
            kinds[f"another module, {call.rows} rows"] += 1
        elif call.adapter_off:
            kinds[f"adapter off, {call.rows} rows"] += 1
        else:
            kinds[f"policy, {call.rows} rows"] += 1
    return kinds, len(calls)


@pytest.mark.parametrize(
    ("options", "lora", "extra"),
    [
        ({}, False, {}),
        ({}, True, {}),
        ({"gamma": 0.9}, False, {}),
        ({"baseline": "moving_average"}, False, {}),
        ({"beta": 0.1}, False, {f"policy, {N} rows": 1, f"another module, {N} rows": 1}),
        ({"beta": 0.1}, True, {f"policy, {N} rows": 1, f"adapter off, {N} rows": 1}),
        (
            {"beta": 0.1, "kl_in": "token_reward"},
            False,
            {f"policy, {N} rows": 1, f"another module, {N} rows": 1},
        ),
        (
            {"beta": 0.1, "kl_in": "loss"},
            False,
            {f"policy, {N} rows": 1, f"another module, {N} rows": 1},
        ),
        (
            {"beta": 0.1, "kl_in": "grpo_k3"},
            True,
            {f"policy, {N} rows": 1, f"adapter off, {N} rows": 1},
        ),
        ({"entropy_coef": 0.1}, False, {f"policy, {N} rows": 1}),
        ({"entropy_coef": 0.1, "entropy_in": "loss"}, False, {}),
        ({"epsilon": 0.2}, False, {f"policy, {N} rows": 1}),
        ({"baseline": "linear_value"}, False, {f"policy, {P} rows": 1}),
        ({"noise_every": 1}, False, {"gradient": 3}),  # halves, with the baseline and without
    ],
)
def test_an_option_that_is_off_costs_no_forward_and_one_that_is_on_costs_its_own(
    options, lora, extra, tiny, calls, gradients
):
    subject = Subject(tiny, lora=lora, **options)
    calls.clear(), gradients.clear()
    subject.learner.step()
    kinds, _ = forwards(subject, calls)
    assert kinds == Counter({"gradient": 1}) + Counter(extra)
    assert len(gradients) == kinds["gradient"]


def test_a_small_budget_cuts_the_same_completions_into_more_forwards(tiny, calls, gradients):
    subject = Subject(tiny, max_tokens_per_micro_batch=14)
    calls.clear(), gradients.clear()
    subject.step()
    live = {
        (i // G, *ids)
        for i, ids in enumerate(subject.rollout.completion_lists())
        if subject.experience.advantages[i]
    }
    trained = [call for call in calls if call.differentiates]
    assert len(trained) == len(gradients) > 2
    assert sum(call.rows for call in trained) == len(live)
    assert max(call.rows * call.width for call in trained) <= 14
    assert sum(gradients) == sum(len(ids) - 1 for ids in live)
    assert subject.gap(plain_loss(subject)) < TIGHT


def trained(tiny: Any, steps: int = 3, **options: Any) -> dict[str, Tensor]:
    subject = Subject(
        tiny, **{"optim": "adamw", "learning_rate": 1e-2, "dtype": "float32", **options}
    )
    for _ in range(steps):
        subject.learner.step()
    return subject.weights()


@pytest.mark.parametrize(
    "options",
    [
        *({"beta": 0, "kl_in": where} for where in ("reward", "token_reward", "loss", "grpo_k3")),
        *({"entropy_coef": 0, "entropy_in": where} for where in ("reward", "loss")),
        {"gamma": 1.0},
        {"num_iterations": 1},
        {"epsilon": "none"},
        {"baseline": "prompt_leave_one_out"},
    ],
)
def test_an_option_that_is_off_changes_no_bit_of_the_weights(options, tiny):
    assert same_bits(trained(tiny, **options), trained(tiny))


@pytest.mark.parametrize(
    "options",
    [
        *({"beta": 0.01, "kl_in": where} for where in ("reward", "token_reward", "loss")),
        {"beta": 0.01, "kl_in": "grpo_k3"},
        *({"entropy_coef": 0.01, "entropy_in": where} for where in ("reward", "loss")),
        {"gamma": 0.99},
        {"num_iterations": 2},
        {"baseline": "batch_mean"},
    ],
)
def test_an_option_that_is_on_does(options, tiny):
    assert not same_bits(trained(tiny, **options), trained(tiny))


def at_the_end(completion_ids, **kwargs):
    """`by_completion` as a reward per token that pays at the last one."""
    return [[*[0.0] * (len(ids) - 1), worth(ids)] for ids in completion_ids]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"epsilon": 0.2}, {"baseline": "none"}])
def test_a_reward_paid_at_the_last_token_is_the_reward_of_the_completion(options, dtype, tiny):
    options = {**options, "dtype": dtype, "optim": "adamw", "learning_rate": 1e-2}
    per_token, per_completion = (
        Subject(tiny, reward, **options) for reward in (at_the_end, by_completion)
    )
    for _ in range(3):
        per_token.learner.step(), per_completion.learner.step()
    assert per_token.experience.advantages.shape == per_token.rollout.completion_ids.shape
    assert per_completion.experience.advantages.shape == (N,)
    assert same_bits(per_token.weights(), per_completion.weights())


def test_a_reward_paid_at_the_first_token_is_not(tiny):
    def at_the_start(completion_ids, **kwargs):
        return [[worth(ids), *[0.0] * (len(ids) - 1)] for ids in completion_ids]

    early, late = Subject(tiny, at_the_start), Subject(tiny, at_the_end)
    early.step(), late.step()
    assert max(tiny.gap(early.moved, late.moved)) > 1e-2


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_rewards_per_token_reach_the_tokens_before_them_discounted(gamma, tiny):
    subject = Subject(tiny, by_token, gamma=gamma)
    subject.step()
    logprobs = subject.logprobs(subject.before)
    paid = [token_worth(ids) for ids in subject.rollout.completion_lists()]
    assert subject.gap(reinforce(logprobs, centred([to_go(r, gamma) for r in paid]))) < TIGHT
    for other in {0.0, 0.6, 1.0} - {gamma}:
        assert subject.gap(reinforce(logprobs, centred([to_go(r, other) for r in paid]))) > 1e-2


def test_without_any_look_ahead_each_token_is_credited_with_its_own_reward_only(tiny):
    subject = Subject(tiny, by_token, gamma=0, baseline="none")
    subject.step()
    table = torch.full(subject.rollout.completion_ids.shape, math.nan, dtype=torch.float64)
    for i, ids in enumerate(subject.rollout.completion_lists()):
        table[i, : len(ids)] = torch.tensor(token_worth(ids))
    expected = tiny.naive_gradient(subject.before, subject.rollout, table, TEMPERATURE)
    assert max(tiny.gap(subject.moved, expected)) < TIGHT
    whole = torch.tensor([sum(token_worth(ids)) for ids in subject.rollout.completion_lists()])
    other = tiny.naive_gradient(subject.before, subject.rollout, whole.double(), TEMPERATURE)
    assert max(tiny.gap(subject.moved, other)) > 1e-2


def test_the_reward_of_a_completion_is_discounted_by_the_tokens_that_follow(tiny):
    subject = Subject(tiny, gamma=0.7)
    subject.step()
    logprobs = subject.logprobs(subject.before)
    returns = [
        torch.tensor([r * 0.7 ** (len(row) - 1 - t) for t in range(len(row))], dtype=torch.float64)
        for r, row in zip(subject.rewards.tolist(), logprobs, strict=True)
    ]
    assert subject.gap(reinforce(logprobs, centred(returns))) < TIGHT
    assert subject.gap(plain_loss(subject)) > 1e-2


def test_rewards_per_token_and_per_completion_are_added_by_weight(tiny):
    subject = Subject(tiny, [by_token, by_completion], reward_weights=[0.5, 2.0])
    stats = subject.step()
    lists = subject.rollout.completion_lists()
    paid = [[0.5 * r for r in token_worth(ids)] for ids in lists]
    for row, ids in zip(paid, lists, strict=True):
        row[-1] += 2.0 * worth(ids)
    returns = [to_go(row) for row in paid]
    assert subject.gap(reinforce(subject.logprobs(subject.before), centred(returns))) < TIGHT
    for row, tokens in zip(stats.completions, paid, strict=True):
        assert row["token_rewards"] == pytest.approx(tokens, abs=1e-12)
        assert row["reward"] == pytest.approx(sum(tokens), abs=1e-12)
        assert len(row["token_rewards"]) == len(row["completion_ids"])


def test_completions_have_no_token_rewards_where_none_are_given(tiny):
    assert all("token_rewards" not in row for row in Subject(tiny).step().completions)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("reward", [by_completion, by_token])
def test_the_first_step_on_a_sampling_is_plain_with_or_without_the_ratio(
    reward, dtype, tolerance, tiny
):
    plain, clipped = (Subject(tiny, reward, dtype=dtype, epsilon=e) for e in (None, 0.2))
    plain.step()
    stats = clipped.step()
    assert max(tiny.gap(clipped.moved, plain.moved)) < tolerance
    assert stats.metrics["importance_ratio/mean"] == pytest.approx(1.0, abs=tolerance)
    assert stats.metrics["clip_ratio/region_mean"] == 0.0
    plain.step(), clipped.step()
    assert max(tiny.gap(clipped.moved, plain.moved)) < 10 * tolerance


@pytest.mark.parametrize("where", ["reward", "token_reward", "loss", "grpo_k3"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_where_training_starts_there_is_no_divergence_and_no_pull(lora, where, tiny):
    plain, pulled = (Subject(tiny, lora=lora, beta=beta, kl_in=where) for beta in (0.0, 0.5))
    without, with_kl = plain.step(), pulled.step()
    assert "kl" not in without.metrics
    assert abs(with_kl.metrics["kl"]) < 1e-12
    assert abs(with_kl.metrics["kl_sequence"]) < 1e-12
    assert max(tiny.gap(pulled.moved, plain.moved)) < TIGHT
    plain.step()
    away = pulled.step()
    assert away.metrics["kl"] > 1e-6
    assert max(tiny.gap(pulled.moved, plain.moved)) > 1e-4


BETA = 0.7


def kl_in_reward(s: Subject, reference: Rows) -> Tensor:
    now = s.logprobs(s.before)
    shaped = [
        float(r - BETA * (row.detach() - ref).sum())
        for r, row, ref in zip(s.rewards, now, reference, strict=True)
    ]
    return reinforce(now, [a - b for a, b in zip(shaped, leave_one_out(shaped), strict=True)])


def kl_in_token_reward(s: Subject, reference: Rows) -> Tensor:
    now = s.logprobs(s.before)
    paid = [(-BETA * (row - ref)).tolist() for row, ref in zip(now, reference, strict=True)]
    for row, r in zip(paid, s.rewards.tolist(), strict=True):
        row[-1] += r
    return reinforce(now, centred([to_go(row) for row in paid]))


def kl_in_loss(s: Subject, reference: Rows) -> Tensor:
    now = s.logprobs(s.before)
    squares = [(row - ref).sum() ** 2 / 2 for row, ref in zip(now, reference, strict=True)]
    return plain_loss(s) + BETA * sum(squares) / N


def kl_as_grpo(s: Subject, reference: Rows) -> Tensor:
    now = s.logprobs(s.before)
    k3 = [(ref - row).exp() - 1 - (ref - row) for row, ref in zip(now, reference, strict=True)]
    return plain_loss(s) + BETA * sum(row.sum() for row in k3) / N


KL_LOSSES: dict[str, Callable[[Subject, Rows], Tensor]] = {
    "reward": kl_in_reward,
    "token_reward": kl_in_token_reward,
    "loss": kl_in_loss,
    "grpo_k3": kl_as_grpo,
}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("where", KL_LOSSES)
def test_the_divergence_acts_where_it_is_asked_for_and_nowhere_else(where, lora, tiny):
    subject = Subject(tiny, lora=lora, beta=BETA, kl_in=where)
    subject.disturb()
    stats = subject.step()
    reference = [row.detach() for row in subject.logprobs(subject.initial)]
    assert subject.gap(KL_LOSSES[where](subject, reference)) < TIGHT
    for other in KL_LOSSES.keys() - {where}:
        assert subject.gap(KL_LOSSES[other](subject, reference)) > 1e-3
    moved_along = [row.detach() for row in subject.logprobs(subject.before)]
    assert subject.gap(KL_LOSSES[where](subject, moved_along)) > 1e-3
    now = [row.detach() for row in subject.logprobs(subject.before)]
    k1 = [float((row - ref).sum()) for row, ref in zip(now, reference, strict=True)]
    k3 = [
        math.exp(float(b) - float(a)) - 1 - float(b) + float(a)
        for row, ref in zip(now, reference, strict=True)
        for a, b in zip(row, ref, strict=True)
    ]
    assert stats.metrics["kl_sequence"] == pytest.approx(sum(k1) / N, rel=1e-9)
    assert stats.metrics["kl"] == pytest.approx(sum(k3) / len(k3), rel=1e-9)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_reference_stays_where_training_started(lora, tiny):
    subject = Subject(tiny, lora=lora, beta=BETA, learning_rate=0.02)
    for _ in range(4):
        subject.step()
        expected = tiny.naive_table(subject.initial, subject.rollout, TEMPERATURE)
        found = subject.experience.reference_logprobs
        assert float((found - expected).abs().max()) < 1e-11
    now = tiny.naive_table(subject.before, subject.rollout, TEMPERATURE)
    assert float((found - now).abs().max()) > 1e-3


def test_the_divergence_in_the_reward_is_paid_per_token_where_rewards_are(tiny):
    subject = Subject(tiny, by_token, beta=BETA, gamma=0.5)
    subject.disturb()
    subject.step()
    reference = [row.detach() for row in subject.logprobs(subject.initial)]
    now = subject.logprobs(subject.before)
    paid = [token_worth(ids) for ids in subject.rollout.completion_lists()]
    for row, logprobs, ref in zip(paid, now, reference, strict=True):
        row[-1] -= BETA * float(
            (logprobs.detach() - ref).sum()
        )  # what belongs to the whole comes last
    assert subject.gap(reinforce(now, centred([to_go(row, 0.5) for row in paid]))) < TIGHT


COEFFICIENT = 0.3


@pytest.mark.parametrize("reward", [by_completion, by_token])
@pytest.mark.parametrize("where", ["loss", "reward"])
def test_the_entropy_acts_where_it_is_asked_for(where, reward, tiny):
    subject = Subject(tiny, reward, entropy_coef=COEFFICIENT, entropy_in=where)
    subject.step()
    logprobs, entropies = subject.logprobs(subject.before), subject.entropies(subject.before)
    lists = subject.rollout.completion_lists()
    direct = -COEFFICIENT * sum(row.sum() for row in entropies) / N

    def earned(bonus: bool) -> Tensor:
        paid = [
            token_worth(ids) if reward is by_token else [0.0] * (len(ids) - 1) + [worth(ids)]
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
        return reinforce(logprobs, centred(returns))

    assert subject.gap(earned(where == "reward") + direct) < TIGHT
    for other in (earned(where != "reward") + direct, earned(True), earned(False)):
        assert subject.gap(other) > 1e-3


def naive_clipped(s: Subject, epsilon: float) -> tuple[Tensor, list[float], list[str]]:
    """PPO's surrogate with the ratio of the sequence, the ratios, and the side of each clip."""
    advantages = [float(r) - b for r, b in zip(s.rewards, leave_one_out(s.rewards), strict=True)]
    now, then = s.logprobs(s.before), s.logprobs(s.sampler)
    total, ratios, sides = 0.0, [], []
    for a, new, old in zip(advantages, now, then, strict=True):
        ratio = (new.sum() - old.sum().detach()).exp()
        total = total + torch.minimum(ratio * a, ratio.clamp(1 - epsilon, 1 + epsilon) * a)
        ratios.append(ratio.item())
        sides.append(side_of(ratio.item(), a, epsilon))
    return -total / N, ratios, sides


def side_of(ratio: float, advantage: float, epsilon: float) -> str:
    if advantage > 0 and ratio > 1 + epsilon:
        return "high"
    return "low" if advantage < 0 and ratio < 1 - epsilon else ""


@pytest.mark.parametrize("epsilon", [0.2, 1e-3, 50.0])
def test_the_second_step_is_that_of_the_clipped_ratio_at_the_moved_weights(epsilon, tiny):
    subject = Subject(tiny, num_iterations=2, epsilon=epsilon, learning_rate=2**-6)
    subject.step()
    subject.sampler = subject.before
    assert subject.gap(plain_loss(subject)) < TIGHT
    metrics = subject.step().metrics
    loss, ratios, sides = naive_clipped(subject, epsilon)
    assert subject.gap(loss) < TIGHT
    assert subject.gap(plain_loss(subject)) > 1e-2
    assert metrics["importance_ratio/mean"] == pytest.approx(sum(ratios) / N, rel=1e-9)
    assert metrics["importance_ratio/min"] == pytest.approx(min(ratios), rel=1e-9)
    assert metrics["importance_ratio/max"] == pytest.approx(max(ratios), rel=1e-9)
    assert metrics["clip_ratio/low_mean"] == sides.count("low") / N
    assert metrics["clip_ratio/high_mean"] == sides.count("high") / N
    assert metrics["clip_ratio/region_mean"] == pytest.approx(1 - sides.count("") / N)
    bites = metrics["clip_ratio/region_mean"] > 0
    assert bites == (epsilon < 1), "a wide range clips nothing, a narrow one does"
    if bites:
        assert subject.gap(naive_clipped(subject, 50.0)[0]) > 1e-2


def test_a_large_learning_rate_makes_the_clip_bite_and_a_small_one_does_not(tiny):
    shares = []
    for rate in (1e-5, 0.125):
        subject = Subject(tiny, num_iterations=2, learning_rate=rate)
        subject.step()
        shares.append(subject.step().metrics["clip_ratio/region_mean"])
    assert shares[0] == 0 < 0.2 < shares[1]


@pytest.mark.parametrize("pull", [False, True])
def test_the_second_step_with_rewards_per_token_weighs_returns_by_the_ratio_of_the_whole(
    pull, tiny
):
    options = {"beta": BETA, "kl_in": "loss"} if pull else {}
    subject = Subject(tiny, by_token, num_iterations=2, learning_rate=2**-6, **options)
    subject.step()
    sampler = subject.before
    metrics = subject.step().metrics
    now, then = subject.logprobs(subject.before), subject.logprobs(sampler)
    returns = [to_go(token_worth(ids)) for ids in subject.rollout.completion_lists()]
    weighted, clipped = [], []
    for advantages, new, old in zip(centred(returns), now, then, strict=True):
        ratio = (new.sum() - old.sum()).exp().item()
        sides = [side_of(ratio, a, 0.2) for a in advantages.tolist()]
        keep = torch.tensor([not side for side in sides])
        weighted.append(torch.where(keep, ratio * advantages, 0.0))
        clipped.append(any(sides))
    loss = reinforce(now, weighted)
    if pull:
        reference = [row.detach() for row in subject.logprobs(subject.initial)]
        squares = [(a - b).sum() ** 2 / 2 for a, b in zip(now, reference, strict=True)]
        loss = loss + BETA * sum(squares) / N
    assert subject.gap(loss) < TIGHT
    assert metrics["clip_ratio/region_mean"] == pytest.approx(sum(clipped) / N)
    assert 0 < sum(clipped) < N
    assert subject.gap(reinforce(now, centred(returns))) > 1e-2


def test_without_an_epsilon_the_range_is_a_fifth(tiny):
    default, named = (Subject(tiny, num_iterations=2, epsilon=e) for e in (None, 0.2))
    for _ in range(2):
        default.step(), named.step()
    assert same_bits(default.weights(), named.weights())


def test_completions_are_drawn_every_second_step_and_no_prompt_is_left_out(tiny):
    subject = Subject(tiny, num_iterations=2)
    drawn = [subject.step() for _ in range(6)]
    assert [len(stats.completions) for stats in drawn] == [N, 0, N, 0, N, 0]
    assert [stats.step for stats in drawn] == [1, 2, 3, 4, 5, 6]
    met = [row["prompt_id"] for stats in drawn for row in stats.completions][::G]
    assert met == [f"train-{k}" for k in stream_indices(len(PROMPTS), 0, 0, 3 * P)]
    assert sorted(met[: len(PROMPTS)]) == [f"train-{k}" for k in range(len(PROMPTS))]
    state = subject.trainer.state
    lengths = [len(row["completion_ids"]) for stats in drawn for row in stats.completions]
    assert (state.step, state.samples, state.tokens) == (6, 3 * N, sum(lengths))
    ids = [[row["completion_ids"] for row in stats.completions] for stats in drawn[::2]]
    assert ids[0] != ids[1] != ids[2]
    for stats in drawn[1::2]:
        assert "sampler_gap_mean" not in stats.metrics
        assert "time/sample_s" not in stats.metrics
        assert stats.metrics["tokens_per_second"] is None


def test_rewards_are_asked_once_for_each_sampling(tiny):
    seen = []

    def reward(completion_ids, trainer_state, **kwargs):
        seen.append(trainer_state.global_step)
        return [worth(ids) for ids in completion_ids]

    subject = Subject(tiny, reward, num_iterations=3)
    for _ in range(7):
        subject.step()
    assert seen == [0, 3, 6]


def test_several_steps_go_through_a_whole_run_with_its_files(tiny, tmp_path):
    subject = Subject(tiny, num_iterations=2, max_steps=4, output_dir=str(tmp_path / "run"))
    summary = subject.trainer.train()
    assert (summary["steps"], summary["samples"]) == (4, 2 * N)
    files = sorted(path.name for path in (tmp_path / "run" / "completions").iterdir())
    assert files == ["step-000001.jsonl", "step-000003.jsonl"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_rows_without_a_reward_have_no_advantage_with_rewards_per_token_either(tiny):
    def reward(completion_ids, **kwargs):
        return [None if i in (1, 6) else token_worth(r) for i, r in enumerate(completion_ids)]

    subject = Subject(tiny, reward, beta=BETA, kl_in="token_reward")
    subject.disturb()
    stats = subject.step()
    reference = [row.detach() for row in subject.logprobs(subject.initial)]
    now = subject.logprobs(subject.before)
    paid = [torch.tensor(token_worth(r)).double() for r in subject.rollout.completion_lists()]
    returns = [
        to_go(r - BETA * (row - ref).detach())
        for r, row, ref in zip(paid, now, reference, strict=True)
    ]
    advantages = []
    for i, row in enumerate(returns):
        others = [float(returns[j][0]) for j in range(N) if j // G == i // G and j not in (i, 1, 6)]
        advantages.append(0 * row if i in (1, 6) else row - sum(others) / len(others))
    assert subject.gap(reinforce(now, advantages)) < TIGHT  # N stays
    assert [i for i, row in enumerate(stats.completions) if row["reward"] is None] == [1, 6]
    assert [stats.completions[i]["advantage"] for i in (1, 6)] == [0.0, 0.0]
    assert stats.metrics["effective_samples"] == N - 2


def constant(completion_ids, **kwargs):
    return [0.1] * len(completion_ids)


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
@pytest.mark.parametrize("gamma", [1.0, 0.0])
def test_a_step_without_any_advantage_leaves_weights_and_optimizer_as_they_are(optim, gamma, tiny):
    def reward(completion_ids, trainer_state, **kwargs):
        if trainer_state.global_step == 1:
            return [None] * len(completion_ids)
        return by_completion(completion_ids)

    subject = Subject(tiny, reward, optim=optim, gamma=gamma, weight_decay=0.1)
    optimizer = subject.learner._optimizer
    assert subject.step().metrics["updated"]
    before, kept = subject.weights(), copy.deepcopy(optimizer.state_dict())
    stats = subject.step()
    assert not stats.metrics["updated"]
    assert stats.metrics["grad_norm"] == 0.0
    assert same_bits(before, subject.weights())
    after = optimizer.state_dict()["state"]
    assert after.keys() == kept["state"].keys()
    for key, held in kept["state"].items():
        assert all(torch.equal(held[n], after[key][n]) for n in held if n != "momentum_buffer")
    state = subject.trainer.state
    assert (state.step, state.skipped_steps, state.samples) == (2, 1, 2 * N)
    assert subject.step().metrics["updated"]
    assert not same_bits(before, subject.weights())


@pytest.mark.parametrize(
    "options",
    [
        {"beta": BETA, "kl_in": "loss"},
        {"beta": BETA, "kl_in": "grpo_k3"},
        {"entropy_coef": COEFFICIENT, "entropy_in": "loss"},
    ],
)
@pytest.mark.parametrize("reward", [constant, lambda completion_ids, **_: [None] * N])
def test_a_term_of_the_loss_acts_although_no_completion_has_an_advantage(options, reward, tiny):
    subject = Subject(tiny, reward, **options)
    subject.disturb()
    stats = subject.step()
    assert stats.metrics["effective_samples"] == 0
    assert stats.metrics["updated"]
    assert subject.trainer.state.skipped_steps == 0
    now = subject.logprobs(subject.before)
    reference = [row.detach() for row in subject.logprobs(subject.initial)]
    pairs = list(zip(now, reference, strict=True))
    if options.get("kl_in") == "loss":
        loss = BETA * sum((a - b).sum() ** 2 / 2 for a, b in pairs) / N
    elif options.get("kl_in") == "grpo_k3":
        loss = BETA * sum(((b - a).exp() - 1 - (b - a)).sum() for a, b in pairs) / N
    else:
        loss = -COEFFICIENT * sum(row.sum() for row in subject.entropies(subject.before)) / N
    assert subject.gap(loss) < TIGHT


def test_the_noise_is_measured_every_so_many_steps_and_changes_the_gradient_by_rounding(tiny):
    plain, measured = (Subject(tiny, noise_every=every) for every in (0, 2))
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
def test_the_noise_scale_is_that_of_the_gradients_of_two_halves_of_the_prompts(options, tiny):
    def easy(completion_ids, **kwargs):  # a strong signal, so that the scale is defined
        return [10.0 * (ids[0] == 3) for ids in completion_ids]

    group = 16
    subject = Subject(tiny, easy, noise_every=1, num_generations=group, **options)
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
def test_the_noise_is_undefined_with_one_prompt_or_without_any_gradient(options, tiny):
    reward = by_completion if "prompts_per_step" in options else constant
    metrics = Subject(tiny, reward, noise_every=1, **options).step().metrics
    assert metrics["gradient_noise_scale"] is None
    assert metrics["gradient_snr"] is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mismatch", [True, False])
def test_a_sampler_that_draws_from_another_policy_is_noticed_on_the_screen(
    mismatch, dtype, tiny, monkeypatch
):
    subject = Subject(tiny, temperature=0.7, dtype=dtype, max_steps=5, learning_rate=1e-3)
    if mismatch:
        plain = rl4lm.sampling.log_softmax
        monkeypatch.setattr(rl4lm.sampling, "log_softmax", lambda logits, _: plain(logits, 1.0))
    subject.trainer.train()
    differing = [text for text in subject.warnings if "sampling and training differ" in text]
    assert len(differing) == (3 if mismatch else 0)
    for step, text in enumerate(differing, start=1):
        assert text.startswith(f"step {step}: ")
        assert dtype in text
    assert len(subject.warnings) == len(differing)


def test_every_number_of_a_step_has_a_name_that_rewards_cannot_take(tiny):
    families = ("rewards/", "time/", "completions/", "importance_ratio/", "clip_ratio/")
    options = {"beta": 0.1, "entropy_coef": 0.1, "epsilon": 0.2, "noise_every": 1}
    stats = Subject(tiny, by_token, **options).step()
    names = {name for name in stats.metrics if not name.startswith(families)}
    assert names <= set(METRIC_NAMES)
    assert set(stats.completions[0]) == set(COMPLETION_FIELDS)


def test_what_the_baseline_does_to_the_variance_is_measured_on_the_gradient_without_it(tiny):
    """The same step with baseline none has the variance that the default is compared with."""
    default, none = (
        Subject(tiny, by_token, noise_every=1, baseline=name)
        for name in ("prompt_leave_one_out", "none")
    )
    metrics, plain = default.step().metrics, none.step().metrics
    assert default.rollout.completion_lists() == none.rollout.completion_lists()
    assert plain["variance_reduction"] is None  # there is nothing to compare with
    first, second = variances(default), variances(none)
    assert metrics["variance_reduction"] == pytest.approx(1 - first / second, rel=1e-8)
    assert metrics["effective_samples"] == N
    assert metrics["effective_share"] == 1.0


def variances(subject: Subject) -> float:
    """tr Σ of a subject's step, from naive gradients of the two halves of its prompts."""
    returns = [to_go(token_worth(ids)) for ids in subject.rollout.completion_lists()]
    weights = returns if subject.trainer.config.baseline == "none" else centred(returns)
    now = subject.logprobs(subject.before)
    group = subject.rollout.num_generations
    halves = []
    for parity in (0, 1):
        rows = [i for i in range(N) if (i // group) % 2 == parity]
        loss = -sum((weights[i] * now[i]).sum() for i in rows) / len(rows)
        gradient = subject.gradient(loss)
        halves.append((torch.cat([g.flatten() for g in gradient.values()]), len(rows)))
    (even, first), (odd, second) = halves
    return float((even - odd).square().sum()) / (1 / first + 1 / second)


def test_the_noise_may_be_measured_on_a_part_of_the_tensors(tiny, monkeypatch):
    plain, whole = Subject(tiny), Subject(tiny, noise_every=1)
    everything = whole.step().metrics
    sizes = [parameter.numel() for parameter in whole.weights().values()]
    monkeypatch.setattr(rl4lm.diagnostics, "_MEASURED_ELEMENTS", sum(sizes) // 3)
    part = Subject(tiny, noise_every=1)
    metrics = part.step().metrics
    plain.step()
    assert max(tiny.gap(part.moved, plain.moved)) < 1e-12
    assert metrics["gradient_noise_scale"] != everything["gradient_noise_scale"]


def test_the_reference_leaves_what_is_trained_as_it_is(tiny):
    """Half of an adapter is frozen by its owner; switching it off and on must not thaw it."""
    plain, with_kl = (Subject(tiny, lora=True, beta=beta, kl_in="loss") for beta in (0.0, 0.5))
    for subject in (plain, with_kl):
        for name, parameter in subject.model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
        before = list(subject.weights())
        subject.learner.step()
        assert list(subject.weights()) == before


def test_a_baseline_of_hidden_states_is_refused_where_there_are_none(tiny):
    """Gemma caps its logits softly, so that the whole model runs and the head alone says little."""
    model = tiny.build_model("gemma2")
    with pytest.raises(ModelError, match=r"Gemma2ForCausalLM.*choose baseline=prompt_value"):
        tiny.build_trainer(model, baseline="linear_value", num_generations=2)
    tiny.build_trainer(model, baseline="prompt_value", num_generations=2)
