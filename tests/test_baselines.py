"""Baselines keep the mean of the gradient: by double loops, and by enumerating a small bandit."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl4lm.estimator.baselines import (
    BASELINES,
    KEEPS_HISTORY,
    NEEDS_FEATURES,
    NEEDS_TWO_GENERATIONS,
    SCALES,
    BaselineInputs,
    advantages,
)
from rl4lm.estimator.names import BaselineName

NAMES = sorted(BASELINES)
HISTORY = sorted(KEEPS_HISTORY)
WITHIN = [name for name in NAMES if name not in KEEPS_HISTORY]
MEANS = [name for name in WITHIN if name != "none"]


def plain(rewards: list[float], lengths: list[int]) -> float:
    return sum(rewards) / len(rewards)


def by_length(rewards: list[float], lengths: list[int]) -> float:
    return sum(r * n for r, n in zip(rewards, lengths, strict=True)) / sum(lengths)


# Which sample j = (prompt, place) is compared with sample i, and what of those rewards and lengths.
DEFINITIONS = {
    "none": (lambda i, j: False, plain),
    "batch_mean": (lambda i, j: True, plain),
    "batch_leave_one_out": (lambda i, j: i != j, plain),
    "prompt_mean": (lambda i, j: i[0] == j[0], plain),
    "prompt_leave_one_out": (lambda i, j: i[0] == j[0] and i != j, plain),
    "length_weighted": (lambda i, j: i[0] == j[0] and i != j, by_length),
}


def inputs_of(
    rewards: Tensor,
    valid: Tensor | None = None,
    lengths: Tensor | None = None,
    keys: Tensor | None = None,
    features: Tensor | None = None,
) -> BaselineInputs:
    """All valid, of length 1, the keys 0 … P-1, and two features of each prompt by default."""
    prompts = rewards.shape[-2]
    every = torch.ones_like(rewards, dtype=torch.bool)
    places = torch.arange(prompts)
    angle = places.double()[:, None] + torch.tensor([0.5, 2.0], dtype=torch.float64)
    return BaselineInputs(
        lengths=every.long() if lengths is None else lengths.expand_as(rewards),
        valid=every if valid is None else valid.expand_as(rewards),
        prompt_keys=places if keys is None else keys,
        prompt_features=angle.sin() if features is None else features,
    )


def baseline(
    name: str, rewards: Tensor, valid: Tensor | None = None, lengths: Tensor | None = None
) -> Tensor:
    """b of one step, after no other step."""
    start: Mapping = {} if name in KEEPS_HISTORY else {"kept": 1}
    value, state = BASELINES[name](rewards, inputs_of(rewards, valid, lengths), start)
    assert name in KEEPS_HISTORY or state == {"kept": 1}
    return value


def by_double_loop(name: str, rewards: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """[P, G], a sample at a time, straight from the definitions."""
    compared, middle = DEFINITIONS[name]
    result = torch.zeros_like(rewards)
    cells = list(itertools.product(*map(range, rewards.shape)))
    for i in cells:
        others = [j for j in cells if valid[j] and compared(i, j)]
        if valid[i] and others:
            result[i] = middle(
                [float(rewards[j]) for j in others], [int(lengths[j]) for j in others]
            )
    return result


@st.composite
def steps(draw):
    """Rewards float64 [P, G], which of them apply, and the lengths of the completions."""
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    count = shape[0] * shape[1]
    values = draw(st.lists(st.floats(-10, 10), min_size=count, max_size=count))
    valid = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    lengths = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    mask = torch.tensor(valid).view(shape)
    rewards = torch.where(mask, torch.tensor(values, dtype=torch.float64).view(shape), 0.0)
    return rewards, mask, torch.tensor(lengths).view(shape)


@pytest.mark.parametrize("name", WITHIN)
@given(step=steps())
def test_a_baseline_is_the_mean_of_what_its_name_says(name, step):
    """Samples without a reward are left out of every mean, and have a baseline of 0."""
    rewards, valid, lengths = step
    expected = by_double_loop(name, rewards, valid, lengths)
    actual = baseline(name, rewards, valid, lengths)
    # Lengths weight the rounding of a sum by up to 150 before it is divided by 1 or more.
    atol = 1e-11 if name == "length_weighted" else 1e-13
    assert torch.allclose(actual, expected, rtol=0, atol=atol)


def test_the_name_sets_are_what_the_baselines_do():
    assert tuple(BASELINES) == get_args(BaselineName)
    assert list(SCALES) == list(BASELINES)
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(3, 1, generator=generator, dtype=torch.float64)
    useless = {name for name in MEANS if not baseline(name, rewards).any()}
    own = {name for name in MEANS if torch.equal(baseline(name, rewards), rewards)}
    assert useless | own == NEEDS_TWO_GENERATIONS
    inputs = inputs_of(rewards, features=torch.zeros(3, 0, dtype=torch.float64))
    for name in NAMES:
        if name in NEEDS_FEATURES:
            with pytest.raises(ValueError, match=r"needs finite prompt_features \[P, F > 0\]"):
                BASELINES[name](rewards, inputs, {})
        else:
            assert bool(BASELINES[name](rewards, inputs, {})[1]) == (name in KEEPS_HISTORY)


def test_longer_completions_weigh_more():
    rewards = torch.tensor([[1.0, 0.0, 4.0]], dtype=torch.float64)
    lengths = torch.tensor([[2, 1, 3]])
    value = baseline("length_weighted", rewards, lengths=lengths)[0].tolist()
    assert value == pytest.approx([12 / 4, 14 / 5, 2 / 3], abs=1e-15)
    assert baseline("length_weighted", rewards)[0].tolist() == pytest.approx([2.0, 2.5, 0.5])


def test_counting_samples_without_a_reward_as_zeros_would_be_noticed():
    rewards = torch.tensor([[1.0, 0.0, 3.0]], dtype=torch.float64)
    valid = torch.tensor([[True, False, True]])
    left_out = baseline("prompt_leave_one_out", rewards, valid)
    assert left_out.tolist() == [[3.0, 0.0, 1.0]]
    assert baseline("prompt_leave_one_out", rewards).tolist() == [[1.5, 2.0, 0.5]]
    assert advantages(rewards, left_out, valid).tolist() == [[-2.0, 0.0, 2.0]]


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_with_two_samples_the_baseline_is_the_reward_of_the_other(first, second):
    rewards = torch.tensor([[first, second]], dtype=torch.float64)
    for name in ("prompt_leave_one_out", "batch_leave_one_out", "length_weighted"):
        assert baseline(name, rewards)[0].tolist() == pytest.approx([second, first], abs=1e-14)


def test_a_sample_with_nothing_to_compare_with_has_no_baseline():
    rewards = torch.tensor([[0.7], [0.2]], dtype=torch.float64)
    for name in ("prompt_leave_one_out", "length_weighted"):
        assert baseline(name, rewards).tolist() == [[0.0], [0.0]]
    nobody = torch.zeros(2, 1, dtype=torch.bool)
    for name in NAMES:
        assert baseline(name, rewards, nobody).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("group", [2, 3, 6, 7, 8, 16])
def test_equal_rewards_have_an_advantage_of_exactly_zero(name, value, group):
    """Not 1e-17: Adam makes a full-sized step of that, and the sample would not be skipped."""
    rewards = torch.full((3, group), value, dtype=torch.float64)
    every = torch.ones_like(rewards, dtype=torch.bool)
    one_missing = every.clone()
    one_missing[0, 0] = group == 2  # a sample left alone has nothing to be equal to
    lengths = torch.arange(3 * group).view(3, group) % 5 + 1
    for mask in (every, one_missing):
        assert not advantages(rewards, baseline(name, rewards, mask, lengths), mask).any()


def test_the_obvious_formula_is_not_exactly_zero():
    spread = {}
    for group in (3, 6, 7, 8, 16):
        rewards = torch.full((group,), 0.7, dtype=torch.float64)
        leave_one_out = (rewards.sum() - rewards) / (group - 1)
        spread[group] = float((rewards - leave_one_out).abs().max())
    assert 0 < max(spread.values()) < 1e-14, spread


PAYOFFS = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.2, 0.6], dtype=torch.float64)


def expected_gradient(choose_baseline, prompts: int, group: int) -> Tensor:
    """E[(1/N) Σ_i (r_i - b_i) ∇log π(a_i)] over every outcome of N pulls of one bandit, [3]."""
    share = LOGITS.softmax(0)
    outcomes = torch.tensor(list(itertools.product(range(3), repeat=prompts * group)))
    probability = share[outcomes].prod(-1)  # [K]
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    rewards = PAYOFFS[outcomes].view(-1, prompts, group)  # a leading axis of outcomes
    centred = (rewards - choose_baseline(rewards)).flatten(1)  # [K, N]
    score = torch.eye(3, dtype=torch.float64)[outcomes] - share  # [K, N, 3] = ∇ log π(a)
    return torch.einsum("k,kn,kna->a", probability, centred, score) / (prompts * group)


def true_gradient() -> Tensor:
    """∂/∂logit_a of J = Σ π_a r_a, which is π_a (r_a - J)."""
    share = LOGITS.softmax(0)
    return share * (PAYOFFS - (share * PAYOFFS).sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("prompts", "group"), [(1, 2), (2, 2), (1, 4), (2, 3)])
def test_the_expected_gradient_is_the_true_one_times_the_stated_scale(name, prompts, group):
    scale = SCALES[name](prompts, group)
    actual = expected_gradient(lambda rewards: baseline(name, rewards), prompts, group)
    assert torch.allclose(actual, scale * true_gradient(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_batch_mean_shrinks_the_gradient_by_exactly_one_over_n(count):
    assert SCALES["batch_mean"](1, count) == (count - 1) / count
    assert SCALES["prompt_mean"](5, count) == (count - 1) / count
    actual = expected_gradient(lambda rewards: baseline("batch_mean", rewards), 1, count)
    assert not torch.allclose(actual, true_gradient(), rtol=1e-3)


@pytest.mark.parametrize(
    ("mistake", "choose_baseline"),
    [
        ("a mean that includes the sample", lambda r: r.mean(-1, keepdim=True)),
        ("the sample's own reward", lambda r: r),
        ("the largest reward of the group", lambda r: r.amax(-1, keepdim=True)),
        ("the median of the group", lambda r: r.median(-1, keepdim=True).values),
    ],
)
def test_a_baseline_that_sees_its_own_sample_would_be_noticed(mistake, choose_baseline):
    actual = expected_gradient(choose_baseline, 1, 3)
    error = float((actual - true_gradient()).norm() / true_gradient().norm())
    assert error > 0.05, mistake


BANDITS = {
    # Three prompts with three completions each: the more rewarding ones differ, and so do lengths.
    "logits": [[0.3, -0.2, 0.6], [-0.5, 0.4, 0.1], [1.0, 0.0, -0.7]],
    "payoffs": [[1.0, 0.2, -0.5], [0.0, 0.7, 2.0], [0.3, 0.9, 0.4]],
}
LENGTHS = torch.tensor([[1, 4, 9], [7, 2, 3], [5, 1, 8]])
KEYS = torch.tensor([8, 3, 5])
FEATURES = torch.tensor([[0.3, 1.0], [-0.4, 0.1], [0.9, -0.6]], dtype=torch.float64)
Choice = Callable[[Tensor, BaselineInputs], Tensor]


def enumerated_gradients(choose: Choice, prompts: int, group: int) -> tuple[Tensor, Tensor]:
    """E[(1/N) Σ_i (r_i - b_i) ∇log π(a_i)] over every outcome of G pulls of P bandits, and ∇J.

    Both [P, 3]: the gradient in the logits of each prompt's own bandit, by autograd for ∇J.
    """
    logits, payoffs = (
        torch.tensor(BANDITS[name][:prompts], dtype=torch.float64) for name in ("logits", "payoffs")
    )
    share = logits.softmax(-1)  # [P, 3]
    drawn = torch.tensor(list(itertools.product(range(3), repeat=prompts * group)))
    outcomes = drawn.view(-1, prompts, group)  # [K, P, G], a leading axis of outcomes
    bandit = torch.arange(prompts)[:, None]  # [P, 1], the row that belongs to each pull
    probability = share[bandit, outcomes].flatten(1).prod(-1)  # [K]
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    rewards = payoffs[bandit, outcomes]
    inputs = inputs_of(
        rewards,
        lengths=LENGTHS[bandit, outcomes],
        keys=KEYS[:prompts],
        features=FEATURES[:prompts],
    )
    centred = rewards - choose(rewards, inputs)  # [K, P, G]
    score = torch.eye(3, dtype=torch.float64)[outcomes] - share[:, None]  # [K, P, G, 3]
    expected = torch.einsum("k,kpg,kpga->pa", probability, centred, score) / (prompts * group)
    logits.requires_grad_()
    (truth,) = torch.autograd.grad((logits.softmax(-1) * payoffs).sum() / prompts, logits)
    return expected, truth


def relative_error(choose: Choice, prompts: int, group: int, scale: float) -> float:
    expected, truth = enumerated_gradients(choose, prompts, group)
    return float((expected - scale * truth).norm() / (scale * truth).norm())


def past(name: str, prompts: int) -> Mapping:
    """A state after three steps of the same bandits, one of them without the last prompt."""
    state: Mapping = {}
    generator = torch.Generator().manual_seed(3)
    for last in (prompts, max(1, prompts - 1), prompts):
        rewards = torch.rand(last, 2, generator=generator, dtype=torch.float64)
        inputs = inputs_of(rewards, keys=KEYS[:last], features=FEATURES[:last])
        _, state = BASELINES[name](rewards, inputs, state)
    return state if name in KEEPS_HISTORY else {}


SHAPES = [(1, 2), (1, 3), (2, 1), (3, 1), (2, 2), (3, 2), (2, 3)]


@pytest.mark.parametrize(
    ("name", "prompts", "group"),
    [
        (name, *shape)
        for name, shape in itertools.product(NAMES, SHAPES)
        if shape[1] > 1 or name not in NEEDS_TWO_GENERATIONS
    ],
)
def test_the_gradient_is_unbiased_for_different_prompts_and_lengths(name, prompts, group):
    """Of each prompt's own policy, and after other steps where the baseline remembers them."""
    state = past(name, prompts)

    def choose(rewards: Tensor, inputs: BaselineInputs) -> Tensor:
        value = BASELINES[name](rewards, inputs, state)[0]
        assert name == "none" or value.abs().mean() > 0.05  # there is something to be biased by
        return value

    assert relative_error(choose, prompts, group, SCALES[name](prompts, group)) < 1e-9


