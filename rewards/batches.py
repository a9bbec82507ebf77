"""What a batch reward checks of what it is handed, whatever it pays for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def text_of(message: Any) -> str | None:
    """The text of a prompt or completion: itself, or the content of its last message."""
    if isinstance(message, Sequence) and not isinstance(message, str) and message:
        message = message[-1].get("content") if isinstance(message[-1], Mapping) else None
    return message if isinstance(message, str) else None


def completion_text(name: str, row: int, completion: Any) -> str:
    """The text of a completion.

    Args:
        name: of the reward, for the message.
        row: of the completion, for the message.
        completion: a text, or messages.

    Raises:
        TypeError: it is neither.
    """
    text = text_of(completion)
    if text is None:
        raise TypeError(
            f"reward {name}: completion {row} is {completion!r:.80}; expected a text, or messages "
            "such as [{'role': 'assistant', 'content': 'text'}]"
        )
    return text


def check_lengths(name: str, columns: Mapping[str, Sequence[Any]], expected: int) -> None:
    """Refuse columns that do not have one value for each completion.

    Raises:
        TypeError: a column is no list.
        ValueError: a column has another length.
    """
    for column, values in columns.items():
        # A text has a length too: handed over by mistake it would be graded letter by letter.
        if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
            raise TypeError(
                f"reward {name}: column {column!r} is a {type(values).__name__}; "
                f"expected a list with one value for each of the {expected} completions"
            )
        if len(values) != expected:
            raise ValueError(
                f"reward {name}: column {column!r} has {len(values)} values for {expected} "
                "completions; expected one for each"
            )


def missing_column(name: str, column: str, given: Iterable[str]) -> TypeError:
    """What to raise where the data lack a column that a reward needs."""
    return TypeError(
        f"reward {name} needs the column {column!r}, which was not given; columns given: "
        f"{listed(given)}"
    )


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(map(repr, names)) or "none"
