"""How the columns of a row become a prompt: renamed, put into a template, made a conversation.

Imports no torch, so that a column that is not there is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rl4lm.data.chat import (
    as_conversation,
    is_conversation,
    up_to_last_user,
    with_system,
    without_gaps,
)
from rl4lm.errors import DataError, did_you_mean
from rl4lm.settings.fields.data import DataFields
from rl4lm.settings.notation import read_pairs, read_template

Row = Mapping[str, Any]

# A column of this name holds whole conversations, as chat data sets have them: what the assistant
# said last is an answer to learn from elsewhere, and here it is what is sampled.
CONVERSATIONS = "messages"
_PROMPTS = "prompt"  # the default of prompt_column


@dataclass(frozen=True)
class Shape:
    """What is done to the columns of every row of a data set."""

    rename: Mapping[str, str] = field(default_factory=dict)  # old name -> new name
    template: str | None = None
    system_prompt: str | None = None
    as_chat: bool = False

    @cached_property
    def pieces(self) -> list[tuple[str, str | None]]:
        """The template in pieces; empty where there is none."""
        return [] if self.template is None else read_template(self.template)

    def names(self, columns: Sequence[str]) -> list[str]:
        """The names of the columns after renaming.

        Raises:
            DataError: a column to rename is not there, or two columns come to have one name.
        """
        missing = [old for old in self.rename if old not in columns]
        if missing:
            raise DataError(
                f"rename: there is no column {missing[0]!r}{did_you_mean(missing[0], columns)}; "
                f"the rows have: {', '.join(columns)}; name one of them in old=new"
            )
        names = [self.rename.get(column, column) for column in columns]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            both = [old for old, new in zip(columns, names, strict=True) if new == twice[0]]
            raise DataError(
                f"rename: the columns {' and '.join(map(repr, both))} would both be called "
                f"{twice[0]!r}; give one of them another name"
            )
        return names

    def renamed(self, row: Row) -> Row:
        """A row with the new names."""
        if not self.rename:
            return row
        return {self.rename.get(name, name): value for name, value in row.items()}

    def prompt_column(self, names: Sequence[str], asked: str, rows: str) -> str:
        """The column that prompts are read from, or that the template's texts are put into.

        Args:
            names: the columns there are, after renaming.
            asked: the option `prompt_column`.
            rows: what messages call the rows.

        Returns:
            `asked`; or ``messages`` where that is there and the default ``prompt`` is not.

        Raises:
            DataError: no such column, or none of a name that the template has.
        """
        for name in (name for _, name in self.pieces if name is not None):
            if name not in names:
                raise DataError(
                    f"prompt_template: {rows} have no column {name!r}{did_you_mean(name, names)}; "
                    f"they have: {', '.join(names)}. Write one of these in braces; a brace that is "
                    "meant as such is doubled"
                )
        if self.pieces or asked in names:
            return asked
        if asked == _PROMPTS and CONVERSATIONS in names:
            return CONVERSATIONS
        raise no_prompts(rows, names, asked)

    def prompt(self, row: Row, column: str) -> Any:
        """The prompt of a row: text or a conversation.

        Args:
            row: renamed already.
            column: what `prompt_column` returned.

        Raises:
            ValueError: what is wrong with it, in words.
        """
        prompt: Any = self._written(row) if self.pieces else row.get(column)
        if not (isinstance(prompt, str) or is_conversation(prompt)):
            raise ValueError(
                f'the prompt must be text or a list of {{"role", "content"}} messages, got '
                f"{prompt!r:.100}; mend or drop the row, or name another column with "
                "--prompt_column"
            )
        if not isinstance(prompt, str):
            prompt = without_gaps(up_to_last_user(prompt) if column == CONVERSATIONS else prompt)
        if self.system_prompt is not None:
            return with_system(self.system_prompt, prompt)
        return as_conversation(prompt) if self.as_chat else prompt

    def _written(self, row: Row) -> str:
        return "".join(
            text + ("" if name is None else _written(name, row.get(name)))
            for text, name in self.pieces
        )


def _written(name: str, value: Any) -> str:
    """The value of a column within a template."""
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(
        f"prompt_template: the column {name!r} must be text or a number, got {value!r:.100}; "
        "mend or drop the row"
    )


def no_prompts(rows: str, columns: Sequence[str], prompt_column: str) -> DataError:
    """What to say of rows without the prompt column."""
    return DataError(
        f"{rows} have no column {prompt_column!r}{did_you_mean(prompt_column, columns)}; they "
        f"have: {', '.join(columns)}. Name the column that holds the prompts with --prompt_column"
    )


def shape_of(options: DataFields) -> Shape:
    """What the options of a run say about columns."""
    return Shape(
        rename=read_pairs(options.rename),
        template=options.prompt_template,
        system_prompt=options.system_prompt,
        as_chat=options.as_chat,
    )
