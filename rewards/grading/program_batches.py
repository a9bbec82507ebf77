"""Score a batch of completions: rows to tasks, completions to programs, verdicts to rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.batches import check_lengths, completion_text
from rewards.grading.extraction import readings
from rewards.grading.judging import Submission, Verdict, judge
from rewards.grading.review import UnfitTask
from rewards.grading.row_tasks import Row, RowTask, rows_of
from rewards.grading.shared_sandbox import shared_sandbox
from rewards.sandbox import Runner

LogExtra = Callable[[str, list[Any]], None]


def scores(
    name: str,
    read: Callable[[Row], RowTask],
    completions: Sequence[Any],
    log_extra: LogExtra | None,
    columns: Mapping[str, Sequence[Any] | None],
    share: bool = False,
) -> list[float]:
    """The reward of each completion; the reasons go through `log_extra("detail", ...)`.

    Args:
        name: of the reward, for messages.
        read: how a row is read as a task.
        completions: texts, or lists of messages.
        log_extra: where the reasons go.
        columns: what tasks are read from; None for one that was not given.
        share: whether the reward is the share of the tests that pass.

    Raises:
        TypeError: a completion is no text and no messages, or a column is no list.
        ValueError: the tests of a row cannot be judged, or a column has another length.
    """
    given = {column: values for column, values in columns.items() if values is not None}
    check_lengths(name, given, len(completions))
    submissions = [
        _submission(name, read, number, row, completion, share)
        for number, (row, completion) in enumerate(zip(rows_of(given), completions, strict=True))
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
    text = completion_text(name, number, completion)
    try:
        found = read(row)
    except UnfitTask as reason:
        raise _refused(name, number, reason) from reason
    return Submission(readings(text, found.opening), found.task, share)
