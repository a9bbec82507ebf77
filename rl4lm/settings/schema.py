"""How an option is declared, described in words, and read from text.

The fields themselves are in `config.py`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, Field

_LIMITS = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "min_length": "(at least {})"}
_KINDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("non-empty text", "non-empty texts"),
    bool: ("true or false", ""),
}

# How every class of options is checked when it is built.
RULES = ConfigDict(extra="forbid", allow_inf_nan=False, str_min_length=1)


def option(theme: str, default: Any, help: str, **limits: float) -> Any:
    """Declare a field: its theme in `--help`, default, meaning, and limits (gt, ge, lt, le, …)."""
    settings: dict[str, Any] = {"description": help, **limits}
    settings["json_schema_extra"] = {"theme": theme, "limits": limits}
    if isinstance(default, list):  # every instance has its own
        return Field(default_factory=default.copy, **settings)
    return Field(default=default, **settings)


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of one field, for conversion, messages and help."""

    name: str
    help: str
    theme: str
    default: Any
    kind: type  # int, float, str or bool; of the elements where `many`
    choices: tuple[str, ...]  # the values of a Literal, else empty
    many: bool  # a list
    optional: bool  # None is a value
    limits: Mapping[str, float]

    @property
    def expected(self) -> str:
        """What may be given, in words: "a whole number >= 1, or none"."""
        one, several = _KINDS[self.kind]
        words = f"a list of {several}" if self.many else one
        if self.choices:
            words = f"{'some' if self.many else 'one'} of {', '.join(self.choices)}"
        bounds = " and ".join(_LIMITS[key].format(value) for key, value in self.limits.items())
        return f"{words} {bounds}".rstrip() + (", or none" if self.optional else "")

    @property
    def off(self) -> str | None:
        """The value that turns it off, as one would type it; None where it cannot be."""
        if self.kind is bool:
            return "false"
        if self.optional or "none" in self.choices:
            return "none"
        if self.many:
            return None if "min_length" in self.limits else "empty"
        numbers = re.findall(r"\b(\d+) = ", self.help)  # its own words: 0 = off, 1 = no discount
        return numbers[-1] if numbers else None

    def read(self, value: Any) -> Any:
        """Turn what YAML and the command line can only write as text into what pydantic reads."""
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if self.many and isinstance(value, str | int | float):
            value = [value]
        values = value if self.many and isinstance(value, list | tuple) else [value]
        if self.optional and [str(each).lower() for each in values] == ["none"]:
            return None
        blank = not self.many and isinstance(value, str) and not value.strip()
        if blank or any(isinstance(each, str) and "\0" in each for each in values):
            raise ValueError("no name of anything")
        if self.kind is not bool and any(isinstance(each, bool) for each in values):
            raise ValueError("a flag is neither a number nor text")
        return value


def describe(name: str, annotation: Any, info: Any) -> Option:
    """Read the declaration of one field."""
    members = [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        members = [each for each in get_args(annotation) if each is not type(None)]
    kind, many = members[0], get_origin(members[0]) is list
    if many:
        kind = get_args(kind)[0]
    limits = dict(info.json_schema_extra["limits"])
    if get_origin(kind) is Annotated:  # limits of the elements of a list
        kind, limit = get_args(kind)
        limits |= dataclasses.asdict(limit)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return Option(
        name=name,
        help=info.description,
        theme=info.json_schema_extra["theme"],
        default=info.get_default(call_default_factory=True),
        kind=str if choices else kind,
        choices=choices,
        many=many,
        optional=annotation is not members[0],
        limits=limits,
    )
