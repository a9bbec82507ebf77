"""The arithmetic that one step needs, counted from shapes and lengths.

With q prompt tokens in all (each prompt once), c completion tokens, and f = c - B of them fed back
(the last token of a completion is never an input), N the weights of all layers, hV those of the
head, and 2 operations for a multiplication with an addition:

    sampling   2 N (q + f)  +  2 hV c  +  attention
    training   6 N (q + f)  +  6 hV c  +  3 x attention
    attention  4 h · layers · Σ over tokens fed of the tokens they look at

With adapters the frozen weights need no gradient of their own, and 6 becomes 4, 3 becomes 2 in the
layers' and the head's products; attention stays, and the adapters' own products are left out.
Nothing is padded and no prompt is done twice. Each completion token also needs V exponentials in
sampling, and V in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shapes import Shape


@dataclass(frozen=True)
class Work:
    """Operations of one half of a step."""

    layers: float  # matrix products of the layers
    head: float
    attention: float
    exponentials: float

    @property
    def flops(self) -> float:
        """Matrix products and attention."""
        return self.layers + self.head + self.attention


@dataclass(frozen=True)
class Step:
    """Operations of a step."""

    sampling: Work
    training: Work

    @property
    def flops(self) -> float:
        """Matrix products and attention of both halves."""
        return self.sampling.flops + self.training.flops


def step_work(
    shape: Shape,
    prompt_lengths: Sequence[int],
    completion_length: float | None = None,
    adapters: bool = False,
) -> Step:
    """The operations of one step.

    Args:
        shape: sizes of the model and the step.
        prompt_lengths: tokens of each prompt.
        completion_length: mean tokens of a completion; None = all have the longest. Attention is
            counted as if all had the mean, which is less than the truth where they vary.
        adapters: only low-rank adapters are trained.
    """
    length = shape.new_tokens if completion_length is None else completion_length
    fed, drawn = shape.completions * (length - 1), shape.completions * length
    weights = shape.layers * shape.layer_parameters
    looked_at = 0.0
    for prompt in prompt_lengths:
        looked_at += prompt * (prompt + 1) / 2
        looked_at += shape.samples * (length - 1) * (prompt + length / 2)
    forward = Work(
        layers=2.0 * weights * (sum(prompt_lengths) + fed),
        head=2.0 * shape.head_parameters * drawn,
        attention=4.0 * shape.hidden * shape.layers * looked_at,
        exponentials=drawn * shape.vocabulary,
    )
    times = 2 if adapters else 3
    training = Work(
        forward.layers * times, forward.head * times, 3 * forward.attention, forward.exponentials
    )
    return Step(forward, training)


def decode_bytes(shape: Shape, prompt_lengths: Sequence[int], length: float, width: int) -> float:
    """Bytes that sampling must read: all weights and all keys and values, once per token step.

    Args:
        shape: sizes.
        prompt_lengths: tokens of each prompt.
        length: mean tokens of a completion; keys of a prompt are counted for each of its samples.
        width: bytes of a number.
    """
    weights = shape.layers * shape.layer_parameters + shape.head_parameters
    keys = 2 * shape.kv_width * shape.layers  # numbers per token, values included
    looked_at = sum(
        shape.samples * (length - 1) * (prompt + length / 2) for prompt in prompt_lengths
    )
    return width * (weights * length + keys * looked_at)
