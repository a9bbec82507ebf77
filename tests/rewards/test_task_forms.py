from __future__ import annotations

import json
import math
from typing import Any

import pytest

from rewards.grading.assertions import checked_tests, count_asserts, function_under_test, tallied
from rewards.grading.row_tasks import humaneval_row, mbpp_row, unit_tests_row
from rewards.grading.task_forms import AssertTask, CallTask, StdioTask, UnfitTask, read_task

CALL = {"kind": "call", "entry": "f", "tests": [{"args": [1], "expected": 2}]}
STDIO = {"kind": "stdio", "tests": [{"stdin": "1", "stdout": "2"}]}
ASSERT = {"kind": "assert", "entry": "f", "tests": "assert f(1) == 2"}


@pytest.mark.parametrize("tests", [CALL, STDIO, ASSERT])
def test_an_object_and_its_json_text_are_the_same_task(tests: dict) -> None:
    assert read_task(tests) == read_task(json.dumps(tests))


def test_keys_that_arrow_fills_up_with_none_are_not_there() -> None:
    filled = {"prompt": None, "entry": None, "compare": None, "call_check": None, "setup": None}
    for tests in (CALL, STDIO, ASSERT):
        assert read_task({**filled, **tests}) == read_task(tests)


def test_none_can_be_expected() -> None:
    assert (
        read_task({**CALL, "tests": [{"args": [], "expected": None}]}).tests[0].expected == "null"
    )


def test_the_forms_become_their_tasks() -> None:
    assert isinstance(read_task(CALL), CallTask)
    assert isinstance(read_task(STDIO), StdioTask)
    assert isinstance(read_task(ASSERT), AssertTask)
    assert read_task(CALL).compare == "exact"
    assert read_task({**CALL, "compare": {"abs_tol": 0.5}}).compare == (0.5, 0.0)


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("{", "malformed JSON"),
        ("[1]", "is a list"),
        (None, "NoneType"),
        ({**CALL, "kind": "magic"}, "kind 'magic'"),
        ({**CALL, "kind": ["call"]}, "kind"),
        ({**CALL, "tests": []}, "no tests"),
        ({**ASSERT, "tests": ""}, "no tests"),
        ({**CALL, "tests": 5}, "list of tests"),
        ({**CALL, "entrie": "f"}, "unknown key 'entrie'"),
        ({**CALL, "entry": "a b"}, "name of a function"),
        ({**CALL, "compare": "close"}, "compare is 'close'"),
        ({**CALL, "compare": {"abs_tol": -1}}, "compare"),
        ({**CALL, "compare": {"abs_tol": math.inf}}, "compare"),
        ({**CALL, "compare": {"abs_tol": 0.0}}, "not both 0"),
        ({**STDIO, "compare": "exact"}, "'tokens' or 'text'"),
        ({**CALL, "tests": [{"args": [1]}]}, "expected"),
        ({**CALL, "tests": [{"args": 1, "expected": 1}]}, "list 'args'"),
        ({**CALL, "tests": [{"args": [print], "expected": 1}]}, "not plain data"),
        ({**CALL, "tests": [{"args": [1], "expected": [math.nan]}]}, "NaN"),
        ({**CALL, "tests": [{"arg": [1], "expected": 1}]}, "list 'args'"),
        ({**STDIO, "tests": [{"stdin": "1"}]}, "must be texts"),
        ({**STDIO, "tests": [{"stdin": "\ud800", "stdout": ""}]}, "surrogate"),
        ({**ASSERT, "tests": "assert ("}, "cannot be parsed"),
        ({**ASSERT, "call_check": True}, "no function check"),
        ({**ASSERT, "call_check": "yes"}, "true or false"),
        ({**ASSERT, "tests": "assert g(1) == 2"}, "never call f"),
    ],
)
def test_tests_that_cannot_be_judged_are_refused_with_the_reason(tests: Any, reason: str) -> None:
    with pytest.raises(UnfitTask, match=reason):
        read_task(tests)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("assert f(lambda x: x) == 1", "pass a callable"),
        ("assert f([1, {2: len}]) == 1", "pass a callable"),
        ("def g(x): return x\nassert f(g) == 1", "pass a callable"),
        ("assert f(key=int) == 1", "pass a callable"),
        ("assert f(x for x in [1]) == 1", "no plain data"),
        ("assert f(range(3)) == 1", "no plain data"),
        ("class A: pass\nassert f(A()) == 1", "no plain data"),
        ("assert f(Node(1)) == 1", "use Node"),
        ("import numpy\nassert f(1) == numpy.pi", "numpy"),
        ("x = [1]\nassert f(x) is x", "identity"),
        ("x = [1]\ny = f(x)\nassert y is not x", "identity"),
        ("assert id(f(1)) == 3", r"id\(\)"),
        ("assert f(1).head.value == 3", r"\.head"),
        ("y = f(1)\nassert y.head == 3", r"\.head"),
        ("class A: pass\nassert isinstance(f(1), A)", "object of a class"),
        ("xs = [2, 1]\nf(xs)\nassert xs == [1, 2]", "in place"),
    ],
)
def test_what_a_stand_in_cannot_serve_is_refused(code: str, reason: str) -> None:
    with pytest.raises(UnfitTask, match=reason):
        checked_tests(code, "", "f", False)


