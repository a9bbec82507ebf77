"""Random numbers depend on what they are for, and on nothing else."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl4lm import randomness
from rl4lm.data.examples import stream_indices
from rl4lm.randomness import Stream, permutation, philox, uniforms

WORD = st.integers(0, 2**64 - 1)


def words(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def numpy_philox(counter: list[int], key: list[int]) -> list[int]:
    """numpy's four words at a counter; it adds 1 to the 256-bit counter before each block."""
    number = (sum(word << (64 * i) for i, word in enumerate(counter)) - 1) % 2**256
    before = words(*(number >> (64 * i) & (2**64 - 1) for i in range(4)))
    return np.random.Philox(key=words(*key), counter=before).random_raw(4).tolist()


def our_philox(counter: list[int], key: list[int]) -> list[int]:
    columns = tuple(words(word) for word in counter)
    return [int(word[0]) for word in philox(columns, (key[0], key[1]))]


def draw(
    prompts: list[int], samples: list[int], *, seed=3, stream=Stream.TRAINING, step=5, first=0, n=9
) -> np.ndarray:
    return uniforms(seed, stream, step, words(*prompts), words(*samples), first, n)


@given(st.lists(WORD, min_size=4, max_size=4), st.lists(WORD, min_size=2, max_size=2))
def test_philox_is_numpys_bit_for_bit(counter, key):
    assert our_philox(counter, key) == numpy_philox(counter, key)


def test_a_philox_of_nine_rounds_would_be_noticed(monkeypatch):
    counter, key = [1, 2, 3, 4], [5, 6]
    monkeypatch.setattr(randomness, "_ROUNDS", 9)
    assert our_philox(counter, key) != numpy_philox(counter, key)


@given(WORD, st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40))
def test_uniforms_are_those_of_a_numpy_generator_at_the_same_counter(seed, step, prompt, sample):
    """Eight tokens from token 4 on are the two numpy blocks that follow counter word 1."""
    drawn = draw([prompt], [sample], seed=seed, stream=Stream.EVALUATION, step=step, first=4, n=8)
    key = words(seed, int(Stream.EVALUATION))
    generator = np.random.Generator(
        np.random.Philox(key=key, counter=words(1, sample, prompt, step))
    )
    assert drawn[0].tolist() == generator.random(8).tolist()


ROWS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), min_size=1, max_size=6)


@given(ROWS, ROWS, st.integers(1, 11))
def test_a_completion_draws_the_same_whoever_shares_its_batch(rows, others, tokens):
    together = draw(*map(list, zip(*rows, *others, strict=True)), n=13)
    for i, (prompt, sample) in enumerate(rows):
        assert (draw([prompt], [sample], n=tokens)[0] == together[i, :tokens]).all()


def test_a_generator_that_is_shared_by_the_batch_would_be_noticed():
    """What `torch.multinomial` does: the numbers of a row depend on the rows before it."""
    together = np.random.default_rng(0).random((2, 9))
    assert (np.random.default_rng(0).random((1, 9))[0] != together[1]).all()
    assert (draw([8], [0])[0] == draw([7, 8], [0, 0])[1]).all()


@pytest.mark.parametrize("first", [4, 8, 64])
def test_tokens_drawn_later_are_those_of_one_long_draw(first):
    rows = ([0, 3], [1, 2])
    assert (draw(*rows, first=first, n=5) == draw(*rows, n=first + 5)[:, first:]).all()


def test_a_first_token_inside_a_block_is_refused():
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        draw([0], [0], first=6)


def test_every_part_of_the_address_matters():
    base = draw([1], [1], n=4)
    others = [
        draw([1], [1], n=4, seed=4),
        *(draw([1], [1], n=4, stream=stream) for stream in Stream if stream != Stream.TRAINING),
        draw([1], [1], n=4, step=6),
        draw([2], [1], n=4),
        draw([1], [2], n=4),
        draw([1], [1], n=4, first=4),
    ]
    numbers = [*base[0], *(u for other in others for u in other[0])]
    assert len(set(numbers)) == len(numbers)


def test_uniforms_are_multiples_of_2_to_the_minus_53_below_one_and_even():
    """200 000 numbers in 16 bins: χ² has mean 15 and deviation 5.5."""
    drawn = draw(list(range(200)), [0] * 200, n=1000).ravel()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert (drawn * 2**53 % 1 == 0).all()
    counts = np.bincount((drawn * 16).astype(int), minlength=16)
    expected = drawn.size / 16
    assert ((counts - expected) ** 2 / expected).sum() < 15 + 5 * 5.5


@given(WORD, st.integers(0, 1000), st.integers(1, 50))
def test_an_epoch_visits_every_row_once(seed, epoch, size):
    order = permutation(seed, epoch, size)
    assert sorted(order.tolist()) == list(range(size))
    assert (order == permutation(seed, epoch, size)).all()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [permutation(seed, epoch, 30).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6


def test_every_order_of_three_rows_is_equally_likely():
    """1200 epochs over 6 orders: each is expected 200 times, give or take 13."""
    counts = Counter(tuple(permutation(0, epoch, 3).tolist()) for epoch in range(1200))
    assert set(counts) == set(permutations(range(3)))
    assert all(abs(count - 200) < 5 * 13 for count in counts.values())


@given(st.integers(1, 9), st.integers(0, 40), st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_the_stream_does_not_depend_on_how_it_is_cut_into_steps(size, start, counts):
    """Steps that straddle epochs, and data sets smaller than a step, included."""
    pieces, at = [], start
    for count in counts:
        pieces += stream_indices(size, 11, at, count)
        at += count
    assert pieces == stream_indices(size, 11, start, sum(counts))


@given(st.integers(1, 9))
def test_every_stretch_of_an_epoch_is_one_permutation(size):
    stream = stream_indices(size, 11, 0, 4 * size)
    epochs = [stream[k * size : (k + 1) * size] for k in range(4)]
    assert epochs == [permutation(11, epoch, size).tolist() for epoch in range(4)]


def test_a_stream_that_repeats_one_order_would_be_noticed():
    repeated = permutation(11, 0, 9).tolist() * 4
    assert repeated != stream_indices(9, 11, 0, 36)


def test_a_step_may_be_larger_than_the_data():
    assert stream_indices(1, 0, 3, 4) == [0, 0, 0, 0]
    assert Counter(stream_indices(3, 0, 0, 12)) == {0: 4, 1: 4, 2: 4}
