"""JSON texts read strictly, and compared with a JSON Schema.

`read_json` reads what RFC 8259 calls JSON and nothing more: no `NaN`, no name twice in an object,
no number too large to hold. `fault` says how a value differs from a schema; `checked_schema`
refuses schemas with words that are not checked here, because a word that is passed over would pay
for answers that its author meant to refuse.

Checked: `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`,
`minItems`, `maxItems`, `uniqueItems`, `minLength`, `maxLength`, `pattern`, `minimum`, `maximum`,
`exclusiveMinimum`, `exclusiveMaximum`, `anyOf`. As in JSON Schema (draft 2020-12), 1.0 is an
integer, `true` is no number, `pattern` is searched for, and a word says nothing about values of
other types.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_CHARACTERS = 100_000
MAX_DEPTH = 64

Schema = Mapping[str, Any]


class NotJson(ValueError):
    """A text that is not JSON; the message says why."""


def read_json(text: str) -> Any:
    """The value that a text is.

    Raises:
        NotJson: if the text is anything else, is longer than `MAX_CHARACTERS`, or is nested deeper
            than `MAX_DEPTH`.
    """
    if len(text) > MAX_CHARACTERS:
        raise NotJson(f"longer than {MAX_CHARACTERS} characters")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant
        )
    except RecursionError:
        raise NotJson(f"nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise NotJson(f"not JSON: {error}") from None
    if not _shallow(value):
        raise NotJson(f"nested deeper than {MAX_DEPTH}")
    return value


def checked_schema(schema: Any) -> Schema:
    """The schema itself, or that of its JSON text.

    Raises:
        ValueError: if it is no schema, or has words that are not checked here.
    """
    found = read_json(schema) if isinstance(schema, str) else schema
    if not isinstance(found, Mapping):
        raise ValueError(f"schema {schema!r:.80} is not an object, such as {{'type': 'object'}}")
    unknown = [word for word in found if word not in _CHECKS and word not in _SAYS_NOTHING]
    if unknown:
        raise ValueError(
            f"schema {schema!r:.80} has {unknown[0]!r}, which is not checked; the words that are: "
            f"{', '.join(_CHECKS)}"
        )
    for name in _types(found.get("type", "object")):
        if name not in _TYPES:
            raise ValueError(f"schema has the type {name!r}; expected one of {', '.join(_TYPES)}")
    if "pattern" in found:
        re.compile(found["pattern"])
    for inner in _inner_schemas(found):
        checked_schema(inner)
    return found


def fault(value: Any, schema: Schema, where: str = "the value") -> str | None:
    """How a value differs from a schema that `checked_schema` has passed; `None` if it fits."""
    for word, wanted in schema.items():
        if word in _CHECKS:
            found = _CHECKS[word](value, wanted, where, schema)
            if found is not None:
                return found
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):  # readers disagree which of the two counts
        raise ValueError("a name stands twice in an object")
    return made


def _finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise ValueError("a number is too large")
    return float(number)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        lists = [each for each in level if isinstance(each, list)]
        lists += [list(each.values()) for each in level if isinstance(each, dict)]
        level = [inner for each in lists for inner in each]
        if not level:
            return True
    return False


def _types(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _inner_schemas(schema: Schema) -> list[Any]:
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]
    others = [schema[word] for word in ("items", "additionalProperties") if word in schema]
    return inner + [each for each in others if not isinstance(each, bool)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "integer": lambda value: _is_number(value) and value == int(value),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def _canonical(value: Any) -> str:
    """A text that is the same for equal values: 1 and 1.0, but not 1 and true."""
    if isinstance(value, list):
        return f"[{','.join(map(_canonical, value))}]"
    if isinstance(value, dict):
        return (
            f"{{{','.join(sorted(f'{json.dumps(k)}:{_canonical(v)}' for k, v in value.items()))}}}"
        )
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value)


def _type(value: Any, wanted: Any, where: str, _: Schema) -> str | None:
    if any(_TYPES[name](value) for name in _types(wanted)):
        return None
    return f"{where} is not of type {' or '.join(_types(wanted))}"


def _enum(value: Any, wanted: Any, where: str, _: Schema) -> str | None:
    return (
        None if _canonical(value) in map(_canonical, wanted) else f"{where} is none of the choices"
    )


def _const(value: Any, wanted: Any, where: str, schema: Schema) -> str | None:
    return _enum(value, [wanted], where, schema)


def _any_of(value: Any, wanted: Any, where: str, _: Schema) -> str | None:
    if any(fault(value, schema, where) is None for schema in wanted):
        return None
    return f"{where} fits none of the alternatives"


def _required(value: Any, wanted: Any, where: str, _: Schema) -> str | None:
    missing = [name for name in wanted if isinstance(value, dict) and name not in value]
    return f"{where} lacks {missing[0]!r}" if missing else None


def _properties(value: Any, wanted: Any, where: str, _: Schema) -> str | None:
    if not isinstance(value, dict):
        return None
    faults = (fault(value[n], inner, repr(n)) for n, inner in wanted.items() if n in value)
    return next((found for found in faults if found is not None), None)


def _additional(value: Any, wanted: Any, where: str, schema: Schema) -> str | None:
    if not isinstance(value, dict) or wanted is True:
        return None
    others = [name for name in value if name not in schema.get("properties", {})]
    if wanted is False:
        return f"{where} also has {others[0]!r:.40}" if others else None
    return _properties(value, dict.fromkeys(others, wanted), where, schema)


def _items(value: Any, wanted: Any, where: str, _: Schema) -> str | None:
    if not isinstance(value, list) or wanted is True:
        return None
    if wanted is False:
        return f"{where} is not empty" if value else None
    faults = (fault(item, wanted, f"item {i}") for i, item in enumerate(value))
    return next((found for found in faults if found is not None), None)


def _unique(value: Any, wanted: Any, where: str, _: Schema) -> str | None:
    if not wanted or not isinstance(value, list):
        return None
    return None if len(set(map(_canonical, value))) == len(value) else f"{where} repeats an item"


def _pattern(value: Any, wanted: Any, where: str, _: Schema) -> str | None:
    if not isinstance(value, str) or re.search(wanted, value):
        return None
    return f"{where} does not match {wanted!r}"


def _bound(
    applies: Callable[[Any], bool], size: Callable[[Any], Any], keeps: Callable[[Any, Any], bool]
) -> Callable[[Any, Any, str, Schema], str | None]:
    def check(value: Any, wanted: Any, where: str, _: Schema) -> str | None:
        if not applies(value) or keeps(size(value), wanted):
            return None
        return f"{where} is out of bounds ({wanted})"

    return check


_CHECKS: dict[str, Callable[[Any, Any, str, Schema], str | None]] = {
    "type": _type,
    "enum": _enum,
    "const": _const,
    "anyOf": _any_of,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "uniqueItems": _unique,
    "pattern": _pattern,
    "minItems": _bound(_TYPES["array"], len, lambda size, least: size >= least),
    "maxItems": _bound(_TYPES["array"], len, lambda size, most: size <= most),
    "minLength": _bound(_TYPES["string"], len, lambda size, least: size >= least),
    "maxLength": _bound(_TYPES["string"], len, lambda size, most: size <= most),
    "minimum": _bound(_is_number, lambda value: value, lambda value, least: value >= least),
    "maximum": _bound(_is_number, lambda value: value, lambda value, most: value <= most),
    "exclusiveMinimum": _bound(_is_number, lambda value: value, lambda value, low: value > low),
    "exclusiveMaximum": _bound(_is_number, lambda value: value, lambda value, high: value < high),
}
_SAYS_NOTHING = ("$schema", "$id", "title", "description", "default", "examples")
