"""Compare what a program sent with what was expected.

Both sides are compared as canonical text (`canonical`), never with `==` on objects, and nothing
that a program sent is hashed, evaluated or unpickled: an object that claims to equal everything, a
dict with thousands of colliding keys and a frame nested a million deep are just texts that differ.

How strictly, says the `compare` of a task:

- `"exact"`: same value and same type, at every depth. True is not 1, 1 is not 1.0, a tuple is no
  list. The order of sets and dicts does not matter; 0.0 and -0.0 are the same value.
- `"python"`: numbers are compared by value (1, 1.0 and True are the same), a tuple may stand for a
  list and a frozenset for a set.
- `"equal"`: as Python's `==`: numbers by value, a frozenset like a set, but a tuple is no list.
- `{"abs_tol": a, "rel_tol": r}`: as `exact`, but a float, wherever it stands, may differ from the
  expected number by `max(a, r * |expected|)`, and an int may stand for a float. Not so in sets and
  in keys of dicts. An infinity is only equal to itself.

NaN equals nothing.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from typing import Any, Literal

from rewards.sandbox.values import Wire

Policy = Literal["exact", "equal", "python"]
Compare = Policy | tuple[float, float]  # or (abs_tol, rel_tol)


class _NeverEqual(Exception):
    """There is a NaN in the value."""


def matches(expected: str, reply: Wire, compare: Compare) -> bool:
    """Whether a reply (checked) is what was expected (the JSON text of an encoded value)."""
    try:
        if isinstance(compare, tuple):
            return _close(_loaded(expected), reply, compare)
        return _canonical_text(expected, compare) == canonical(reply, compare)
    except _NeverEqual:
        return False


def has_nan(wire: Wire) -> bool:
    """Whether there is a NaN in an encoded value, so that nothing equals it."""
    try:
        canonical(wire, "exact")
    except _NeverEqual:
        return True
    return False


def canonical(wire: Wire, compare: Policy) -> str:
    """The one text that all equal values have, and no other; unordered items are sorted."""
    if isinstance(wire, str):
        return f"s{len(wire)}:{wire}"
    if wire is None:
        return "n"
    exact = compare == "exact"
    if isinstance(wire, bool):
        return f"b{wire:d}" if exact else f"i{wire:x}"
    if isinstance(wire, list):
        return f"[{','.join([canonical(item, compare) for item in wire])}]"
    ((tag, content),) = wire.items()
    if tag in "ifc":
        return _NUMBERS[tag](content, exact)
    if tag == "b":
        return f"y{content}"
    return _container(tag, content, compare)


def _container(tag: str, content: list[Any], compare: Policy) -> str:
    if tag == "d":
        pairs = [f"{canonical(k, compare)}:{canonical(v, compare)}" for k, v in content]
        return f"d({','.join(sorted(pairs))})"
    items = [canonical(item, compare) for item in content]
    if tag == "t":
        return f"[{','.join(items)}]" if compare == "python" else f"({','.join(items)})"
    kind = tag if compare == "exact" else "s"
    return f"{kind}({','.join(sorted(items))})"


def _integer(text: str, exact: bool) -> str:
    return f"i{int(text, 16):x}"


def _real(text: str, exact: bool) -> str:
    value = float.fromhex(text)
    if math.isnan(value):
        raise _NeverEqual
    if not exact and value.is_integer():
        return f"i{int(value):x}"
    return f"f{(value + 0.0).hex()}"  # -0.0 + 0.0 is 0.0


def _complex(parts: list[str], exact: bool) -> str:
    real, imaginary = (_real(part, exact) for part in parts)
    if not exact and imaginary == "i0":
        return real
    return f"c{real},{imaginary}"


_NUMBERS: dict[str, Callable[[Any, bool], str]] = {"i": _integer, "f": _real, "c": _complex}


def _close(expected: Wire, reply: Wire, tolerance: tuple[float, float]) -> bool:
    left, right = _tag(expected), _tag(reply)
    if {left, right} == {"f"} or {left, right} == {"i", "f"}:
        return _near(expected[left], reply[right], tolerance)
    if left != right:
        return False
    if left == "c":
        pairs = zip(expected["c"], reply["c"], strict=True)
        return all(_near(a, b, tolerance) for a, b in pairs)
    if left == "d":
        return _close_dicts(expected["d"], reply["d"], tolerance)
    if left in ("", "t"):
        ours, theirs = (expected, reply) if left == "" else (expected["t"], reply["t"])
        alike = len(ours) == len(theirs)
        return alike and all(_close(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))
    return canonical(expected, "exact") == canonical(reply, "exact")


def _close_dicts(expected: list[Any], reply: list[Any], tolerance: tuple[float, float]) -> bool:
    ours, theirs = (
        sorted(((canonical(key, "exact"), value) for key, value in pairs), key=lambda pair: pair[0])
        for pairs in (expected, reply)
    )
    return [key for key, _ in ours] == [key for key, _ in theirs] and all(
        _close(a, b, tolerance) for (_, a), (_, b) in zip(ours, theirs, strict=True)
    )


def _near(expected: str, reply: str, tolerance: tuple[float, float]) -> bool:
    try:
        # An integer in hexadecimal is also the text of a float: "0x1f", "-0x2".
        ours, theirs = float.fromhex(expected), float.fromhex(reply)
    except OverflowError:
        return False
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        return ours == theirs
    return abs(ours - theirs) <= max(tolerance[0], tolerance[1] * abs(ours))


def _tag(wire: Wire) -> str:
    """The key of a tagged value; "" for a list, and a word for what is sent as it is."""
    if isinstance(wire, dict):
        (tag,) = wire
        return str(tag)
    return "" if isinstance(wire, list) else type(wire).__name__


@functools.lru_cache(maxsize=1 << 12)
def _canonical_text(text: str, compare: Policy) -> str:
    return canonical(json.loads(text), compare)


@functools.lru_cache(maxsize=1 << 10)
def _loaded(text: str) -> Wire:
    return json.loads(text)
