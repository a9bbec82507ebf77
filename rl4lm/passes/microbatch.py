"""Cut a rollout into teacher-forced micro-batches that fit a budget of tokens.

Knows token ids and masks only. Two forms. Packed: one row without any padding, each prompt once
beside its completions, which share it. Padded: prompt and completion of each row side by side
without a gap, padding on the right, for models whose attention cannot be told who sees whom. In
both, positions are 0, 1, 2, … in every sequence, and sequences of similar length share a
micro-batch. How the rows are cut never changes the gradient: the loss is divided by the completions
of the whole step beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl4lm.passes.packing import Packing, Sequences, pack
from rl4lm.types import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """b completions of a rollout, and where in them completion tokens are predicted."""

    rows: Tensor  # int64 [b], which completions of the rollout
    input_ids: Tensor  # int64 [S, L]: S = b padded sequences, or one packed row
    attention_mask: Tensor  # int64 [S, L], 1 on real tokens
    position_ids: Tensor  # int64 [S, L]
    predicts: Tensor  # int64 [n], places in the flattened [S·L] whose next token is predicted
    targets: Tensor  # int64 [n], those next tokens, completion by completion
    packing: Packing | None = None  # of a packed row; None where rows are padded


def first_of_equals(rollout: Rollout) -> Tensor:
    """For each completion the first one with the same prompt row and the same tokens: int64 [B].

    Equal sequences have equal log-probs and equal gradients, so that only the first needs to be
    run, with the weights of all of them added up. Short answers are often equal.
    """
    first: dict[tuple[int, ...], int] = {}
    group = rollout.num_generations
    owners = [
        first.setdefault((i // group, *ids), i) for i, ids in enumerate(rollout.completion_lists())
    ]
    return torch.tensor(owners)


def micro_batches(
    rollout: Rollout, rows: Sequence[int], max_tokens: int, packed: bool = False
) -> Iterator[MicroBatch]:
    """Cut some rows of a rollout into micro-batches of at most `max_tokens` input tokens.

    Args:
        rollout: the completions.
        rows: which of its B completions are wanted, in any order.
        max_tokens: budget of input tokens, padding included; a single longer row goes alone.
        packed: one row that shares prompts, instead of a padded row per completion.

    Yields:
        Micro-batches that together hold each wanted row once, longest first, so that memory is
        needed at its largest in the first one.
    """
    prompts, completions = rollout.prompt_lists(), rollout.completion_lists()
    group = rollout.num_generations
    sequences = {i: (prompts[i // group], completions[i]) for i in rows}
    cut, build = (_shared, _pack) if packed else (_alike, _build)
    for chosen in cut(sequences, max_tokens):
        yield build(chosen, sequences)


def _alike(sequences: Sequences, max_tokens: int) -> Iterator[list[int]]:
    """Rows of similar length, the longest first in each list."""
    lengths = {i: len(p) + len(c) - 1 for i, (p, c) in sequences.items()}
    batch: list[int] = []
    for row in sorted(sequences, key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _shared(sequences: Sequences, max_tokens: int) -> Iterator[list[int]]:
    """Rows of equal prompts side by side, prompts with many tokens first.

    Rows whose prompts fit together share a list; the rows of a prompt that are too many for one
    are cut, and the prompt is computed once for each part.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row in sorted(sequences, key=lambda i: (-len(sequences[i][1]), i)):
        by_prompt.setdefault(tuple(sequences[row][0]), []).append(row)
    parts = [
        part
        for prompt, rows in by_prompt.items()
        for part in _cut(prompt, rows, sequences, max_tokens)
    ]
    batch: list[int] = []
    tokens = 0
    for size, rows in sorted(parts, key=lambda part: (-part[0], part[1])):
        if batch and tokens + size > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch, tokens = batch + rows, tokens + size
    if batch:
        yield batch


def _cut(
    prompt: Sequence[int], rows: Sequence[int], sequences: Sequences, max_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """(tokens, rows) of parts of one prompt's rows that fit the budget, prompt included."""
    part: list[int] = []
    tokens = len(prompt)
    for row in rows:
        size = len(sequences[row][1]) - 1
        if part and tokens + size > max_tokens:
            yield tokens, part
            part, tokens = [], len(prompt)
        part, tokens = [*part, row], tokens + size
    yield tokens, part


def _build(rows: list[int], sequences: Sequences) -> MicroBatch:
    """Lay the sequences of the rows out one below the other; the first row is the longest."""
    width = max(len(p) + len(c) - 1 for p, c in (sequences[i] for i in rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.int64)
    predicts: list[int] = []
    targets: list[int] = []
    for k, row in enumerate(rows):
        prompt, completion = sequences[row]
        length = len(prompt) + len(completion) - 1
        input_ids[k, :length] = torch.tensor(prompt + completion[:-1])
        attention_mask[k, :length] = 1
        predicts += range(k * width + len(prompt) - 1, k * width + length)
        targets += completion
    return MicroBatch(
        rows=torch.tensor(rows),
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=torch.arange(width).expand(len(rows), width),
        predicts=torch.tensor(predicts),
        targets=torch.tensor(targets),
    )


def _pack(rows: list[int], sequences: Sequences) -> MicroBatch:
    """Lay the sequences of the rows out in one row."""
    row = pack(sequences, rows)
    predicts: list[int] = []
    targets: list[int] = []
    for k in rows:
        completion = sequences[k][1]
        # The prompt's last token predicts the first token of every one of its completions.
        predicts.append(row.prompt_ends[k])
        if len(completion) > 1:
            predicts += range(row.starts[k], row.starts[k] + len(completion) - 1)
        targets += completion
    return MicroBatch(
        rows=torch.tensor(rows),
        input_ids=torch.tensor([row.ids]),
        attention_mask=torch.ones(1, len(row.ids), dtype=torch.int64),
        position_ids=torch.tensor([row.positions]),
        predicts=torch.tensor(predicts),
        targets=torch.tensor(targets),
        packing=row.packing,
    )
