"""Try a reward on rows of a file, without any model.

A row is a JSON object with `prompt`, `completion` and whatever columns the reward reads; it comes
back with `reward` and `detail` added and everything else as it was.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl4lm.errors import DataError, OutputError
from rl4lm.reward_lookup import check_columns, resolve_rewards
from rl4lm.scoring import RewardContext, Scorer
from rl4lm.types import Example

Row = Mapping[str, Any]

_REQUIRED = ("prompt", "completion")
_IDS = "completion_ids"


def read_rows(path: Path) -> list[Row]:
    """Read a jsonl file of rows to score.

    Raises:
        DataError: no file, a line that is not a JSON object, a row without prompt or completion,
            or no rows; names the line.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise DataError(
            f"--data {str(path)!r:.100} cannot be read: {error}; name a jsonl file"
        ) from error
    rows = list(_parse(path, content.removeprefix(codecs.BOM_UTF8)))
    if not rows:
        raise DataError(f"--data {str(path)!r} has no rows; write one JSON object per line")
    return rows


def _parse(path: Path, content: bytes) -> Iterator[Row]:
    for number, encoded in enumerate(content.split(b"\n"), start=1):
        if not encoded.strip():
            continue
        try:
            line = encoded.decode("utf-8")
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a huge number
            raise DataError(
                f"{path}, line {number}: not JSON: {error}; write one JSON object per line, in "
                "UTF-8"
            ) from error
        missing = [n for n in _REQUIRED if not isinstance(row, dict) or row.get(n) is None]
        if missing:
            raise DataError(
                f"{path}, line {number}: a row must be a JSON object with prompt and completion, "
                f"and {' and '.join(missing)} is missing: {line[:100]}"
            )
        if not _is_completion(row["completion"]):
            raise DataError(
                f"{path}, line {number}: the completion must be text or a list of messages such as "
                f'{{"role": "assistant", "content": "text"}}, got {row["completion"]!r:.100}'
            )
        if not isinstance(row["prompt"], str | list):
            raise DataError(
                f"{path}, line {number}: the prompt must be text or a list of messages, got "
                f"{row['prompt']!r:.100}"
            )
        if not _is_ids(row.get("completion_ids")):
            raise DataError(
                f"{path}, line {number}: completion_ids must be a list of token ids, got "
                f"{row['completion_ids']!r:.100}"
            )
        yield row


def _is_ids(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, int) for v in value))


def _is_completion(value: Any) -> bool:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return isinstance(value[-1].get("content"), str)
    return isinstance(value, str)


def score_rows(rows: Sequence[Row], name: str) -> list[dict[str, Any]]:
    """The rows with `reward` (a float, or None where it does not apply) and `detail` added.

    Raises:
        RewardError: the reward does not resolve, needs a column that no row has, or returns
            something that is not a reward.
        RewardFailedError: it raised.
    """
    named = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in named if name not in (*_REQUIRED, _IDS)]
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


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as jsonl, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        temporary.replace(path)
    except (OSError, UnicodeEncodeError) as error:  # the latter: half of a surrogate pair
        with contextlib.suppress(OSError):  # it may never have been made
            temporary.unlink()
        raise OutputError(
            f"--out {str(path)!r} cannot be written: {error}; name a file in a folder that exists"
        ) from error
