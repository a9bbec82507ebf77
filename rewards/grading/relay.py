"""Carry the calls that tests make to the program, and its results back."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any

from rewards.grading.frames import BadReply, checked, read_frame
from rewards.grading.protocol import Failed, answered, frame_line, is_number, raised
from rewards.grading.review import UnfitTask
from rewards.grading.wording import clean
from rewards.sandbox import Ended, Session

# What a stand-in may raise in the tests: what a `try` there can be meant to catch.
_EXCEPTIONS = frozenset(
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
)


class NotBegun(UnfitTask):
    """The tests ended before they called the function."""


class Relay:
    """Carries the calls of the tests to the program, and its results back."""

    def __init__(self, program: Session, grader: Session, entry: str) -> None:
        self._program, self._grader, self._entry = program, grader, entry
        self.calls = 0  # that the tests made
        self._failure = ""  # of the program itself

    def outcome(self, nonce: str) -> tuple[int, str]:
        """How many asserts held, where they are counted, and why the tests failed ("": passed).

        Raises:
            NotBegun: the tests ended before they called the function, and not by themselves.
            UnfitTask: they ended by themselves before that, or handed the function something that
                cannot be sent.
        """
        try:
            report = self._report()
            self._check(report, nonce)
        except (Ended, BadReply) as error:
            if not self.calls:
                raise NotBegun(f"the tests never call {self._entry}: {error}") from error
            return 0, f"the tests: {clean(str(error))}"
        failed = report["failed"]
        if not self.calls:
            raise UnfitTask(f"the tests never call {self._entry}: {clean(failed or 'they end')}")
        reason = "" if failed is None else f"failed: {clean(failed)}"
        return report["passed"], self._failure or reason

    def _report(self) -> dict[str, Any]:
        """What the tests end with."""
        message = b'{"begin": true}'
        while True:
            frame = read_frame(self._grader.ask(message))
            if "n" not in frame:
                return frame
            if set(frame) != {"n", "args", "kwargs"} or not is_number(frame["n"], self.calls):
                raise BadReply("a call that is no frame")
            self.calls += 1
            message = frame_line(self._reply(frame))

    def _check(self, report: Mapping[str, Any], nonce: str) -> None:
        if "unfit" in report:
            raise UnfitTask(f"the tests cannot be judged: {clean(str(report['unfit']))}")
        if report.get("report") != nonce or not is_number(report.get("calls"), self.calls):
            raise BadReply("a report that is not of this run")
        if type(report.get("passed")) is not int or not _is_text(report.get("failed", 0)):
            raise BadReply("a report that is no frame")

    def _reply(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """What the tests are told; `stop` where the program has no more to say."""
        number = self.calls - 1
        try:
            request = {"n": number, "args": checked(call["args"]), "kwargs": _keywords(call)}
            reply = answered(self._program.ask(frame_line(request)), number)
        except (Failed, Ended, BadReply) as error:
            return self._stop(str(error), number)
        if "exc" in reply and reply["exc"] not in _EXCEPTIONS:
            return self._stop(raised(reply), number)
        return {"n": number, **reply}

    def _stop(self, why: str, number: int) -> dict[str, Any]:
        # The first failure is the reason; tests that catch everything may go on to call again.
        self._failure = self._failure or f"call {number + 1}: {clean(why)}"
        return {"n": number, "stop": True}


def _keywords(call: Mapping[str, Any]) -> dict[str, Any]:
    pairs = call["kwargs"]
    if not isinstance(pairs, tuple):
        raise BadReply("a call that is no frame")
    return {key: checked(value) for key, value in pairs}


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)
