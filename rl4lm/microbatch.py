"""Cut a rollout into teacher-forced micro-batches that fit a budget of tokens.

Knows token ids and masks only. Rows are prompt and completion side by side without a gap, padded
on the right, so that positions are 0, 1, 2, … in every architecture and padding can touch nothing.
Rows of similar length share a micro-batch. How the rows are cut never changes the gradient: the
loss is divided by the completions of the whole step beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rl4lm.types import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """b whole sequences of a rollout, and where in them completion tokens are predicted."""

    rows: Tensor  # int64 [b], which completions of the rollout
    input_ids: Tensor  # int64 [b, L], the last token of each sequence left out: nothing follows it
    attention_mask: Tensor  # int64 [b, L], 1 on real tokens
    position_ids: Tensor  # int64 [b, L]
    predicts: Tensor  # bool [b, L], True where the next token is a completion token; n in all
    targets: Tensor  # int64 [n], those next tokens, row by row


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


def micro_batches(rollout: Rollout, rows: Sequence[int], max_tokens: int) -> Iterator[MicroBatch]:
    """Cut some rows of a rollout into micro-batches of at most `max_tokens` padded tokens.

    Args:
        rollout: the completions.
        rows: which of its B completions are wanted, in any order.
        max_tokens: budget of padded input tokens, b·L; a single longer row goes alone.

    Yields:
        Micro-batches that together hold each wanted row once, longest rows first, so that memory
        is needed at its largest in the first one.
    """
    prompts, completions = rollout.prompt_lists(), rollout.completion_lists()
    group = rollout.num_generations
    sequences = {i: (prompts[i // group], completions[i]) for i in rows}
    lengths = {i: len(p) + len(c) - 1 for i, (p, c) in sequences.items()}
    batch: list[int] = []
    for row in sorted(rows, key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield _build(batch, sequences)
            batch = []
        batch.append(row)
    if batch:
        yield _build(batch, sequences)


def _build(rows: list[int], sequences: dict[int, tuple[list[int], list[int]]]) -> MicroBatch:
    """Lay the sequences of the rows out; the first row is the longest."""
    width = max(len(p) + len(c) - 1 for p, c in (sequences[i] for i in rows))
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.int64)
    predicts = torch.zeros(len(rows), width, dtype=torch.bool)
    targets: list[int] = []
    for k, row in enumerate(rows):
        prompt, completion = sequences[row]
        length = len(prompt) + len(completion) - 1
        input_ids[k, :length] = torch.tensor(prompt + completion[:-1])
        attention_mask[k, :length] = 1
        predicts[k, len(prompt) - 1 : length] = True
        targets += completion
    return MicroBatch(
        rows=torch.tensor(rows),
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=torch.arange(width).expand(len(rows), width),
        predicts=predicts,
        targets=torch.tensor(targets),
    )
