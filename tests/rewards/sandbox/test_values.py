from __future__ import annotations

import enum
import json
import math
import struct
from collections import Counter, OrderedDict, namedtuple
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.sandbox.values import (
    MAX_DEPTH,
    MAX_HEX_DIGITS,
    MAX_LINE,
    MAX_NODES,
    NotPlain,
    TooLarge,
    decode,
    encode,
)

texts = st.text(st.characters(codec=None, categories=None), max_size=8) | st.just("\ud800")
hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | texts
    | st.binary(max_size=8),
    lambda inner: st.tuples(inner) | st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
plain = st.recursive(
    hashable | st.just(math.nan) | st.sets(hashable, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types at every depth and bit for bit; written without the code."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (a != a and b != b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (set, frozenset)):
        return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    return bool(a == b)


def sent(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value))))


@settings(deadline=None)
@given(plain)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    assert same(sent(value), value)


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0.0, -0.0), ([], ()), ("", b""), (set(), frozenset())]
)
def test_the_comparison_of_these_tests_sees_differences_of_type_and_sign(
    one: Any, other: Any
) -> None:
    assert not same(one, other)
    assert encode(one) != encode(other)


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__

    def __index__(self) -> int:
        return 3

    __int__ = __index__

    def __repr__(self) -> str:
        return "3"


class Hollow(list):
    def __iter__(self):
        return iter(())

    def __len__(self) -> int:
        return 0


class Colour(enum.IntEnum):
    RED = 7


@pytest.mark.parametrize(
    ("value", "base"),
    [
        (Liar(999), 999),
        (Hollow([1, 2]), [1, 2]),
        (Colour.RED, 7),
        (namedtuple("Point", "x y")(1, 2), (1, 2)),
        (OrderedDict(a=1), {"a": 1}),
        (Counter("aa"), {"a": 2}),
        (type("Text", (str,), {"__str__": lambda self: "lie"})("truth"), "truth"),
        (type("Real", (float,), {"hex": lambda self: "0x0p0"})(2.5), 2.5),
        (type("Pair", (complex,), {"real": 9})(1j), 1j),
        (bytearray(b"ab"), b"ab"),
    ],
)
def test_a_subclass_is_sent_as_the_value_of_its_base_class(value: Any, base: Any) -> None:
    assert same(sent(value), base)


class Pretender:
    __class__ = property(lambda self: int)

    def __index__(self) -> int:
        return 3

    def __eq__(self, other: object) -> bool:
        return True


@pytest.mark.parametrize(
    "value",
    [len, (i for i in ()), object(), Pretender(), [1, {2: print}], int, iter([]), range(3)],
    ids=["function", "generator", "object", "pretender", "nested", "type", "iterator", "range"],
)
def test_what_is_no_plain_data_is_refused(value: Any) -> None:
    with pytest.raises(NotPlain, match="not plain data"):
        encode(value)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("largest", "too_large"),
    [
        (nested(MAX_DEPTH), nested(MAX_DEPTH + 1)),
        ([None] * (MAX_NODES - 1), [None] * MAX_NODES),
        (16**MAX_HEX_DIGITS - 1, 16**MAX_HEX_DIGITS),
        ("x" * MAX_LINE, "x" * (MAX_LINE + 1)),
    ],
    ids=["depth", "nodes", "integer", "text"],
)
def test_the_limits_are_where_they_are_said_to_be(largest: Any, too_large: Any) -> None:
    encode(largest)
    with pytest.raises(TooLarge):
        encode(too_large)


def test_a_list_that_holds_itself_is_refused() -> None:
    value: list = []
    value.append(value)
    with pytest.raises(TooLarge, match="deeper"):
        encode(value)
