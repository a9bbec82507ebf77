from __future__ import annotations

import json
import sys

import pytest

from rewards.grading import judging
from rewards.grading.judging import Submission, judge
from rewards.grading.literal_asserts import as_calls
from rewards.grading.task_forms import AssertTask, CallTask, read_task
from rewards.sandbox import Sandbox


def task(tests: str, call_check: bool = False, setup: str = "") -> AssertTask:
    form = {"kind": "assert", "entry": "f", "tests": tests, "setup": setup}
    found = read_task({**form, "call_check": call_check})
    assert isinstance(found, AssertTask)
    return found


def test_asserts_on_literals_are_calls_with_expected_values() -> None:
    code = "assert f(1, [2], k=-3) == (4.0, {'a': None}), 'why'\nassert f() == {1, 2}"
    calls = as_calls(task(code))
    expected = read_task(
        {
            "kind": "call",
            "entry": "f",
            "compare": "equal",
            "tests": [
                {"args": [1, [2]], "kwargs": {"k": -3}, "expected": (4.0, {"a": None})},
                {"args": [], "expected": {1, 2}},
            ],
        }
    )
    assert calls == expected


def test_the_asserts_of_check_are_calls_too() -> None:
    code = (
        "METADATA = {'author': 'a'}\ndef check(candidate):\n    '''Doc.'''\n"
        "    assert candidate(1) == 2\n    assert True, 'easy'\n    assert candidate(3) == 4\n"
    )
    calls = as_calls(task(code, call_check=True, setup="import math\n"))
    assert isinstance(calls, CallTask)
    assert [json.loads(test.args) for test in calls.tests] == [[{"i": "0x1"}], [{"i": "0x3"}]]


@pytest.mark.parametrize(
    "code",
    [
        "assert f(1) != 2",
        "assert f(1) is True",
        "assert f(1)",
        "assert f(1) == f(2)",
        "assert f(1) == 2 == 2",
        "assert 2 == f(1)",
        "assert sorted(f(1)) == [2]",
        "assert f(x) == 2\nx = 1",
        "x = 1\nassert f(1) == 2",
        "assert f(*[1]) == 2",
        "assert f(**{'a': 1}) == 2",
        "assert f(1) == 2\nassert False",
        "assert f(1) == 2\nf(3)",
        "assert f(1) == ...",
        "for i in (1, 2):\n    assert f(i) == 2",
    ],
)
def test_tests_that_do_anything_else_keep_their_own_process(code: str) -> None:
    assert as_calls(task(code)) is None


@pytest.mark.parametrize(
    "code",
    [
        "import os\ndef check(candidate):\n    assert candidate(1) == 2",
        "def check(candidate, more=1):\n    assert candidate(1) == 2",
        "def check(candidate):\n    assert f(1) == 2",
        "def check(candidate):\n    for i in [1]:\n        assert candidate(i) == 2",
        "def check(candidate):\n    assert candidate(1) == 2\nassert f(1) == 2",
        "def g(): pass\ndef check(candidate):\n    assert candidate(1) == 2",
    ],
)
def test_a_check_that_does_anything_else_keeps_its_own_process(code: str) -> None:
    assert as_calls(task(code, call_check=True)) is None


def test_asserts_that_call_nothing_are_no_tests() -> None:
    assert as_calls(task("def check(candidate):\n    assert True", call_check=True)) is None


PROGRAMS = [
    "return x + 1",
    "return float(x + 1)",
    "return True",
    "return [x + 1]",
    "return (x + 1,)",
    "return frozenset([x + 1])",
    "return 'a'",
    "raise ValueError",
    "raise AssertionError",
    "return f",
    "return float('nan')",
]


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
@pytest.mark.parametrize("expected", ["1", "1.0", "True", "[1]", "(1,)", "{1}", "'a'"])
def test_both_ways_of_judging_give_the_same_rewards(
    expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = task(f"assert f(0) == {expected}\nassert f(0) == {expected}")
    items = [Submission(f"def f(x):\n    {body}", tests) for body in PROGRAMS]
    with Sandbox(1) as sandbox:
        as_values = [verdict.reward for verdict in sandbox.map(judge, items)]
        monkeypatch.setattr(judging, "as_calls", lambda task: None)
        as_asserts = [verdict.reward for verdict in sandbox.map(judge, items)]
    assert as_values == as_asserts
    assert set(as_asserts) == {0.0, 1.0}
