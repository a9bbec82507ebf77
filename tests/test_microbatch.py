"""How rows are cut into micro-batches: every token once, in its place, within the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl4lm import Rollout
from rl4lm.microbatch import MicroBatch, micro_batches

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12)


def rollout_of(lengths: list[tuple[int, int]]) -> Rollout:
    """Row i has prompt ids 100·i, … and completion ids 100·i + 50, …: every id says its place."""
    return Rollout.from_lists(
        [[100 * i + k for k in range(q)] for i, (q, _) in enumerate(lengths)],
        [[100 * i + 50 + k for k in range(t)] for i, (_, t) in enumerate(lengths)],
    )


def is_sound(batch: MicroBatch, lengths: list[tuple[int, int]]) -> bool:
    """Whether each row reads its own ids at 0, 1, 2, … and predicts its whole completion."""
    flat = iter(batch.targets.tolist())
    for k, row in enumerate(batch.rows.tolist()):
        q, t = lengths[row]
        sequence = [100 * row + j for j in range(q)] + [100 * row + 50 + j for j in range(t)]
        size = int(batch.attention_mask[k].sum())
        real = batch.input_ids[k, :size].tolist()
        places = batch.predicts[k].nonzero().flatten().tolist()
        targets = [next(flat, None) for _ in places]
        following = [sequence[place + 1] for place in places if place + 1 < len(sequence)]
        if real != sequence[:-1] or targets != following or targets != sequence[q:]:
            return False
    return next(flat, None) is None


@given(LENGTHS, st.integers(1, 60))
def test_every_wanted_row_comes_once_within_the_budget(lengths, budget):
    batches = list(micro_batches(rollout_of(lengths), range(len(lengths)), budget))
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        assert batch.input_ids.numel() <= budget or len(batch.rows) == 1
        assert batch.attention_mask.shape == batch.predicts.shape == batch.input_ids.shape
        assert batch.position_ids.tolist() == [list(range(batch.input_ids.shape[1]))] * len(
            batch.rows
        )


@given(LENGTHS, st.integers(1, 60))
def test_the_targets_are_the_tokens_that_follow(lengths, budget):
    batches = micro_batches(rollout_of(lengths), range(len(lengths)), budget)
    assert all(is_sound(batch, lengths) for batch in batches)


@pytest.mark.parametrize("mistake", ["targets", "predicts", "input_ids"])
def test_a_shift_by_one_would_be_noticed(mistake):
    lengths = [(2, 3), (4, 3)]
    (batch,) = micro_batches(rollout_of(lengths), range(2), 100)
    shifted = getattr(batch, mistake).roll(1, dims=-1)
    assert is_sound(batch, lengths)
    assert not is_sound(replace(batch, **{mistake: shifted}), lengths)


def test_the_first_micro_batch_needs_the_most_memory():
    lengths = [(1, 1), (9, 9), (2, 2), (5, 5), (9, 8)]
    batches = list(micro_batches(rollout_of(lengths), range(5), 18))
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 9 + 9 - 1


def test_only_the_wanted_rows_are_run():
    lengths = [(1, 1), (2, 2), (3, 3)]
    (batch,) = micro_batches(rollout_of(lengths), [2, 0], 100)
    assert batch.rows.tolist() == [2, 0]
    assert list(micro_batches(rollout_of(lengths), [], 100)) == []


def test_the_samples_of_a_prompt_share_its_ids():
    rollout = Rollout.from_lists([[1, 2], [1, 2], [3], [3]], [[4], [5], [6], [7]], 2)
    batches = micro_batches(rollout, range(4), 1)
    first = {int(b.rows[0]): (b.input_ids[0].tolist(), b.targets.tolist()) for b in batches}
    assert first == {0: ([1, 2], [4]), 1: ([1, 2], [5]), 2: ([3], [6]), 3: ([3], [7])}


def test_padding_in_the_rollout_leaves_no_trace(tiny):
    rollout = rollout_of([(2, 3), (4, 1)])
    (plain,) = micro_batches(rollout, range(2), 100)
    (padded,) = micro_batches(tiny.pad_more(rollout, prompt=3, completion=2), range(2), 100)
    for name, value in vars(plain).items():
        assert torch.equal(value, getattr(padded, name)), name
