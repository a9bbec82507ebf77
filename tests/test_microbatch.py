"""How rows are cut into micro-batches: every token once, in its place, within the budget."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl4lm import Rollout
from rl4lm.passes.microbatch import MicroBatch, micro_batches
from rl4lm.passes.packing import Packing

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
    places = iter(batch.predicts.tolist())
    width = batch.input_ids.shape[1]
    for k, row in enumerate(batch.rows.tolist()):
        q, t = lengths[row]
        sequence = [100 * row + j for j in range(q)] + [100 * row + 50 + j for j in range(t)]
        size = int(batch.attention_mask[k].sum())
        real = batch.input_ids[k, :size].tolist()
        here = [next(places, -1) - k * width for _ in range(t)]
        targets = [next(flat, None) for _ in range(t)]
        following = [sequence[place + 1] for place in here if 0 <= place < len(sequence) - 1]
        if real != sequence[:-1] or targets != following or targets != sequence[q:]:
            return False
    return next(flat, None) is None and next(places, None) is None


@given(LENGTHS, st.integers(1, 60))
def test_every_wanted_row_comes_once_within_the_budget(lengths, budget):
    batches = list(micro_batches(rollout_of(lengths), range(len(lengths)), budget))
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        assert batch.input_ids.numel() <= budget or len(batch.rows) == 1
        assert batch.attention_mask.shape == batch.input_ids.shape
        assert batch.position_ids.tolist() == [list(range(batch.input_ids.shape[1]))] * len(
            batch.rows
        )
        assert batch.packing is None


@given(LENGTHS, st.integers(1, 60))
def test_the_targets_are_the_tokens_that_follow(lengths, budget):
    batches = micro_batches(rollout_of(lengths), range(len(lengths)), budget)
    assert all(is_sound(batch, lengths) for batch in batches)


PROMPTS = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=3, max_size=3)),
    min_size=1,
    max_size=5,
)


def shared_rollout(shapes: list[tuple[int, list[int]]]) -> Rollout:
    """Prompts of some length with three completions each; the last prompt is the first again."""
    shapes = [*shapes, shapes[0]]
    prompts = [
        [100 * min(p, len(shapes) - 1) + k for k in range(q)] for p, (q, _) in enumerate(shapes)
    ]
    prompts[-1] = prompts[0]
    return Rollout.from_lists(
        [prompt for prompt in prompts for _ in range(3)],
        [
            [1000 + 10 * (3 * p + k) + j for j in range(t)]
            for p, (_, ts) in enumerate(shapes)
            for k, t in enumerate(ts)
        ],
        num_generations=3,
    )


def sequences_of(packing: Packing) -> list[tuple[int, int, tuple[int, int] | None]]:
    """(start, tokens, prompt it continues) of every sequence, in the order of the row."""
    found: list[tuple[int, int, tuple[int, int] | None]] = []
    start = 0
    for bucket in packing.prompts:
        for size in bucket:
            found.append((start, size, None))
            start += size
    for part in packing.continuations:
        each = len(part.lengths) // len(part.prompts)
        for k, size in enumerate(part.lengths):
            found.append((start, size, (part.bucket, part.prompts[k // each])))
            start += size
    return found


def read_back(batch: MicroBatch) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, completion, positions of what is fed of it), each read through attention's eyes.

    The completion is read along the places that predict it; all of them but the first must stand
    in one continuation of the very prompt whose last token predicts the first.
    """
    ids, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    predicts, targets = batch.predicts.tolist(), batch.targets.tolist()
    sequences = sequences_of(batch.packing)
    assert sum(size for _, size, _ in sequences) == len(ids) == int(batch.attention_mask.sum())
    prompts = [s for s in sequences if s[2] is None]
    names = [(b, k) for b, bucket in enumerate(batch.packing.prompts) for k in range(len(bucket))]
    by_end = {start + size - 1: k for k, (start, size, _) in enumerate(prompts)}
    by_start = {start: (size, owner) for start, size, owner in sequences if owner is not None}
    for start, size, _ in prompts:
        assert positions[start : start + size] == list(range(size))
    found = []
    cuts = [k for k, place in enumerate(predicts) if place in by_end] + [len(predicts)]
    for first, last in pairwise(cuts):
        which = by_end[predicts[first]]
        start, size, _ = prompts[which]
        own = predicts[first + 1 : last]
        if own:
            assert by_start.pop(own[0]) == (len(own), names[which])
            assert own == list(range(own[0], own[0] + len(own)))
        completion = targets[first:last]
        assert [ids[place] for place in own] == completion[:-1]
        found.append((ids[start : start + size], completion, [positions[p] for p in own]))
    assert not by_start
    return found


@given(PROMPTS, st.integers(1, 80))
def test_a_packed_row_holds_every_completion_once_beside_its_prompt(shapes, budget):
    rollout = shared_rollout(shapes)
    prompts, completions = rollout.prompt_lists(), rollout.completion_lists()
    rows: list[int] = []
    for batch in micro_batches(rollout, range(len(completions)), budget, packed=True):
        assert batch.input_ids.numel() <= budget or len(batch.rows) == 1
        rows += batch.rows.tolist()
        for row, (prompt, completion, positions) in zip(
            batch.rows.tolist(), read_back(batch), strict=True
        ):
            assert prompt == prompts[row // 3]
            assert completion == completions[row]
            assert positions == list(range(len(prompt), len(prompt) + len(completion) - 1))
    assert sorted(rows) == list(range(len(completions)))


def test_equal_prompts_stand_once_in_a_packed_row():
    rollout = shared_rollout([(4, [2, 3, 1]), (5, [2, 2, 2])])
    (batch,) = micro_batches(rollout, range(9), 10**6, packed=True)
    assert sorted(size for bucket in batch.packing.prompts for size in bucket) == [4, 5]
    assert batch.input_ids.numel() == 4 + 5 + 2 * (1 + 2) + 3


def test_a_prompt_is_computed_again_only_where_its_rows_exceed_the_budget():
    rollout = shared_rollout([(4, [3, 3, 3])])
    batches = list(micro_batches(rollout, range(6), 10, packed=True))
    assert [batch.input_ids.numel() for batch in batches] == [10, 10]


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
    for name in ("rows", "input_ids", "attention_mask", "position_ids", "predicts", "targets"):
        assert torch.equal(getattr(plain, name), getattr(padded, name)), name
