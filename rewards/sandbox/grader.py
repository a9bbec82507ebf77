"""The tests' side of a run: test code in which the program's functions are stand-ins.

Each call of a stand-in becomes a frame to the judge, who has it answered by the program, in another
process. So the asserts compare plain values in a process that the program never touched.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from rewards.sandbox.child import Channel, Frame, compiled, described
from rewards.sandbox.values import NotPlain, TooLarge, decode, encode


class _Stopped(BaseException):
    """The program is gone: the tests end here."""


class _Unfit(BaseException):
    """A test hands a function something that cannot be sent."""


class _Tests:
    """Test code at work: the stand-ins, how often they were called, which asserts held."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.calls = 0
        self.passed: set[int] = set()
        self.failed: dict[int, BaseException] = {}

    def run(self, job: Frame) -> None:
        """Run the set-up, the tests, and `check` where there is one."""
        module = ModuleType("tests")
        sys.modules["tests"] = module
        namespace = vars(module)
        exec(compiled(job["setup"], "<setup>"), namespace)
        stand_in = namespace[job["entry"]] = self._stand_in(job["entry"])
        namespace["__passed__"] = self.passed.add
        namespace["__failed__"] = self.failed.__setitem__
        exec(compiled(job["tests"], "<tests>"), namespace)
        if job["call_check"]:
            namespace["check"](stand_in)
        if self.failed:
            raise next(iter(self.failed.values()))

    def _stand_in(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, args, kwargs)

        call.__name__ = call.__qualname__ = name
        return call

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            frame = {
                "n": self.calls,
                "args": [encode(value) for value in args],
                "kwargs": {key: encode(value) for key, value in kwargs.items()},
            }
        except TooLarge:
            raise
        except NotPlain as error:
            raise _Unfit(f"an argument of {name} is {error}") from None
        self._channel.send(frame)
        self.calls += 1
        reply = self._channel.receive()
        if reply is None or "stop" in reply:
            raise _Stopped("the program ended")
        if "exc" in reply:
            _raise_again(reply["exc"], reply["text"])
        return decode(reply["ok"])


def run_tests(job: Frame, channel: Channel) -> int:
    """Run the tests of a job and send the report; returns the exit status."""
    channel.receive()  # the word to begin
    tests = _Tests(channel)
    failed = None
    try:
        tests.run(job)
    except _Unfit as error:
        channel.send({"unfit": str(error)})
        return 0
    except BaseException as error:  # noqa: BLE001 - whatever a test ends with, it has failed
        failed = described(error, "<tests>")
    passed = len(tests.passed - set(tests.failed))
    report = {"report": job["nonce"], "calls": tests.calls, "passed": passed, "failed": failed}
    channel.send(report)
    return 0


def _raise_again(name: str, text: str) -> NoReturn:
    kind = getattr(builtins, name)
    if issubclass(kind, (StopIteration, StopAsyncIteration)):
        # Raised inside a `map` of the tests, it would end the loop, and the tests with it.
        raise RuntimeError(text)
    while True:
        try:
            error = kind(text)
        except TypeError:  # UnicodeDecodeError and a few others need more than a text
            kind = kind.__base__
            continue
        raise error
