"""Try a reward on rows of a file, without any model.

A row is a JSON object with `prompt`, `completion` and whatever columns the reward reads; it comes
back with `reward` and `detail` added and everything else as it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rl4lm.reward_lookup import check_columns, resolve_rewards
from rl4lm.rowfile import REQUIRED, Row
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.types import Example

_IDS = "completion_ids"


def score_rows(rows: Sequence[Row], name: str) -> list[dict[str, Any]]:
    """The rows with `reward` (a float, or None where it does not apply) and `detail` added.

    Raises:
        RewardError: the reward does not resolve, needs a column that no row has, or returns
            something that is not a reward.
        RewardFailedError: it raised.
    """
    named = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in named if name not in (*REQUIRED, _IDS)]
    rewards = resolve_rewards([name])
    check_columns(rewards, columns)
    examples = [
        Example(str(i), row["prompt"], {n: row.get(n) for n in columns})
        for i, row in enumerate(rows, start=1)
    ]
    texts = [_text(row["completion"]) for row in rows]
    ids = [row.get(_IDS) or [] for row in rows]  # a run's own log has them
    with Scorer(rewards, [1.0]) as scorer:
        scores = scorer(examples, texts, ids, RewardContext(0, 0, 0))
    details = scores.extra.get("detail", [None] * len(rows))
    values = zip(scores.rewards.flatten().tolist(), scores.valid.flatten().tolist(), strict=True)
    return [
        {**row, "reward": value if applies else None, "detail": detail}
        for row, (value, applies), detail in zip(rows, values, details, strict=True)
    ]


def _text(completion: Any) -> str:
    """A completion as text: itself, or the content of the last of its chat messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def summarize_scores(scored: Sequence[Row]) -> dict[str, Any]:
    """Rows, how many the reward applied to, and mean, spread and range of those."""
    values = [row["reward"] for row in scored if row["reward"] is not None]
    return {
        "rows": len(scored),
        "scored": len(values),
        "none": len(scored) - len(values),
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
    }
