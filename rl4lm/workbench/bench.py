"""Try rewards on rows of a file, as training would call them.

A row is a JSON object with `prompt`, `completion` and whatever columns the rewards read; it comes
back with `reward` and `detail` added and everything else as it was.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rl4lm.data.rowfile import REQUIRED, Row
from rl4lm.errors import DataError, RewardError, RewardFailedError
from rl4lm.rewarding.lookup import NamedReward, check_columns, resolve_rewards
from rl4lm.rewarding.unanswered import COUNTED
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.types import Example, Scores
from rl4lm.workbench.stages import NOBODY, Stages
from rl4lm.workbench.tallying import latencies

_IDS = "completion_ids"
_CONTEXT = RewardContext(0, 0, 0)
_TIMED_ROWS = 200  # rows asked about alone, for the time of each
_SHOWN = 5  # rows that differ, listed

Ids = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Bench:
    """Rewards, and how they are asked."""

    rewards: Sequence[NamedReward]
    weights: Sequence[float]
    timeout_s: float | None = 60.0
    on_error: Literal["raise", "mask"] = "raise"
    stages: Stages = NOBODY

    @classmethod
    def of(cls, *names: str, **settings: Any) -> Bench:
        """Rewards by their names, each with weight 1 unless `weights` says otherwise.

        Raises:
            RewardError: one does not resolve.
        """
        settings.setdefault("weights", [1.0] * len(names))
        return cls(resolve_rewards(names), **settings)

    def scorer(self, mask: bool = False) -> Scorer:
        """The rewards, ready to be asked; to be closed.

        Args:
            mask: leave a row at which a reward raises without this reward, whatever was chosen.
        """
        on_error = "mask" if mask else self.on_error
        told = self.stages.told
        # Not seeded: a reward that draws must show it, since its scores differ the second time.
        return Scorer(self.rewards, self.weights, self.timeout_s, on_error, told, seeded=False)

    @property
    def reads_ids(self) -> list[str]:
        """The names of the rewards that read token ids."""
        return [
            reward.name
            for reward in self.rewards
            # What a decorator such as `rewards.per_sample` wraps is what names them.
            if _IDS
            in inspect.signature(
                getattr(reward.function, "__wrapped__", reward.function)
            ).parameters
        ]


@dataclass(frozen=True)
class Batch:
    """Rows in the form in which rewards are asked about them."""

    examples: Sequence[Example]
    completions: Sequence[Any]  # texts or messages
    completion_ids: Sequence[Sequence[int]]

    def only(self, rows: Sequence[int]) -> Batch:
        """Some of the rows."""
        return Batch(
            [self.examples[i] for i in rows],
            [self.completions[i] for i in rows],
            [self.completion_ids[i] for i in rows],
        )

    def scored_by(self, scorer: Scorer) -> Scores:
        """What the rewards say."""
        return scorer(self.examples, self.completions, self.completion_ids, _CONTEXT)


def batch_of(bench: Bench, rows: Sequence[Row], ids: Ids | None = None) -> Batch:
    """The rows for the rewards; a row without `completion_ids` gets those that `ids` makes.

    Raises:
        DataError: a reward reads token ids, and there are none.
        RewardError: a reward needs a column that no row has.
    """
    named = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in named if name not in (*REQUIRED, _IDS)]
    check_columns(bench.rewards, columns)
    without = [i for i, row in enumerate(rows) if row.get(_IDS) is None]
    if without and bench.reads_ids and ids is None:
        raise DataError(
            f"the reward {bench.reads_ids[0]!r} reads completion_ids, and row {without[0] + 1} has "
            "none; give every row a list of them, or name what makes them of the text with "
            "--tokenizer NAME (a folder or hub id)"
        )
    made = iter(ids([_text(rows[i]["completion"]) for i in without]) if ids and without else [])
    found = [row.get(_IDS) for row in rows]
    return Batch(
        examples=[
            Example(str(i), row["prompt"], {n: row.get(n) for n in columns})
            for i, row in enumerate(rows, start=1)
        ],
        completions=[row["completion"] for row in rows],
        completion_ids=[next(made, []) if own is None else own for own in found],
    )


def _text(completion: Any) -> str:
    """A completion as text: itself, or the content of the last of its chat messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def score_rows(rows: Sequence[Row], *names: str) -> list[dict[str, Any]]:
    """The rows with `reward` (a float, or None where it does not apply) and `detail` added.

    Raises:
        RewardError: a reward does not resolve, needs a column that no row has, or returns
            something that is not a reward.
        RewardFailedError: it raised.
    """
    bench = Bench.of(*names)
    with bench.scorer() as scorer:
        return with_scores(rows, batch_of(bench, rows).scored_by(scorer))


