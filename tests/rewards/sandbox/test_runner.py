"""The runner without a sandbox around it: a child process at the other end of a socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards.sandbox.values import decode, encode

ROOT = str(Path(rewards.__file__).parents[1])
START = "import sys; from rewards.sandbox import runner; sys.exit(runner.main(int(sys.argv[1])))"


class Child:
    """Frames to and from a child, and how it ended."""

    def __init__(self, job: dict[str, Any], stdin: str = "") -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": ROOT},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self._stdin = stdin
        self._socket = ours
        self._lines = ours.makefile("rwb")
        self.tell(job)

    def tell(self, frame: dict[str, Any]) -> None:
        self._lines.write(json.dumps(frame).encode() + b"\n")
        self._lines.flush()

    def hear(self) -> dict[str, Any]:
        return json.loads(self._lines.readline())

    def ask(self, *args: Any, n: int = 0, **kwargs: Any) -> dict[str, Any]:
        encoded = {key: encode(value) for key, value in kwargs.items()}
        self.tell({"n": n, "args": encode(list(args)), "kwargs": encoded})
        return self.hear()

    def end(self) -> tuple[int, str, str]:
        self._socket.shutdown(socket.SHUT_WR)
        out, err = self.process.communicate(self._stdin, timeout=30)
        return self.process.returncode, out, err

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
        self.process.kill()
        self.process.communicate()


@contextmanager
def started(job: dict[str, Any], stdin: str = "") -> Iterator[Child]:
    child = Child(job, stdin)
    try:
        yield child
    finally:
        child.close()


def calls(program: str, *others: str, entry: str = "f") -> dict[str, Any]:
    programs = [[text, text] for text in (program, *others)]
    return {"kind": "call", "programs": programs, "entry": entry}


def script(program: str, stdin: str = "") -> tuple[int, str, str]:
    with started({"kind": "stdio", "programs": [[program, ""]], "entry": None}, stdin) as child:
        return child.end()


def asserts(code: str, **more: Any) -> dict[str, Any]:
    job = {"kind": "tests", "nonce": "xyz", "tests": code, "setup": "", "entry": "f"}
    return {**job, "call_check": False, **more}


def answered(child: Child, *results: Any) -> dict[str, Any]:
    """Answer the calls of tests with results, or with frames, and return the report."""
    child.tell({"begin": True})
    for number, result in enumerate(results):
        request = child.hear()
        assert request["n"] == number, request
        is_frame = isinstance(result, dict) and result.keys() & {"exc", "stop"}
        child.tell({"n": number, **(result if is_frame else {"ok": encode(result)})})
    return child.hear()


def test_a_function_is_called_with_the_values_and_its_result_comes_back() -> None:
    with started(calls("def f(a, b=0, *, c=0):\n    return [a, b, (c,)]")) as child:
        assert decode(child.ask(1, {2}, c=b"3")["ok"]) == [1, {2}, (b"3",)]
        assert decode(child.ask(None, n=1)["ok"]) == [None, 0, (0,)]
        assert child.end()[0] == 0


def test_state_is_kept_from_call_to_call_and_the_module_is_not_main() -> None:
    program = "seen = []\ndef f(x):\n    seen.append(x)\n    return seen, __name__\n"
    with started(calls(program)) as child:
        child.ask(1)
        assert decode(child.ask(2, n=1)["ok"]) == ([1, 2], "program")


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        ("raise KeyError('k')", {"exc": "KeyError", "text": "k"}),
        (
            "raise type('Mine', (ZeroDivisionError,), {})('m')",
            {"exc": "ZeroDivisionError", "text": "m"},
        ),
        ("raise SystemExit(0)", {"exc": "SystemExit", "text": "0"}),
        ("return (i for i in ())", {"no": "the result is not plain data: <class 'generator'>"}),
        ("return 'x' * (1 << 20)", {"no": "a result that is too large"}),
        ("return 'x' * (1 << 21)", {"no": "the result is longer than a line may be"}),
    ],
)
def test_a_call_without_a_result_says_why(body: str, reply: dict[str, str]) -> None:
    with started(calls(f"def f():\n    {body}")) as child:
        assert child.ask() == {"n": 0, **reply}
        assert child.ask(n=1)["n"] == 1


def test_an_exception_whose_text_cannot_be_had_is_sent_without_it() -> None:
    program = "class X(Exception):\n    def __str__(self): raise X\ndef f(): raise X(1, 2)"
    with started(calls(program)) as child:
        assert child.ask() == {"n": 0, "exc": "Exception", "text": ""}


def test_a_program_without_the_function_says_so() -> None:
    with started(calls("def g(): pass")) as child:
        assert child.ask() == {"n": 0, "no": "the program defines no f"}


@pytest.mark.parametrize(
    ("program", "status", "message"),
    [
        ("def f(:", 1, "SyntaxError: invalid syntax (line 1)"),
        ("\n\n1 / 0", 1, "ZeroDivisionError: division by zero (line 3)"),
        ("import sys; sys.exit(0)", 0, ""),
        ("raise SystemExit('sorry')", 1, "sorry"),
        ("'\ud800'", 1, "UnicodeEncodeError"),
        ("\0", 1, "null bytes"),
    ],
)
def test_a_program_that_does_not_load_ends_before_the_first_call(
    program: str, status: int, message: str
) -> None:
    with started(calls(program)) as child:
        found, _, err = child.end()
    assert (found, message in err) == (status, True), err


def test_the_first_reading_that_compiles_and_defines_the_function_is_run() -> None:
    readings = [
        "def f(:",
        "def g(): return 1",
        "x = 1\nif x:\n    def f(): return 2",
        "def f(): return 3",
    ]
    with started(calls(*readings)) as child:
        assert decode(child.ask()["ok"]) == 2


def test_where_no_reading_fits_the_last_one_is_run() -> None:
    with started(calls("def f(:", "def g(): return 1", "def h(): return 2")) as child:
        assert child.ask()["no"] == "the program defines no f"


def test_a_script_reads_and_prints_and_is_main() -> None:
    program = "import sys\nprint(__name__, input(), sys.stdin.read(), sys.argv, 'é')"
    assert script(program, "a\nb") == (0, "__main__ a b ['program.py'] é\n", "")


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit()", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('no')", 1),
        ("1 / 0", 1),
        ("print('x' * 10); raise KeyboardInterrupt", 1),
        ("import sys; sys.stdout.close()", 120),
    ],
)
def test_the_exit_status_of_a_script_is_its_own(program: str, status: int) -> None:
    assert script(program)[0] == status


def test_what_a_script_prints_at_its_end_is_not_lost() -> None:
    program = "import atexit\natexit.register(print, 'last')\nprint('first', end=' ')\nexit(0)"
    assert script(program.replace("exit(0)", "raise SystemExit"))[1] == "first last\n"


def test_asserts_run_on_what_the_program_answers() -> None:
    code = "assert f(1, k=[2]) == 3\nassert sorted({f(2), f(3)}) == [4, 5]"
    with started(asserts(code)) as child:
        assert answered(child, 3, 5, 4) == {
            "report": "xyz",
            "calls": 3,
            "passed": 0,
            "failed": None,
        }
    with started(asserts(code)) as child:
        report = answered(child, 3, 5, 5)
    assert report["failed"] == "AssertionError (line 2)"


def test_check_is_called_with_the_stand_in() -> None:
    job = asserts("def check(candidate):\n    assert candidate() == f()", call_check=True)
    with started(job) as child:
        assert answered(child, 1, 1)["failed"] is None
    with started(job) as child:
        assert answered(child, 1, 2)["failed"] == "AssertionError (line 2)"


def test_exceptions_reach_the_tests_under_their_own_names() -> None:
    code = (
        "try:\n    f()\nexcept UnicodeDecodeError:\n    raise\n"
        "except ValueError as error:\n    assert str(error) == 'why'"
    )
    with started(asserts(code)) as child:
        assert answered(child, {"exc": "ValueError", "text": "why"})["failed"] is None
    with started(asserts(code)) as child:  # it needs five arguments; its base class stands in
        assert answered(child, {"exc": "UnicodeDecodeError", "text": "why"})["failed"] is None


def test_a_stop_iteration_does_not_end_the_tests_early() -> None:
    with started(asserts("for result in map(f, [1, 2]):\n    assert result == 0")) as child:
        report = answered(child, {"exc": "StopIteration", "text": ""})
    assert report["failed"].startswith("RuntimeError")


def test_a_program_that_is_gone_cannot_be_caught_by_the_tests() -> None:
    with started(asserts("try:\n    f()\nexcept Exception:\n    pass")) as child:
        assert "_Stopped" in answered(child, {"stop": True})["failed"]


def test_an_argument_that_cannot_be_sent_makes_the_tests_unfit() -> None:
    with started(asserts("try:\n    f(print)\nexcept Exception:\n    pass")) as child:
        assert "not plain data" in answered(child)["unfit"]


def test_an_argument_that_is_too_deep_only_fails() -> None:
    with started(asserts("x = []\nfor _ in range(70):\n    x = [x]\nf(x)")) as child:
        assert "TooLarge" in answered(child)["failed"]
