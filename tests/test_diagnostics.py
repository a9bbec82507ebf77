"""The numbers about the signal of a step, against loops and against noise of known size."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rl4lm import diagnostics
from rl4lm.diagnostics import (
    Tally,
    as_row,
    combine,
    gap_is_suspicious,
    half_noise,
    halves,
    measured_tensors,
    noise_metrics,
    signal_metrics,
    tally_advantages,
    tally_gap,
    tally_kl,
    tally_ratios,
)
from rl4lm.types import Drawing, Example, Experience, Rollout, Scores

NAN = math.nan

MEAN = [torch.tensor([[0.5, -0.3, 0.0], [0.2, 0.1, -0.4]]), torch.tensor([0.3, -0.2, 0.6, 0.1])]
SPREAD = [torch.tensor([[0.5, 2.0, 1.0], [0.1, 3.0, 1.5]]), torch.tensor([1.0, 0.2, 2.5, 0.7])]
SIGNAL = float(sum(m.double().square().sum() for m in MEAN))  # |G|²
VARIANCE = float(sum(s.double().square().sum() for s in SPREAD))  # tr Σ
UNDEFINED = {"gradient_noise_scale": None, "gradient_snr": None, "variance_reduction": None}


def noise(first: list[Tensor], whole: list[Tensor], first_count: int, count: int):
    """The metrics of one step, of which nobody knows what it would be without its baseline."""
    return noise_metrics(half_noise(first, whole, first_count, count), None, 1.0, count)


def sample_sums(count: int, generator: torch.Generator) -> list[Tensor]:
    """Σ of the gradients of some completions, each drawn from the Gaussian above."""
    return [
        m.double() * count
        + (s * torch.randn(count, *m.shape, generator=generator, dtype=torch.float64)).sum(0)
        for m, s in zip(MEAN, SPREAD, strict=True)
    ]


@pytest.mark.parametrize(("first_count", "count"), [(8, 16), (12, 20)])
def test_signal_and_variance_are_estimated_without_bias(first_count, count):
    generator = torch.Generator().manual_seed(0)
    signals, variances, naive = [], [], []
    for _ in range(1500):
        one = sample_sums(first_count, generator)
        two = sample_sums(count - first_count, generator)
        first = [t / count for t in one]
        whole = [(a + b) / count for a, b in zip(one, two, strict=True)]
        signal, variance = half_noise(first, whole, first_count, count)
        signals.append(signal)
        variances.append(variance)
        naive.append(float(sum(t.square().sum() for t in whole)))

    def errors(values: list[float], truth: float) -> float:
        """How many standard errors the mean is off."""
        return (
            abs(statistics.mean(values) - truth) * math.sqrt(len(values)) / statistics.stdev(values)
        )

    assert errors(signals, SIGNAL) < 3.5
    assert errors(variances, VARIANCE) < 3.5
    assert errors(naive, SIGNAL) > 10, "the norm of the mean gradient holds the noise's as well"
    # And tight enough to mean something.
    assert statistics.mean(signals) == pytest.approx(SIGNAL, rel=0.2)
    assert statistics.mean(variances) == pytest.approx(VARIANCE, rel=0.05)


def test_the_scale_is_the_ratio_of_the_two_by_hand():
    # g_1 = (3, 0) over 2 completions and g_2 = (1, 2) over 1; sums (6, 0) and (1, 2).
    first, whole = [torch.tensor([2.0, 0.0])], [torch.tensor([7 / 3, 2 / 3])]
    signal, variance = 3.0, (4.0 + 4.0) / (1 / 2 + 1 / 1)
    found = noise(first, whole, 2, 3)
    assert found["gradient_noise_scale"] == pytest.approx(variance / signal, rel=1e-6)
    assert found["gradient_snr"] == pytest.approx(3 * signal / variance, rel=1e-6)


@pytest.mark.parametrize(
    ("first", "whole", "first_count", "count"),
    [
        ([1.0, 2.0], [1.0, 2.0], 4, 4),  # no second half
        ([0.0, 0.0], [1.0, 2.0], 0, 4),  # no first half
        ([0.0, 0.0], [0.0, 0.0], 2, 4),  # no gradient
        ([1.0, 2.0], [0.0, 0.0], 2, 4),  # the halves pull apart: the signal is negative
        ([1.0, 0.0], [1.0, 2.0], 2, 4),  # at right angles: the signal is 0
        ([1.0, 2.0], [2.0, 4.0], 2, 4),  # equal: no noise at all
        ([math.inf, 0.0], [1.0, 2.0], 2, 4),
        ([1.0, 2.0], [NAN, 4.0], 2, 4),
    ],
)
def test_what_is_not_defined_is_none(first, whole, first_count, count):
    parts = [torch.tensor([value]) for value in first], [torch.tensor([value]) for value in whole]
    assert noise(*parts, first_count, count) == UNDEFINED
    assert noise([], [], 2, 4) == UNDEFINED


def test_bfloat16_gradients_are_added_up_in_full_precision():
    first, whole = torch.full((4096,), 0.5), torch.full((4096,), 1.25)
    coarse = noise([first.bfloat16()], [whole.bfloat16()], 2, 4)
    assert coarse == noise([first.double()], [whole.double()], 2, 4)
    assert coarse["gradient_noise_scale"] == pytest.approx(0.25 / 1.5, rel=1e-12)


def test_what_a_baseline_does_to_the_variance_is_compared_at_equal_scale():
    """A gradient shrunk to a half has a quarter of the variance, and that is no merit."""
    found = noise_metrics((1.0, 6.0), (1.0, 8.0), 1.0, 10)
    assert found["variance_reduction"] == pytest.approx(0.25)
    shrunk = noise_metrics((0.25, 1.5), (1.0, 8.0), 0.5, 10)
    assert shrunk["variance_reduction"] == pytest.approx(0.25)
    assert noise_metrics((1.0, 16.0), (1.0, 8.0), 1.0, 10)["variance_reduction"] == -1.0
    assert noise_metrics((1.0, 6.0), (1.0, 0.0), 1.0, 10)["variance_reduction"] is None
    assert noise_metrics(None, (1.0, 8.0), 1.0, 10) == UNDEFINED


def test_all_tensors_are_measured_where_they_fit(monkeypatch):
    assert measured_tensors([2**20] * 64) == list(range(64))
    monkeypatch.setattr(diagnostics, "_MEASURED_ELEMENTS", 100)
    assert measured_tensors([50, 50]) == [0, 1]
    assert len(measured_tensors([50, 51])) == 1


@pytest.mark.parametrize("tensors", [20, 57, 400])
def test_those_that_fit_are_spread_over_the_depth(tensors, monkeypatch):
    monkeypatch.setattr(diagnostics, "_MEASURED_ELEMENTS", 100)
    chosen = measured_tensors([10] * tensors)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 10
    for quarter in range(4):
        start, end = quarter * tensors / 4, (quarter + 1) * tensors / 4
        assert sum(start <= index < end for index in chosen) >= 1


def test_tensors_that_are_too_large_are_passed_over_and_the_room_is_used(monkeypatch):
    monkeypatch.setattr(diagnostics, "_MEASURED_ELEMENTS", 100)
    sizes = [1000, 7, 30, 101, 60, 3, 100, 90]
    chosen = measured_tensors(sizes)
    left = 100 - sum(sizes[index] for index in chosen)
    assert left >= 0
    assert all(size > left for i, size in enumerate(sizes) if i not in chosen)
    assert measured_tensors([101, 1000]) == []


def test_halves_are_every_other_prompt_of_the_whole_step():
    one_process = halves(range(5), 2)
    assert one_process.tolist() == [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2
    assert torch.equal(torch.cat([halves([0, 1, 2], 2), halves([3, 4], 2)]), one_process)
    assert halves([3], 3).tolist() == [False] * 3


P, G, T = 4, 2, 5
B = P * G


def experience(tokens: bool = False) -> Experience:
    """Four prompts of two completions with numbers of all signs; row 3 has no reward."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.tensor([1, 5, 3, 2, 4, 5, 2, 3])
    mask = torch.arange(T) < lengths[:, None]
    sampled = torch.where(mask, -draw(B, T).abs(), 0.0)
    returns = draw(B, T) if tokens else draw(B)
    advantages = returns - 0.3
    advantages[5] = 0.0
    returns[3] = advantages[3] = 0.0
    if tokens:
        advantages = torch.where(mask, advantages, 0.0)
    rollout = Rollout(
        prompt_ids=torch.ones(P, 2, dtype=torch.int64),
        prompt_mask=torch.ones(P, 2, dtype=torch.bool),
        completion_ids=torch.ones(B, T, dtype=torch.int64),
        completion_mask=mask,
        sampling_logprobs=sampled,
        ended=torch.ones(B, dtype=torch.bool),
    )
    valid = (torch.arange(B) != 3).view(P, G)
    return Experience(
        examples=[Example(str(p), "q", {}) for p in range(P)],
        rollout=rollout,
        texts=[""] * B,
        scores=Scores(rewards=torch.zeros(P, G).double(), valid=valid, parts={}),
        measures=torch.zeros(P, G, 6, dtype=torch.float64),
        returns=returns,
        advantages=advantages,
        weights=torch.ones(B).double(),
        policy_logprobs=sampled,
        reference_logprobs=torch.where(mask, sampled + 0.4 * draw(B, T), NAN),
        num_completions=B,
        places=range(P),
        keys=range(P),
        drawing=Drawing(completions=B, tokens=0),
    )