def published_opo(rewards: Tensor, inputs: BaselineInputs) -> Tensor:
    """Σ_j l_j r_j / Σ_j l_j, the sample's own length and reward included."""
    weighted = (inputs.lengths * rewards).sum(-1, keepdim=True)
    return weighted / inputs.lengths.sum(-1, keepdim=True)


def includes_the_present(name: str, prompts: int) -> Choice:
    """The state is moved on by the step before the baseline reads it."""

    def choose(rewards: Tensor, inputs: BaselineInputs) -> Tensor:
        after = BASELINES[name](rewards, inputs, past(name, prompts))[1]
        return BASELINES[name](rewards, inputs, after)[0]

    return choose


@pytest.mark.parametrize(
    "choose",
    [
        pytest.param(published_opo, id="OPO as published"),
        pytest.param(includes_the_present("moving_average", 2), id="average of this step too"),
        pytest.param(includes_the_present("prompt_value", 2), id="prompt value of this step too"),
        pytest.param(includes_the_present("linear_value", 2), id="regression on this step too"),
        pytest.param(
            lambda rewards, inputs: rewards.mean(-1, keepdim=True), id="own sample not left out"
        ),
    ],
)
@pytest.mark.parametrize("group", [2, 3])
def test_a_baseline_that_sees_the_present_sample_fails_the_same_check(choose, group):
    assert relative_error(choose, 2, group, scale=1.0) > 0.01


