"""Draw the prompts of a step, and further ones in the place of those that teach nothing.

A step has P slots. Where the group of a slot has no advantage, the next prompt of that slot is
drawn, at most so many times. Which prompt and which random numbers that are follows from the slot
and the round alone: the processes need not agree on anything, and each redraws its own slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rl4lm.earnings import Earnings, from_start
from rl4lm.estimator.baselines import Baseline, BaselineInputs
from rl4lm.estimator.shaping import Shaping, shaped_advantages
from rl4lm.groups import Groups, replaced
from rl4lm.types import Drawing

Draw = Callable[[Sequence[int]], Groups]  # places in the step's list of prompts -> their groups
Live = Callable[[Groups], Tensor]  # bool [P], True where a group has any advantage

_DRAWN, _LIVE, _REWARD, _COUNT, _TOKENS = range(5)  # columns of a table of outcomes


def draw_rounds(
    slots: Sequence[int], prompts: int, rounds: int, draw: Draw, live: Live
) -> tuple[Groups, Tensor]:
    """The groups of some slots, each the first one with an advantage, else the last one drawn.

    Args:
        slots: of this process.
        prompts: P, slots of the whole step; slot k has the places k, k + P, k + 2 P, … of its list.
        rounds: further draws of a slot, at most.
        draw: gives the groups at some places.
        live: whether groups have an advantage.

    Returns:
        One group for each slot, and the outcomes of all draws, float64 [slots, rounds + 1, 5].
    """
    groups = draw(slots)
    alive = live(groups)
    table = torch.zeros(len(slots), rounds + 1, 5, dtype=torch.float64)
    table[:, 0] = _outcomes(groups, alive)
    for k in range(1, rounds + 1):
        idle = (~alive).nonzero().squeeze(-1).tolist()
        if not idle:
            break
        again = draw([k * prompts + slots[i] for i in idle])
        alive[idle] = live(again)
        table[idle, k] = _outcomes(again, alive[idle])
        groups = replaced(groups, idle, again)
    return groups, table


def all_live(groups: Groups) -> Tensor:
    """Takes every group as it is, at no cost."""
    return torch.ones(len(groups.examples), dtype=torch.bool)


def have_advantage(
    earnings: Earnings, baseline: Baseline, shaping: Shaping, groups: Groups
) -> Tensor:
    """bool [P], whether any token of a group has an advantage.

    Args:
        earnings: of the run, without a KL.
        baseline: of the run, which looks at nothing but the group.
        shaping: of the run, which may leave completions out.
        groups: P of them.
    """
    rollout, valid = groups.rollout, groups.scores.valid
    count, unused = len(groups.examples), torch.zeros(len(rollout.completion_ids), 0)
    returns = earnings.returns(rollout, groups.scores, rollout.sampling_logprobs, unused)
    inputs = BaselineInputs(
        lengths=rollout.lengths.view(valid.shape),
        valid=valid,
        prompt_keys=torch.arange(count),
        prompt_features=torch.zeros(count, 0, dtype=torch.float64),
    )
    value, _ = baseline(from_start(returns).view(valid.shape), inputs, {})
    weights = shaping.weights(inputs.lengths, rollout.ended.view(valid.shape)).flatten()
    found = shaped_advantages(
        returns, value.flatten(), weights, valid.flatten(), rollout.completion_mask
    )
    return found.view(count, -1).ne(0).any(dim=1)


def _outcomes(groups: Groups, alive: Tensor) -> Tensor:
    """A row of the table for each group, float64 [P, 5]."""
    valid = groups.scores.valid
    count = valid.sum(dim=1)
    earned = torch.where(valid, groups.scores.rewards, 0.0).sum(dim=1)
    tokens = groups.rollout.lengths.view(valid.shape).sum(dim=1)
    columns = [torch.ones_like(count), alive, earned / count.clamp(min=1), count, tokens]
    return torch.stack([column.double() for column in columns], dim=1)


def kept_keys(keys: Sequence[int], table: Tensor) -> list[int]:
    """Rows of the data that the groups of the P slots come from.

    Args:
        keys: of the step's list.
        table: of all slots, [P, rounds + 1, 5].
    """
    last = table[..., _DRAWN].sum(dim=1).long() - 1
    return [keys[k * len(table) + slot] for slot, k in enumerate(last.tolist())]


def earned_by(keys: Sequence[int], table: Tensor) -> tuple[list[int], Tensor, Tensor]:
    """All rows that were drawn, their mean rewards, and of how many completions."""
    by_place = table.transpose(0, 1).flatten(0, 1)  # [(rounds + 1) P, 5], in the list's order
    places = by_place[:, _DRAWN].nonzero().squeeze(-1)
    success, count = by_place[places, _REWARD], by_place[places, _COUNT]
    return [keys[place] for place in places.tolist()], success, count


def drawing(table: Tensor, generations: int) -> Drawing:
    """What the draws of a step come to, with further rounds in the log.

    Args:
        table: of all slots, [P, rounds + 1, 5].
        generations: G.
    """
    drawn, live = table[..., _DRAWN], table[..., _LIVE]
    groups = int(drawn.sum())
    metrics: dict[str, float | None] = {}
    if table.shape[1] > 1:
        first = table[:, 0]
        judged = first[first[:, _COUNT] > 0, _REWARD]
        metrics = {
            "dynamic_sampling/groups": float(groups),
            "dynamic_sampling/rounds": float((drawn.sum(dim=0) > 0).sum()) - 1,
            "dynamic_sampling/live_share": float(live.sum()) / groups,
            "dynamic_sampling/unfilled": float((live.sum(dim=1) == 0).sum()),
            "dynamic_sampling/first_reward": float(judged.mean()) if len(judged) else None,
        }
    return Drawing(groups * generations, int(table[..., _TOKENS].sum()), metrics)
