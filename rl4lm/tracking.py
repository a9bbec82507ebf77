"""The run directory: everything a run leaves behind, written as it happens.

    config.yaml                    the resolved configuration, with layout and versions
    metrics.jsonl                  one line per optimizer step
    completions/step-NNNNNN.jsonl  the completions of a step
    eval.jsonl                     one line per evaluation
    summary.json                   before, after, and what the run cost
    checkpoint-NNNNNN/             weights and the state of training after some steps
    model/                         the final weights, loadable with from_pretrained

Only the main process writes. Lines are flushed one by one, so that an interrupted run loses none
that were written.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rl4lm.errors import OutputError

_FILES = ("config.yaml", "metrics.jsonl", "eval.jsonl", "summary.json")
_FOLDERS = ("completions", "model", "checkpoint-[0-9]*")


class RunDirectory:
    """Writes the files of one run."""

    def __init__(self, path: Path) -> None:
        """Use a directory that `prepare_run_directory` has made."""
        self.path = path

    def write_config(self, values: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
        """Write the resolved configuration, and the layout as comments above it.

        Comments, so that the file can be given back to ``--config`` as it stands.
        """
        lines = [f"# {name}: {value}" for name, value in layout.items()]
        options = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
        text = "\n".join([*lines, options])
        _replace(self.path / "config.yaml", text)

    def log_step(self, metrics: Mapping[str, Any]) -> None:
        """Append a step's metrics."""
        _append(self.path / "metrics.jsonl", [metrics])

    def log_eval(self, metrics: Mapping[str, Any]) -> None:
        """Append an evaluation."""
        _append(self.path / "eval.jsonl", [metrics])

    def log_completions(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the completions of a step."""
        _append(self.path / "completions" / f"step-{step:06d}.jsonl", rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what the run came to."""
        _replace(self.path / "summary.json", json.dumps(plain(summary), indent=2) + "\n")


def holds_a_run(path: Path) -> bool:
    """Whether a directory already holds files that a run writes."""
    return any(list(path.glob(name)) for name in (*_FILES, *_FOLDERS))


def check_run_directory(path: Path, overwrite: bool) -> None:
    """Refuse a directory that holds a run, or that cannot be written.

    Raises:
        OutputError: says what is in the way and what to do.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"output_dir {str(path)!r} is a file; name a directory")
    if holds_a_run(path) and not overwrite:
        raise OutputError(
            f"output_dir {str(path)!r} already holds a run; choose another directory, or pass "
            "--overwrite_output_dir to replace that run"
        )
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise OutputError(f"output_dir {str(path)!r} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise OutputError(f"output_dir {str(path)!r} cannot be made: {existing} is not writable")


def prepare_run_directory(path: Path) -> RunDirectory:
    """Make the directory, and remove an earlier run's files from it (and nothing else)."""
    try:
        for name in _FILES:
            (path / name).unlink(missing_ok=True)
        for folder in [folder for name in _FOLDERS for folder in path.glob(name)]:
            if folder.is_dir():
                shutil.rmtree(folder)
        (path / "completions").mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"output_dir {str(path)!r} cannot be written: {error}") from error
    return RunDirectory(path)


def _append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    lines = [json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:  # a full disk, say
        raise OutputError(f"{str(path)!r} cannot be written: {error}") from error


def _replace(path: Path, text: str) -> None:
    """Write a whole file so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error}") from error


def plain(value: Any) -> Any:
    """The value with nan and infinities as null, which JSON can say."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
