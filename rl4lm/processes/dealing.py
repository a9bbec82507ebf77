"""Deal the prompts of a step to the processes so that they finish together.

Each process gets as many prompts as any other, and about as many tokens. Which process draws a
completion changes nothing about it: its random numbers depend on the place of its prompt in the
step's list, which is carried along.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl4lm.types import Example

_CHARACTERS_PER_TOKEN = 4.0  # of a prompt, roughly: it only decides who draws what


@dataclass(frozen=True)
class Deal:
    """Who has which prompts of a step."""

    hands: Sequence[Sequence[int]]  # of each process: places in the step's list, ascending
    rank: int  # of this process

    @property
    def mine(self) -> Sequence[int]:
        """Places in the step's list of this process's prompts."""
        return self.hands[self.rank]

    def in_order(self, gathered: Tensor) -> Tensor:
        """Rows [P, ...] gathered process by process, in the order of the step's list."""
        places = [place for hand in self.hands for place in hand]
        return gathered[torch.tensor(places).argsort()]


def deal(costs: Sequence[float], processes: int) -> list[list[int]]:
    """Equally many things to each process, such that the sums of their costs are close.

    The dearest first, each to the process that has least so far (Graham, "Bounds on multiprocessing
    timing anomalies", 1969). The same costs give the same hands everywhere.

    Args:
        costs: of each thing; their number is a multiple of `processes`.
        processes: how many.

    Returns:
        The things of each process, ascending.
    """
    room = len(costs) // processes
    hands: list[list[int]] = [[] for _ in range(processes)]
    least = [(0.0, k) for k in range(processes)]  # a heap of those that have room
    for thing in sorted(range(len(costs)), key=lambda k: (-costs[k], k)):
        total, process = heapq.heappop(least)
        hands[process].append(thing)
        if len(hands[process]) < room:
            heapq.heappush(least, (total + costs[thing], process))
    return [sorted(hand) for hand in hands]


class Lengths:
    """How long the completions of each prompt were when it was last drawn."""

    def __init__(self) -> None:
        """Begin with nothing drawn."""
        self._mean: dict[int, float] = {}  # row of the data -> tokens of a completion
        self._overall = 0.0  # of the last step

    def costs(
        self, keys: Sequence[int], examples: Sequence[Example], generations: int
    ) -> list[float]:
        """Expected tokens of prompts with all their completions.

        Args:
            keys: rows of the data.
            examples: those rows.
            generations: G, completions of each.
        """
        return [
            _characters(example) / _CHARACTERS_PER_TOKEN
            + generations * self._mean.get(key, self._overall)
            for key, example in zip(keys, examples, strict=True)
        ]

    def note(self, keys: Sequence[int], lengths: Tensor) -> None:
        """Remember the lengths [P, G] of the completions of prompts."""
        means = lengths.double().mean(dim=1)
        self._mean.update(zip(keys, means.tolist(), strict=True))
        self._overall = float(means.mean())

    def state_dict(self) -> dict[str, Any]:
        """What the next deals depend on."""
        return {
            "keys": torch.tensor(list(self._mean), dtype=torch.int64),
            "means": torch.tensor(list(self._mean.values()), dtype=torch.float64),
            "overall": self._overall,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._mean = dict(zip(state["keys"].tolist(), state["means"].tolist(), strict=True))
        self._overall = state["overall"]


def _characters(example: Example) -> int:
    if isinstance(example.prompt, str):
        return len(example.prompt)
    return sum(len(message["content"]) for message in example.prompt)
