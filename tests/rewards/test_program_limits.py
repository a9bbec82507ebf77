"""Rewards for programs with limits of one's own."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest

from rewards.grading import shared_sandbox
from rewards.programs import unit_tests, unit_tests_share, with_limits
from rewards.sandbox import Limits

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
TESTS = {"kind": "call", "entry": "f", "tests": [{"args": [], "expected": 1}]}
SLEEPS = "import time\ndef f():\n    time.sleep(0.5)\n    return 1\n"
LARGE = "def f():\n    return len(bytearray(300 << 20)) and 1\n"


@linux_only
@pytest.mark.parametrize(
    ("program", "less", "told"),
    [
        (SLEEPS, Limits(seconds=0.2), "timeout: no end after 0.2 s"),
        (LARGE, Limits(memory_bytes=200 << 20), "MemoryError"),
    ],
    ids=["seconds", "memory"],
)
def test_a_program_has_the_limits_of_the_reward_that_runs_it(
    program: str, less: Limits, told: str
) -> None:
    details: dict[str, list[str]] = {}
    strict = with_limits(unit_tests, less)
    columns: dict[str, Any] = {"completions": [program], "tests": [TESTS]}
    assert strict(**columns, log_extra=details.__setitem__) == [0.0]
    assert told in details["detail"][0]
    assert unit_tests(**columns) == [1.0]  # which has its own again
    assert strict(**columns) == [0.0]


@pytest.mark.parametrize("reward", [unit_tests, unit_tests_share])
def test_it_is_the_same_reward_otherwise(reward: Any) -> None:
    limited = with_limits(reward, Limits(seconds=1))
    assert limited.__name__ == reward.__name__
    assert limited.per_sample is True
    assert limited.unfit({"tests": [TESTS, {}]}) == reward.unfit({"tests": [TESTS, {}]})
    assert inspect.signature(limited) == inspect.signature(reward)


def test_limits_and_isolation_reach_the_sandbox_and_equal_ones_share_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[dict[str, Any]] = []

    class Recorder:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def map(self, judge: Any, items: Any) -> list[Any]:
            raise InterruptedError

    monkeypatch.setattr(shared_sandbox, "Sandbox", Recorder)
    monkeypatch.setattr(shared_sandbox, "_sandboxes", {})
    for _ in range(2):
        for isolation in ("container", "sandbox"):
            with pytest.raises(InterruptedError):
                with_limits(unit_tests, Limits(seconds=7), isolation)(
                    completions=["x"], tests=[TESTS]
                )
    limits = Limits(seconds=7)
    assert made == [
        {"limits": limits, "isolation": "container"},
        {"limits": limits, "isolation": "sandbox"},
    ]
