"""How much memory a step will take, and how long a run: pure functions of sizes and seconds.

Memory is an upper estimate: every completion as long as it may be, every one with an advantage.
What is held before the first step is measured; what a step adds is a formula, in bytes of one
process:

    always     4 for the gradient of each trained float32 weight, and its moments (8; 2 of 8 bits)
    sampling   keys and values of prompts and completions, logits of the rows and what is looked
               through to draw a token, weights copied
    gradient   what the backward pass reads of each token of the largest micro-batch, two tiles of
               logits, a copy of the gradient where its noise is measured

The larger of the last two counts, since a process does one after the other; on a CPU both do, since
the C library finds little room for one in the pieces that the other has freed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_TILE_BYTES = 4 * 2**24  # of logits in float32, at most
_LOGITS_BYTES = 8  # of an entry while a token is drawn: float32, and the blocks of its sums
_SEARCHED_BYTES = 28 * 512  # of a row, besides: places, probabilities, sums of a block of tokens
_NOISE_ELEMENTS = 2**26  # of the gradient that are kept a second time, at most
_MOMENTS = {"adamw": 2.0, "adamw_8bit": 0.5, "sgd": 0.0}  # times the bytes of the trained weights
_ROUNDS_WARM_UP = 1  # steps whose time says little about the others
_STEPS_MEASURED = 3
_FEW_STEPS = 20  # that remain: not worth a line


@dataclass(frozen=True)
class Sizes:
    """What the memory of a step follows from, of one process."""

    held: int  # bytes before the first step
    trained: int  # weights that have a gradient
    trained_bytes: int  # of those
    copies: int  # bytes of casts and merged weights while sampling
    saved_per_token: int  # bytes that the backward pass reads of a token
    cache_per_token: int  # bytes of keys and values of a token
    hidden: int  # H
    vocabulary: int  # V
    prompt_tokens: Sequence[int]  # of each of this process's prompts of a step
    generations: int  # G
    longest: int  # max_completion_length
    micro_batch: int  # max_tokens_per_micro_batch
    packed: bool  # a prompt stands once beside its completions
    optimizer: str
    noise: bool  # whether the gradient's noise is measured
    reuses: bool  # whether freed memory serves anything else: on a GPU, by torch's own allocator


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the most, and what they are for."""

    held: int
    optimizer: int  # gradient and moments
    sampling: int
    gradient: int  # activations, logits
    tokens: int  # of the largest micro-batch
    reuses: bool  # whether sampling and gradient pass use the same memory

    @property
    def peak(self) -> int:
        """Bytes at the most."""
        return self.held + self.optimizer + max(self.sampling, self.gradient) + self.beside

    @property
    def beside(self) -> int:
        """Bytes of the smaller of sampling and gradient pass that count too."""
        return 0 if self.reuses else min(self.sampling, self.gradient)


def estimate(sizes: Sizes) -> Memory:
    """The memory of a step, by the formula above."""
    rows = len(sizes.prompt_tokens) * sizes.generations
    prompts = sum(sizes.prompt_tokens)
    cached = (prompts + rows * sizes.longest) * sizes.cache_per_token
    drawing = rows * (sizes.vocabulary * _LOGITS_BYTES + _SEARCHED_BYTES)
    tokens = largest_micro_batch(sizes)
    tiles = 2 * min(_TILE_BYTES, 4 * tokens * sizes.vocabulary)
    states = 3 * 4 * tokens * sizes.hidden  # hidden states, those of completions, their gradient
    halves = 4 * min(sizes.trained, _NOISE_ELEMENTS) if sizes.noise else 0
    return Memory(
        held=sizes.held,
        optimizer=int(sizes.trained_bytes * (1 + _MOMENTS[sizes.optimizer])),
        sampling=sizes.copies + cached + drawing,
        gradient=tokens * sizes.saved_per_token + tiles + states + halves,
        tokens=tokens,
        reuses=sizes.reuses,
    )


def largest_micro_batch(sizes: Sizes) -> int:
    """Input tokens of the largest micro-batch: the budget, or all that there are."""
    shared = sizes.generations if not sizes.packed else 1
    everything = sum(
        shared * prompt + sizes.generations * (sizes.longest - 1) for prompt in sizes.prompt_tokens
    )
    one = max(sizes.prompt_tokens) + sizes.longest - 1  # goes alone, however long
    return max(one, min(sizes.micro_batch, everything))


def describe(memory: Memory, there: int | None, processes: int) -> str:
    """A line about the memory of a run.

    Args:
        memory: of each process.
        there: bytes that are free for all processes here besides what they hold; None = not known.
        processes: on this machine, or 1 where each has a device of its own.
    """
    joined = "or" if memory.reuses else "and"
    parts = (
        f"{size(memory.held)} held now, {size(memory.optimizer)} gradient and optimizer, and "
        f"{size(memory.sampling)} while sampling {joined} {size(memory.gradient)} in a gradient "
        f"pass of {memory.tokens:,} tokens"
    )
    each = " in each process" if processes > 1 else ""
    room = "" if there is None else f"; {size(there)} are free"
    return f"memory about {size(memory.peak)}{each}: {parts}{room}"


def advice(memory: Memory, sizes: Sizes, there: int | None, processes: int) -> str | None:
    """What to turn where a run needs more than there is, and how far; None where it fits."""
    if there is None or (needed := processes * (memory.peak - memory.held)) <= there:
        return None
    said = f"a step may need {size(needed)} more, and {size(there)} are free: "
    left = there / processes - memory.optimizer
    if left < 0:
        smaller = "use_peft" if sizes.optimizer != "adamw" else "use_peft, or optim=adamw_8bit"
        return said + f"gradient and optimizer alone are too large; set {smaller}"
    left = max(left - memory.beside, 0.0)
    if memory.sampling > memory.gradient:
        share = max(left / memory.sampling, 0.01)
        return said + (
            "lower max_completion_length, prompts_per_step or num_generations to "
            f"{100 * share:.0f} % of what it is"
        )
    longest = max(sizes.prompt_tokens) + sizes.longest - 1
    fitting = int(memory.tokens * left / memory.gradient)
    if fitting < longest:
        return said + "set activation_checkpointing, or a smaller max_completion_length"
    return said + (
        f"set max_tokens_per_micro_batch={fitting}, which does not change the gradient, or "
        "activation_checkpointing"
    )


def pace(seconds: Sequence[float], remaining: int) -> str | None:
    """A line about how long a run will take, after its first few steps; None at any other time.

    Args:
        seconds: of each step so far.
        remaining: steps that are still to be made.
    """
    if len(seconds) != _ROUNDS_WARM_UP + _STEPS_MEASURED or remaining < _FEW_STEPS:
        return None
    each = math.fsum(seconds[_ROUNDS_WARM_UP:]) / _STEPS_MEASURED
    return (
        f"{about(each * remaining)} for the {remaining} steps that remain, at {each:.2g} s a step; "
        "evaluations come on top"
    )


def about(seconds: float) -> str:
    """A time in words, rounded to what can be known of it."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"about {seconds:.0f} s"


def size(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
