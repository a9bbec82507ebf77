"""Rewards for the procedural tasks of `reasoning-gym`. Needs the extra `reasoning`.

    score    what the task's own grader gives, 0.0 to 1.0
    solved   1.0 where that is 1.0, else 0.0

Both read the column `entry` of a data set such as `reasoning_gym:leg_counting`. The graders run in
a process beside; one that takes more than `SECONDS` there has been given a wrong answer.
"""

from __future__ import annotations

from importlib.util import find_spec

from rewards.adapters import Graded, per_sample
from rewards.killable import Killable, Lost

MAX_CHARACTERS = 10_000  # of an answer
SECONDS = 5.0  # of processor time for one answer

_WORKER = Killable("rewards.puzzle_grading", SECONDS)


@per_sample
def score(completion: str, entry: str | None) -> Graded:
    """What the task's own grader gives the answer, from 0.0 to 1.0.

    The answer is what stands in the last `<answer>...</answer>`, or else the whole text; where
    there is a `</think>`, behind the last one. Where `entry` is `None` the reward does not apply.

    Gamed where a grader is: many pay a share for the right answer among other words, a hundredth
    for any answer at all, and `puzzle24` takes other numbers than the given ones. `solved` pays for
    no share. Source: arXiv:2505.24760.

    Raises:
        ImportError: the extra `reasoning` is not installed.
        RuntimeError: if the grader raises for the right answer too.
    """
    if entry is None:
        return Graded(None, "entry is None: does not apply")
    answer = final_text(completion)
    if not answer or len(answer) > MAX_CHARACTERS:
        return Graded(0.0, "no answer" if not answer else f"an answer of {len(answer)} characters")
    if find_spec("reasoning_gym") is None:
        raise ImportError(
            "rewards.puzzles needs the library reasoning-gym, which is not installed; "
            "install it by: pip install 'rl4lm[reasoning]'"
        )
    try:
        given, note = _WORKER.call("score", entry, answer)
    except Lost as lost:
        return Graded(0.0, f"read {answer!r:.60}; {lost}", lost=lost.kind)
    return Graded(given, f"read {answer!r:.60}" + (f"; {note}" if note else ""))


@per_sample
def solved(completion: str, entry: str | None) -> Graded:
    """1.0 where the task's own grader gives 1.0, else 0.0; all else as `score`.

    Gamed only where the grader takes a wrong answer for a right one.

    Raises:
        ImportError, RuntimeError: as `score`.
    """
    graded: Graded = score.__wrapped__(completion=completion, entry=entry)
    whole = None if graded.score is None else float(graded.score == 1.0)
    return Graded(whole, graded.detail, graded.lost)


for _reward in (score, solved):
    # The type of a function has no room for attributes.
    _reward.counts_lost = True  # type: ignore[attr-defined]
    _reward.seconds_per_sample = _WORKER.most_seconds  # type: ignore[attr-defined]


def final_text(completion: str) -> str:
    """The answer that a completion gives: in its last `<answer>...</answer>`, or all of it."""
    visible = completion.rpartition("</think>")[2]
    end = visible.rfind("</answer>")
    start = visible.rfind("<answer>", 0, max(end, 0))
    tagged = end >= 0 and start >= 0
    return visible[start + len("<answer>") : end].strip() if tagged else visible.strip()
