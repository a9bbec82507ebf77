"""What an export is of: weights, and what is known of the run that made them; where it may go.

A run directory stands for its final weights. Files of a run that are missing or broken leave out
what they would have said; weights that are damaged are refused. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rl4lm.errors import ConfigError, DataError, OutputError
from rl4lm.rundir import durable
from rl4lm.rundir.tracking import checkpoint_path, checkpoints

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunFacts:
    """What the files of a run say of the weights after some step."""

    folder: Path
    config: Row = field(default_factory=dict)  # the options, as of config.yaml
    layout: Mapping[str, str] = field(default_factory=dict)  # the comments above them
    step: int | None = None  # optimizer steps that made the weights
    before: Row = field(default_factory=dict)  # evaluations; empty where there was none
    after: Row = field(default_factory=dict)
    summary: Row = field(
        default_factory=dict
    )  # of a finished run, where these are its last weights

    def given_in_python(self, name: str) -> str | None:
        """What was handed over as an object instead of being named by an option."""
        return self.layout.get(f"{name} given in Python")


@dataclass(frozen=True)
class ExportSource:
    """Weights to export."""

    name: str  # as the user gave it
    weights: str  # a folder, a hub id or a built-in name, for `open_model`
    run: RunFacts | None  # None where no run is known to have made them


def find_source(name: str, checkpoint: int | None = None) -> ExportSource:
    """Find the weights, and the run that they are of.

    Args:
        name: a run directory, a checkpoint or ``model`` in one, or any model's name or folder.
        checkpoint: the step of a checkpoint of a run directory.

    Raises:
        DataError: no such checkpoint, a damaged one, or a run without weights.
        ConfigError: a checkpoint asked for where there is no run.
    """
    path = Path(name)
    if _is_run(path):
        return ExportSource(name, *_of_run(path, checkpoint))
    if checkpoint is not None:
        raise ConfigError(
            f"checkpoint={checkpoint} is one of a run, and {name!r} is no run directory (there is "
            "no config.yaml in it); name the output_dir of a run, or leave --checkpoint out"
        )
    if (path / durable.MANIFEST).is_file():
        return ExportSource(name, str(path), _of_checkpoint(path))
    if path.name == "model" and _is_run(path.parent):
        return ExportSource(name, str(path), _of_results(path.parent))
    return ExportSource(name, name, None)


def run_of(folder: str) -> RunFacts | None:
    """The run that made the weights in a folder, None where it is not known."""
    try:
        return find_source(folder).run
    except (DataError, OSError):
        return None


def _is_run(path: Path) -> bool:
    try:
        return (path / "config.yaml").is_file()
    except OSError:  # a name that is too long
        return False


def _of_run(run: Path, checkpoint: int | None) -> tuple[str, RunFacts]:
    saved = checkpoints(run)
    if checkpoint is not None:
        if checkpoint not in saved:
            there = ", ".join(map(str, saved)) or "none"
            raise DataError(
                f"{str(run)!r} has no complete checkpoint of step {checkpoint} (there are: {there})"
            )
        path = checkpoint_path(run, checkpoint)
        return str(path), _of_checkpoint(path)
    if (run / "model").is_dir():
        return str(run / "model"), _of_results(run)
    raise DataError(
        f"{str(run)!r} has no final weights: the run has not ended"
        + (f"; --checkpoint {max(saved)} exports its newest checkpoint" if saved else "")
    )


def _of_results(run: Path) -> RunFacts:
    config, layout = _read_config(run)
    summary = _read_json(run / "summary.json")
    return RunFacts(
        folder=run,
        config=config,
        layout=layout,
        step=summary.get("steps"),
        before=summary.get("eval_before") or {},
        after=summary.get("eval_after") or {},
        summary=summary,
    )


def _of_checkpoint(path: Path) -> RunFacts:
    try:
        facts = durable.read_sealed(path)
    except durable.DamagedError as error:
        raise DataError(f"the checkpoint {str(path)!r} cannot be used: {error}") from error
    run, step = path.parent, facts.get("step")
    config, layout = _read_config(run)
    evaluations = _read_lines(run / "eval.jsonl")
    return RunFacts(
        folder=run,
        config=facts.get("config") or config,
        layout=layout,
        step=step,
        before=next((row for row in evaluations if row.get("step") == 0), {}),
        after=next((row for row in reversed(evaluations) if row.get("step") == step), {}),
    )


def _read_config(run: Path) -> tuple[Row, dict[str, str]]:
    """The options of a run, and the comments above them."""
    try:
        text = (run / "config.yaml").read_text(encoding="utf-8")
        options = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}, {}
    comments = [line[1:].partition(":") for line in text.splitlines() if line.startswith("#")]
    layout = {name.strip(): value.strip() for name, _, value in comments}
    return (options if isinstance(options, dict) else {}), layout


def _read_json(path: Path) -> Row:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_lines(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict)]


def check_place(out: Path, weights: str, overwrite: bool) -> None:
    """Refuse a folder that is not ours to replace, before anything is read.

    Raises:
        OutputError: it exists and may not go, or it holds what is to be exported.
    """
    try:
        there = out.exists()
    except OSError as error:  # a name that is too long
        raise OutputError(f"out {str(out)!r:.100} cannot be used: {error.strerror}") from error
    if _is_of_a_run(out) or _holds(out, weights):
        raise OutputError(
            f"out {str(out)!r} is of a run, or holds what is exported; name another folder"
        )
    if not there:
        return
    if not out.is_dir():
        raise OutputError(f"out {str(out)!r} is a file; name a folder")
    if not any(out.iterdir()):
        return
    if not any((out / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise OutputError(
            f"out {str(out)!r} holds other things than a model; name another folder, or one that "
            "is not there yet"
        )
    if not overwrite:
        raise OutputError(
            f"out {str(out)!r} already holds a model; name another folder, or pass "
            "--overwrite_output_dir to replace it"
        )


def _is_of_a_run(out: Path) -> bool:
    """Whether a place is a run directory, or has a name that a run gives to folders in it."""
    beside = (out.parent / "config.yaml").is_file()
    owned = beside and out.name.startswith(("model", "checkpoint-", "completions", "unscored"))
    return owned or any((out / name).exists() for name in ("config.yaml", durable.MANIFEST))


def _holds(out: Path, weights: str) -> bool:
    place = Path(weights).resolve()
    return place.exists() and out.resolve() in (place, *place.parents)
