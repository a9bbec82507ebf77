"""Rewards for programs: a completion is run in the sandbox, on tests.

    unit_tests    a column `tests` in the form of `rewards.grading.task_forms`
    humaneval     the columns of HumanEval: `test`, `entry_point`, and the prompts
    mbpp          the columns of MBPP: `test_list`, and `test_setup_code` where there is one

Each gives 1.0 where every test passes and else 0.0, and says through `log_extra("detail", ...)` how
a completion failed. A program that hangs, dies or prints without end has failed.
`rewards.grading.extraction` says which part of a completion is the program.

`unit_tests_share`, `humaneval_share` and `mbpp_share` give the share of the tests that pass (of the
asserts, where the tests are code). That is a denser signal, and one that is easily gamed: a
function that always returns False passes half of many tests. Prefer the plain forms, or measure
with them.

What a test needs beyond plain data (see `rewards.sandbox.values`) cannot be judged: a function as
an argument, an object of a class, the identity of a result. `unit_tests.unfit(columns)` tells for
each row why not, or None where it can; calling a reward with such a row is a `ValueError`. A
sandbox that does not work on this machine is a `SandboxUnavailable`, never a score.

A run may take 5 s and 512 MiB (see `rewards.sandbox.Limits`). `with_limits` makes the same reward
with other limits, for a file of your own:

    from rewards.programs import unit_tests, with_limits
    from rewards.sandbox import Limits

    patient_tests = with_limits(unit_tests, Limits(seconds=20, memory_bytes=1 << 30))

and its name is then `path/to/file.py:patient_tests`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from rewards.grading.program_batches import LogExtra, scores
from rewards.grading.row_tasks import (
    Row,
    RowTask,
    humaneval_row,
    mbpp_row,
    unfit_reasons,
    unit_tests_row,
)
from rewards.grading.shared_sandbox import Settings, sandbox_settings
from rewards.sandbox import Limits
from rewards.sandbox.pool import Isolation

Columns = Mapping[str, Sequence[Any]]

_RUNS = 20  # of a completion, and more than most have: one per test where programs read and print


class ProgramReward(Protocol):
    """A batch reward for programs; its scores do not depend on the other completions."""

    __name__: str
    per_sample: bool
    seconds_per_sample: float  # that the sandbox leaves a completion at most, whoever waits for it
    unfit: Callable[[Columns], list[str | None]]

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Score every completion."""
        ...


def _program_reward(
    read: Callable[[Row], RowTask], *needed: str
) -> Callable[[Callable[..., list[float]]], ProgramReward]:
    """Declare what a reward needs: how a row is read as a task, from which columns."""

    def declared(function: Callable[..., list[float]]) -> ProgramReward:
        def unfit(columns: Columns) -> list[str | None]:
            """For each row why its tests cannot be judged; None where they can."""
            return unfit_reasons(reward.__name__, needed, read, columns)

        reward = cast(ProgramReward, function)
        reward.per_sample = True
        reward.seconds_per_sample = _RUNS * Limits().seconds
        reward.unfit = unfit
        return reward

    return declared


@_program_reward(unit_tests_row, "tests")
def unit_tests(
    *,
    completions: Sequence[Any],
    tests: Sequence[Any],
    prompts: Sequence[Any] | None = None,
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float]:
    """1.0 where the program passes all tests of its row, else 0.0.

    Args:
        completions: texts, or lists of messages.
        tests: for each row an object of the form of `rewards.grading.task_forms`, or its JSON text.
        prompts: where a prompt is code that begins the function, the completion goes on from it.
        log_extra: gets `detail`, a text for each completion.
        columns: what else the data has; not looked at.

    Raises:
        ValueError: the tests of a row cannot be judged; names the row and the reason.
        SandboxUnavailable: this machine cannot confine programs.
        SandboxFailed: the sandbox broke, and again when it was tried once more.
    """
    given = {"prompts": prompts, "tests": tests}
    return scores("unit_tests", unit_tests_row, completions, log_extra, given)


