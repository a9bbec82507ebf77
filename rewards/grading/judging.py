"""Judge a program: the parent's side of a run, where the expected values and the verdict are.

What the program's process sends is only ever compared with what was expected, so a program cannot
pass in another way than by answering rightly: it may forge any reply, but it does not know which.
A program that hangs, dies, floods its output or breaks the protocol has failed, and the verdict
says how. A sandbox that breaks is an exception, and so are tests that cannot be run.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from rewards.grading.assertions import count_asserts, tallied
from rewards.grading.comparison import matches
from rewards.grading.frames import BadReply
from rewards.grading.literal_asserts import as_calls
from rewards.grading.protocol import Failed, Program, answered, frame_line, program_job, raised
from rewards.grading.relay import NotBegun, Relay
from rewards.grading.task_forms import (
    AssertTask,
    CallTask,
    CallTest,
    StdioTask,
    StdioTest,
    Task,
    UnfitTask,
)
from rewards.grading.wording import clean, shown
from rewards.sandbox import Ended, Runner, Session


@dataclass(frozen=True)
class Submission:
    """A program, or the readings of a completion, and the task that it is to solve.

    `share`: every test is run, and the reward is the share of those that passed. This is a weaker
    reward: a constant often passes some tests.
    """

    program: Program
    task: Task
    share: bool = False


@dataclass(frozen=True)
class Verdict:
    """The reward, in [0, 1], how many of the tests are known to have passed, and why no more."""

    reward: float
    passed: int
    total: int
    reason: str


def judge(runner: Runner, submission: Submission) -> Verdict:
    """Run a program on the tests of its task.

    The reward is 1.0 if every test passed and 0.0 otherwise; with `submission.share` it is the
    share that passed. Without it the first failure ends the run.

    Raises:
        UnfitTask: the tests cannot be run, or there are none.
    """
    task = submission.task
    if isinstance(task, CallTask):
        passed, total, reason = _judge_calls(runner, submission, task)
    elif isinstance(task, StdioTask):
        passed, total, reason = _judge_prints(runner, submission, task)
    else:
        passed, total, reason = _judge_asserts(runner, submission, task)
    if total == 0:
        raise UnfitTask("no tests")
    reward = passed / total if submission.share else float(passed == total)
    tests = "the test" if total == 1 else f"all {total} tests"
    return Verdict(reward, passed, total, reason or f"passed {tests}")


def _judge_calls(runner: Runner, submission: Submission, task: CallTask) -> tuple[int, int, str]:
    passed, total, reason = 0, len(task.tests), ""
    number = 0
    try:
        with runner.start(program_job(submission.program, task.entry)) as session:
            for number, test in enumerate(task.tests):
                failure = _failure(session, number, test, task)
                passed += not failure
                if failure:
                    reason = reason or f"test {number + 1} of {total}: {failure}"
                    if not submission.share:
                        break
    except (Ended, BadReply) as error:
        reason = reason or f"test {number + 1} of {total}: {clean(str(error))}"
    return passed, total, reason


def _failure(session: Session, number: int, test: CallTest, task: CallTask) -> str:
    """Why a test failed; empty if it passed."""
    request = f'{{"n": {number}, "args": {test.args}, "kwargs": {test.kwargs}}}'
    line = session.ask(request.encode())
    # The bytes of the expected reply hold the expected value: most right answers end here.
    if line == f'{{"n": {number}, "ok": {test.expected}}}'.encode():
        return ""
    try:
        reply = answered(line, number)
    except Failed as failed:
        return str(failed)
    if "exc" in reply:
        return raised(reply)
    if matches(test.expected, reply["ok"], task.compare):
        return ""
    return f"returned {shown(reply['ok'])}, expected {shown(json.loads(test.expected))}"


def _judge_prints(runner: Runner, submission: Submission, task: StdioTask) -> tuple[int, int, str]:
    passed, total, reason = 0, len(task.tests), ""
    job = program_job(submission.program, None)
    for number, test in enumerate(task.tests, 1):
        hung = False
        try:
            failure = _print_failure(runner, job, test, task)
        except Ended as ended:
            failure, hung = str(ended), ended.reason == "timeout"
        passed += not failure
        if failure:
            reason = reason or f"test {number} of {total}: {clean(failure)}"
            # A program that hangs would take the time limit once for every test.
            if hung or not submission.share:
                break
    return passed, total, reason


def _print_failure(runner: Runner, job: bytes, test: StdioTest, task: StdioTask) -> str:
    with runner.start(job, stdin=test.stdin.encode()) as session:
        end = session.wait()
    if end.status != 0:
        return end.describe()
    if _printed(end.stdout, task) == _printed(test.stdout.encode(), task):
        return ""
    printed = end.stdout[:400].decode("utf-8", "backslashreplace")
    return f"printed {clean(repr(printed), 80)}, expected {clean(repr(test.stdout), 80)}"


def _printed(output: bytes, task: StdioTask) -> bytes | list[bytes]:
    if task.compare == "tokens":
        return output.split()
    return output.replace(b"\r\n", b"\n").rstrip(b"\n")


def _judge_asserts(
    runner: Runner, submission: Submission, task: AssertTask
) -> tuple[int, int, str]:
    calls = as_calls(task)
    if calls is not None:
        return _judge_calls(runner, submission, calls)
    try:
        return _asserted(runner, submission, task)
    except NotBegun:
        # A machine so busy that the tests' process does not get to its first call is no verdict.
        return _asserted(runner, submission, task)


def _asserted(runner: Runner, submission: Submission, task: AssertTask) -> tuple[int, int, str]:
    tests = tallied(task.tests)[0] if submission.share else task.tests
    nonce = secrets.token_hex(16)
    job: dict[str, Any] = {"kind": "tests", "nonce": nonce, "tests": tests, "setup": task.setup}
    job |= {"entry": task.entry, "call_check": task.call_check}
    total = count_asserts(task.tests)
    with (
        runner.start(program_job(submission.program, task.entry)) as program,
        runner.start(frame_line(job)) as grader,
    ):
        held, reason = Relay(program, grader, task.entry).outcome(nonce)
    if not reason:
        return total, total, ""
    return (min(held, total - 1) if submission.share else 0), total, reason