def part(e: Experience, start: int, end: int) -> Experience:
    """What a process holds that has some of the prompts."""
    p, b = slice(start, end), slice(start * G, end * G)
    rollout = Rollout(
        prompt_ids=e.rollout.prompt_ids[p],
        prompt_mask=e.rollout.prompt_mask[p],
        completion_ids=e.rollout.completion_ids[b],
        completion_mask=e.rollout.completion_mask[b],
        sampling_logprobs=e.rollout.sampling_logprobs[b],
        ended=e.rollout.ended[b],
    )
    return replace(
        e,
        examples=e.examples[p],
        rollout=rollout,
        texts=e.texts[b],
        scores=replace(e.scores, rewards=e.scores.rewards[p], valid=e.scores.valid[p]),
        returns=e.returns[b],
        advantages=e.advantages[b],
        policy_logprobs=e.policy_logprobs[b],
        reference_logprobs=e.reference_logprobs[b],
        places=range(start, end),
    )


def moved(e: Experience) -> Tensor:
    """Log-probs of another policy, nan outside the mask."""
    shift = torch.linspace(-0.5, 0.4, B).double()[e.places[0] * G :][: len(e.returns), None]
    return torch.where(e.rollout.completion_mask, e.rollout.sampling_logprobs + shift, NAN)


