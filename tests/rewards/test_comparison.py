from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.grading.comparison import has_nan, matches
from rewards.grading.frames import BadReply, checked, read_frame
from rewards.sandbox.values import MAX_LINE, encode

# Few values, so that equal ones meet.
small = st.sampled_from(
    [0, 1, -1, 2, 0.0, -0.0, 1.0, 2.5, True, False, None, "", "1", b"1", 1j, 1 + 0j]
)
hashable = st.recursive(
    small, lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=2), max_leaves=3
)
values = st.recursive(
    hashable | st.sets(hashable, max_size=2),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(hashable, inner, max_size=2)
    ),
    max_leaves=4,
)


def received(value: Any) -> Any:
    """A value as the parent holds it after a program has sent it."""
    return checked(read_frame(json.dumps({"ok": encode(value)}).encode())["ok"])


def equal(expected: Any, value: Any, compare: Any = "exact") -> bool:
    return matches(json.dumps(encode(expected)), received(value), compare)


def strictly_equal(a: Any, b: Any) -> bool:
    """Python's own equality, and the same types at every depth."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(strictly_equal, a, b))
    if isinstance(a, (set, frozenset)):
        return len(a) == len(b) and all(any(strictly_equal(x, y) for y in b) for x in a)
    if isinstance(a, dict):
        return strictly_equal(set(a), set(b)) and all(strictly_equal(a[key], b[key]) for key in a)
    return bool(a == b)


def tuples_for_lists(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(tuples_for_lists, value))
    if isinstance(value, dict):
        return {key: tuples_for_lists(item) for key, item in value.items()}
    return value


@settings(deadline=None)
@given(values, values)
def test_exact_is_equality_of_values_and_types(a: Any, b: Any) -> None:
    assert equal(a, b) == strictly_equal(a, b)


@settings(deadline=None)
@given(values, values)
def test_python_is_equality_as_python_has_it_with_lists_for_tuples(a: Any, b: Any) -> None:
    assert equal(a, b, "python") == (tuples_for_lists(a) == tuples_for_lists(b))


@settings(deadline=None)
@given(values, values)
def test_equal_is_equality_as_python_has_it(a: Any, b: Any) -> None:
    assert equal(a, b, "equal") == (a == b)


@settings(deadline=None)
@given(values)
def test_every_value_without_nan_equals_itself_under_every_policy(value: Any) -> None:
    assert all(equal(value, value, compare) for compare in ("exact", "python", (1e-9, 0.0)))


@pytest.mark.parametrize("compare", ["exact", "python", (1.0, 0.5)])
@pytest.mark.parametrize("value", [math.nan, [math.nan], {1: math.nan}, complex(0, math.nan)])
def test_nan_equals_nothing_not_even_itself(value: Any, compare: Any) -> None:
    assert not equal(value, value, compare)
    assert has_nan(encode(value))


def test_the_word_nan_is_no_nan() -> None:
    assert not has_nan(encode(["nan", b"nan"]))
    assert equal("nan", "nan")


@pytest.mark.parametrize(
    ("expected", "value", "compare", "verdict"),
    [
        (2.0, 2.05, (0.1, 0.0), True),
        (2.0, 2.15, (0.1, 0.0), False),
        (200.0, 219.0, (0.0, 0.1), True),
        (200.0, 221.0, (0.0, 0.1), False),
        (2.0, 2, (0.1, 0.0), True),
        (2, 2.05, (0.1, 0.0), True),
        (2, 3, (5.0, 0.0), False),  # two integers are compared as they are
        (1.0, True, (5.0, 0.0), False),
        (1.0, "1.0", (5.0, 0.0), False),
        ([1.0, {"a": (2.0,)}], [1.01, {"a": (2.01,)}], (0.1, 0.0), True),
        ([1.0, {"a": (2.0,)}], [1.01, {"a": (2.2,)}], (0.1, 0.0), False),
        ([1.0], (1.0,), (0.1, 0.0), False),
        ([1.0], [1.0, 1.0], (0.1, 0.0), False),
        ({1.0: 1.0}, {1.05: 1.0}, (0.1, 0.0), False),  # keys are compared as they are
        (1.0 + 1.0j, 1.05 + 0.95j, (0.1, 0.0), True),
        (math.inf, math.inf, (0.1, 0.9), True),
        (math.inf, 1e308, (1e308, 0.9), False),
        (1.0, math.inf, (1e308, 0.9), False),
        (1e308, -1e308, (1e308, 0.9), False),  # the difference overflows
    ],
)
def test_a_tolerance_is_for_finite_floats_wherever_they_stand(
    expected: Any, value: Any, compare: Any, verdict: bool
) -> None:
    assert equal(expected, value, compare) is verdict


def test_an_integer_too_large_for_a_float_is_near_to_none() -> None:
    assert not equal(1.0, 16**19_000, (0.1, 0.9))
    assert equal(16**19_000, 16**19_000, (0.1, 0.9))


def test_integers_with_colliding_hashes_cost_no_quadratic_time() -> None:
    keys = [hex(number * (2**61 - 1)) for number in range(1, 25_001)]
    frame = {"n": 0, "ok": {"d": [[{"i": key}, None] for key in keys]}}
    line = json.dumps(frame, separators=(",", ":")).encode()
    assert len(line) <= MAX_LINE
    start = time.process_time()
    assert not matches(json.dumps(encode({})), checked(read_frame(line)["ok"]), "exact")
    assert time.process_time() - start < 1.5  # seven seconds where they are put into a dict


BAD_LINES = {
    "nested": b"[" * 400_000,
    "nested in a frame": b'{"n": 0, "ok": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a long number": b'{"n": ' + b"9" * 5000 + b"}",
    "a repeated key": b'{"n": 0, "n": 1, "ok": null}',
    "NaN": b'{"n": 0, "ok": NaN}',
    "a fraction": b'{"n": 1e999, "ok": null}',
    "no frame": b"null",
    "a text": b'"passed"',
    "no text": b"\xff\xfe",
    "UTF-16": '{"n": 0, "ok": null}'.encode("utf-16"),
    "nothing": b"",
    "too long": b'"' + b"x" * MAX_LINE + b'"',
    "many keys": json.dumps({str(number): None for number in range(9)}).encode(),
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_a_line_that_is_no_frame_is_a_bad_reply_and_nothing_else(line: bytes) -> None:
    with pytest.raises(BadReply):
        checked(read_frame(line).get("ok"))


FRAGMENTS = [b"{", b"}", b"[", b"]", b",", b":", b"1", b"-", b"e9", b"null", b"true", b"NaN"]
FRAGMENTS += [
    b'"n"',
    b'"ok"',
    b'"i"',
    b'"f"',
    b'"c"',
    b'"d"',
    b'"s"',
    b'"0x1"',
    b'"\\ud800"',
    b"\xff",
]


@settings(deadline=None, max_examples=500)
@given(
    st.binary(max_size=40)
    | st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(b"".join)
    | st.lists(st.sampled_from(FRAGMENTS), max_size=8).map(
        lambda parts: b'{"ok": ' + b"".join(parts) + b"}"
    )
)
def test_whatever_a_program_sends_is_a_value_or_a_bad_reply(line: bytes) -> None:
    try:
        value = checked(read_frame(line).get("ok"))
    except BadReply:
        return
    matches(json.dumps(value), value, "python")  # and can be compared


BAD_VALUES = [
    "3",  # a number by itself
    '{"i": 3}',
    '{"i": "zz"}',
    '{"i": "0x3", "i": "0x4"}',
    '{"i": "' + "f" * 20_010 + '"}',
    '{"f": "0x1p99999"}',
    '{"f": "0x' + "1" * 50 + 'p0"}',
    '{"c": ["0x1p0"]}',
    '{"b": "é"}',
    '{"b": "abc"}',
    '{"t": {"l": []}}',
    '{"t": "ab"}',
    '{"d": [["a"]]}',
    '{"d": ["ab"]}',
    '{"x": []}',
    "{}",
    "[" * 62 + "]" * 62,
    "[" + "[]," * 200_000 + "[]]",
]


@pytest.mark.parametrize("value", BAD_VALUES, ids=[value[:30] for value in BAD_VALUES])
def test_what_encode_never_sends_is_a_bad_reply(value: str) -> None:
    frame = read_frame(f'{{"ok": {value}}}'.encode())
    with pytest.raises(BadReply):
        checked(frame["ok"])


@settings(deadline=None)
@given(values)
def test_what_encode_sends_is_never_a_bad_reply(value: Any) -> None:
    assert received(value) == encode(value)
