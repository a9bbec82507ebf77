"""The generation loop: prompts in, a rollout of token ids out.

Knows token ids and the policy; knows nothing of rewards, and of text only a predicate that says
whether a completion has reached a stop string. Each distinct prompt is prefilled once and its
key-value cache is expanded to its G samples; prompts are padded on the left with explicit
positions; finished rows leave the batch. On a GPU the loop asks what has finished every few tokens
only, so that the host never waits for a token. A checkpoint's `generation_config` is not merged in:
the distribution is softmax(logits / temperature) over the full vocabulary and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rl4lm.sampling.drawing import Choose
from rl4lm.types import Rollout, pad_left

# Rows leave the batch when this share of it has finished; selecting rows copies the cache.
_COMPACT_SHARE = 0.125
_CHECK_EVERY_ON_GPU = 16  # tokens; asking makes the host wait for the device
_COMPACT_SHARE_ON_GPU = 0.5  # every size of a batch is captured anew: there are log2(B) at most


class Decoder(Protocol):
    """What the loop needs of a policy."""

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""

    def prefill(self, prompt_ids: Tensor, prompt_mask: Tensor, room: int) -> tuple[Tensor, Any]:
        """Logits [P, V] after each left-padded prompt [P, Q], and the key-value cache."""

    def decode(self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> Tensor:
        """Logits [b, V] after one more token of each row; the cache grows in place."""


Finished = Callable[[list[int], list[list[int]]], None]  # rows, and the ids of each


@dataclass(frozen=True)
class EndRule:
    """What ends a completion; it is looked for in the completion only, never in the prompt."""

    token_ids: Sequence[int]  # any of these ids, which stays part of the completion
    reaches_stop: Callable[[list[int]], bool] | None = None  # ids so far -> a stop string is there


def generate(
    policy: Decoder,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    *,
    num_generations: int,
    max_completion_length: int,
    ends: EndRule,
    finished: Finished | None = None,
) -> Rollout:
    """Sample `num_generations` completions of each prompt.

    Args:
        policy: gives logits for prompts and for one more token.
        prompts: P lists of ids, none empty, lengths may differ.
        choose: picks tokens, `InverseCdf(...)` or `greedy`.
        num_generations: G.
        max_completion_length: tokens after which a completion is cut off, ≥ 1.
        ends: what ends a completion.
        finished: told of completions as they end, while others are still being drawn; each that
            ends is told once, one that is cut off never.

    Returns:
        A rollout on the CPU, T being the longest completion drawn. The end token is part of the
        completion; a completion that was cut off has ``ended`` False.
    """
    prompt_ids, prompt_mask = pad_left(prompts)
    with _without_gradient(policy.device):
        batch = _decode(
            policy, prompts, choose, num_generations, max_completion_length, ends, finished
        )
    return batch.rollout(prompt_ids, prompt_mask)


def _without_gradient(device: torch.device) -> AbstractContextManager[Any]:
    """Inference mode, or what comes next to it."""
    # In inference mode autocast keeps no cast of a weight, and makes them anew for every token.
    return torch.inference_mode() if device.type == "cpu" else torch.no_grad()


def _decode(
    policy: Decoder,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    num_generations: int,
    max_completion_length: int,
    ends: EndRule,
    finished: Finished | None,
) -> _Batch:
    """The loop of `generate`."""
    prompt_ids, prompt_mask = pad_left(prompts)
    distinct, owners = _distinct(prompts)
    ids, mask = (x[distinct].to(policy.device) for x in (prompt_ids, prompt_mask))
    logits, cache = policy.prefill(ids, mask, room=max_completion_length - 1)
    samples = owners.to(policy.device).repeat_interleave(num_generations)  # int64 [B]
    cache.batch_select_indices(samples)
    batch = _Batch.start(mask[samples], max_completion_length, logits, ends)
    logits = logits[samples]  # [B, V]
    on_cpu = policy.device.type == "cpu"
    every = 1 if on_cpu else _CHECK_EVERY_ON_GPU
    share = _COMPACT_SHARE if on_cpu else _COMPACT_SHARE_ON_GPU
    for token in range(max_completion_length):
        tokens = batch.record(choose, logits, token)
        if token + 1 == max_completion_length:
            break
        if (token + 1) % every == 0:
            if finished is not None:
                batch.tell(finished)
            tokens = batch.compact(tokens, cache, share)
            if not len(tokens):
                break
        logits = batch.advance(policy, tokens, cache, prompt_ids.shape[1] + token + 1)
    return batch


def _distinct(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The first row of each distinct prompt, int64 [D], and for each prompt its place there."""
    first: dict[tuple[int, ...], int] = {}
    owners = [first.setdefault(tuple(prompt), i) for i, prompt in enumerate(prompts)]
    rows = torch.tensor(list(first.values()))
    return rows, torch.searchsorted(rows, torch.tensor(owners))


