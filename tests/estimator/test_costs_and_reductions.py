"""What each option costs, what it is without effect, and how rewards reach the tokens."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from rl4lm.errors import ModelError
from rl4lm.model import teacher_forcing
from rl4lm.model.module import PolicyModule

TIGHT = 1e-10
P, G = 3, 4  # of every subject, as in conftest.py
N = P * G


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

    def counted(self, read_out, input_ids, *rest, **layout):
        seen.append(Call(self, input_ids))
        return forward(self, read_out, input_ids, *rest, **layout)

    monkeypatch.setattr(PolicyModule, "forward", counted)
    return seen


@pytest.fixture
def gradients(monkeypatch) -> list[int]:
    """Rows of every call of the head's gradient from here on."""
    seen: list[int] = []
    tiled = teacher_forcing.tiled_gradient

    def counted(hidden, *rest):
        seen.append(len(hidden))
        return tiled(hidden, *rest)

    monkeypatch.setattr(teacher_forcing, "tiled_gradient", counted)
    return seen


def forwards(subject: Any, calls: list[Call]) -> tuple[Counter[str], int]:
    """The kinds of the forwards of a step besides sampling, and how many of them differentiate."""
    kinds: Counter[str] = Counter()
    steps = subject.rollout.completion_ids.shape[1]
    prompt_width = subject.rollout.prompt_ids.shape[1]
    first, *decodes = calls[:steps]  # one prefill and a decode for each token but the last
    packed = subject.trainer.policy.module.packs
    tokens = int(subject.rollout.prompt_mask.sum())
    assert (first.rows, first.width) == ((1, tokens) if packed else (P, prompt_width))
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


@pytest.mark.parametrize("fast_path", [True, False], ids=["packed", "padded"])
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
    options, lora, extra, fast_path, tiny, calls, gradients, kit
):
    subject = kit.Subject(tiny, lora=lora, fast_path=fast_path, **options)
    calls.clear(), gradients.clear()
    subject.learner.step()
    kinds, _ = forwards(subject, calls)
    if fast_path:  # the N completions are one row; prompt features are those of padded prompts
        extra = {k.replace(f"{N} rows", "1 rows"): count for k, count in extra.items()}
    assert kinds == Counter({"gradient": 1}) + Counter(extra)
    assert len(gradients) == kinds["gradient"]


@pytest.mark.parametrize("fast_path", [True, False], ids=["packed", "padded"])
def test_a_small_budget_cuts_the_same_completions_into_more_forwards(
    fast_path, tiny, calls, gradients, kit
):
    subject = kit.Subject(tiny, max_tokens_per_micro_batch=14, fast_path=fast_path)
    calls.clear(), gradients.clear()
    subject.step()
    live = {
        (i // G, *ids)
        for i, ids in enumerate(subject.rollout.completion_lists())
        if subject.experience.advantages[i]
    }
    trained = [call for call in calls if call.differentiates]
    assert len(trained) == len(gradients) > 2
    if not fast_path:
        assert sum(call.rows for call in trained) == len(live)
    assert max(call.rows * call.width for call in trained) <= 14
    assert sum(gradients) == sum(len(ids) - 1 for ids in live)
    assert subject.gap(kit.plain_loss(subject)) < TIGHT


def trained(kit: Any, tiny: Any, steps: int = 3, **options: Any) -> dict[str, Tensor]:
    subject = kit.Subject(
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
def test_an_option_that_is_off_changes_no_bit_of_the_weights(options, tiny, kit):
    assert kit.same_bits(trained(kit, tiny, **options), trained(kit, tiny))


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
def test_an_option_that_is_on_does(options, tiny, kit):
    assert not kit.same_bits(trained(kit, tiny, **options), trained(kit, tiny))


def at_the_end(kit: Any) -> Any:
    """`by_completion` as a reward per token that pays at the last one."""

    def reward(completion_ids, **kwargs):
        return [[*[0.0] * (len(ids) - 1), kit.worth(ids)] for ids in completion_ids]

    return reward


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"epsilon": 0.2}, {"baseline": "none"}])
def test_a_reward_paid_at_the_last_token_is_the_reward_of_the_completion(options, dtype, tiny, kit):
    options = {**options, "dtype": dtype, "optim": "adamw", "learning_rate": 1e-2}
    per_token, per_completion = (
        kit.Subject(tiny, reward, **options) for reward in (at_the_end(kit), kit.by_completion)
    )
    for _ in range(3):
        per_token.learner.step(), per_completion.learner.step()
    assert per_token.experience.advantages.shape == per_token.rollout.completion_ids.shape
    assert per_completion.experience.advantages.shape == (N,)
    assert kit.same_bits(per_token.weights(), per_completion.weights())


