"""Prompts: from a data set's rows to `Example`s, in an endless order that anyone can recompute.

The stream is a chain of permutations keyed by (seed, epoch): position k of the stream is a pure
function of (seed, k), so a resumed run, or any number of processes, sees the same prompts. A step
may straddle two epochs, and a data set smaller than a step is fine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl4lm.errors import DataError
from rl4lm.randomness import permutation
from rl4lm.sources import Row, load_rows, no_prompts
from rl4lm.types import Example


@dataclass(frozen=True)
class PromptData:
    """The rows of one split, read as prompts and columns."""

    rows: Sequence[Row]
    prompt_column: str
    split: str

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
        if self.prompt_column not in first:
            raise no_prompts(f"the rows of split {self.split!r}", list(first), self.prompt_column)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that go to the rewards: all but the prompt."""
        return tuple(name for name in self._row(0) if name != self.prompt_column)

    def _row(self, index: int) -> Row:
        try:
            return self.rows[index]
        except UnicodeDecodeError as error:  # a file's text is decoded when a row is looked at
            raise DataError(
                f"row {index} of split {self.split!r} is not UTF-8 text: {error}; "
                "save the file as UTF-8"
            ) from error

    def example(self, index: int) -> Example:
        """Row `index` as an example.

        Raises:
            DataError: its prompt is neither text nor a list of chat messages.
        """
        row = self._row(int(index))
        prompt = row.get(self.prompt_column)
        messages = isinstance(prompt, list) and all(map(_is_message, prompt))
        if not (isinstance(prompt, str) or (messages and prompt)):
            raise DataError(
                f"row {index} of split {self.split!r}: the prompt must be text or a list of "
                f'{{"role", "content"}} messages, got {prompt!r:.100}; mend or drop the row, or '
                "name another column with --prompt_column"
            )
        columns = {name: row.get(name) for name in self.columns}
        return Example(prompt_id=f"{self.split}-{index}", prompt=prompt, columns=columns)

    def without(self, places: Collection[int]) -> PromptData:
        """The same split without some rows; the others keep their order."""
        left = [index for index in range(len(self)) if index not in places]
        return replace(self, rows=_Chosen(self.rows, left))

    def examples(self, indices: Iterable[int]) -> list[Example]:
        """Several rows, in the order asked for."""
        return [self.example(index) for index in indices]


def _is_message(value: Any) -> bool:
    """Whether a value is a chat message: a role, and text (or its parts) or calls of tools."""
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    return isinstance(content, str | list) or (content is None and bool(value.get("tool_calls")))


@dataclass(frozen=True)
class _Chosen(Sequence[Row]):
    """Some of the rows of a split; none is copied."""

    rows: Sequence[Row]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[self.places[index]]


def stream_indices(size: int, seed: int, start: int, count: int) -> list[int]:
    """Rows at positions ``start … start + count - 1`` of the endless stream over `size` rows."""
    places = ((start + k) // size for k in range(count))
    offsets = ((start + k) % size for k in range(count))
    return [int(_order(seed, e, size)[o]) for e, o in zip(places, offsets, strict=True)]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return permutation(seed, epoch, size)


def load_split(name: str, split: str, prompt_column: str) -> PromptData:
    """Read one split of a data set.

    Args:
        name: ``builtin:arithmetic``; a file that ends in .jsonl, .json, .csv or .parquet (its
            only split is ``train``); a directory of such files; or a hub id.
        split: name of the split.
        prompt_column: the column that holds the prompts.

    Raises:
        MissingSplitError: no such split.
        DataError: nothing there, unreadable, no rows, or no such column.
    """
    return PromptData(load_rows(name, split), prompt_column, split)


def from_dataset(data: Any, prompt_column: str, split: str) -> PromptData:
    """Rows handed in through the Python API: a `datasets.Dataset` or a sequence of mappings."""
    if isinstance(data, Mapping):
        raise DataError(
            f"one split is expected, got a mapping with {', '.join(map(str, data))}; pass one of "
            "them, such as data['train']"
        )
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataError(
            f"train_dataset must be a datasets.Dataset or a list of rows, got {type(data).__name__}"
        )
    return PromptData(data, prompt_column, split)
