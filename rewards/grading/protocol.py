"""The parent's end of what is said to a program's process: jobs, requests and replies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rewards.grading.extraction import Reading
from rewards.grading.frames import BadReply, checked, read_frame
from rewards.grading.wording import clean

Program = str | tuple[Reading, ...]  # the text of a program, or what a completion may mean


class Failed(Exception):
    """The program failed; the message says how."""


def program_job(program: Program, entry: str | None) -> bytes:
    """The job of a program whose function `entry` is called; None: it reads and prints."""
    readings = (Reading(program, program),) if isinstance(program, str) else program
    programs = [[reading.program, reading.part] for reading in readings]
    kind = "stdio" if entry is None else "call"
    return frame_line({"kind": kind, "programs": programs, "entry": entry})


def frame_line(frame: Mapping[str, Any]) -> bytes:
    """A frame as one line."""
    return json.dumps(frame).encode()


def is_number(value: object, expected: int) -> bool:
    """Whether a value is this integer, and not True for 1."""
    return type(value) is int and value == expected


def answered(line: bytes, number: int) -> dict[str, Any]:
    """A reply to request `number`, read and checked: `ok`, or `exc` and `text`.

    Raises:
        Failed: there is no result, or none that can be sent.
        BadReply: the reply breaks the protocol.
    """
    reply = read_frame(line)
    if not is_number(reply.pop("n", None), number):
        raise BadReply("a reply to another request")
    if set(reply) == {"ok"}:
        return {"ok": checked(reply["ok"])}
    if not all(isinstance(value, str) for value in reply.values()):
        raise BadReply("a reply that is no frame")
    if set(reply) == {"no"}:
        raise Failed(clean(reply["no"]))
    if set(reply) != {"exc", "text"}:
        raise BadReply("a reply that is no frame")
    return reply


def raised(reply: Mapping[str, str]) -> str:
    """What a program raised, in words."""
    text = clean(reply["text"])
    return f"raised {clean(reply['exc'])}" + (f": {text}" if text else "")
