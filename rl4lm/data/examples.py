"""Prompts: from a data set's rows to `Example`s, in an endless order that anyone can recompute.

The stream is a chain of permutations keyed by (seed, epoch): position k of the stream is a pure
function of (seed, k), so a resumed run, or any number of processes, sees the same prompts. A step
may straddle two epochs, and a data set smaller than a step is fine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl4lm.data.columns import CONVERSATIONS, Row, Shape
from rl4lm.data.sources import Access, load_rows
from rl4lm.errors import DataError
from rl4lm.randomness import permutation
from rl4lm.types import Example, Message

_AS_THEY_ARE = Shape()
_WHOLE = Access()
_READ_AT_ONCE = 4096  # rows


@dataclass(frozen=True)
class PromptData:
    """The rows of one split, read as prompts and columns."""

    rows: Sequence[Row]
    prompt_column: str  # after renaming; `read_prompts` finds it
    split: str
    shape: Shape = _AS_THEY_ARE

    def __post_init__(self) -> None:
        """Check that there are rows, and that they have a prompt."""
        if len(self.rows) == 0:
            raise DataError(f"the split {self.split!r} has no rows; at least one prompt is needed")
        first = self._row(0)
        if not isinstance(first, Mapping):
            raise DataError(
                f"the rows of split {self.split!r} must be mappings such as "
                f'{{"{self.prompt_column}": "text"}}, got {type(first).__name__}: {first!r:.100}'
            )
        names = self.shape.names(list(first))
        self.shape.prompt_column(names, self.prompt_column, f"the rows of split {self.split!r}")

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that go to the rewards: all but the prompt; a whole conversation does too."""
        names = self.shape.names(list(self._row(0)))
        return tuple(n for n in names if n == CONVERSATIONS or n != self.prompt_column)

    def number(self, index: int) -> int:
        """The number of a row in what was read; rows may have been left out since."""
        return self.rows.number(index) if isinstance(self.rows, _Chosen) else index

    def _row(self, index: int) -> Row:
        return _looked_at(self.rows, index, self.split)

    def example(self, index: int) -> Example:
        """Row `index` as an example.

        Raises:
            DataError: its prompt is neither text nor a list of chat messages, or cannot be made.
        """
        return self._example(int(index), self._row(int(index)))

    def examples(self, indices: Iterable[int]) -> list[Example]:
        """Several rows, in the order asked for."""
        places = [int(index) for index in indices]
        try:
            rows = _rows_at(self.rows, places)
        except UnicodeDecodeError:  # which row it is, is said by the next line
            rows = [self._row(index) for index in places]
        return [self._example(index, row) for index, row in zip(places, rows, strict=True)]

    def prompts(self) -> Iterator[str | Sequence[Message]]:
        """Every prompt in order."""
        for start in range(0, len(self), _READ_AT_ONCE):
            some = range(start, min(start + _READ_AT_ONCE, len(self)))
            yield from (example.prompt for example in self.examples(some))

    def _example(self, index: int, row: Row) -> Example:
        row = self.shape.renamed(row)
        try:
            prompt = self.shape.prompt(row, self.prompt_column)
        except ValueError as error:
            place = f"row {self.number(index)} of split {self.split!r}"
            raise DataError(f"{place}: {error}") from None
        columns = {name: row.get(name) for name in self.columns}
        return Example(prompt_id=f"{self.split}-{index}", prompt=prompt, columns=columns)

    def only(self, places: Sequence[int], split: str | None = None) -> PromptData:
        """Some of the rows, in the order asked for; perhaps as a split of another name."""
        return replace(self, rows=_Chosen(self.rows, places), split=split or self.split)

    def first(self, count: int | None) -> PromptData:
        """At most so many of the first rows; None means all."""
        return self if count is None or count >= len(self) else self.only(range(count))

    def without(self, places: Collection[int]) -> PromptData:
        """The same split without some rows; the others keep their order."""
        return self.only([index for index in range(len(self)) if index not in places])


