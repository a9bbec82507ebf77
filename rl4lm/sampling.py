"""The generation loop: prompts in, a rollout of token ids out.

Knows token ids and the policy; knows nothing of rewards, and of text only a predicate that says
whether a completion has reached a stop string. Each distinct prompt is prefilled once and its
key-value cache is expanded to its G samples; prompts are padded on the left with explicit
positions; finished rows leave the batch. A checkpoint's `generation_config` is not merged in: the
distribution is softmax(logits / temperature) over the full vocabulary and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rl4lm.logprobs import log_softmax
from rl4lm.randomness import Stream, uniforms
from rl4lm.types import Rollout, pad_left

# Rows leave the batch when this share of it has finished; selecting rows copies the cache.
_COMPACT_SHARE = 0.125
_UNIFORM_BLOCK = 64  # tokens whose random numbers are drawn at once


class Decoder(Protocol):
    """What the loop needs of a policy."""

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Any]:
        """Logits [P, V] after each left-padded prompt [P, Q], and the key-value cache."""

    def decode(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits [b, V] after one more token of each row; the cache grows in place."""


class Choose(Protocol):
    """A rule that picks the next token of each row."""

    def __call__(self, logits: Tensor, rows: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """Pick from logits [b, V] for completions `rows` [b] at index `token`.

        Returns the tokens int64 [b] and their log-probs [b] under the rule's distribution.
        """


@dataclass(frozen=True)
class EndRule:
    """What ends a completion; it is looked for in the completion only, never in the prompt."""

    token_ids: Sequence[int]  # any of these ids, which stays part of the completion
    reaches_stop: Callable[[list[int]], bool] | None = None  # ids so far -> a stop string is there


class InverseCdf:
    """Draw from softmax(logits / temperature) by inverting its cumulative distribution.

    The uniform of a token depends only on (seed, stream, step, position of the prompt in the
    step's global list, sample index, token index), so neither the batch nor the number of
    processes changes what is drawn. Sums run in float64.
    """

    def __init__(
        self,
        *,
        seed: int,
        stream: Stream,
        step: int,
        first_prompt: int,
        num_generations: int,
        temperature: float,
        restrict: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Set what the numbers depend on.

        Args:
            seed: of the run.
            stream: training and evaluation never share numbers.
            step: optimizer step.
            first_prompt: position of this process's first prompt in the step's global list.
            num_generations: G; completion `row` is sample ``row % G`` of prompt ``row // G``.
            temperature: > 0.
            restrict: logits to logits, for top-k and the like; never used in training.
        """
        self._key = (seed, stream, step)
        self._first_prompt = first_prompt
        self._num_generations = num_generations
        self._temperature = temperature
        self._restrict = restrict
        self._block_start = -1
        self._block_rows = np.zeros(0, dtype=np.int64)
        self._block = torch.zeros(0, 0, dtype=torch.float64)

    def __call__(self, logits: Tensor, rows: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """Draw one token per row and give its log-prob."""
        scores = logits if self._restrict is None else self._restrict(logits)
        logprobs = log_softmax(scores, self._temperature)  # [b, V]
        tokens = invert_cdf(logprobs.exp(), self._uniforms(rows, token).to(logits.device))
        return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)

    def _uniforms(self, rows: Tensor, token: int) -> Tensor:
        """float64 [b], drawn for all current rows in blocks of tokens."""
        wanted = rows.cpu().numpy()
        start = token - token % _UNIFORM_BLOCK
        if token == start or start != self._block_start:
            prompts = wanted // self._num_generations + self._first_prompt
            samples = wanted % self._num_generations
            seed, stream, step = self._key
            drawn = uniforms(
                seed,
                stream,
                step,
                prompts.astype(np.uint64),
                samples.astype(np.uint64),
                start,
                _UNIFORM_BLOCK,
            )
            self._block, self._block_rows = torch.from_numpy(drawn), wanted
            self._block_start = start
        at = np.searchsorted(self._block_rows, wanted)  # rows only ever leave, in order
        return self._block[torch.from_numpy(at), token - start]


def invert_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds u: [b, V], float64 [b] -> int64 [b].

    A token of probability 0 is never drawn. u is scaled by the sum, so rounding in the softmax
    cannot push the last token out of reach.
    """
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)  # [b, V]
    total = cumulative[:, -1:]
    # u·total may round up to total itself, beyond every token.
    threshold = torch.minimum(uniform[:, None] * total, torch.nextafter(total, 0 * total))
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)


