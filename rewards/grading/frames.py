"""Read a line that came from a program, which may have sent anything.

Nothing here hashes, evaluates or unpickles what was sent, and every failure is a `BadReply`: JSON
objects become tuples of pairs, JSON numbers are only read where they are short whole numbers, and
the limits of `rewards.sandbox.values` hold.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from rewards.sandbox.values import MAX_DEPTH, MAX_HEX_DIGITS, MAX_LINE, MAX_NODES, Wire

_MAX_KEYS = 8  # of a frame
# A value that is nested `MAX_DEPTH` deep has at most three brackets for each level.
_MAX_BRACKETS = 4 * MAX_DEPTH
# Every string of JSON, one that is never closed too: it must match wherever there is a quote, or
# the search would start again inside the string.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_LONGEST_FLOAT = 40  # characters of `float.hex`; more is no text of a float


class BadReply(ValueError):
    """What a program sent breaks the protocol or is no plain data; the message says how."""


def read_frame(line: bytes) -> dict[str, Any]:
    """The keys and values of one line; values are raw and must go through `checked`.

    Raises:
        BadReply: the line is not one JSON object with distinct keys, or has JSON numbers with a
            fraction.
    """
    if len(line) > MAX_LINE:
        raise BadReply(f"a reply of more than {MAX_LINE} bytes")
    if _is_too_deep(line):
        raise BadReply("a reply that is nested too deep")
    try:
        pairs = _LOADER.decode(line.decode("utf-8"))
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise BadReply(f"a reply that cannot be read ({type(error).__name__})") from None
    if not isinstance(pairs, tuple) or len(pairs) > _MAX_KEYS:
        raise BadReply("a reply that is no frame")
    frame = dict(pairs)
    if len(frame) != len(pairs):
        raise BadReply("a reply with a repeated key")
    return frame


def _is_too_deep(line: bytes) -> bool:
    """Whether brackets are nested deeper than in any value that may be sent.

    Python's own guard is the recursion limit, and that is the training's to raise: the parser of
    JSON would then overflow the stack of this thread.
    """
    if line.count(b"[") + line.count(b"{") <= _MAX_BRACKETS:
        return False
    depth = deepest = 0
    for character in _STRING.sub(b"", line):
        if character in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in b"]}":
            depth -= 1
    return deepest > _MAX_BRACKETS


def checked(raw: Any) -> Wire:
    """A value of a frame as `values.encode` would have sent it.

    Raises:
        BadReply: it is nothing that `values.encode` sends, or beyond the limits there.
    """
    return _checked(raw, 0, [MAX_NODES])


def _checked(raw: Any, depth: int, left: list[int]) -> Wire:
    left[0] -= 1
    if left[0] < 0 or depth > MAX_DEPTH:
        raise BadReply("a value that is too large or too deep")
    if raw is None or isinstance(raw, (bool, str)):
        return raw
    if isinstance(raw, list):
        return [_checked(item, depth + 1, left) for item in raw]
    if not isinstance(raw, tuple) or len(raw) != 1:
        raise BadReply("a value that is no plain data")
    tag, content = raw[0]
    if tag in _ITEMS and isinstance(content, list):
        return {tag: [_checked(item, depth + 1, left) for item in content]}
    if tag == "d" and isinstance(content, list):
        return {"d": [_checked_pair(pair, depth + 1, left) for pair in content]}
    if tag in _CHECKS:
        return {tag: _checked_scalar(tag, content)}
    raise BadReply("a value that is no plain data")


_ITEMS = ("t", "s", "z")


def _checked_pair(pair: Any, depth: int, left: list[int]) -> Wire:
    if not isinstance(pair, list) or len(pair) != 2:
        raise BadReply("a dict whose items are no pairs")
    return [_checked(part, depth, left) for part in pair]


def _checked_scalar(tag: str, content: Any) -> Wire:
    try:
        return _CHECKS[tag](content)
    except (ValueError, TypeError, OverflowError, AttributeError):
        raise BadReply(f"a value {tag!r} that cannot be read") from None


def _plain_integer(text: str) -> str:
    if len(text) > MAX_HEX_DIGITS + 3:
        raise ValueError
    return hex(int(text, 16))


def _plain_real(text: str) -> str:
    if len(text) > _LONGEST_FLOAT:
        raise ValueError
    return float.fromhex(text).hex()


def _plain_complex(parts: list[str]) -> list[str]:
    real, imaginary = parts
    return [_plain_real(real), _plain_real(imaginary)]


def _plain_base64(text: str) -> str:
    return binascii.b2a_base64(binascii.a2b_base64(text), newline=False).decode("ascii")


_CHECKS: Mapping[str, Callable[[Any], Wire]] = {
    "i": _plain_integer,
    "f": _plain_real,
    "c": _plain_complex,
    "b": _plain_base64,
}


def _frame_number(text: str) -> int:
    if len(text) > 9:
        raise ValueError("a number with too many digits")
    return int(text)


def _no_number(text: str) -> float:
    raise ValueError("a number that is no whole number")


# Objects become tuples of pairs, so that no key of theirs is hashed; lists stay lists.
_LOADER = json.JSONDecoder(
    object_pairs_hook=tuple,
    parse_int=_frame_number,
    parse_float=_no_number,
    parse_constant=_no_number,
)