@pytest.mark.parametrize("group", [2, 3])
def test_the_published_form_of_opo_is_not_a_multiple_of_the_gradient(group):
    """No learning rate mends it; the leave-one-out form needs none."""

    def residual(choose: Choice) -> float:
        expected, truth = enumerated_gradients(choose, 2, group)
        best = (expected * truth).sum() / (truth * truth).sum()
        return float((expected - best * truth).norm() / (best * truth).norm())

    assert residual(published_opo) > 0.05
    own = BASELINES["length_weighted"]
    assert residual(lambda rewards, inputs: own(rewards, inputs, {})[0]) < 1e-9
    mean = BASELINES["prompt_mean"]
    assert residual(lambda rewards, inputs: mean(rewards, inputs, {})[0]) < 1e-9


def random_steps(count: int, lead: tuple[int, ...] = (), seed: int = 0):
    """Rewards [..., 3, 2] with a few that do not apply, and prompts that come back."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        rewards = torch.rand(*lead, 3, 2, generator=generator, dtype=torch.float64)
        valid = torch.rand(*lead, 3, 2, generator=generator) > 0.3
        yield (
            rewards,
            BaselineInputs(
                lengths=torch.randint(1, 9, (*lead, 3, 2), generator=generator),
                valid=valid,
                prompt_keys=torch.randint(0, 6, (3,), generator=generator),
                prompt_features=torch.randn(3, 4, generator=generator, dtype=torch.float64),
            ),
        )


def run(name: str, given, state: Mapping | None = None):
    """The baselines of the steps, and the state after them."""
    values, state = [], state or {}
    for rewards, inputs in given:
        value, state = BASELINES[name](rewards, inputs, state)
        values.append(value)
    return values, state


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("name", NAMES)
def test_leading_axes_are_independent_steps(name):
    """With one history for all of them, and then with a history each."""
    _, state = run(name, random_steps(3, seed=1))
    together = list(random_steps(3, lead=(4, 5)))
    values, after = run(name, together, state)
    assert all(value.shape == (4, 5, 3, 2) for value in values)
    for i, j in itertools.product(range(4), range(5)):
        alone, end = run(
            name,
            [
                (
                    rewards[i, j],
                    replace(given, lengths=given.lengths[i, j], valid=given.valid[i, j]),
                )
                for rewards, given in together
            ],
            state,
        )
        for value, single in zip(values, alone, strict=True):
            # A batched product of matrices may add in another order than a single one.
            atol = 1e-12 if name == "linear_value" else 0.0
            assert torch.allclose(value[i, j], single, rtol=0, atol=atol)
        axes = {key: tensor.dim() - end[key].dim() for key, tensor in after.items()}
        assert all(axes[key] == (0 if key in ("keys", "features") else 2) for key in axes)
        assert same(end, {key: v[i, j] if axes[key] else v for key, v in after.items()})


@pytest.mark.parametrize("name", HISTORY)
def test_a_state_survives_the_disk_and_continues_bit_for_bit(name):
    given = list(random_steps(8))
    _, state = run(name, given[:4])
    assert state
    assert all(type(tensor) is Tensor for tensor in state.values())
    file = io.BytesIO()
    torch.save(dict(state), file)
    assert len(file.getvalue()) < 5000
    file.seek(0)
    values, after = run(name, given[4:], torch.load(file, weights_only=True))
    unbroken, end = run(name, given[4:], state)
    assert all(torch.equal(*pair) for pair in zip(values, unbroken, strict=True))
    assert same(after, end)


@pytest.mark.parametrize("name", HISTORY)
def test_a_baseline_leaves_the_given_state_alone_and_reads_nothing_else(name):
    """Whatever the step's rewards are, b is the same, and so is the state that was handed in."""
    _, state = run(name, random_steps(4))
    kept = {key: tensor.clone() for key, tensor in state.items()}
    ((rewards, inputs),) = random_steps(1, seed=9)
    value, after = BASELINES[name](rewards, inputs, state)
    other, elsewhere = BASELINES[name](rewards * 7 - 3, inputs, state)
    assert torch.equal(value, other)
    assert not same(after, elsewhere)
    for tensor in after.values():
        tensor.zero_()
    assert same(state, kept)


