"""Rules that pick the next token: by chance, by rank, or the most likely one.

A rule owns the logits that it is given and may overwrite them: with a large vocabulary every copy
of them costs as much as the rest of the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rl4lm.randomness import Stream, uniforms

_UNIFORM_BLOCK = 64  # tokens whose random numbers are drawn at once
_SEARCH_BLOCK = 512  # tokens of the vocabulary that are summed up before one is looked for


class Choose(Protocol):
    """A rule that picks the next token of each row."""

    def __call__(self, logits: Tensor, rows: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """Pick from logits [b, V] for completions `rows` [b] at index `token`.

        The logits may be overwritten. Returns the tokens int64 [b] and their log-probs [b] under
        the rule's distribution.
        """


class InverseCdf:
    """Draw from softmax(logits / temperature) by inverting its cumulative distribution.

    The uniform of a token depends only on (seed, stream, step, position of the prompt in the
    step's global list, sample index, token index), so neither the batch nor the number of
    processes changes what is drawn.
    """

    def __init__(
        self,
        *,
        seed: int,
        stream: Stream,
        step: int,
        places: Sequence[int],
        num_generations: int,
        temperature: float,
        first_sample: int = 0,
        restrict: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Set what the numbers depend on.

        Args:
            seed: of the run.
            stream: training and evaluation never share numbers.
            step: optimizer step.
            places: where each of this process's prompts stands in the step's global list.
            num_generations: G; completion `row` is sample ``first_sample + row % G`` of prompt
                ``row // G``.
            temperature: > 0.
            first_sample: index of the first sample of each prompt.
            restrict: logits to logits, for top-k and the like; never used in training.
        """
        self._key = (seed, stream, step)
        self._places = np.asarray(places, dtype=np.uint64)
        self._num_generations = num_generations
        self._first_sample = first_sample
        self._temperature = temperature
        self._restrict = restrict
        self._block_start = -1
        self._block_rows = torch.zeros(0, dtype=torch.int64)
        self._block = torch.zeros(0, 0, dtype=torch.float64)

    def __call__(self, logits: Tensor, rows: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """Draw one token per row and give its log-prob; the logits are overwritten."""
        scores = logits if self._restrict is None else self._restrict(logits)
        probabilities = softmax_in_place(scores, self._temperature)  # [b, V]
        tokens = invert_cdf(probabilities, self._uniforms(rows, token))
        return tokens, probabilities.gather(-1, tokens[:, None]).squeeze(-1).log()

    def _uniforms(self, rows: Tensor, token: int) -> Tensor:
        """float64 [b], drawn for all current rows in blocks of tokens."""
        start = token - token % _UNIFORM_BLOCK
        if token == start or start != self._block_start:
            wanted = rows.cpu().numpy()
            prompts = self._places[wanted // self._num_generations]
            samples = self._first_sample + wanted % self._num_generations
            seed, stream, step = self._key
            drawn = uniforms(
                seed,
                stream,
                step,
                prompts,
                samples.astype(np.uint64),
                start,
                _UNIFORM_BLOCK,
            )
            self._block, self._block_rows = torch.from_numpy(drawn).to(rows.device), rows
            self._block_start = start
        at = torch.searchsorted(self._block_rows, rows)  # rows only ever leave, in order
        return self._block[at, token - start]


def softmax_in_place(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) in float32 or better, in the place of the logits [b, V]."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1.0:
        exact /= temperature
    return torch.softmax(exact, dim=-1, out=exact)


def invert_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds u: [b, V], float64 [b] -> int64 [b].

    Blocks of tokens are summed first, and only the block that holds the token is looked through;
    cumulative sums run in float64. A token of probability 0 is never drawn. u is scaled by the
    sum, so rounding cannot push the last token out of reach.
    """
    vocabulary, size = probabilities.shape[-1], _SEARCH_BLOCK
    whole = vocabulary // size * size
    sums = probabilities[:, :whole].unflatten(1, (whole // size, size)).sum(dim=-1)
    if whole < vocabulary:
        sums = torch.cat([sums, probabilities[:, whole:].sum(dim=-1, keepdim=True)], dim=1)
    cumulative = sums.cumsum(dim=-1, dtype=torch.float64)  # [b, blocks]
    block, rest = _locate(cumulative, uniform * cumulative[:, -1])
    places = block[:, None] * size + torch.arange(size, device=block.device)  # [b, size]
    inside = probabilities.gather(-1, places.clamp(max=vocabulary - 1))
    inside = inside.masked_fill(places >= vocabulary, 0.0)
    return block * size + _locate(inside.cumsum(dim=-1, dtype=torch.float64), rest)[0]


def _locate(cumulative: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose cumulative sum exceeds a height, and the height above the one before.

    cumulative and height float64, [b, n] and [b]; a height at or above the end is taken down to
    just below it, where rounding has put it.
    """
    end = cumulative[:, -1]
    height = torch.minimum(height, torch.nextafter(end, torch.zeros_like(end)))
    index = torch.searchsorted(cumulative, height[:, None], right=True)  # [b, 1]
    before = cumulative.gather(-1, (index - 1).clamp(min=0)).masked_fill(index == 0, 0.0)
    return index.squeeze(-1), height - before.squeeze(-1)


def greedy(logits: Tensor, rows: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """The most likely token of each row, the first one among equals, with its log-prob."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    best, tokens = exact.max(dim=-1)
    return tokens, best - exact.logsumexp(dim=-1)


def keep_most_likely(top_k: int, top_p: float) -> Callable[[Tensor], Tensor]:
    """A restriction for looking at samples: the top_k tokens, and of them the nucleus top_p.

    Args:
        top_k: how many tokens stay; 0 = all.
        top_p: the most likely tokens that together hold this probability stay, the token that
            crosses it included (Holtzman et al., 2020); 1 = all.

    Returns:
        Logits [b, V] -> logits [b, V] with -inf on what is left out.
    """

    def restrict(logits: Tensor) -> Tensor:
        ordered, order = logits.float().sort(dim=-1, descending=True)
        rank = torch.arange(logits.shape[-1], device=logits.device)
        dropped = rank >= (top_k or logits.shape[-1])
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        dropped = dropped | (before >= top_p)
        return torch.empty_like(ordered).scatter(
            -1, order, ordered.masked_fill(dropped, -torch.inf)
        )

    return restrict