def greedy(logits: Tensor, rows: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """The most likely token of each row, the first one among equals, with its log-prob."""
    tokens = logits.argmax(dim=-1)
    return tokens, log_softmax(logits, 1.0).gather(-1, tokens[:, None]).squeeze(-1)


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


@torch.no_grad()
def generate(
    policy: Decoder,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    *,
    num_generations: int,
    max_completion_length: int,
    ends: EndRule,
) -> Rollout:
    """Sample `num_generations` completions of each prompt.

    Args:
        policy: gives logits for prompts and for one more token.
        prompts: P lists of ids, none empty, lengths may differ.
        choose: picks tokens, `InverseCdf(...)` or `greedy`.
        num_generations: G.
        max_completion_length: tokens after which a completion is cut off, ≥ 1.
        ends: what ends a completion.

    Returns:
        A rollout on the CPU, T being the longest completion drawn. The end token is part of the
        completion; a completion that was cut off has ``ended`` False.
    """
    prompt_ids, prompt_mask = pad_left(prompts)
    logits, cache = policy.prefill(prompt_ids.to(policy.device), prompt_mask.to(policy.device))
    cache.batch_repeat_interleave(num_generations)
    logits = logits.repeat_interleave(num_generations, dim=0)  # [B, V]
    batch = _Batch.start(prompt_mask, num_generations, max_completion_length, logits)
    for token in range(max_completion_length):
        tokens = batch.record(choose, logits, token, ends)
        if token + 1 == max_completion_length or not batch.running.any():
            break
        tokens = batch.compact(tokens, cache)
        logits = batch.advance(policy, tokens, cache)
    return batch.rollout(prompt_ids, prompt_mask)


@dataclass
class _Batch:
    """The rows being decoded, and the completions written so far."""

    rows: Tensor  # int64 [b], completions still in the batch, ascending
    running: Tensor  # bool [b], False once a row has ended
    mask: Tensor  # bool [b, Q + t], True on real tokens
    positions: Tensor  # int64 [b], position of the next token
    completion_ids: Tensor  # int64 [B, T]
    completion_mask: Tensor  # bool [B, T]
    logprobs: Tensor  # float [B, T]
    ended: Tensor  # bool [B]

    @classmethod
    def start(cls, prompt_mask: Tensor, group: int, length: int, logits: Tensor) -> _Batch:
        device, count = logits.device, len(logits)
        mask = prompt_mask.to(device).repeat_interleave(group, dim=0)
        precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return cls(
            rows=torch.arange(count, device=device),
            running=torch.ones(count, dtype=torch.bool, device=device),
            mask=mask,
            positions=mask.sum(dim=1),
            completion_ids=torch.zeros(count, length, dtype=torch.int64, device=device),
            completion_mask=torch.zeros(count, length, dtype=torch.bool, device=device),
            logprobs=torch.zeros(count, length, dtype=precision, device=device),
            ended=torch.zeros(count, dtype=torch.bool, device=device),
        )

    def record(self, choose: Choose, logits: Tensor, token: int, ends: EndRule) -> Tensor:
        """Pick and write down one token per row; returns the tokens [b]."""
        tokens, logprobs = choose(logits, self.rows, token)
        self.completion_ids[self.rows, token] = tokens.where(self.running, 0)
        self.completion_mask[self.rows, token] = self.running
        self.logprobs[self.rows, token] = logprobs.to(self.logprobs.dtype).where(self.running, 0.0)
        ending = torch.isin(tokens, torch.tensor(list(ends.token_ids), device=tokens.device))
        if ends.reaches_stop is not None:
            ending |= self._reached_stop(token, ends.reaches_stop)
        ending &= self.running
        self.ended[self.rows] |= ending
        self.running = self.running & ~ending
        return tokens

    def _reached_stop(self, token: int, reaches_stop: Callable[[list[int]], bool]) -> Tensor:
        written = self.completion_ids[self.rows, : token + 1].tolist()
        flags = [
            runs and reaches_stop(ids)
            for ids, runs in zip(written, self.running.tolist(), strict=True)
        ]
        return torch.tensor(flags, dtype=torch.bool, device=self.rows.device)

    def compact(self, tokens: Tensor, cache: Any) -> Tensor:
        """Drop finished rows from the batch where enough have gathered; returns tokens [b']."""
        keep = self.running.nonzero().squeeze(-1)
        if len(keep) > len(self.rows) * (1 - _COMPACT_SHARE):
            return tokens
        cache.batch_select_indices(keep)
        self.rows, self.running = self.rows[keep], self.running[keep]
        self.mask, self.positions = self.mask[keep], self.positions[keep]
        return tokens[keep]

    def advance(self, policy: Decoder, tokens: Tensor, cache: Any) -> Tensor:
        """Feed the tokens [b] and return the logits [b, V] that follow."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        logits = policy.decode(tokens, self.mask, self.positions, cache)
        self.positions = self.positions + 1
        return logits

    def rollout(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Rollout:
        width = int(self.completion_mask.sum(dim=1).max())
        return Rollout(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=self.completion_ids[:, :width].cpu(),
            completion_mask=self.completion_mask[:, :width].cpu(),
            sampling_logprobs=self.logprobs[:, :width].cpu(),
            ended=self.ended.cpu(),
        )