def met(e: Experience) -> Tensor:
    """Log-probs of the training pass, in which row 5 was not run."""
    table = e.rollout.sampling_logprobs + 1e-3 * torch.arange(T).double()
    rows = torch.arange(len(table)) + e.places[0] * G
    return table.masked_fill((rows == 5)[:, None], NAN)


EPSILON = 0.2


def tally(e: Experience) -> Tally:
    found = tally_advantages(e) | tally_ratios(e, moved(e), EPSILON)
    return found | tally_kl(e) | tally_gap(e.rollout, met(e))


def signal(e: Experience) -> dict[str, float | None]:
    found = tally(e)
    return signal_metrics(combine(found, as_row(found)), B)


@pytest.mark.parametrize("tokens", [False, True], ids=["per_completion", "per_token"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_several_processes_together_say_what_one_says(cut, tokens):
    e = experience(tokens)
    tallies = [tally(part(e, 0, cut)), tally(part(e, cut, P))]
    gathered = torch.cat([as_row(each) for each in tallies])  # as `World.gather` puts them
    together, alone = combine(tallies[0], gathered), combine(tally(e), as_row(tally(e)))
    assert together == pytest.approx(alone, rel=1e-12)
    assert combine(tallies[1], gathered) == together
    assert as_row(tallies[0]).dtype == torch.float64
    one_alone = combine(tallies[0], as_row(tallies[0]))
    assert one_alone != pytest.approx(alone, rel=1e-2)


@pytest.mark.parametrize("tokens", [False, True], ids=["per_completion", "per_token"])
def test_the_numbers_of_a_step_are_those_of_a_loop(tokens):
    e = experience(tokens)
    found = signal(e)
    lengths = e.rollout.lengths.tolist()

    def weight(table: Tensor, i: int, t: int) -> float:
        return float(table[i, t] if tokens else table[i])

    places = [(i, t) for i in range(B) for t in range(lengths[i])]
    live = {i for i, t in places if weight(e.advantages, i, t)}
    assert live == {0, 1, 2, 4, 6, 7}
    ratios, low, high = [], set(), set()
    for i in range(B):
        old, new = e.rollout.sampling_logprobs, moved(e)
        ratios.append(math.exp(sum(float(new[i, t] - old[i, t]) for t in range(lengths[i]))))
        for t in range(lengths[i]):
            if weight(e.advantages, i, t) < 0 and ratios[i] < 1 - EPSILON:
                low.add(i)
            if weight(e.advantages, i, t) > 0 and ratios[i] > 1 + EPSILON:
                high.add(i)
    assert low
    assert high
    differences = [
        float(e.rollout.sampling_logprobs[i, t] - e.reference_logprobs[i, t]) for i, t in places
    ]
    gaps = [1e-3 * t for i, t in places if i != 5]
    assert found == pytest.approx(
        {
            "effective_samples": 6,
            "effective_share": 6 / 8,
            "sampler_gap_mean": sum(gaps) / len(gaps),
            "sampler_gap_max": max(gaps),
            "kl": sum(math.exp(-d) - 1 + d for d in differences) / len(places),
            "kl_sequence": sum(differences) / B,
            "importance_ratio/mean": sum(ratios) / B,
            "importance_ratio/min": min(ratios),
            "importance_ratio/max": max(ratios),
            "clip_ratio/low_mean": len(low) / B,
            "clip_ratio/high_mean": len(high) / B,
            "clip_ratio/region_mean": len(low | high) / B,
        },
        rel=1e-9,
    )


def test_numbers_that_nobody_counted_are_left_out_and_undefined_ones_are_none():
    e = experience()
    nothing = replace(e, returns=0 * e.returns, advantages=0 * e.advantages)
    found = tally_advantages(nothing) | tally_gap(e.rollout, torch.full((B, T), NAN))
    assert signal_metrics(combine(found, as_row(found)), B) == {
        "effective_samples": 0.0,
        "effective_share": 0.0,
        "sampler_gap_mean": None,
        "sampler_gap_max": None,
    }


@pytest.mark.parametrize(
    ("dtype", "mean", "largest", "suspicious"),
    [
        (torch.float64, 1e-13, 1e-12, False),
        (torch.float64, 1e-7, 1e-6, True),
        (torch.float64, 1e-11, 1e-6, True),
        (torch.float32, 1e-6, 1e-4, False),
        (torch.float32, 1e-3, 1e-3, True),
        (torch.float32, 1e-6, 1e-2, True),
        (torch.bfloat16, 1e-2, 3.0, False),  # one token of many may be far off
        (torch.bfloat16, 0.1, 0.1, True),
        (torch.float32, NAN, 1e-4, True),
        (torch.float32, 1e-6, NAN, True),
        (torch.float32, math.inf, math.inf, True),
        (torch.float32, None, None, False),
    ],
)
def test_a_gap_beyond_the_rounding_of_the_dtype_is_suspicious(dtype, mean, largest, suspicious):
    metrics = {"sampler_gap_mean": mean, "sampler_gap_max": largest}
    assert gap_is_suspicious(metrics, dtype) == suspicious
    assert not gap_is_suspicious({}, dtype)
