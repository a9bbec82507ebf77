"""Prompts with their completions and scores, joined, and picked group by group.

A group is a prompt and its G completions. Rows are padded anew where groups of other lengths come
together, so that nothing depends on what a group was drawn beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rl4lm.estimator.returns import at_last_token
from rl4lm.rewarding.unanswered import is_count
from rl4lm.types import Example, Rollout, Scores


@dataclass(frozen=True)
class Groups:
    """Some prompts of a step, drawn and scored."""

    examples: Sequence[Example]  # P of them
    rollout: Rollout
    texts: Sequence[str]  # B of them
    scores: Scores


def replaced(groups: Groups, at: Sequence[int], others: Groups) -> Groups:
    """The groups, those at some places replaced by others, in order.

    Args:
        groups: P of them.
        at: the places, ascending.
        others: one for each place.
    """
    order = list(range(len(groups.examples)))
    for k, place in enumerate(at):
        order[place] = len(groups.examples) + k
    return _picked(_joined(groups, others), order)


def _joined(first: Groups, second: Groups) -> Groups:
    return Groups(
        examples=[*first.examples, *second.examples],
        rollout=_joined_rollouts(first.rollout, second.rollout),
        texts=[*first.texts, *second.texts],
        scores=_joined_scores(first, second),
    )


def _joined_rollouts(first: Rollout, second: Rollout) -> Rollout:
    return Rollout(
        prompt_ids=_stacked(first.prompt_ids, second.prompt_ids, left=True),
        prompt_mask=_stacked(first.prompt_mask, second.prompt_mask, left=True),
        completion_ids=_stacked(first.completion_ids, second.completion_ids),
        completion_mask=_stacked(first.completion_mask, second.completion_mask),
        sampling_logprobs=_stacked(first.sampling_logprobs, second.sampling_logprobs),
        ended=torch.cat([first.ended, second.ended]),
    )


def _joined_scores(first: Groups, second: Groups) -> Scores:
    one, other = first.scores, second.scores
    counted = {n: v + other.metrics[n] for n, v in one.metrics.items() if is_count(n)}
    return Scores(
        rewards=torch.cat([one.rewards, other.rewards]),
        valid=torch.cat([one.valid, other.valid]),
        parts={name: torch.cat([values, other.parts[name]]) for name, values in one.parts.items()},
        token_rewards=_joined_tokens(first, second),
        extra=_joined_extra(one.extra, other.extra, len(first.texts), len(second.texts)),
        # A number that a reward logs is one of the whole step's prompts: that of the first.
        metrics={**one.metrics, **counted},
    )


def _joined_tokens(first: Groups, second: Groups) -> Tensor | None:
    """What each token is paid, float64 [B, T]; None where no reward of either pays tokens."""
    if first.scores.token_rewards is None and second.scores.token_rewards is None:
        return None
    return _stacked(_by_token(first), _by_token(second))


def _by_token(groups: Groups) -> Tensor:
    if groups.scores.token_rewards is not None:
        return groups.scores.token_rewards
    return at_last_token(groups.scores.rewards.flatten(), groups.rollout.completion_mask)


def _joined_extra(
    one: Mapping[str, Sequence[Any]], other: Mapping[str, Sequence[Any]], rows: int, more: int
) -> dict[str, list[Any]]:
    """Notes on both; empty where a call had nothing to say."""
    names = dict.fromkeys([*one, *other])
    return {n: [*one.get(n, [""] * rows), *other.get(n, [""] * more)] for n in names}


def _stacked(first: Tensor, second: Tensor, left: bool = False) -> Tensor:
    """Rows [a, L] and [b, M] as [a + b, max(L, M)], padded with zeros on one side."""
    width = max(first.shape[1], second.shape[1])
    sides = [(width - t.shape[1], 0) if left else (0, width - t.shape[1]) for t in (first, second)]
    return torch.cat([pad(t, side) for t, side in zip((first, second), sides, strict=True)])


def _picked(groups: Groups, order: Sequence[int]) -> Groups:
    """Some of the groups, in an order, with no more padding than they need."""
    generations, scores = groups.rollout.num_generations, groups.scores
    places = torch.tensor(order)
    rows = (places[:, None] * generations + torch.arange(generations)).flatten()
    tokens = scores.token_rewards
    rollout = _picked_rollout(groups.rollout, places, rows)
    return Groups(
        examples=[groups.examples[place] for place in order],
        rollout=rollout,
        texts=[groups.texts[row] for row in rows.tolist()],
        scores=Scores(
            rewards=scores.rewards[places],
            valid=scores.valid[places],
            parts={name: values[places] for name, values in scores.parts.items()},
            token_rewards=None if tokens is None else tokens[rows][:, : rollout.lengths.max()],
            extra={n: [values[row] for row in rows.tolist()] for n, values in scores.extra.items()},
            metrics=scores.metrics,
        ),
    )


def _picked_rollout(rollout: Rollout, places: Tensor, rows: Tensor) -> Rollout:
    longest = int(rollout.lengths[rows].max())
    before = rollout.prompt_mask.shape[1] - int(rollout.prompt_lengths[places].max())
    return Rollout(
        prompt_ids=rollout.prompt_ids[places, before:],
        prompt_mask=rollout.prompt_mask[places, before:],
        completion_ids=rollout.completion_ids[rows, :longest],
        completion_mask=rollout.completion_mask[rows, :longest],
        sampling_logprobs=rollout.sampling_logprobs[rows, :longest],
        ended=rollout.ended[rows],
    )
