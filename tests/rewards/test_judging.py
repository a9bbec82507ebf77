"""Programs in the real sandbox, honest ones and others, judged on all three forms of tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rewards.grading.judging import Submission, Verdict, judge
from rewards.grading.task_forms import CallTask, UnfitTask, read_task
from rewards.sandbox import Limits, Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")

ADD = {
    "kind": "call",
    "entry": "add",
    "tests": [{"args": [a, b], "expected": a + b} for a, b in ((1, 2), (0, 0), (-5, 3), (1, 0))],
}
SORT = {
    "kind": "call",
    "entry": "sort",
    "tests": [{"args": [[3, 1, 2]], "expected": [1, 2, 3]}, {"args": [[]], "expected": []}],
}
PRINT = {
    "kind": "stdio",
    "tests": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "-5 3\n", "stdout": "-2\n"}],
}
CHECK = {
    "kind": "assert",
    "entry": "add",
    "call_check": True,
    "tests": (
        "def check(candidate):\n"
        "    assert candidate(1, 2) == 3\n"
        "    assert candidate(0, 0) == 0, 'zero'\n"
        "    assert sorted([candidate(2, 3), candidate(1, 1)]) == [2, 5]\n"
        "    try:\n"
        "        candidate('a', 1)\n"
        "    except TypeError:\n"
        "        pass\n"
        "    else:\n"
        "        assert False, 'no TypeError'\n"
    ),
}
HONEST = "def add(a, b):\n    return a + b\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(1, Limits(seconds=1.5)) as sandbox:
        yield sandbox


@pytest.fixture
def verdict(sandbox: Sandbox):
    def judged(program: str, tests: dict[str, Any], share: bool = False) -> Verdict:
        return sandbox.map(judge, [Submission(program, read_task(tests), share)])[0]

    return judged


def reading(program: str) -> str:
    return f"a, b = map(int, input().split())\n{program}"


@pytest.mark.parametrize(
    ("program", "tests", "total"),
    [
        (HONEST, ADD, 4),
        (HONEST, CHECK, 4),
        ("def sort(xs): return sorted(xs)", SORT, 2),
        (reading("print(a + b)"), PRINT, 2),
        (reading("import sys; sys.stdout.write(f'{a + b}'); sys.exit(0)"), PRINT, 2),
        ("class N(int): pass\ndef add(a, b): return N(a + b)", ADD, 4),
        ("import sys\ndef add(a, b): return a + b\nif __name__ == '__main__': sys.exit(1)", ADD, 4),
    ],
)
def test_a_right_program_gets_one(verdict, program: str, tests: dict, total: int) -> None:
    plural = f"passed all {total} tests"
    assert verdict(program, tests) == Verdict(1.0, total, total, plural)
    assert verdict(program, tests, share=True) == Verdict(1.0, total, total, plural)


@pytest.mark.parametrize(
    ("program", "tests", "reason"),
    [
        ("def add(a, b): return a - b", ADD, "test 1 of 4: returned -1, expected 3"),
        ("def add(a, b): return float(a + b)", ADD, "returned 3.0, expected 3"),
        ("def add(a, b): raise KeyError('k')", ADD, "test 1 of 4: raised KeyError: k"),
        ("def add(a, b): return add", ADD, "not plain data"),
        ("x = 1", ADD, "the program defines no add"),
        ("def add(a, b", ADD, "SyntaxError"),
        ("def add(a, b): return a - b", CHECK, "failed: AssertionError (line 2)"),
        ("def add(a, b): return a * b + 1", CHECK, "failed: AssertionError: zero (line 3)"),
        ("def add(a, b): return int(a) + b", CHECK, "failed: ValueError"),
        (reading("print(a - b)"), PRINT, "test 1 of 2: printed '-1\\n', expected '3\\n'"),
        (reading("print(a + b); raise SystemExit(2)"), PRINT, "exit status 2"),
        (reading("print(a + b, 3)"), PRINT, "test 1 of 2"),
        ("pass", PRINT, "printed ''"),
    ],
)
def test_a_wrong_program_gets_nothing_and_the_reason(
    verdict, program: str, tests: dict, reason: str
) -> None:
    found = verdict(program, tests)
    assert found.reward == 0.0
    assert reason in found.reason


EQUAL = "class E:\n    __eq__ = lambda s, o: True\n    __ne__ = __lt__ = lambda s, o: False\n"
LIAR = EQUAL.replace("class E:", "class E(int):") + "    __hash__ = int.__hash__\n"
FORGED = b'{"n": %d, "ok": {"i": "0x3"}}\n'
# What would pass somewhere: each of these is rewarded by a grader in common use.
HACKS = {
    "exits while it is loaded": "import sys\nsys.exit(0)",
    "exits when it is called": "import sys\ndef add(a, b): sys.exit(0)",
    "ends the process": "import os\ndef add(a, b): os._exit(0)",
    "equals everything": EQUAL + "def add(a, b): return E()",
    "is an integer that equals everything": LIAR + "def add(a, b): return E(99)",
    "is not a number": "def add(a, b): return float('nan')",
    "is always true": "def add(a, b): return True",
    "prints that it passed": "print('passed')\ndef add(a, b):\n    print('ok')\n    return 0",
    "answers ahead": (
        "import os\ndef add(a, b):\n    for n in range(8):\n"
        f"        for fd in range(3, 64):\n            try: os.write(fd, {FORGED!r} % n)\n"
        "            except OSError: pass\n    return 3"
    ),
    "replaces the JSON encoder": (
        "import json\njson.dumps = lambda *a, **k: '{\"reward\": 1}'\ndef add(a, b): return 0"
    ),
    "replaces the runner": (
        "import sys\nsys.modules['rewards.sandbox.values'].encode = lambda v: True\n"
        "def add(a, b): return 0"
    ),
    "replaces the builtins": (
        "import builtins\nbuiltins.isinstance = builtins.all = lambda *a: True\n"
        "def add(a, b): return 0"
    ),
    "looks for the expected value in the frames": (
        "import sys\ndef add(a, b):\n    frame = sys._getframe()\n    while frame:\n"
        "        for scope in (frame.f_locals, frame.f_globals):\n"
        "            if 'expected' in scope or 'check' in scope: return scope.get('expected')\n"
        "        frame = frame.f_back\n    return 0"
    ),
    "stops the loop of the tests": "def add(a, b): raise StopIteration",
    "fails as the tests do": "def add(a, b): raise AssertionError",
    "hangs": "def add(a, b):\n    while True: pass",
    "hangs while it is loaded": "while True: pass",
    "swallows its exceptions": "def add(a, b):\n    try: 1 / 0\n    finally: return None",
    "overflows the stack": "def add(a, b): return add(a, b)",
    "overflows the compiler": "[a " + "for a in b " * 100_000 + "]",
    "floods its output": "def add(a, b):\n    while True: print('x' * 1000)",
    "sends a huge integer": "def add(a, b): return 1 << 200_000",
    "sends itself": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "sends half a character": "def add(a, b): return '\\ud800'",
}


@pytest.mark.parametrize("tests", [ADD, CHECK], ids=["call", "assert"])
@pytest.mark.parametrize("program", HACKS.values(), ids=HACKS)
def test_a_program_that_does_not_solve_the_task_gets_nothing(
    verdict, program: str, tests: dict
) -> None:
    start = time.monotonic()
    found = verdict(program, tests)
    assert found.reward == 0.0
    assert found.reason.isprintable()
    assert time.monotonic() - start < 1.5 + 1
    assert verdict(HONEST, tests).reward == 1.0  # and the next one is judged as ever


def test_a_program_that_empties_its_argument_gets_nothing(verdict) -> None:
    assert verdict("def sort(xs):\n    xs.clear()\n    return xs", SORT).reward == 0.0


@pytest.mark.parametrize(
    ("program", "tests", "passed", "total"),
    [
        ("def add(a, b): return a", ADD, 2, 4),
        ("def add(a, b):\n    if b: return a + b\n    raise ValueError", ADD, 2, 4),
        ("def add(a, b):\n    if (a, b) == (1, 2): return 3\n    while True: pass", ADD, 1, 4),
        ("def add(a, b): return 0", CHECK, 1, 4),
        ("def add(a, b): return a - b if 'a' != a else 1 + 'a'", CHECK, 1, 4),
        ("def add(a, b):\n    if a == 0: raise SystemExit\n    return a + b", CHECK, 1, 4),
        (reading("print(3)"), PRINT, 1, 2),
    ],
)
def test_the_share_of_the_tests_is_counted_to_the_end(
    verdict, program: str, tests: dict, passed: int, total: int
) -> None:
    found = verdict(program, tests, share=True)
    assert (found.passed, found.total, found.reward) == (passed, total, passed / total)
    assert verdict(program, tests).reward == 0.0


def test_a_script_that_hangs_costs_its_time_limit_once(verdict) -> None:
    many = {**PRINT, "tests": PRINT["tests"] * 10}
    start = time.monotonic()
    assert verdict("while True: pass", many, share=True).reward == 0.0
    assert time.monotonic() - start < 4


def test_tests_that_catch_everything_do_not_hide_that_the_program_is_gone(verdict) -> None:
    code = "for x in (1, 2):\n    try:\n        f(x)\n    except:\n        pass"
    tests = {"kind": "assert", "entry": "f", "tests": code}
    found = verdict("import os\ndef f(x): os._exit(0)", tests)
    assert (found.reward, found.reason) == (0.0, "call 1: died: exit status 0")
    assert verdict("def f(x): return x", tests).reward == 1.0


def test_asserts_that_hold_do_not_make_up_for_an_error_between_them(verdict) -> None:
    tests = {"kind": "assert", "entry": "f", "tests": "x = f()\nassert True\nx + 1\nassert True"}
    assert verdict("def f(): return 1", tests, share=True).reward == 1.0
    assert verdict("def f(): return 'a'", tests, share=True).reward == 0.5


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("if False:\n    assert f()", "never call f"),
        ("1 / 0\nassert f()", "ZeroDivisionError"),
        ("g = len\nassert f(g)", "not plain data"),
    ],
)
def test_tests_that_turn_out_to_be_broken_are_an_error_and_no_score(
    verdict, code: str, reason: str
) -> None:
    with pytest.raises(UnfitTask, match=reason):
        verdict("def f(*a): return 1", {"kind": "assert", "entry": "f", "tests": code})


def test_no_tests_are_an_error_and_never_a_pass(sandbox: Sandbox) -> None:
    with pytest.raises(UnfitTask, match="no tests"):
        sandbox.map(judge, [Submission(HONEST, CallTask("add", "exact", ()))])


def test_text_is_compared_with_its_spaces_and_words_without() -> None:
    with Sandbox(1) as sandbox:
        for compare, program, reward in (
            ("tokens", "print(' 1\\t2 ')", 1.0),
            ("text", "print(' 1\\t2 ')", 0.0),
            ("text", "print('1 2')", 1.0),
        ):
            task = read_task({"kind": "stdio", "compare": compare, "tests": [{"stdout": "1 2"}]})
            assert sandbox.map(judge, [Submission(program, task)])[0].reward == reward


def test_the_verdicts_do_not_depend_on_the_number_of_workers(sandbox: Sandbox) -> None:
    programs = [HONEST, "def add(a, b): return 0", "x", HACKS["is always true"]] * 3
    items = [
        Submission(program, read_task(tests)) for program in programs for tests in (ADD, CHECK)
    ]
    with Sandbox(3) as wide:
        assert wide.map(judge, items) == sandbox.map(judge, items)