@pytest.mark.parametrize("name", HISTORY)
@pytest.mark.parametrize("constant", [0.1, 0.3, 0.7])
def test_a_constant_reward_is_known_exactly_from_the_second_step_on(name, constant):
    state: Mapping = {}
    for step, (rewards, inputs) in enumerate(random_steps(30)):
        inputs = replace(inputs, valid=torch.ones_like(inputs.valid))
        value, state = BASELINES[name](torch.full_like(rewards, constant), inputs, state)
        assert set(value.flatten().tolist()) == {constant if step else 0.0}


@pytest.mark.parametrize("name", HISTORY)
def test_samples_without_a_reward_are_left_out_of_the_history(name):
    def after(fill: float):
        given = [(rewards.where(inputs.valid, fill), inputs) for rewards, inputs in random_steps(5)]
        return run(name, given)

    values, state = after(math.nan)
    others, elsewhere = after(1e6)
    assert same(state, elsewhere)
    assert all(torch.equal(*pair) for pair in zip(values, others, strict=True))
    assert all(tensor.isfinite().all() for tensor in (*state.values(), *values))


@pytest.mark.parametrize("name", HISTORY)
def test_a_step_without_any_reward_changes_no_estimate(name):
    _, state = run(name, random_steps(4))
    (step, probe) = random_steps(2, seed=5)
    nobody = replace(step[1], valid=torch.zeros_like(step[1].valid))
    value, after = BASELINES[name](step[0], nobody, state)
    assert not value.any()
    every = replace(probe[1], valid=torch.ones_like(probe[1].valid))
    before, behind = (BASELINES[name](probe[0], every, given)[0] for given in (state, after))
    assert torch.allclose(before, behind, rtol=0, atol=1e-14)
    if name == "moving_average":
        assert same(state, after)
    _, silence = BASELINES[name](step[0], nobody, {})
    assert not BASELINES[name](probe[0], every, silence)[0].any()


