"""A rollout carries its masks, and refuses shapes that do not belong together."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl4lm import Rollout
from rl4lm.types import pad_left, pad_right

IDS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@st.composite
def groups(draw):
    """P prompts with G completions each, as lists."""
    generations = draw(st.integers(1, 3))
    prompts = draw(st.lists(IDS, min_size=1, max_size=4))
    completions = [[draw(IDS) for _ in range(generations)] for _ in prompts]
    return prompts, completions, generations


@given(groups())
def test_lists_come_back_as_they_went_in(group):
    prompts, completions, generations = group
    rollout = Rollout.from_lists(
        [prompt for prompt in prompts for _ in range(generations)],
        [row for rows in completions for row in rows],
        num_generations=generations,
    )
    assert rollout.prompt_lists() == prompts
    assert rollout.completion_lists() == [row for rows in completions for row in rows]
    assert rollout.num_generations == generations
    assert rollout.lengths.tolist() == [len(row) for rows in completions for row in rows]
    assert rollout.prompt_lengths.tolist() == [len(prompt) for prompt in prompts]
    assert rollout.ended.all()


def test_prompts_are_padded_on_the_left_and_completions_on_the_right():
    rollout = Rollout.from_lists([[5], [6, 7]], [[1, 2, 3], [4]])
    assert rollout.prompt_mask.tolist() == [[False, True], [True, True]]
    assert rollout.prompt_ids[0, 1] == 5
    assert rollout.completion_mask.tolist() == [[True, True, True], [True, False, False]]
    assert rollout.completion_ids[1, 0] == 4


def test_masks_come_from_lengths_and_never_from_ids():
    """Ids equal to the padding are real tokens; a mask made by `ids != pad` would drop them."""
    rollout = Rollout.from_lists([[0, 0, 3], [4]], [[0, 7, 0], [0]])
    assert rollout.completion_lists() == [[0, 7, 0], [0]]
    assert rollout.prompt_lists() == [[0, 0, 3], [4]]
    assert not torch.equal(rollout.completion_mask, rollout.completion_ids != 0)


def test_unknown_sampling_logprobs_are_nan_on_tokens_and_zero_on_padding():
    rollout = Rollout.from_lists([[5], [6]], [[1, 2], [4]])
    assert rollout.sampling_logprobs.isnan().tolist() == [[True, True], [True, False]]
    assert rollout.sampling_logprobs[1, 1] == 0


def test_flags_say_which_completions_were_cut_off():
    rollout = Rollout.from_lists([[5], [6]], [[1], [4]], ended=[True, False])
    assert rollout.ended.tolist() == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1]], [[1], [2]]), "one entry per completion"),
        (([[1]], [[1]], 1, [True, False]), "one entry per completion"),
        (([[1]] * 3, [[1]] * 3, 2), "3 completions are not a positive multiple"),
        (([[1]], [[1]], 0), "num_generations=0"),
        (([], []), "0 completions"),
        (([[1], [2]], [[1], [1]], 2), "row 1 has another prompt than row 0"),
        (([[1], [2], [2], [1]], [[1]] * 4, 2), "row 1 has another prompt than row 0"),
        (([[]], [[1]]), "row 0 has an empty prompt or an empty completion"),
        (([[1], [1]], [[1], []]), "row 1 has an empty prompt or an empty completion"),
    ],
)
def test_lists_that_make_no_rollout_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rollout.from_lists(*arguments)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt_mask", torch.ones(2, 2, dtype=torch.bool), r"must both be \[P, Q\]"),
        ("completion_mask", torch.ones(2, 4, dtype=torch.bool), "completion_mask"),
        ("sampling_logprobs", torch.zeros(2), "sampling_logprobs"),
        ("ended", torch.ones(3, dtype=torch.bool), r"ended \(3,\) must be \[B\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(field, value, message):
    rollout = Rollout.from_lists([[5], [6]], [[1, 2, 3], [4]])
    with pytest.raises(ValueError, match=message):
        replace(rollout, **{field: value})


def test_completions_must_be_dealt_evenly_to_the_prompts():
    rollout = Rollout.from_lists([[5], [6], [7]], [[1], [4], [2]])
    ids, mask = pad_left([[5], [6]])
    with pytest.raises(ValueError, match="3 completions cannot be dealt evenly to 2 prompts"):
        replace(rollout, prompt_ids=ids, prompt_mask=mask)


def test_a_rollout_cannot_be_filled_in_later():
    rollout = Rollout.from_lists([[5]], [[1]])
    with pytest.raises(FrozenInstanceError):
        rollout.ended = torch.zeros(1, dtype=torch.bool)


@given(st.lists(IDS, min_size=1, max_size=5), st.integers(0, 9))
def test_padding_keeps_the_ids_on_their_side(rows, fill):
    left, left_mask = pad_left(rows, fill)
    right, right_mask = pad_right(rows, fill)
    for i, row in enumerate(rows):
        assert left[i, len(left[i]) - len(row) :].tolist() == row
        assert right[i, : len(row)].tolist() == row
        assert left[i][left_mask[i]].tolist() == right[i][right_mask[i]].tolist() == row
    assert (left[~left_mask] == fill).all()
    assert (right[~right_mask] == fill).all()
