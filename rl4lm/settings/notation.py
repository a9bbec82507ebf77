"""Small notations inside the values of options: ``old=new`` pairs, and texts with ``{column}``.

Every function raises a ValueError that says what was given and what is expected;
`rl4lm.settings.data_rules` makes errors of the configuration of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

_WORDS: Mapping[str, Any] = {"true": True, "false": False, "none": None, "null": None}


def as_pairs(value: Any) -> Any:
    """A mapping, or the JSON text of one, as the list of ``name=value`` texts that options hold.

    Args:
        value: what YAML, Python or the command line gave; anything that is no mapping stays.
    """
    texts = value if isinstance(value, list | tuple) else [value]
    if len(texts) == 1 and isinstance(texts[0], str) and texts[0].lstrip().startswith("{"):
        try:
            value = json.loads(texts[0])
        except ValueError:  # said in words by `read_pairs`
            return value
    if not isinstance(value, Mapping):
        return value
    return [f"{name}={_as_text(each)}" for name, each in value.items()]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def read_pairs(texts: Sequence[str]) -> dict[str, str]:
    """``left=right`` texts as a mapping.

    Raises:
        ValueError: a text without both sides, or the same left side twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        left, sign, right = text.partition("=")
        if not (sign and left.strip() and right.strip()):
            raise ValueError(f"{text!r} given, expected two names with = between them")
        if left.strip() in pairs:
            raise ValueError(f"{left.strip()!r} is given twice")
        pairs[left.strip()] = right.strip()
    return pairs


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """``name=value`` texts as a mapping to plain values.

    A value is true, false or none in any case, else JSON where it is JSON, else the text itself.
    """
    return {name: _plain(text) for name, text in read_pairs(texts).items()}


def _plain(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_template(template: str) -> list[tuple[str, str | None]]:
    """The pieces of a text with ``{column}`` fields: what is written, and the column after it.

    `str.format` would also follow ``{a.b}`` and ``{a[0]}`` into the values; nothing of that kind
    is taken here. Literal braces are doubled.

    Raises:
        ValueError: a lone brace, a field that is more than a name, or no field at all.
    """
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write {{column}} for a column, {{{{ for a brace") from None
    for _, name, form, conversion in pieces:
        if name is not None and (not name.strip() or form or conversion or set(name) & set(".[]")):
            shown = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise ValueError(
                f"{{{shown}}} is more or less than the name of a column, as in {{name}}"
            )
    if all(name is None for _, name, _, _ in pieces):
        raise ValueError("it names no column, so that all prompts would be alike; write {column}")
    return [(text, name) for text, name, _, _ in pieces]
