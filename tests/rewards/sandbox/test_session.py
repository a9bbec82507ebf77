"""One run: deadlines, caps, deaths, and what the parent is told of them."""

import contextlib
import json
import time

import pytest

from rewards.sandbox import Ended, Limits
from rewards.sandbox.limits import LEAST_MEMORY

GRACE = 0.5


def run(sandbox, code, use, **options):
    """Start `code` in a child and return what `use(session)` returns."""

    def judge(runner, item):
        with runner.start(json.dumps(code).encode(), **options) as session:
            return use(session)

    return sandbox.map(judge, [None])[0]


def ask_one(session):
    return session.ask(b"1")


def reason_of(sandbox, code, use=ask_one, **options):
    with pytest.raises(Ended) as caught:
        run(sandbox, code, use, **options)
    return caught.value.reason


def test_an_answer_comes_back(sandbox):
    assert run(sandbox, "x = 6", lambda session: session.ask(b"x * 7")) == b"42"


def test_output_exit_status_and_use_of_resources_are_reported(sandbox):
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\nstatus = 3\nlines = []"
    ended = run(sandbox, code, lambda session: session.wait())
    # With no lines to serve the runner of these tests comes to its end.
    assert (ended.status, ended.signal) == (3, None)
    assert (ended.stdout, ended.stderr) == (b"out\n", b"err\n")
    assert 0 < ended.cpu_seconds < 1
    assert 1 << 20 < ended.peak_memory_bytes < 512 << 20


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
    ],
    ids=["busy", "asleep", "in C"],
)
@pytest.mark.parametrize("use", [ask_one, lambda session: session.wait()], ids=["ask", "wait"])
def test_the_deadline_holds_within_half_a_second(sandbox, code, use):
    began = time.monotonic()
    assert reason_of(sandbox, code, use, seconds=0.4) == "timeout"
    assert 0.4 <= time.monotonic() - began < 0.4 + GRACE


def test_a_program_that_catches_everything_is_ended_all_the_same(sandbox):
    code = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    assert reason_of(sandbox, code, seconds=0.3) == "timeout"


def test_one_answer_can_have_a_shorter_limit(sandbox):
    began = time.monotonic()
    slow = b"__import__('time').sleep(60)"
    assert reason_of(sandbox, "", lambda session: session.ask(slow, seconds=0.2)) == "timeout"
    assert time.monotonic() - began < 0.2 + GRACE


def test_many_slow_answers_together_meet_the_deadline_of_the_run(sandbox):
    def use(session):
        while True:
            session.ask(b"__import__('time').sleep(0.15)")

    began = time.monotonic()
    assert reason_of(sandbox, "", use, seconds=0.4) == "timeout"
    assert time.monotonic() - began < 0.4 + GRACE


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("use", [ask_one, lambda session: session.wait()], ids=["ask", "wait"])
def test_a_flood_of_output_ends_the_run(sandbox, stream, use):
    code = f"import sys\nwhile True: sys.{stream}.write('A' * 65536)"
    assert reason_of(sandbox, code, use) == "output limit"


def test_output_up_to_the_limit_is_kept(make_sandbox):
    with make_sandbox(limits=Limits(output_bytes=1000)) as sandbox:
        exact = "import sys\nsys.stdout.write('x' * {})\nsys.stdout.flush()\nlines = []"
        ended = run(sandbox, exact.format(1000), lambda session: session.wait())
        assert ended.stdout == b"x" * 1000
        more = exact.format(1001)
        assert reason_of(sandbox, more, lambda session: session.wait()) == "output limit"


@pytest.mark.parametrize("newline", [b"", b"\\n"], ids=["unended line", "whole line"])
def test_a_reply_over_the_limit_ends_the_run(make_sandbox, newline):
    code = f"connection.sendall(b'x' * 1001 + b'{newline.decode()}')\nconnection.recv(1)"
    with make_sandbox(limits=Limits(reply_bytes=1000)) as sandbox:
        assert reason_of(sandbox, "", lambda session: session.ask(b"'x' * 1001")) == "reply limit"
        assert (
            run(sandbox, "", lambda session: session.ask(b"'x' * 998")) == b"'" + b"x" * 998 + b"'"
        )
        assert reason_of(sandbox, code, seconds=1.0) in ("reply limit", "protocol")


def test_bytes_that_wait_before_the_request_are_refused(sandbox):
    def use(session):
        session.ask(b"lines.write(b'forged\\n')")
        return session.ask(b"2")

    assert reason_of(sandbox, "", use) == "protocol"


