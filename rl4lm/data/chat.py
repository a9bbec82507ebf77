"""Conversations: lists of messages, each with a role and a content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of chat messages, at least one."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    """Whether a value is a chat message: a role, and text (or its parts) or calls of tools."""
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    return isinstance(content, str | list) or (content is None and bool(value.get("tool_calls")))


def without_gaps(messages: Sequence[Any]) -> list[Any]:
    """Messages without the keys that hold None.

    Arrow gives every message of a column the keys of all of them, and a template may ask whether a
    key is there rather than what it holds.
    """
    return [
        {key: value for key, value in message.items() if value is not None or key == "content"}
        for message in messages
    ]


def up_to_last_user(messages: Sequence[Any]) -> list[Any]:
    """A conversation without what follows the last turn of the user: that is to be sampled.

    Raises:
        ValueError: no turn of a user.
    """
    turns = [k for k, message in enumerate(messages) if message["role"] == "user"]
    if not turns:
        raise ValueError("the conversation has no turn of a user to answer; drop the row")
    return list(messages[: turns[-1] + 1])


def with_system(system: str, prompt: str | Sequence[Any]) -> list[Any]:
    """A prompt as a conversation that begins with a system message.

    Raises:
        ValueError: it begins with a system message of its own.
    """
    messages = as_conversation(prompt)
    if messages[0]["role"] in ("system", "developer"):
        raise ValueError(
            "the prompt has a system message of its own, and system_prompt is set too; leave that "
            "option out, or take the message out of the row"
        )
    return [{"role": "system", "content": system}, *messages]


def as_conversation(prompt: str | Sequence[Any]) -> list[Any]:
    """Text as what a user says; a conversation as it is."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