@pytest.mark.parametrize("name", HISTORY)
def test_a_state_of_another_baseline_or_another_batch_is_refused(name):
    ((rewards, inputs),) = random_steps(1)
    with pytest.raises(ValueError, match=r"holds \['kept'\].*was it kept by another baseline\?"):
        BASELINES[name](rewards, inputs, {"kept": torch.zeros(())})
    _, state = run(name, random_steps(1, lead=(4,)))
    with pytest.raises(ValueError, match=r"has the leading axes \(4,\), the rewards have \(\)"):
        BASELINES[name](rewards, inputs, state)


def test_the_moving_average_is_a_plain_mean_first_and_forgets_later():
    """Ten steps of the plain mean, and then a tenth of what is new."""
    rewards = torch.rand(25, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = [float(step.mean()) for step in rewards]
    values, _ = run("moving_average", [(step, inputs_of(step)) for step in rewards])
    expected = 0.0
    for t, value in enumerate(values):
        assert value.flatten().tolist() == pytest.approx([expected] * 6, abs=1e-14)
        plain = sum(means[: t + 1]) / (t + 1)
        expected = plain if t < 10 else 0.9 * expected + 0.1 * means[t]


def test_a_prompt_value_estimates_each_prompt_apart_and_falls_back_for_new_ones():
    """By a dictionary of lists; a key that comes twice in a step is one prompt and one update."""
    seen: dict[int, list[float]] = {}
    averages: list[float] = []

    def running(means: list[float]) -> float:
        value = 0.0
        for t, mean in enumerate(means, start=1):
            value += max(0.1, 1 / t) * (mean - value)
        return value

    state: Mapping = {}
    twice = fresh = 0
    for rewards, inputs in random_steps(60):
        value, state = BASELINES["prompt_value"](rewards, inputs, state)
        keys = inputs.prompt_keys.tolist()
        for p, g in itertools.product(range(3), range(2)):
            known = keys[p] in seen
            estimate = running(seen[keys[p]] if known else averages)
            expected = estimate if inputs.valid[p, g] else 0.0
            assert float(value[p, g]) == pytest.approx(expected, abs=1e-14)
            fresh += not known
        twice += len(set(keys)) < 3
        for key in set(keys):
            rows = inputs.prompt_keys == key
            chosen = rewards[rows][inputs.valid[rows]].tolist()
            if chosen:
                seen.setdefault(key, []).append(sum(chosen) / len(chosen))
        chosen = rewards[inputs.valid].tolist()
        if chosen:
            averages.append(sum(chosen) / len(chosen))
    assert twice > 10
    assert fresh > 10
    assert state["keys"].tolist() == sorted(seen)
    assert state["values"].tolist() == pytest.approx([running(seen[key]) for key in sorted(seen)])


def test_the_same_key_twice_in_a_step_is_one_prompt():
    rewards = torch.tensor([[1.0, 2.0], [6.0, 0.0], [5.0, 5.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True], [True, False], [True, True]])
    inputs = inputs_of(rewards, valid, keys=torch.tensor([4, 4, 1]))
    _, state = BASELINES["prompt_value"](rewards, inputs, {})
    assert state["keys"].tolist() == [1, 4]
    assert state["values"].tolist() == [5.0, 3.0]  # over three valid samples, not over two prompts
    assert state["visits"].tolist() == [1, 1]
    value, _ = BASELINES["prompt_value"](rewards, inputs_of(rewards, keys=KEYS[:3] - 4), state)
    average = (1 + 2 + 6 + 5 + 5) / 5
    assert value.tolist() == [[3.0] * 2, [average] * 2, [5.0] * 2]  # keys 4, -1 and 1


def plain_ridge(x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """w = (X̄ᵀX̄ + λI)⁻¹ X̄ᵀ(y - ȳ) in its primal form, between the extremes of y."""
    centred = x - x.mean(0)
    strength = 0.1 * (centred**2).sum() / len(x)
    gram = centred.T @ centred + strength * torch.eye(x.shape[1], dtype=torch.float64)
    slope = torch.linalg.inv(gram) @ centred.T @ (y - y.mean())
    return ((asked - x.mean(0)) @ slope + y.mean()).clamp(y.min(), y.max())


def test_a_linear_value_is_the_ridge_regression_on_the_last_512_prompts():
    """By the primal form, which has another matrix, over a window that has to forget."""
    generator = torch.Generator().manual_seed(0)
    features = (torch.randn(9, 100, 7, generator=generator) + 5).double()
    rewards = torch.rand(9, 100, 2, generator=generator, dtype=torch.float64)
    rewards += features[..., :1] / 4
    valid = torch.rand(9, 100, 2, generator=generator) > 0.3
    state: Mapping = {}
    for t in range(9):
        inputs = inputs_of(rewards[t], valid[t], features=features[t])
        value, state = BASELINES["linear_value"](rewards[t], inputs, state)
        means = [
            float(r[v].mean()) if v.any() else math.nan
            for r, v in zip(rewards[:t].flatten(0, 1), valid[:t].flatten(0, 1), strict=True)
        ][-512:]
        y = torch.tensor(means, dtype=torch.float64)
        x = features[:t].flatten(0, 1)[-512:][~y.isnan()]
        expected = plain_ridge(x, y[~y.isnan()], features[t]) if t else torch.zeros(100).double()
        expected = torch.where(valid[t], expected[:, None], 0.0)
        assert torch.allclose(value, expected, rtol=0, atol=1e-11)
    assert state["features"].shape == (512, 7)
    assert state["targets"].shape == state["known"].shape == (512,)
    stored = sum(tensor.untyped_storage().nbytes() for tensor in state.values())
    assert stored == 512 * (4 * 7 + 8 + 1)


def test_a_linear_value_learns_what_is_linear_in_the_features():
    """The mean distance from the true V(q), after 20 steps of prompts that never come back."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.tensor([0.5, -0.3, 0.2, 0.0], dtype=torch.float64)
    states: dict[str, Mapping] = {"linear_value": {}, "moving_average": {}}
    distance: dict[str, list[float]] = {name: [] for name in states}
    for t in range(40):
        features = torch.randn(16, 4, generator=generator, dtype=torch.float64)
        truth = 1 + features @ slope  # [P]
        noise = 0.3 * torch.randn(16, 1, generator=generator, dtype=torch.float64)
        inputs = inputs_of(noise, keys=torch.arange(16) + 16 * t, features=features)
        for name in states:
            value, states[name] = BASELINES[name](truth[:, None] + noise, inputs, states[name])
            distance[name].append(float((value[:, 0] - truth).abs().mean()))
    late = {name: sum(values[20:]) / 20 for name, values in distance.items()}
    assert late["linear_value"] < 0.05 < 0.4 < late["moving_average"]


def test_a_linear_value_is_the_mean_where_features_say_nothing():
    """Fewer than two prompts, equal features, and nothing at all; and it stays in the range."""
    value = BASELINES["linear_value"]
    one = torch.tensor([[0.25]], dtype=torch.float64)
    here = torch.tensor([[0.1, 0.7]], dtype=torch.float64)
    ask = inputs_of(one, features=torch.tensor([[9.0, -9.0]], dtype=torch.float64))
    first, state = value(one, inputs_of(one, features=here), {})
    assert first.tolist() == [[0.0]]
    second, state = value(one + 0.5, replace(ask, prompt_features=3 * here), state)
    assert second.tolist() == [[0.25]]
    for count in (3, 6, 7, 11, 13):  # plain means of equal numbers are off by a rounding
        spread = torch.arange(count).double()[:, None] ** 2 / 7
        _, state = value(spread, inputs_of(spread, features=here.expand(count, 2)), {})
        assert float(value(one, ask, state)[0]) == pytest.approx(float(spread.mean()), rel=1e-15)
        nearly = here + 1e-6 * torch.arange(count).double()[:, None]
        _, state = value(spread, inputs_of(spread, features=nearly), {})
        assert float(value(one, ask, state)[0]) in (0.0, float(spread.max()))  # not in millions


def test_an_advantage_is_zero_where_no_reward_applied():
    rewards = torch.tensor([[1.0, math.nan]], dtype=torch.float64)
    valid = torch.tensor([[True, False]])
    assert advantages(rewards, torch.zeros_like(rewards), valid).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("name", NAMES)
def test_rewards_of_another_precision_or_shape_are_refused(name):
    inputs = inputs_of(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"must be float64 \[..., P, G\], got torch.float32"):
        BASELINES[name](torch.zeros(2, 3), inputs, {})
    with pytest.raises(ValueError, match=r"must be float64 \[..., P, G\]"):
        BASELINES[name](torch.zeros(6, dtype=torch.float64), inputs, {})
    with pytest.raises(ValueError, match=r"lengths \(2, 3\) must match rewards \(3, 2\)"):
        BASELINES[name](torch.zeros(3, 2, dtype=torch.float64), inputs, {})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("valid", torch.ones(2, 3), r"valid must be torch.bool, got torch.float32"),
        ("lengths", torch.ones(2, 3), r"lengths must be torch.int64, got torch.float32"),
        ("prompt_keys", torch.zeros(2), r"int64 \[P\] with P=2, got torch.float32 \(2,\)"),
        ("prompt_keys", torch.zeros(2, 3).long(), r"with P=2, got torch.int64 \(2, 3\)"),
        ("prompt_features", torch.zeros(2, 4), r"float64 \[P, F\] with P=2, got torch.float32"),
        ("prompt_features", torch.zeros(3, 4).double(), r"P=2, got torch.float64 \(3, 4\)"),
        ("prompt_features", torch.zeros(2).double(), r"P=2, got torch.float64 \(2,\)"),
    ],
)
def test_inputs_of_another_kind_are_refused(name, field, wrong, message):
    rewards = torch.zeros(2, 3, dtype=torch.float64)
    inputs = replace(inputs_of(rewards), **{field: wrong})
    with pytest.raises(ValueError, match=message):
        BASELINES[name](rewards, inputs, {})


def test_features_that_cannot_be_learned_from_are_refused():
    rewards = torch.zeros(2, 3, dtype=torch.float64)
    broken = torch.tensor([[0.0, math.inf], [math.nan, 1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"got \(2, 2\) with 2 values that are not finite"):
        BASELINES["linear_value"](rewards, inputs_of(rewards, features=broken), {})
    _, state = BASELINES["linear_value"](rewards, inputs_of(rewards), {})
    wide = inputs_of(rewards, features=torch.zeros(2, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\(2, 5\) and those of the history \(2, 2\)"):
        BASELINES["linear_value"](rewards, wide, state)
