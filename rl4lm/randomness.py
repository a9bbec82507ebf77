"""Random numbers that depend on what they are for, never on who draws them or when.

Every uniform is a pure function of (seed, stream, step, prompt, sample, token): Philox4x64-10, the
counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
So a completion draws the same numbers whatever the batch, the micro-batch or the number of
processes, and a resumed run needs no generator state. numpy has Philox too, but one generator
object per completion costs more than a small model's whole step; the arithmetic here is the same
(a test compares it bit for bit with numpy's).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_WORDS = 4  # uniforms in one Philox block


class Stream(IntEnum):
    """Independent streams: what is drawn for one never repeats what is drawn for another."""

    TRAINING = 0
    EVALUATION = 1
    DATA = 2
    PROBE = 3


def uniforms(
    seed: int,
    stream: Stream,
    step: int,
    prompts: Words,
    samples: Words,
    first_token: int,
    num_tokens: int,
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for a block of tokens of some completions.

    Args:
        seed: of the run, 0 ≤ seed < 2^64.
        stream: what the numbers are for.
        step: optimizer step, from 0.
        prompts: uint64 [b], position of each completion's prompt in the step's global list.
        samples: uint64 [b], index of each completion among the samples of its prompt.
        first_token: index of the first token wanted; a multiple of 4.
        num_tokens: how many tokens are wanted.

    Returns:
        float64 [b, num_tokens], multiples of 2^-53.
    """
    if first_token % _WORDS:
        raise ValueError(f"first_token must be a multiple of {_WORDS}, got {first_token}")
    blocks = -(-num_tokens // _WORDS)
    first_block = first_token // _WORDS
    # The +1 makes block 0 the first block that numpy's Philox gives for the same counter.
    token_blocks = np.arange(first_block + 1, first_block + blocks + 1, dtype=np.uint64)
    shape = (len(prompts), blocks)
    counter = (
        np.broadcast_to(token_blocks, shape),
        np.broadcast_to(samples.astype(np.uint64)[:, None], shape),
        np.broadcast_to(prompts.astype(np.uint64)[:, None], shape),
        np.full(shape, step, dtype=np.uint64),
    )
    words = philox(counter, (seed, int(stream)))
    block = np.stack(words, axis=-1).reshape(len(prompts), blocks * _WORDS)[:, :num_tokens]
    return (block >> np.uint64(11)).astype(np.float64) * 2.0**-53


def philox(
    counter: tuple[Words, Words, Words, Words], key: tuple[int, int]
) -> tuple[Words, Words, Words, Words]:
    """Philox4x64-10: four counter words and two key words to four random words, elementwise."""
    c0, c1, c2, c3 = counter
    key0, key1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = (
            high1 ^ c1 ^ np.uint64(key0),
            low1,
            high0 ^ c3 ^ np.uint64(key1),
            low0,
        )
        key0 = (key0 + _KEY_STEPS[0]) % 2**64
        key1 = (key1 + _KEY_STEPS[1]) % 2**64
    return c0, c1, c2, c3


def _multiply(a: np.uint64, b: Words) -> tuple[Words, Words]:
    """The high and the low 64 bits of the 128-bit product a·b."""
    a_high, a_low = a >> _HALF, a & _LOW
    b_high, b_low = b >> _HALF, b & _LOW
    low_low = a_low * b_low
    middle = a_high * b_low + (low_low >> _HALF)  # at most 2^64 - 2^32: no overflow
    cross = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (cross >> _HALF), a * b


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of a data set of `size` rows in one epoch, keyed by (seed, epoch)."""
    key = np.array([seed, int(Stream.DATA)], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, epoch]))
    return generator.permutation(size)
