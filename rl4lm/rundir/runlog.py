"""Read the files of a run that may be half written: what is broken is left out and named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rl4lm.errors import DataError
from rl4lm.rules.findings import Row, RunLog, Samples, digest, number

_PAGES = 40  # files of completions that are read, evenly spread over the run and its last ones


def read_run(run: Path) -> RunLog:
    """The log of a run, as much as there is of it.

    Args:
        run: a run directory; every one of its files may be missing, broken off or damaged, but not
            both config.yaml and metrics.jsonl missing.

    Raises:
        DataError: the directory holds no run.
    """
    if not run.is_dir():
        raise DataError(f"{str(run)!r} is no directory; name the output_dir of a run")
    if not any((run / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise DataError(
            f"{str(run)!r} holds no run: there is neither config.yaml nor metrics.jsonl in it"
        )
    damage: list[str] = []
    config, layout = _read_config(run / "config.yaml", damage)
    steps = _by_step(_read_lines(run / "metrics.jsonl", damage))
    samples = list(_read_samples(run / "completions", damage))
    evaluations = run / "eval.jsonl"
    return RunLog(
        config=config,
        layout=layout,
        steps=steps,
        samples=samples,
        evaluations=_read_lines(evaluations, damage) if evaluations.exists() else [],
        finished=_is_whole(run / "summary.json", damage),
        damage=damage,
    )


def _read_config(path: Path, damage: list[str]) -> tuple[Row, dict[str, str]]:
    """The options, and the comments above them."""
    text = _read_text(path, damage)
    if text is None:
        return {}, {}
    try:
        options = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        damage.append(f"{path.name} cannot be read ({str(error).splitlines()[0]})")
        return {}, {}
    if not isinstance(options, dict):
        damage.append(f"{path.name} holds no options")
        options = {}
    comments = [line[2:].partition(": ") for line in text.splitlines() if line.startswith("# ")]
    layout = {name: value for name, _, value in comments}
    return options, layout


def _read_lines(path: Path, damage: list[str]) -> list[Row]:
    """The rows of a jsonl file; lines that are none are left out and named."""
    text = _read_text(path, damage)
    lines = (text or "").split("\n")
    rows: list[Row] = []
    broken = []
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse(line)
        if row is None:
            broken.append(place)
        else:
            rows.append(row)
    if broken == [len(lines)]:
        damage.append(f"{path.name}: the last line ({broken[0]}) breaks off and was ignored")
    elif broken:
        damage.append(
            f"{path.name}: {len(broken)} lines are no rows and were ignored, the first is line "
            f"{broken[0]}"
        )
    return rows


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _read_text(path: Path, damage: list[str]) -> str | None:
    """The text of a file, with a mark where it is not UTF-8; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        damage.append(f"{path.name} cannot be read ({error.strerror or error})")
        return None


def _by_step(rows: list[Row]) -> list[Row]:
    """A row for each step, in order: of a step that was done again, the last one."""
    last = {step: row for row in rows if (step := number(row.get("step"))) is not None}
    return [last[step] for step in sorted(last)]


def _read_samples(folder: Path, damage: list[str]) -> Iterator[Samples]:
    pages = sorted(folder.glob("step-*.jsonl"))
    every = max(1, len(pages) // (_PAGES // 2))
    chosen = dict.fromkeys([*pages[::every][: _PAGES // 2], *pages[-_PAGES // 2 :]])
    for page in sorted(chosen):
        step = page.stem.partition("-")[2]
        yield digest(int(step) if step.isdecimal() else 0, _read_lines(page, damage))


def _is_whole(path: Path, damage: list[str]) -> bool:
    """Whether there is a summary that can be read."""
    if not path.exists():
        return False
    text = _read_text(path, damage)
    if text is None or _parse(text) is None:
        damage.append(f"{path.name} is no JSON object")
        return False
    return True
