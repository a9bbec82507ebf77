"""Plain data as JSON: what may pass between a program and its judge.

    None, bool, str        as they are
    list                   [item, ...]
    int                    {"i": "-0x1f"}
    float                  {"f": "0x1.8p+1"}, also "nan", "inf", "-inf", "-0x0.0p+0"
    complex                {"c": [real, imaginary]}, both as the text of a float
    bytes                  {"b": base64}
    tuple, set, frozenset  {"t": [...]}, {"s": [...]}, {"z": [...]}
    dict                   {"d": [[key, value], ...]}

There are no JSON numbers: they would lose the type and the size. A value of a subclass is sent as
the value of its base class, read by the base class's own methods, so an overridden `__eq__` or
`__int__` changes nothing. Everything else (functions, generators, objects of other classes) is
refused.

Both sides of the sandbox use this file: only light modules of the standard library are imported.
What comes back from a program is read by `rewards.grading.comparison`, not by `decode`: `decode`
builds sets and dicts, whose keys a hostile sender can choose to collide.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 60  # nested containers
MAX_NODES = 200_000  # values in all, containers included
MAX_HEX_DIGITS = 20_000  # of one integer
MAX_LINE = 1 << 20  # bytes of one line of JSON

Wire = Any  # what `json.dumps` takes: None, bool, str, list or a dict with one of the keys above


class NotPlain(ValueError):
    """The value is no plain data; the message says what it is."""


class TooLarge(NotPlain):
    """The value is beyond one of the limits of this file."""


def encode(value: object) -> Wire:
    """The value as JSON.

    Raises:
        NotPlain: it is not plain data.
        TooLarge: it is beyond one of the limits of this file.
    """
    return _encoded(value, 0, [MAX_NODES])


def decode(wire: Wire) -> Any:
    """The value that `encode` made this from; for senders that are trusted, see above."""
    if isinstance(wire, list):
        return [decode(item) for item in wire]
    if not isinstance(wire, dict):
        return wire
    ((tag, content),) = wire.items()
    return _DECODERS[tag](content)


def _encoded(value: Any, depth: int, left: list[int]) -> Wire:
    left[0] -= 1
    if left[0] < 0:
        raise TooLarge(f"more than {MAX_NODES} values")
    if depth > MAX_DEPTH:
        raise TooLarge(f"nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if issubclass(kind, (str, bytes, bytearray)) and len(value) > MAX_LINE:
        raise TooLarge("longer than a line may be")
    base = kind if kind in _SCALARS or kind in _CONTAINERS else _base(kind)
    if base in _SCALARS:
        return _SCALARS[base](value)
    tag, items = _CONTAINERS[base]
    encoded = [_encoded(item, depth + 1, left) for item in items(value)]
    if tag == "d":
        return {"d": [[key, encoded[i + 1]] for i, key in enumerate(encoded) if i % 2 == 0]}
    return {tag: encoded} if tag else encoded


def _base(kind: type) -> type:
    for base in (*_SCALARS, *_CONTAINERS):
        if issubclass(kind, base):
            return base
    raise NotPlain(f"not plain data: {type.__repr__(kind)[:200]}")


def _integer(value: int) -> Wire:
    plain = int.__index__(value)
    if plain.bit_length() > 4 * MAX_HEX_DIGITS:
        raise TooLarge(f"an integer of more than {MAX_HEX_DIGITS} hexadecimal digits")
    return {"i": hex(plain)}


def _complex(value: complex) -> Wire:
    parts = complex.__pos__(value)
    return {"c": [float.hex(parts.real), float.hex(parts.imag)]}


def _base64(value: bytes | bytearray) -> Wire:
    return {"b": binascii.b2a_base64(value, newline=False).decode("ascii")}


def _pairs(value: dict[Any, Any]) -> list[Any]:
    return [part for pair in dict.items(value) for part in pair]


_SCALARS: dict[type, Callable[[Any], Wire]] = {
    int: _integer,
    float: lambda value: {"f": float.hex(value)},
    str: str.__str__,
    bytes: _base64,
    bytearray: _base64,
    complex: _complex,
}
# Tag (none for a list), and the items in the order in which they are sent.
_CONTAINERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    list: ("", list.__iter__),
    tuple: ("t", tuple.__iter__),
    dict: ("d", _pairs),
    set: ("s", set.__iter__),
    frozenset: ("z", frozenset.__iter__),
}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "i": lambda text: int(text, 16),
    "f": float.fromhex,
    "c": lambda parts: complex(float.fromhex(parts[0]), float.fromhex(parts[1])),
    "b": binascii.a2b_base64,
    "t": lambda items: tuple(decode(item) for item in items),
    "s": lambda items: {decode(item) for item in items},
    "z": lambda items: frozenset(decode(item) for item in items),
    "d": lambda pairs: {decode(key): decode(value) for key, value in pairs},
}
