"""The law of the draws, and what ends a completion. No model here: logits are made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rl4lm.randomness import Stream
from rl4lm.sampling import loop as sampling
from rl4lm.sampling.drawing import InverseCdf, greedy, invert_cdf, keep_most_likely
from rl4lm.sampling.loop import EndRule, generate
from rl4lm.types import Rollout

LOGITS = torch.tensor([1.0, -0.5, 0.3, 2.0, -torch.inf, 0.0, -1.0])
TEMPERATURE = 0.7


def chooser(**changed: Any) -> InverseCdf:
    key = {"seed": 3, "stream": Stream.TRAINING, "step": 0, "places": range(20_000)}
    return InverseCdf(**{**key, "num_generations": 2, "temperature": TEMPERATURE, **changed})


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """Of the χ² test, over the cells that can be hit; 0 where an impossible one was."""
    possible = probabilities > 0
    if counts[~possible].any():
        return 0.0
    expected = counts.sum() * probabilities[possible].double()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = torch.tensor((int(possible.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def draws(restrict=None) -> tuple[Tensor, Tensor, Tensor]:
    """Counts [V] of 20 000 draws from LOGITS, the tokens, and their log-probs."""
    rows = torch.arange(20_000)
    tokens, logprobs = chooser(restrict=restrict)(LOGITS.repeat(len(rows), 1), rows, 0)
    return torch.bincount(tokens, minlength=len(LOGITS)), tokens, logprobs


def test_tokens_are_drawn_by_softmax_of_logits_over_temperature():
    counts, *_ = draws()
    assert p_value(counts, torch.softmax(LOGITS / TEMPERATURE, -1)) > 1e-4
    assert p_value(counts, torch.softmax(LOGITS, -1)) < 1e-12, "temperature ignored"
    assert p_value(counts.roll(1), torch.softmax(LOGITS / TEMPERATURE, -1)) < 1e-12, "shifted"


@pytest.mark.parametrize("vocabulary", [7, 511, 512, 513, 1024, 1500])
def test_a_token_is_found_by_blocks_as_by_one_cumulative_sum(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(400, vocabulary, generator=generator, dtype=torch.float64)
    logits[torch.rand(logits.shape, generator=generator) < 0.4] = -torch.inf
    logits[:, 0] = logits[:, 0].where(logits[:, 0].isfinite(), 0.0)  # something can be drawn
    probabilities = logits.softmax(-1)
    uniform = torch.rand(400, generator=generator, dtype=torch.float64)
    uniform[:3] = torch.tensor([0.0, 1.0 - 2.0**-53, 0.5])
    cumulative = probabilities.cumsum(-1)
    height = (uniform * cumulative[:, -1])[:, None]
    below = torch.nextafter(cumulative[:, -1:], torch.zeros(1, dtype=torch.float64))
    expected = torch.searchsorted(cumulative, torch.minimum(height, below), right=True)
    found = invert_cdf(probabilities, uniform)
    assert torch.equal(found, expected.squeeze(-1))
    assert (probabilities.gather(1, found[:, None]) > 0).all()
    shifted = invert_cdf(probabilities, (uniform + 0.3) % 1)
    assert not torch.equal(shifted, found)


def test_the_logprob_is_that_of_the_token_drawn():
    tokens, logprobs = chooser()(LOGITS.repeat(50, 1), torch.arange(50), 0)
    expected = torch.log_softmax(LOGITS / TEMPERATURE, -1)[tokens]
    assert torch.allclose(logprobs, expected, rtol=0, atol=1e-6)


def test_a_restriction_is_part_of_the_distribution_and_of_the_logprob():
    counts, tokens, logprobs = draws(restrict=keep_most_likely(top_k=2, top_p=1.0))
    kept = torch.where(torch.isin(torch.arange(7), torch.tensor([0, 3])), LOGITS, -torch.inf)
    assert p_value(counts, torch.softmax(kept / TEMPERATURE, -1)) > 1e-4
    of_token = torch.log_softmax(kept / TEMPERATURE, -1)[tokens]
    assert torch.allclose(logprobs, of_token, rtol=0, atol=1e-6)
    whole = torch.log_softmax(LOGITS / TEMPERATURE, -1)[tokens]
    assert float((logprobs - whole).min()) > 0.1, "that of the whole vocabulary is smaller"


def test_a_nucleus_holds_the_token_that_crosses_its_edge():
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    nucleus = keep_most_likely(top_k=0, top_p=0.7)(probabilities.log())
    assert nucleus.isfinite().tolist() == [[True, True, False, False]]
    assert keep_most_likely(0, 1.0)(probabilities.log()).isfinite().all()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_the_interval_never_reach_a_token_of_probability_zero(u, dtype):
    probabilities = torch.tensor([[0.0, 0.1, 0.0, 0.9, 0.0, 0.0]], dtype=dtype)
    (token,) = invert_cdf(probabilities, torch.tensor([u], dtype=torch.float64))
    assert token == (1 if u == 0 else 3)


def test_probabilities_that_do_not_sum_to_one_leave_no_gap_at_the_end():
    """Float32 rounding loses the tail; with the bare sum, u near 1 would find no token at all."""
    probabilities = torch.full((1, 1000), 0.000999, dtype=torch.float32)
    u = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert invert_cdf(probabilities, u).tolist() == [999]
    unscaled = torch.searchsorted(probabilities.double().cumsum(-1), u[:, None], right=True)
    assert unscaled.tolist() == [[1000]]


def test_the_boundary_between_two_tokens_belongs_to_the_second():
    probabilities = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64).repeat(4, 1)
    u = torch.tensor([0.0, 0.25, 0.4999, 0.5], dtype=torch.float64)
    assert invert_cdf(probabilities, u).tolist() == [0, 1, 1, 2]


def test_rows_that_stay_keep_their_numbers_when_others_leave():
    """Also across the blocks in which uniforms are drawn: tokens 63 and 64 are in two of them."""
    logits = torch.zeros(6, 1000)
    everyone, few = torch.arange(6), torch.tensor([1, 4])
    full, thinned = chooser(), chooser()
    for token in (0, 1, 63, 64, 65, 128):
        expected, _ = full(logits, everyone, token)
        rows = everyone if token == 0 else few
        actual, _ = thinned(logits[rows], rows, token)
        assert actual.tolist() == expected[rows].tolist()
    rank_of_row, _ = full(logits[:2], torch.arange(2), 128)
    assert rank_of_row.tolist() != expected[few].tolist(), "drawn by place in the batch"


def test_two_halves_of_the_prompts_draw_what_the_whole_draws():
    logits, token = torch.zeros(8, 1000), 2
    whole, _ = chooser()(logits, torch.arange(8), token)
    first, _ = chooser()(logits[:4], torch.arange(4), token)
    second, _ = chooser(places=[2, 3])(logits[:4], torch.arange(4), token)
    assert [*first.tolist(), *second.tolist()] == whole.tolist()
    assert first.tolist() != second.tolist(), "every process drawing alike would be noticed"


def test_greedy_takes_the_first_of_equals():
    tokens, logprobs = greedy(torch.tensor([[1.0, 3.0, 3.0], [0.0, -1.0, 0.0]]), torch.arange(2), 0)
    assert tokens.tolist() == [1, 0]
    assert torch.allclose(logprobs[0].exp(), 1 / (2 + torch.tensor(-2.0).exp()))


class Script:
    """A policy, its cache and a rule of choice in one: row i writes the tokens of line i."""

    device = torch.device("cpu")

    def __init__(self, lines: Sequence[Sequence[int]]) -> None:
        self.lines = torch.tensor(lines)
        self.rows_fed: list[int] = []

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor, room: int) -> tuple[Tensor, Any]:
        return torch.zeros(len(prompt_ids), 10), self

    def decode(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        if mask is not None:
            assert mask.sum(dim=1).tolist() == (positions + 1).tolist()
        self.rows_fed.append(len(tokens))
        return torch.zeros(len(tokens), 10)

    def batch_select_indices(self, indices: Tensor) -> None: ...

    def __call__(self, logits: Tensor, rows: Tensor, token: int) -> tuple[Tensor, Tensor]:
        return self.lines[rows, token], -1.0 - rows.float()

    def play(self, prompts: Sequence[Sequence[int]] = ((1,),), **ends: Any) -> Rollout:
        rule = EndRule(**{"token_ids": (), **ends})
        count, length = self.lines.shape
        return generate(
            self,
            prompts,
            self,
            num_generations=count // len(prompts),
            max_completion_length=length,
            ends=rule,
        )


def test_the_end_token_belongs_to_the_completion_and_nothing_after_it_does():
    rollout = Script([[4, 5, 9, 6], [9, 9, 9, 9]]).play(token_ids=[9])
    assert rollout.completion_lists() == [[4, 5, 9], [9]]
    assert rollout.sampling_logprobs.tolist() == [[-1.0, -1.0, -1.0], [-2.0, 0.0, 0.0]]
    assert rollout.ended.all()


def test_any_of_several_ids_ends_a_completion():
    rollout = Script([[4, 9, 1], [8, 4, 1], [4, 4, 8], [4, 4, 4]]).play(token_ids=[8, 9])
    assert rollout.completion_lists() == [[4, 9], [8], [4, 4, 8], [4, 4, 4]]
    assert rollout.ended.tolist() == [True, True, True, False]


def test_a_completion_that_is_cut_off_has_not_ended():
    rollout = Script([[4, 5, 6]]).play(token_ids=[9])
    assert rollout.completion_lists() == [[4, 5, 6]]
    assert rollout.ended.tolist() == [False]


def test_ends_are_looked_for_in_the_completion_only():
    """Prompts full of end tokens and of stop strings end nothing."""
    seen: list[list[int]] = []

    def reaches_stop(ids: list[int]) -> bool:
        seen.append(ids)
        return 7 in ids

    script = Script([[4, 5, 6], [4, 7, 6]])
    rollout = script.play([[9, 7, 9], [9]], token_ids=[9], reaches_stop=reaches_stop)
    assert rollout.completion_lists() == [[4, 5, 6], [4, 7]]
    assert rollout.ended.tolist() == [False, True]
    assert [4, 7, 6] not in seen, "asked again after the end"
    assert seen[:2] == [[4], [4]]
    assert rollout.prompt_lists() == [[9, 7, 9], [9]]


def test_the_ids_of_a_stop_string_are_kept():
    rollout = Script([[4, 5, 6, 7]]).play(reaches_stop=lambda ids: ids[-2:] == [5, 6])
    assert rollout.completion_lists() == [[4, 5, 6]]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_dropping_finished_rows_changes_nothing_but_the_work(monkeypatch, share):
    monkeypatch.setattr(sampling, "_COMPACT_SHARE", share)
    lines = [[9, 1, 1, 1, 1], [2, 2, 2, 9, 2], [3, 9, 3, 3, 3], [4, 4, 4, 4, 4]]
    script = Script(lines)
    rollout = script.play([[1, 2], [3]], token_ids=[9])
    assert rollout.completion_lists() == [[9], [2, 2, 2, 9], [3, 9], [4, 4, 4, 4, 4]]
    assert rollout.sampling_logprobs[3].tolist() == [-4.0] * 5
    assert script.rows_fed == {0.0: [3, 2, 2, 1], 0.5: [4, 2, 2, 1], 1.0: [4, 4, 4, 4]}[share]


def test_generation_stops_with_the_last_running_row():
    script = Script([[4, 9, 1, 1], [9, 1, 1, 1]])
    rollout = script.play(token_ids=[9])
    assert rollout.completion_ids.shape == (2, 2)
    assert len(script.rows_fed) == 1
