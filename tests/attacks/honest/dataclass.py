# task: add
# reward: 1
# A dataclass and typing.

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(order=True, frozen=True)
class Pair:
    left: int
    right: int
    notes: list[str] = field(default_factory=list)

    def total(self) -> int:
        return self.left + self.right


def add(a: int, b: int) -> int:
    return Pair(a, b).total()