def test_a_child_that_does_not_read_its_requests_runs_out_of_time(sandbox):
    flood = b"1" * (4 << 20)
    began = time.monotonic()
    code = "import time\ntime.sleep(60)"
    assert reason_of(sandbox, code, lambda s: s.ask(flood), seconds=0.4) == "timeout"
    assert time.monotonic() - began < 0.4 + GRACE


def test_standard_input_is_fed_and_closed(sandbox):
    text = b"line\n" * 100_000

    def size(session):
        return session.ask(b"len(__import__('sys').stdin.buffer.read())")

    assert run(sandbox, "", size, stdin=text) == str(len(text)).encode()


def test_standard_input_that_nobody_reads_holds_nothing_up(sandbox):
    assert run(sandbox, "", ask_one, stdin=b"x" * (1 << 20)) == b"1"
    code = "import os\nos.close(0)\nlines = []"
    ended = run(sandbox, code, lambda session: session.wait(), stdin=b"x" * (1 << 20))
    assert ended.status == 0


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import os\nos._exit(7)", "exit status 7"),
        ("raise SystemExit(9)", "exit status 9"),
        ("import ctypes\nctypes.string_at(0)", "killed by signal 11"),
        ("raise ValueError('broken')", "ValueError: broken"),
    ],
    ids=["exit", "SystemExit", "crash", "exception"],
)
def test_a_death_is_told_with_its_cause(sandbox, code, detail):
    with pytest.raises(Ended, match="died") as caught:
        run(sandbox, code, ask_one)
    assert detail in caught.value.detail


def test_a_death_in_the_middle_of_an_answer_is_told_with_its_cause(sandbox):
    with pytest.raises(Ended, match="died: exit status 5"):
        run(sandbox, "", lambda session: session.ask(b"__import__('os')._exit(5)"))


def test_a_child_that_closes_its_descriptors_and_lives_on_is_ended(sandbox):
    code = "import os, time\nos.closerange(0, 64)\ntime.sleep(60)"
    began = time.monotonic()
    assert reason_of(sandbox, code) == "died"
    assert reason_of(sandbox, code, lambda session: session.wait(), seconds=0.3) == "timeout"
    assert time.monotonic() - began < 0.3 + 3 * GRACE


def test_garbage_on_every_descriptor_does_not_reach_the_next_run(sandbox):
    code = "import os\nfor fd in range(64):\n    try:\n        os.set_blocking(fd, False)\n"
    code += "        os.write(fd, b'\\x00\\xff garbage \\n' * 1000)\n    except OSError: pass"
    # Garbage that comes early breaks the protocol; garbage that comes late is a wrong answer.
    with contextlib.suppress(Ended):
        assert run(sandbox, code, ask_one) != b"1"
    assert run(sandbox, "", ask_one) == b"1"


def test_what_a_session_was_told_once_it_tells_again(sandbox):
    def use(session):
        with pytest.raises(Ended, match="timeout"):
            session.ask(b"1")
        session.ask(b"1")

    assert reason_of(sandbox, "while True: pass", use, seconds=0.2) == "timeout"


def test_two_runs_of_one_judge_are_separate_processes(sandbox):
    def judge(runner, item):
        with runner.start(b'"x = 1"') as one, runner.start(b'"x = 2"') as two:
            return [one.ask(b"x"), two.ask(b"x"), one.ask(b"x"), two.ask(b"x")]

    assert sandbox.map(judge, [None]) == [[b"1", b"2", b"1", b"2"]]


def test_a_request_or_a_job_with_a_newline_inside_is_refused(sandbox):
    with pytest.raises(ValueError, match="newline"):
        run(sandbox, "", lambda session: session.ask(b"1\n2"))
    with pytest.raises(ValueError, match="newline"):
        sandbox.map(lambda runner, item: runner.start(b"a\nb"), [None])


def test_a_job_of_a_megabyte_arrives(sandbox):
    code = f"x = {'1' * 10} #" + "y" * (1 << 20)
    assert run(sandbox, code, lambda session: session.ask(b"x")) == b"1111111111"


def test_the_least_memory_that_is_accepted_is_enough_for_a_small_program(make_sandbox):
    with make_sandbox(limits=Limits(memory_bytes=LEAST_MEMORY)) as sandbox:
        code = "import collections, json, re\nx = [n * n for n in range(10_000)]"
        assert run(sandbox, code, lambda session: session.ask(b"x[-1]")) == b"99980001"