def test_a_reward_paid_at_the_first_token_is_not(tiny, kit):
    def at_the_start(completion_ids, **kwargs):
        return [[kit.worth(ids), *[0.0] * (len(ids) - 1)] for ids in completion_ids]

    early, late = kit.Subject(tiny, at_the_start), kit.Subject(tiny, at_the_end(kit))
    early.step(), late.step()
    assert max(tiny.gap(early.moved, late.moved)) > 1e-2


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_rewards_per_token_reach_the_tokens_before_them_discounted(gamma, tiny, kit):
    subject = kit.Subject(tiny, kit.by_token, gamma=gamma)
    subject.step()
    logprobs = subject.logprobs(subject.before)
    paid = [kit.token_worth(ids) for ids in subject.rollout.completion_lists()]
    assert (
        subject.gap(kit.reinforce(logprobs, kit.centred([kit.to_go(r, gamma) for r in paid])))
        < TIGHT
    )
    for other in {0.0, 0.6, 1.0} - {gamma}:
        assert (
            subject.gap(kit.reinforce(logprobs, kit.centred([kit.to_go(r, other) for r in paid])))
            > 1e-2
        )


def test_without_any_look_ahead_each_token_is_credited_with_its_own_reward_only(tiny, kit):
    subject = kit.Subject(tiny, kit.by_token, gamma=0, baseline="none")
    subject.step()
    table = torch.full(subject.rollout.completion_ids.shape, math.nan, dtype=torch.float64)
    for i, ids in enumerate(subject.rollout.completion_lists()):
        table[i, : len(ids)] = torch.tensor(kit.token_worth(ids))
    expected = tiny.naive_gradient(subject.before, subject.rollout, table, kit.TEMPERATURE)
    assert max(tiny.gap(subject.moved, expected)) < TIGHT
    whole = torch.tensor([sum(kit.token_worth(ids)) for ids in subject.rollout.completion_lists()])
    other = tiny.naive_gradient(subject.before, subject.rollout, whole.double(), kit.TEMPERATURE)
    assert max(tiny.gap(subject.moved, other)) > 1e-2


def test_the_reward_of_a_completion_is_discounted_by_the_tokens_that_follow(tiny, kit):
    subject = kit.Subject(tiny, gamma=0.7)
    subject.step()
    logprobs = subject.logprobs(subject.before)
    returns = [
        torch.tensor([r * 0.7 ** (len(row) - 1 - t) for t in range(len(row))], dtype=torch.float64)
        for r, row in zip(subject.rewards.tolist(), logprobs, strict=True)
    ]
    assert subject.gap(kit.reinforce(logprobs, kit.centred(returns))) < TIGHT
    assert subject.gap(kit.plain_loss(subject)) > 1e-2


def test_rewards_per_token_and_per_completion_are_added_by_weight(tiny, kit):
    subject = kit.Subject(tiny, [kit.by_token, kit.by_completion], reward_weights=[0.5, 2.0])
    stats = subject.step()
    lists = subject.rollout.completion_lists()
    paid = [[0.5 * r for r in kit.token_worth(ids)] for ids in lists]
    for row, ids in zip(paid, lists, strict=True):
        row[-1] += 2.0 * kit.worth(ids)
    returns = [kit.to_go(row) for row in paid]
    assert (
        subject.gap(kit.reinforce(subject.logprobs(subject.before), kit.centred(returns))) < TIGHT
    )
    for row, tokens in zip(stats.completions, paid, strict=True):
        assert row["token_rewards"] == pytest.approx(tokens, abs=1e-12)
        assert row["reward"] == pytest.approx(sum(tokens), abs=1e-12)
        assert len(row["token_rewards"]) == len(row["completion_ids"])


def test_completions_have_no_token_rewards_where_none_are_given(tiny, kit):
    assert all("token_rewards" not in row for row in kit.Subject(tiny).step().completions)


def test_a_baseline_of_hidden_states_is_refused_where_there_are_none(tiny):
    """Gemma caps its logits softly, so that the whole model runs and the head alone says little."""
    model = tiny.build_model("gemma2")
    with pytest.raises(ModelError, match=r"Gemma2ForCausalLM.*choose baseline=prompt_value"):
        tiny.build_trainer(model, baseline="linear_value", num_generations=2)
    tiny.build_trainer(model, baseline="prompt_value", num_generations=2)