@pytest.mark.parametrize(
    "code",
    [
        "assert f(1) is True",
        "assert f(1) is not None and f(2) is None",
        "assert sorted(f([3]), key=lambda x: -x) == [3]",
        "assert f(list(range(3)), sorted([1], key=len)) == 1",
        "assert f('a').upper() == 'A'",
        "assert isinstance(f(1), int)",
        "xs = [1, 2]\nassert f(xs) == 3\nassert len(xs) == 2",
        "len = 3\nassert f(len) == 3",
        "from math import *\nassert f(pi) == 3",
        "for i in range(3):\n    assert f(i) == i",
        "try:\n    f('x')\nexcept TypeError:\n    pass\nelse:\n    assert False",
        "def check(candidate):\n    assert candidate(1) == f(1)",
    ],
)
def test_tests_on_plain_values_are_accepted(code: str) -> None:
    assert checked_tests(code, "", "f", False) == ""


def test_modules_that_the_tests_only_use_are_imported_for_them() -> None:
    assert checked_tests("assert f(1) == math.pi", "x = 1", "f", False) == "import math\nx = 1"


@pytest.mark.parametrize(
    ("tests", "name"),
    [
        (["assert f(1) == 2", "assert f(2) == 3"], "f"),
        (["assert set(f(g(1))) == {2}"], "f"),
        (["assert (max_height(root)) == 3"], "max_height"),
        (["assert sum(10, 15) == 6"], "sum"),
        (["assert math.isclose(area(2), 4.0)"], "area"),
    ],
)
def test_the_function_is_what_the_tests_call_and_do_not_define(tests: list, name: str) -> None:
    assert function_under_test(tests, "def g(x): return x") == name


def test_tests_that_call_nothing_have_no_function() -> None:
    with pytest.raises(UnfitTask, match="entry not found"):
        function_under_test(["assert 1 == 1"], "")


def test_every_assert_is_counted_and_none_ends_the_run() -> None:
    code = "for i in (1, 2):\n    assert i == 1, 'two'\nassert True\nassert 1 / 0\n"
    changed, count = tallied(code)
    passed: list[int] = []
    failed: list[int] = []
    names = {"__passed__": passed.append, "__failed__": lambda n, error: failed.append(n)}
    exec(changed, names)
    assert (count, passed, failed) == (3, [0, 1], [0, 2])
    assert count_asserts("x = 1") == 1


def test_a_row_of_humaneval_gives_the_tests_the_helpers_of_its_prompt() -> None:
    prompt = "def helper(x):\n    return x\n\ndef f(x):\n    '''Doc.'''\n"
    test = "def check(candidate):\n    assert candidate(helper(1)) == 1"
    row = humaneval_row({"prompt": prompt, "test": test, "entry_point": "f"})
    assert isinstance(row.task, AssertTask)
    assert row.task.setup == prompt
    assert row.opening is not None
    with pytest.raises(UnfitTask, match="use helper"):
        humaneval_row({"prompt": "Write f.", "test": test, "entry_point": "f"})


def test_a_row_of_mbpp_names_its_function_by_its_tests() -> None:
    row = mbpp_row({"test_list": ["assert area(2) == 4"], "test_setup_code": "", "prompt": "Area?"})
    assert isinstance(row.task, AssertTask)
    assert (row.task.entry, row.opening) == ("area", None)
    for tests in ([], None):
        with pytest.raises(UnfitTask, match="no tests"):
            mbpp_row({"test_list": tests})


def test_the_prompt_of_the_row_comes_before_the_one_inside_its_tests() -> None:
    inside = {**CALL, "prompt": "def f(x):\n    '''Inside.'''\n"}
    outside = "def f(x):\n    '''Outside.'''\n"
    for tests in (inside, json.dumps(inside)):
        assert unit_tests_row({"tests": tests}).opening.text == inside["prompt"]
        assert unit_tests_row({"tests": tests, "prompt": outside}).opening.text == outside