@_program_reward(unit_tests_row, "tests")
def unit_tests_share(
    *,
    completions: Sequence[Any],
    tests: Sequence[Any],
    prompts: Sequence[Any] | None = None,
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float]:
    """As `unit_tests`, but the share of the tests that pass; gameable by constants."""
    given = {"prompts": prompts, "tests": tests}
    return scores("unit_tests_share", unit_tests_row, completions, log_extra, given, share=True)


@_program_reward(humaneval_row, "prompt", "test", "entry_point")
def humaneval(
    *,
    completions: Sequence[Any],
    prompts: Sequence[Any],
    test: Sequence[str],
    entry_point: Sequence[str],
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float]:
    """1.0 where the program passes `check` of its row of HumanEval, else 0.0.

    A completion goes on from the prompt, or is a whole function, in fences or not. The rest is as
    for `unit_tests`.
    """
    given = {"prompts": prompts, "test": test, "entry_point": entry_point}
    return scores("humaneval", humaneval_row, completions, log_extra, given)


@_program_reward(humaneval_row, "prompt", "test", "entry_point")
def humaneval_share(
    *,
    completions: Sequence[Any],
    prompts: Sequence[Any],
    test: Sequence[str],
    entry_point: Sequence[str],
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float]:
    """As `humaneval`, but the share of the asserts that hold; gameable by constants."""
    given = {"prompts": prompts, "test": test, "entry_point": entry_point}
    return scores("humaneval_share", humaneval_row, completions, log_extra, given, share=True)


@_program_reward(mbpp_row, "test_list")
def mbpp(
    *,
    completions: Sequence[Any],
    test_list: Sequence[Sequence[str]],
    prompts: Sequence[Any] | None = None,
    test_setup_code: Sequence[str | None] | None = None,
    test_imports: Sequence[Sequence[str] | None] | None = None,
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float]:
    """1.0 where the program passes all tests of its row of MBPP, else 0.0.

    The function's name is the one that the tests call; tell the model by a test in the prompt, as
    is usual. `challenge_test_list` is not used. The rest is as for `unit_tests`.
    """
    setup = {"test_setup_code": test_setup_code, "test_imports": test_imports}
    given = {"prompts": prompts, "test_list": test_list, **setup}
    return scores("mbpp", mbpp_row, completions, log_extra, given)


@_program_reward(mbpp_row, "test_list")
def mbpp_share(
    *,
    completions: Sequence[Any],
    test_list: Sequence[Sequence[str]],
    prompts: Sequence[Any] | None = None,
    test_setup_code: Sequence[str | None] | None = None,
    test_imports: Sequence[Sequence[str] | None] | None = None,
    log_extra: LogExtra | None = None,
    **columns: Any,
) -> list[float]:
    """As `mbpp`, but the share of the asserts that hold; gameable by constants."""
    setup = {"test_setup_code": test_setup_code, "test_imports": test_imports}
    given = {"prompts": prompts, "test_list": test_list, **setup}
    return scores("mbpp_share", mbpp_row, completions, log_extra, given, share=True)


def with_limits(
    reward: ProgramReward,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    isolation: Isolation = "sandbox",
) -> ProgramReward:
    """The same reward with other limits of a run.

    Args:
        reward: one of this module.
        limits: of every run; a program that reads and prints is run once for each test.
        isolation: "container" where this whole process is in a throw-away container already, and
            the machine cannot confine programs further; see `rewards.sandbox.Sandbox`.
    """
    settings = Settings(limits, isolation)

    @functools.wraps(reward)
    def limited(*, completions: Sequence[Any], **columns: Any) -> list[float]:
        with sandbox_settings(settings):
            return reward(completions=completions, **columns)

    result = cast(ProgramReward, limited)
    result.seconds_per_sample = _RUNS * limits.seconds
    return result
