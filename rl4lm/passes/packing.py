"""How sequences that share prompts stand side by side in one row, without any padding.

Knows lengths and token ids only. First come the prompts, each distinct one once, then the
continuations: what is fed of a completion, that is all but its last token, which nothing follows.
Both are sorted into buckets of similar length, so that attention handles a bucket at once, with
little padding of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

Sequences = Mapping[int, tuple[list[int], list[int]]]  # row -> (prompt, completion)


@dataclass(frozen=True)
class Continuations:
    """A bucket of continuations: equally many of each of some prompts, prompt by prompt."""

    bucket: int  # of the prompts
    prompts: tuple[int, ...]  # their places in that bucket
    lengths: tuple[int, ...]  # tokens of each continuation, none 0


@dataclass(frozen=True)
class Packing:
    """The sequences of a packed row, in the order in which they stand."""

    prompts: tuple[tuple[int, ...], ...]  # buckets of prompts: tokens of each
    continuations: tuple[Continuations, ...]

    @property
    def sizes(self) -> list[int]:
        """Tokens of each bucket, prompts first."""
        buckets = [*self.prompts, *(c.lengths for c in self.continuations)]
        return [sum(lengths) for lengths in buckets]


@dataclass(frozen=True)
class PackedIds:
    """A packed row of token ids, and where the sequences are that it was made of."""

    packing: Packing
    ids: list[int]  # [L]
    positions: list[int]  # [L], 0, 1, 2, … in each sequence, on from its prompt in a continuation
    prompt_ends: dict[int, int]  # row -> place of its prompt's last token
    starts: dict[int, int]  # row -> place of its continuation's first token, where it has one
    prompt_order: list[int]  # of the distinct prompts by first appearance, as they stand here


def pack(sequences: Sequences, rows: Sequence[int]) -> PackedIds:
    """Lay out the sequences of some rows.

    Args:
        sequences: (prompt, completion) of each row, neither empty.
        rows: which of them.
    """
    prompts = list(dict.fromkeys(tuple(sequences[row][0]) for row in rows))
    by_length = sorted(range(len(prompts)), key=lambda p: (_class(len(prompts[p])), p))
    buckets = _runs(by_length, lambda p: _class(len(prompts[p])))
    at = {prompts[p]: (b, k) for b, bucket in enumerate(buckets) for k, p in enumerate(bucket)}
    line = _Line()
    ends = {prompts[p]: line.append(prompts[p], 0) + len(prompts[p]) - 1 for p in by_length}
    starts: dict[int, int] = {}
    continuations = []
    for bucket, places, chosen in _continuation_buckets(sequences, rows, at):
        for row in chosen:
            prompt, completion = sequences[row]
            starts[row] = line.append(completion[:-1], len(prompt))
        lengths = tuple(len(sequences[row][1]) - 1 for row in chosen)
        continuations.append(Continuations(bucket, places, lengths))
    return PackedIds(
        packing=Packing(
            prompts=tuple(tuple(len(prompts[p]) for p in bucket) for bucket in buckets),
            continuations=tuple(continuations),
        ),
        ids=line.ids,
        positions=line.positions,
        prompt_ends={row: ends[tuple(sequences[row][0])] for row in rows},
        starts=starts,
        prompt_order=by_length,
    )


class _Line:
    """Token ids and positions of a row that grows."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []

    def append(self, tokens: Sequence[int], position: int) -> int:
        """Put tokens behind all others, the first one at this position; where that one stands."""
        start = len(self.ids)
        self.ids += tokens
        self.positions += range(position, position + len(tokens))
        return start


def _continuation_buckets(
    sequences: Sequences, rows: Sequence[int], at: Mapping[tuple[int, ...], tuple[int, int]]
) -> list[tuple[int, tuple[int, ...], list[int]]]:
    """(bucket of the prompts, their places there, rows prompt by prompt) of each bucket."""
    together: dict[tuple[int, int, int], list[int]] = {}  # (bucket, place, class of length) -> rows
    for row in rows:
        prompt, completion = sequences[row]
        if len(completion) > 1:
            key = (*at[tuple(prompt)], _class(len(completion) - 1))
            together.setdefault(key, []).append(row)
    # Prompts with equally many rows of a class share a bucket: each row finds its prompt by place.
    found: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}
    for (bucket, place, kind), chosen in sorted(together.items()):
        places, members = found.setdefault((bucket, kind, len(chosen)), ([], []))
        places.append(place)
        members += chosen
    return [(bucket, tuple(places), members) for (bucket, _, _), (places, members) in found.items()]


def _class(length: int) -> int:
    """Lengths of a class differ by less than a factor of two: up to 16, 17-32, 33-64, …

    Below, one more call of attention costs more than the padding that it would spare.
    """
    return max(4, (length - 1).bit_length())


def _runs(ordered: Sequence[int], kind: Callable[[int], int]) -> list[list[int]]:
    """Cut a sorted list where the kind of its members changes."""
    return [list(members) for _, members in groupby(ordered, key=kind)]
