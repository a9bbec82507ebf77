"""Score a batch of completions: rows to tasks, completions to programs, verdicts to rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rewards.grading.extraction import readings, text_of
from rewards.grading.judging import Submission, Verdict, judge
from rewards.grading.review import UnfitTask
from rewards.grading.row_tasks import Row, RowTask, rows_of
from rewards.grading.shared_sandbox import shared_sandbox
from rewards.sandbox import Runner

LogExtra = Callable[[str, list[Any]], None]


def batch_rows(
    completions: Sequence[Any], prompts: Sequence[Any] | None, **columns: Sequence[Any] | None
) -> list[Row]:
    """The rows of a batch.

    Raises:
        ValueError: a column is not as long as there are completions.
    """
    given = {"prompt": prompts, **columns}
    present = {name: values for name, values in given.items() if values is not None}
    for name, values in present.items():
        if len(values) != len(completions):
            raise ValueError(
                f"column {name!r} has {len(values)} values for {len(completions)} completions; "
                "expected one for each"
            )
    return rows_of(present)


def scores(
    name: str,
    read: Callable[[Row], RowTask],
    rows: Sequence[Row],
    completions: Sequence[Any],
    log_extra: LogExtra | None,
    share: bool = False,
) -> list[float]:
    """The reward of each completion; the reasons go through `log_extra("detail", ...)`.

    Args:
        name: of the reward, for messages.
        read: how a row is read as a task.
        rows: one for each completion.
        completions: texts, or lists of messages.
        log_extra: where the reasons go.
        share: whether the reward is the share of the tests that pass.

    Raises:
        TypeError: a completion is no text and no messages.
        ValueError: the tests of a row cannot be judged.
    """
    submissions = [
        _submission(name, read, number, row, completion, share)
        for number, (row, completion) in enumerate(zip(rows, completions, strict=True))
    ]
    verdicts = _verdicts(name, submissions)
    if log_extra is not None:
        log_extra("detail", [verdicts[submission].reason for submission in submissions])
    return [verdicts[submission].reward for submission in submissions]


def _verdicts(name: str, submissions: Sequence[Submission]) -> dict[Submission, Verdict]:
    """The verdict of each; equal programs on equal tasks are run once."""
    rows: dict[Submission, int] = {}  # the first row of each
    for row, submission in enumerate(submissions):
        rows.setdefault(submission, row)
    if not rows:
        return {}

    def judged(runner: Runner, submission: Submission) -> Verdict:
        try:
            return judge(runner, submission)
        except UnfitTask as reason:
            raise _refused(name, rows[submission], reason) from reason

    distinct = list(rows)
    return dict(zip(distinct, shared_sandbox().map(judged, distinct), strict=True))


def _refused(name: str, row: int, reason: UnfitTask) -> ValueError:
    return ValueError(f"reward {name}: row {row} cannot be judged: {reason}")


def _submission(
    name: str,
    read: Callable[[Row], RowTask],
    number: int,
    row: Row,
    completion: Any,
    share: bool,
) -> Submission:
    text = text_of(completion)
    if text is None:
        raise TypeError(
            f"reward {name}: completion {number} is {completion!r:.80}; expected a text, or "
            "messages such as [{'role': 'assistant', 'content': 'text'}]"
        )
    try:
        found = read(row)
    except UnfitTask as reason:
        raise _refused(name, number, reason) from reason
    return Submission(readings(text, found.opening), found.task, share)
