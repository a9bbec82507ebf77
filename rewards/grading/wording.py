"""Untrusted text and values in words, short enough for a log."""

from __future__ import annotations

from typing import Any

from rewards.sandbox.values import Wire

_LONGEST = 300  # characters
_LONGEST_VALUE = 80


def clean(text: str, longest: int = _LONGEST) -> str:
    """One line of printable characters, cut."""
    kept = "".join(char if char.isprintable() else " " for char in text[: 4 * longest])
    line = " ".join(kept.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def shown(wire: Wire) -> str:
    """An encoded value roughly as Python writes it, cut."""
    return clean(_written(wire, [_LONGEST_VALUE]), _LONGEST_VALUE)


def _written(wire: Wire, left: list[int]) -> str:
    """As much of the value as `left` characters hold; what is cut off anyway is not written."""
    if isinstance(wire, list):
        return f"[{_items(wire, left)}]"
    if not isinstance(wire, dict):
        text = repr(wire[: left[0] + 1] if isinstance(wire, str) else wire)
    else:
        ((tag, content),) = wire.items()
        if tag not in _SCALARS:
            return _container(tag, content, left)
        text = _SCALARS[tag](content)
    left[0] -= len(text)
    return text


def _container(tag: str, content: list[Any], left: list[int]) -> str:
    if tag == "d":
        parts = []
        for key, value in content:
            if left[0] < 0:
                break
            parts.append(f"{_written(key, left)}: {_written(value, left)}")
        return f"{{{', '.join(parts)}}}"
    items = _items(content, left)
    if tag == "t":
        return f"({items},)" if len(content) == 1 else f"({items})"
    braces = f"{{{items}}}" if content else "set()"
    return braces if tag == "s" else f"frozenset({braces})"


def _items(items: list[Any], left: list[int]) -> str:
    parts = []
    for item in items:
        if left[0] < 0:
            break
        parts.append(_written(item, left))
        left[0] -= 2
    return ", ".join(parts)


def _integer(text: str) -> str:
    # Decimal digits cost quadratic time, and Python refuses more than 4300 of them.
    return str(int(text, 16)) if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE]


_SCALARS = {
    "i": _integer,
    "f": lambda text: repr(float.fromhex(text)),
    "c": lambda parts: f"complex({', '.join(repr(float.fromhex(part)) for part in parts)})",
    "b": lambda text: f"bytes of base64 {text[:_LONGEST_VALUE]}",
}