def _looked_at(rows: Sequence[Row], index: int, split: str) -> Row:
    try:
        return rows[index]
    except UnicodeDecodeError as error:  # a file's text is decoded when a row is looked at
        raise DataError(
            f"row {index} of split {split!r} is not UTF-8 text: {error}; save the file as UTF-8"
        ) from error


def _rows_at(rows: Sequence[Row], places: list[int]) -> Sequence[Row]:
    """Several rows; those of a `datasets.Dataset` together, which is thirty times as fast."""
    if isinstance(rows, _Chosen):
        return _rows_at(rows.rows, [rows.places[place] for place in places])
    if getattr(rows, "format", {"type": "a list"})["type"] is not None:
        return [rows[place] for place in places]
    # Of `datasets`, which takes a list of places.
    columns: Any = rows[places]  # type: ignore[call-overload]
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


@dataclass(frozen=True)
class _Chosen(Sequence[Row]):
    """Some of the rows of a split; none is copied."""

    rows: Sequence[Row]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[self.places[index]]

    def number(self, index: int) -> int:
        place = self.places[index]
        return self.rows.number(place) if isinstance(self.rows, _Chosen) else place


def stream_indices(size: int, seed: int, start: int, count: int) -> list[int]:
    """Rows at positions ``start … start + count - 1`` of the endless stream over `size` rows."""
    places = ((start + k) // size for k in range(count))
    offsets = ((start + k) % size for k in range(count))
    return [int(_order(seed, e, size)[o]) for e, o in zip(places, offsets, strict=True)]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return permutation(seed, epoch, size)


def load_split(
    name: str,
    split: str,
    prompt_column: str,
    shape: Shape = _AS_THEY_ARE,
    access: Access = _WHOLE,
) -> PromptData:
    """Read one split of a data set.

    Args:
        name: ``builtin:arithmetic``; a file that ends in .jsonl, .json, .csv or .parquet (its
            only split is ``train``); a pattern or a folder of such files, whose names say the
            split; or a hub id.
        split: name of the split.
        prompt_column: the column that holds the prompts.
        shape: what is done to the columns.
        access: how the data set is opened.

    Raises:
        MissingSplitError: no such split.
        DataError: nothing there, unreadable, no rows, or no such column.
    """
    return read_prompts(load_rows(name, split, access), prompt_column, split, shape)


def from_dataset(
    data: Any,
    prompt_column: str,
    split: str,
    shape: Shape = _AS_THEY_ARE,
    first_rows: int | None = None,
) -> PromptData:
    """Rows handed in through the Python API: a `datasets.Dataset` or a sequence of mappings.

    Args:
        data: the rows; a stream of them too where `first_rows` bounds it.
        prompt_column: the column that holds the prompts.
        split: what messages call it.
        shape: what is done to the columns.
        first_rows: how many rows a stream is read for; None where it may not be one.

    Raises:
        DataError: something else than rows, or a stream without a bound.
    """
    if isinstance(data, Mapping):
        raise DataError(
            f"one split is expected, got a mapping with {', '.join(map(str, data))}; pass one of "
            "them, such as data['train']"
        )
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return read_prompts(data, prompt_column, split, shape)
    if not hasattr(data, "__iter__") or first_rows is None:
        raise DataError(
            f"train_dataset must be a datasets.Dataset or a list of rows, got {type(data).__name__}"
            "; of a stream, such as an IterableDataset, max_train_samples says how many rows to "
            "read, since the order of the prompts is made from their number"
        )
    return read_prompts(list(islice(data, first_rows)), prompt_column, split, shape)


def read_prompts(
    rows: Sequence[Row], prompt_column: str, split: str, shape: Shape = _AS_THEY_ARE
) -> PromptData:
    """Rows as prompts, in the column that was asked for or, without one, in ``messages``."""
    first = _looked_at(rows, 0, split) if len(rows) else None
    if isinstance(first, Mapping):
        names = shape.names(list(first))
        prompt_column = shape.prompt_column(names, prompt_column, f"the rows of split {split!r}")
    return PromptData(rows, prompt_column, split, shape)