@dataclass
class _Batch:
    """The rows being decoded, and the completions written so far."""

    rows: Tensor  # int64 [b], completions still in the batch, ascending
    running: Tensor  # bool [b], False once a row has ended
    mask: Tensor | None  # bool [b, Q + T], True on real tokens; None where no prompt is padded
    positions: Tensor  # int64 [b], position of the next token
    completion_ids: Tensor  # int64 [B, T]
    completion_mask: Tensor  # bool [B, T]
    logprobs: Tensor  # float [B, T]
    ended: Tensor  # bool [B]
    told: Tensor  # bool [B], completions that `tell` has told
    ends: EndRule
    end_ids: Tensor  # int64 [E]

    @classmethod
    def start(cls, prompt_mask: Tensor, length: int, logits: Tensor, ends: EndRule) -> _Batch:
        device, count = prompt_mask.device, len(prompt_mask)
        written = torch.ones(count, length, dtype=torch.bool, device=device)
        precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
        return cls(
            rows=torch.arange(count, device=device),
            running=torch.ones(count, dtype=torch.bool, device=device),
            mask=None if prompt_mask.all() else torch.cat([prompt_mask, written], dim=1),
            positions=prompt_mask.sum(dim=1),
            completion_ids=torch.zeros(count, length, dtype=torch.int64, device=device),
            completion_mask=torch.zeros(count, length, dtype=torch.bool, device=device),
            logprobs=torch.zeros(count, length, dtype=precision, device=device),
            ended=torch.zeros(count, dtype=torch.bool, device=device),
            told=torch.zeros(count, dtype=torch.bool, device=device),
            ends=ends,
            end_ids=torch.tensor(list(ends.token_ids), dtype=torch.int64, device=device),
        )

    def record(self, choose: Choose, logits: Tensor, token: int) -> Tensor:
        """Pick and write down one token per row; returns the tokens [b]."""
        tokens, logprobs = choose(logits, self.rows, token)
        self.completion_ids[self.rows, token] = tokens.where(self.running, 0)
        self.completion_mask[self.rows, token] = self.running
        self.logprobs[self.rows, token] = logprobs.to(self.logprobs.dtype).where(self.running, 0.0)
        ending = torch.isin(tokens, self.end_ids)
        if self.ends.reaches_stop is not None:
            ending |= self._reached_stop(token, self.ends.reaches_stop)
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

    def tell(self, finished: Finished) -> None:
        """Hand over the completions that have ended since the last time."""
        rows = (self.ended & ~self.told).nonzero().squeeze(-1)
        if len(rows):
            self.told[rows] = True
            lengths = self.completion_mask[rows].sum(dim=1).tolist()
            ids = self.completion_ids[rows].tolist()
            finished(rows.tolist(), [row[:n] for row, n in zip(ids, lengths, strict=True)])

    def compact(self, tokens: Tensor, cache: Any, share: float) -> Tensor:
        """Drop finished rows where they are this share of the batch; returns tokens [b']."""
        keep = self.running.nonzero().squeeze(-1)
        if len(keep) > len(self.rows) * (1 - share):
            return tokens
        if len(keep):
            cache.batch_select_indices(keep)
        self.rows, self.running = self.rows[keep], self.running[keep]
        self.mask = None if self.mask is None else self.mask[keep]
        self.positions = self.positions[keep]
        return tokens[keep]

    def advance(self, policy: Decoder, tokens: Tensor, cache: Any, width: int) -> Tensor:
        """Feed the tokens [b] and return the logits [b, V] that follow; `width` tokens are seen."""
        mask = None if self.mask is None else self.mask[:, :width]
        logits = policy.decode(tokens, mask, self.positions, cache)
        self.positions = self.positions + 1
        return logits

    def rollout(self, prompt_ids: Tensor, prompt_mask: Tensor) -> Rollout:
        width = int(self.completion_mask.sum(dim=1).max())

        def written(values: Tensor) -> Tensor:
            """A copy, since what is made in inference mode cannot take part in a gradient."""
            return values.cpu().clone()

        return Rollout(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=written(self.completion_ids[:, :width]),
            completion_mask=written(self.completion_mask[:, :width]),
            sampling_logprobs=written(self.logprobs[:, :width]),
            ended=written(self.ended),
        )
