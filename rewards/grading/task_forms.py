"""The three forms of a programming task, and how rows of data are read as tasks.

A row's `tests` is an object:

- `{"kind": "call", "entry": "add", "tests": [{"args": [1, 2], "expected": 3}], "compare": "exact"}`
  calls the function; a test may also have `kwargs`. `compare` is described in
  `rewards.grading.comparison` ("exact" if it is left out).
- `{"kind": "stdio", "compare": "tokens", "tests": [{"stdin": "1 2\\n", "stdout": "3\\n"}]}`: the
  program reads and prints; `compare` is `tokens` (words separated by white space, the default) or
  `text` (all characters, but for line ends at the end).
- `{"kind": "assert", "entry": "add", "tests": "assert add(1, 2) == 3"}`: test code. With
  `"call_check": true` it defines `check(candidate)`, which is called. `setup` is code that runs
  before the tests.

Such an object may have a `prompt` too; if the rows have no prompts of their own, it says where a
completion goes on from.

The object can be given as its JSON text, and has to be where the data is held by Arrow
(`datasets`, parquet): Arrow gives all values of a column one type, so it can hold neither the
arguments of different functions nor integers beyond 64 bits, and it fills every object up with the
keys of all others.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from rewards.grading.assertions import checked_tests
from rewards.grading.comparison import Compare, Policy, has_nan
from rewards.grading.review import UnfitTask
from rewards.sandbox.values import NotPlain, encode

__all__ = [
    "AssertTask",
    "CallTask",
    "CallTest",
    "StdioTask",
    "StdioTest",
    "Task",
    "UnfitTask",
    "read_task",
]

_KEYS = {
    "call": {"kind", "prompt", "entry", "compare", "tests"},
    "stdio": {"kind", "prompt", "compare", "tests"},
    "assert": {"kind", "prompt", "entry", "tests", "call_check", "setup"},
}


@dataclass(frozen=True)
class CallTest:
    """One call, as JSON texts of encoded values, and what it must return."""

    args: str
    kwargs: str
    expected: str


@dataclass(frozen=True)
class CallTask:
    """Call the function `entry`, and compare what it returns."""

    entry: str
    compare: Compare
    tests: tuple[CallTest, ...]


@dataclass(frozen=True)
class StdioTest:
    """What the program is given to read, and what it must print."""

    stdin: str
    stdout: str


@dataclass(frozen=True)
class StdioTask:
    """Run the program once for each test, and compare what it prints."""

    compare: Literal["tokens", "text"]
    tests: tuple[StdioTest, ...]


@dataclass(frozen=True)
class AssertTask:
    """Run test code about the function `entry`; `call_check`: call `check(entry)` after it."""

    entry: str
    tests: str
    setup: str
    call_check: bool


Task = CallTask | StdioTask | AssertTask


def read_task(tests: Any) -> Task:
    """The task that an object of the form above describes, or its JSON text.

    Raises:
        UnfitTask: it describes none, or one that cannot be judged; the message says why.
    """
    if isinstance(tests, str):
        return _read_text(tests)
    if not isinstance(tests, Mapping):
        raise UnfitTask(f"tests is a {type(tests).__name__}; expected an object or its JSON text")
    # Arrow fills objects up with None; a key without a value is a key that is not there.
    given = {key: value for key, value in tests.items() if value is not None}
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in _KEYS:
        raise UnfitTask(f"tests has the kind {kind!r}; expected 'call', 'stdio' or 'assert'")
    unknown = [key for key in given if key not in _KEYS[kind]]
    if unknown:
        raise UnfitTask(f"tests of the kind {kind!r} has the unknown key {unknown[0]!r:.80}")
    if not given.get("tests"):
        raise UnfitTask("no tests")
    if kind == "call":
        return _call_task(given)
    return _stdio_task(given) if kind == "stdio" else _assert_task(given)


@functools.lru_cache(maxsize=1 << 10)  # rows can be large
def _read_text(text: str) -> Task:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnfitTask(f"malformed JSON: {error}") from None
    if not isinstance(read, dict):
        raise UnfitTask(f"the JSON of tests is a {type(read).__name__}; expected an object")
    return read_task(read)


def _call_task(given: Mapping[str, Any]) -> CallTask:
    compare = _tolerance(given.get("compare", "exact"))
    tests = tuple(_call_test(test) for test in _listed(given["tests"]))
    return CallTask(_entry(given), compare, tests)


def _call_test(test: Any) -> CallTest:
    if not isinstance(test, Mapping) or "expected" not in test:
        raise UnfitTask(f"test {test!r:.80}; expected an object with 'args' and 'expected'")
    unknown = set(test) - {"args", "kwargs", "expected"}
    args, kwargs = test.get("args") or [], test.get("kwargs") or {}
    is_sound = isinstance(args, (list, tuple)) and isinstance(kwargs, Mapping)
    if unknown or not is_sound or not all(isinstance(key, str) for key in kwargs):
        raise UnfitTask(f"test {test!r:.80}; expected a list 'args' and perhaps an object 'kwargs'")
    try:
        expected = encode(test["expected"])
        texts = [json.dumps(encode(list(args))), _keywords(kwargs), json.dumps(expected)]
    except NotPlain as error:
        raise UnfitTask(f"a test has a value that is {error}") from None
    if has_nan(expected):
        raise UnfitTask("a test expects NaN, which equals nothing")
    return CallTest(*texts)


def _keywords(kwargs: Mapping[str, Any]) -> str:
    return json.dumps({key: encode(value) for key, value in kwargs.items()})


def _tolerance(compare: Any) -> Compare:
    if isinstance(compare, str) and compare in get_args(Policy):
        return cast(Policy, compare)
    if isinstance(compare, Mapping) and set(compare) <= {"abs_tol", "rel_tol"}:
        given = [compare.get("abs_tol"), compare.get("rel_tol")]
        tolerances = [0.0 if value is None else value for value in given]
        if any(given) and all(_is_tolerance(value) for value in tolerances):
            return (float(tolerances[0]), float(tolerances[1]))
    raise UnfitTask(
        f"compare is {compare!r:.80}; expected 'exact', 'equal', 'python' or {{'abs_tol': a, "
        "'rel_tol': r} with a finite a >= 0 and 0 <= r < 1, not both 0"
    )


def _is_tolerance(value: Any) -> bool:
    # Up to the largest float: an infinite tolerance accepts everything.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e300


def _stdio_task(given: Mapping[str, Any]) -> StdioTask:
    compare = given.get("compare", "tokens")
    if compare not in ("tokens", "text"):
        raise UnfitTask(f"compare is {compare!r:.80}; expected 'tokens' or 'text' for stdio")
    tests = tuple(_stdio_test(test) for test in _listed(given["tests"]))
    return StdioTask("tokens" if compare == "tokens" else "text", tests)


def _stdio_test(test: Any) -> StdioTest:
    if not isinstance(test, Mapping) or set(test) - {"stdin", "stdout"}:
        raise UnfitTask(f"test {test!r:.80}; expected an object with 'stdin' and 'stdout'")
    stdin, stdout = test.get("stdin") or "", test.get("stdout")
    if not isinstance(stdin, str) or not isinstance(stdout, str):
        raise UnfitTask(f"test {test!r:.80}; 'stdin' and 'stdout' must be texts")
    try:
        (stdin + stdout).encode()
    except UnicodeEncodeError:
        raise UnfitTask(f"test {test!r:.80}; half a surrogate pair is no text") from None
    return StdioTest(stdin, stdout)


def _assert_task(given: Mapping[str, Any]) -> AssertTask:
    tests, setup = given["tests"], given.get("setup", "")
    if not isinstance(tests, str) or not isinstance(setup, str):
        raise UnfitTask("'tests' and 'setup' of the kind 'assert' must be texts of code")
    entry, call_check = _entry(given), given.get("call_check", False)
    if not isinstance(call_check, bool):
        raise UnfitTask(f"call_check is {call_check!r:.80}; expected true or false")
    return AssertTask(entry, tests, checked_tests(tests, setup, entry, call_check), call_check)


def _entry(given: Mapping[str, Any]) -> str:
    entry = given.get("entry")
    if not isinstance(entry, str) or not entry.isidentifier():
        raise UnfitTask(f"entry is {entry!r:.80}; expected the name of a function")
    return entry


def _listed(tests: Any) -> Sequence[Any]:
    if isinstance(tests, (list, tuple)):
        return tests
    raise UnfitTask(f"tests is a {type(tests).__name__}; expected a list of tests")