def with_scores(rows: Sequence[Row], scores: Scores) -> list[dict[str, Any]]:
    """The rows with what was said of them.

    With several rewards also `rewards`, what each gave by its name, and its notes as `name/detail`.
    What else a reward noted is added where the row has no such column.
    """
    rewards = _values(scores)
    parts = {name: values.flatten().tolist() for name, values in scores.parts.items()}
    extra = {name: values for name, values in scores.extra.items() if name != "detail"}
    details = scores.extra.get("detail", [None] * len(rows))
    return [
        {
            **{name: values[i] for name, values in extra.items()},
            **row,
            "reward": rewards[i],
            **({"rewards": {n: _none(v[i]) for n, v in parts.items()}} if len(parts) > 1 else {}),
            "detail": details[i],
        }
        for i, row in enumerate(rows)
    ]


def _values(scores: Scores) -> list[float | None]:
    values = zip(scores.rewards.flatten().tolist(), scores.valid.flatten().tolist(), strict=True)
    return [value if applies else None for value, applies in values]


def _none(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Trial:
    """What came of asking rewards about rows."""

    rows: list[dict[str, Any]]  # scored
    checks: dict[str, Any] = field(default_factory=dict)  # for the summary


def examine(bench: Bench, rows: Sequence[Row], ids: Ids | None = None) -> Trial:
    """Score the rows twice as a step of training would, and then some of them one by one.

    Returns:
        The scored rows, and ``deterministic`` with ``differing`` (rows whose second score is
        another one), ``depends_on_batch`` with ``alone`` (the same for rows asked about alone),
        ``failures`` (rows by what happened), and ``latency_s`` (`_latency`). Rows that hang or
        crash the reward are asked about in the first round only.

    Raises:
        DataError, RewardError, RewardFailedError: as `score_rows`.
    """
    batch = batch_of(bench, rows, ids)
    with bench.scorer() as scorer:
        bench.stages.begin(f"scoring {len(rows):,} rows")
        scores = batch.scored_by(scorer)
        failures = count_failures(bench, scores)
        first = _values(scores)
        answered = [i for i in range(len(rows)) if i not in scores.lost]
        bench.stages.begin(f"scoring {len(answered):,} rows again")
        began = time.perf_counter()
        again = _values(batch.only(answered).scored_by(scorer)) if answered else []
        call = time.perf_counter() - began  # not the first, which has the worker's start in it
        bench.stages.begin("scoring rows one by one")
        alone, seconds = _one_by_one(scorer, batch, _spread(answered), bench.stages)
    differing = [
        _difference(i, first[i], value)
        for i, value in zip(answered, again, strict=True)
        if first[i] != value
    ]
    apart = [_difference(i, first[i], value) for i, value in alone.items() if first[i] != value]
    checks = {
        "deterministic": not differing,
        "differing": differing[:_SHOWN],
        "depends_on_batch": None if differing else bool(apart),
        "alone": apart[:_SHOWN],
        "failures": failures,
        "latency_s": _latency(seconds, call, len(answered)),
    }
    return Trial(with_scores(rows, scores), checks)


def _difference(row: int, first: float | None, again: float | None) -> dict[str, Any]:
    return {"row": row + 1, "first": first, "again": again}


def count_failures(bench: Bench, scores: Scores) -> dict[str, int]:
    """Rows at which a reward timed out, crashed, was asked again, or raised and was masked."""
    return {
        kind: int(sum(scores.metrics.get(f"rewards/{r.name}/{kind}", 0) for r in bench.rewards))
        for kind in COUNTED
    }


def _spread(rows: Sequence[int]) -> list[int]:
    """Some of the rows, from all over."""
    count = min(len(rows), _TIMED_ROWS)
    return [rows[i * len(rows) // count] for i in range(count)]


def _one_by_one(
    scorer: Scorer, batch: Batch, rows: Sequence[int], stages: Stages
) -> tuple[Mapping[int, float | None], list[float]]:
    """What rows earn alone, and the seconds each took; nothing of a reward that needs several."""
    values, seconds = {}, []
    for row in rows:
        began = time.perf_counter()
        try:
            (values[row],) = _values(batch.only([row]).scored_by(scorer))
        except (RewardError, RewardFailedError):
            return {}, []
        seconds.append(time.perf_counter() - began)
        stages.told(len(seconds), len(rows))
    return values, seconds


def _latency(alone: Sequence[float], call: float, rows: int) -> dict[str, Any]:
    """Seconds: percentiles over calls about one row alone, and one call about all the rows.

    `per_row` is that of the large call, which is how training asks a batch reward; where the reward
    cannot be asked about one row, the percentiles are null.
    """
    share = call / rows if rows else None
    return {**latencies(alone), "calls_alone": len(alone), "call": call, "per_row": share}
