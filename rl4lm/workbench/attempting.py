"""Try rewards on the texts of `rl4lm.workbench.adversary`, and tell what earns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl4lm.data.rowfile import Row
from rl4lm.errors import RewardFailedError, first_line
from rl4lm.rewarding.unanswered import COUNTED
from rl4lm.scoring import Scorer
from rl4lm.workbench.adversary import KINDS, Kind, attempts
from rl4lm.workbench.bench import Bench, Ids, batch_of, count_failures, with_scores
from rl4lm.workbench.subjects import Subject, subjects

_SHOWN = 200  # characters of a text in a report
_LEFT_OUT = ("completion", "completion_ids")


@dataclass(frozen=True)
class _Tried:
    """The texts of a kind, scored."""

    kind: Kind
    places: Sequence[int]  # of the row that each was made for
    scored: Sequence[Mapping[str, Any]]
    failures: Mapping[str, int]
    failed: str | None  # why there is no answer about any
    seconds: float  # of the call


def try_tricks(
    bench: Bench,
    rows: Sequence[Row],
    *,
    threshold: float,
    answer_column: str | None = None,
    ids: Ids | None = None,
) -> dict[str, Any]:
    """Ask the rewards about texts that were made to earn reward.

    Args:
        bench: the rewards. Where one raises, the text is counted and no more.
        rows: with `prompt` and the columns of the rewards.
        threshold: a reward of at least that much counts as earned.
        answer_column: which holds the right answer; None for the usual names.
        ids: makes token ids of texts.

    Returns:
        ``kinds``: for each kind of text its group, texts, rows, how many earned (``earned``,
        ``share``), what they were paid (``mean``, ``max``), how many earned more than that row's
        wrong answer (``above_wrong``), the text that earned most (``worst``), ``failures``,
        ``seconds`` of the call, and in ``failed`` why there was no answer about any;
        ``exposed``: the names of the tricks that earn; ``answers``: forms of the right answer that
        earn; ``forms``: forms that earn with a wrong answer; ``wrong_answer``: what that is paid.

    Raises:
        DataError, RewardError: the rows do not fit the rewards.
        RewardFailedError: the rewards answer about no text at all.
    """
    seen = subjects(rows, answer_column)
    tried = []
    with bench.scorer(mask=True) as scorer:
        for number, kind in enumerate(KINDS, start=1):
            bench.stages.begin(f"trying texts, {number} of {len(KINDS)} kinds: {kind.name}")
            made = attempts(kind, seen)
            if made:
                tried.append(_tried(bench, scorer, kind, rows, made, ids))
    if all(each.failed or each.failures["masked"] == len(each.scored) for each in tried):
        raise RewardFailedError(f"no text could be scored: {_why(tried[0])}")
    wrong = _best_wrong(tried)
    kinds = [_told(each, seen, threshold, wrong) for each in tried]
    return {
        "rows": len(rows),
        "threshold": threshold,
        "wrong_answer": _mean([v for v in wrong.values() if v is not None]),
        "answers": _earning(kinds, "answer"),
        "forms": _earning(kinds, "form"),
        "exposed": _earning(kinds, "trick"),
        "kinds": kinds,
    }


def _tried(
    bench: Bench,
    scorer: Scorer,
    kind: Kind,
    rows: Sequence[Row],
    made: Sequence[tuple[int, str]],
    ids: Ids | None,
) -> _Tried:
    places = [place for place, _ in made]
    asked = [
        {**{n: v for n, v in rows[place].items() if n not in _LEFT_OUT}, "completion": text}
        for place, text in made
    ]
    batch, began, failed = batch_of(bench, asked, ids), time.perf_counter(), None
    failures = dict.fromkeys(COUNTED, 0)
    try:
        scores = batch.scored_by(scorer)
        asked, failures = with_scores(asked, scores), count_failures(bench, scores)
    except RewardFailedError as error:  # it answers about none: it hangs at each, for instance
        failed = first_line(error)
    return _Tried(kind, places, asked, failures, failed, time.perf_counter() - began)


def _why(tried: _Tried) -> str:
    return tried.failed or str(tried.scored[0]["detail"])


def _best_wrong(tried: Sequence[_Tried]) -> dict[int, float | None]:
    """What each row pays for a wrong answer: the most, where there are several."""
    best: dict[int, float | None] = {}
    for each in tried:
        if each.kind.group == "wrong" and not each.failed:
            for place, row in zip(each.places, each.scored, strict=True):
                best[place] = max(
                    (v for v in (best.get(place), row["reward"]) if v is not None), default=None
                )
    return best


def _told(
    tried: _Tried,
    seen: Sequence[Subject],
    threshold: float,
    wrong: Mapping[int, float | None],
) -> dict[str, Any]:
    """A line of the report."""
    told = {
        "kind": tried.kind.name,
        "group": tried.kind.group,
        "rows": len(set(tried.places)),
        "texts": len(tried.places),
        "failures": dict(tried.failures),
        "failed": tried.failed,
        "seconds": tried.seconds,
    }
    pairs = [] if tried.failed else list(zip(tried.places, tried.scored, strict=True))
    paid = [(place, row) for place, row in pairs if row["reward"] is not None]
    values = [row["reward"] for _, row in paid]
    earned = sum(value >= threshold for value in values)
    return {
        **told,
        "earned": earned,
        "share": earned / len(values) if values else None,
        "mean": _mean(values),
        "max": max(values, default=None),
        "above_wrong": sum(_exceeds(row["reward"], wrong.get(place)) for place, row in paid),
        "worst": _worst(max(paid, key=lambda pair: pair[1]["reward"]), seen) if paid else None,
    }


def _worst(pair: tuple[int, Mapping[str, Any]], seen: Sequence[Subject]) -> dict[str, Any]:
    place, row = pair
    return {
        "row": place + 1,
        "prompt": seen[place].prompt[:_SHOWN],
        "text": row["completion"][:_SHOWN],
        "length": len(row["completion"]),
        "reward": row["reward"],
        "detail": row["detail"],
    }


def _exceeds(reward: float, wrong: float | None) -> bool:
    return wrong is not None and reward > wrong


def _earning(kinds: Sequence[Mapping[str, Any]], group: str) -> list[str]:
    return [kind["kind"] for kind in kinds if kind["group"] == group and kind["earned"]]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
