"""Read the log of a run so that its steps can be done again: whole, or refused with the place.

`runlog.py` reads the same files leniently, for looking at a run that may be broken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl4lm.errors import DataError

Row = Mapping[str, Any]

_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "prompt_id": str,
    "prompt": (str, list),
    "completion": str,
    "prompt_ids": list,
    "completion_ids": list,
    "truncated": bool,
    "reward": (int, float, type(None)),
}


def check_run(run: Path) -> None:
    """Refuse a folder that is no run.

    Raises:
        DataError: it has no configuration.
    """
    if not (run / "config.yaml").is_file():
        raise DataError(
            f"{str(run)!r} holds no run: there is no config.yaml; name the output_dir of a run"
        )


def read_metrics(path: Path) -> dict[int, Row]:
    """The metrics of each step.

    Raises:
        DataError: names the line that is none.
    """
    rows: dict[int, Row] = {}
    for place, row in _read_lines(path):
        if not isinstance(row.get("step"), int):
            raise _broken(path, place, "it has no step")
        rows[row["step"]] = row
    return rows


def read_completions(run: Path, step: int, group: int) -> list[Row]:
    """The completions that were drawn in a step, those of a prompt side by side.

    Args:
        run: the run directory.
        step: in which they were drawn.
        group: completions of a prompt.

    Raises:
        DataError: names the line that is none, or says that some are missing.
    """
    path = run / "completions" / f"step-{step:06d}.jsonl"
    rows: list[Row] = []
    for place, row in _read_lines(path):
        wrong = [n for n, kind in _FIELDS.items() if n not in row or not isinstance(row[n], kind)]
        if not wrong and not row["prompt_id"].rpartition("-")[2].isdecimal():
            wrong = ["prompt_id"]
        if wrong:
            raise _broken(path, place, f"its {wrong[0]} is missing or of another kind")
        rows.append(row)
    if not rows or len(rows) % group:
        raise DataError(
            f"{str(path)!r} holds {len(rows)} completions, expected a multiple of num_generations="
            f"{group}: some are missing; replay another step"
        )
    return rows


def check_ids(rows: Sequence[Row], vocabulary: int) -> None:
    """Refuse token ids that the model does not know.

    Raises:
        DataError: names the prompt.
    """
    for row in rows:
        for token in (*row["prompt_ids"], *row["completion_ids"]):
            if not isinstance(token, int) or not 0 <= token < vocabulary:
                raise DataError(
                    f"the log holds the token id {token!r} (prompt {row['prompt_id']}), expected "
                    f"ids below {vocabulary} of the run's model; replay another step"
                )


def _read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of each line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{str(path)!r} cannot be read: {error.strerror}; name a run whose log is whole"
        ) from error
    for place, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _broken(path, place, str(error)) from error
        if not isinstance(row, dict):
            raise _broken(path, place, "it is no JSON object")
        yield place, row


def _broken(path: Path, place: int, why: str) -> DataError:
    return DataError(
        f"{str(path)!r}, line {place} is not as a run writes it: {why}; drop a last line that "
        "breaks off, or name a run whose log is whole"
    )
