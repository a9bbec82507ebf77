"""The run directory: everything a run leaves behind, written as it happens.

    config.yaml                    the resolved configuration, with layout and versions
    metrics.jsonl                  one line per optimizer step
    completions/step-NNNNNN.jsonl  the completions of a step
    eval.jsonl                     one line per evaluation
    evaluations/step-NNNNNN.jsonl  the completions of the evaluation after a step
    summary.json                   before, after, and what the run cost
    checkpoint-NNNNNN/             weights and the state of training after some steps
    unscored/step-NNNNNN.jsonl     completions of a step whose reward failed, ready to be scored
    model/                         the final weights, loadable with from_pretrained
    report.html                    all of it as a page to look at

Only the main process writes, but for `unscored`. Lines are flushed one by one, so that an
interrupted run loses none that were written. On a full disk lines wait in memory, and the run goes
on.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rl4lm.errors import OutputError, SaveError
from rl4lm.rundir import durable
from rl4lm.rundir.lines import LineFile, plain

_FILES = ("config.yaml", "metrics.jsonl", "eval.jsonl", "summary.json")
REPORT = "report.html"
_FOLDERS = ("completions", "evaluations", "unscored", "model*", "checkpoint-[0-9]*")
_PAGES = ("completions", "evaluations", "unscored")
_LOGS = ("metrics.jsonl", "eval.jsonl")
_CHECKPOINT = re.compile(r"checkpoint-(\d{6,})")
_PAGE = re.compile(r"step-(\d{6,})(-process-\d+)?\.jsonl")
_INVOCATION = {"resume_from_checkpoint": None, "resume_anyway": False}


class RunDirectory:
    """Writes the files of one run."""

    def __init__(self, path: Path, trouble: Callable[[str], None]) -> None:
        """Use a directory that `prepare_run_directory` has made.

        Args:
            path: of the directory.
            trouble: told when lines cannot be written, and wait.
        """
        self.path = path
        self._trouble = trouble
        self._logs: dict[Path, LineFile] = {}

    def write_config(self, values: Mapping[str, Any], layout: Mapping[str, Any]) -> None:
        """Write the resolved configuration, and the layout as comments above it.

        Comments, so that the file can be given back to ``--config`` as it stands; for the same
        reason it does not say what this start was resumed from.
        """
        lines = [f"# {name}: {value}" for name, value in layout.items()]
        plain_values = {**values, **_INVOCATION}
        options = yaml.safe_dump(plain_values, sort_keys=False, allow_unicode=True)
        text = "\n".join([*lines, options])
        _replace(self.path / "config.yaml", text)

    def log_step(self, metrics: Mapping[str, Any]) -> None:
        """Append a step's metrics."""
        self._append(self.path / "metrics.jsonl", [metrics])

    def log_eval(self, metrics: Mapping[str, Any]) -> None:
        """Append an evaluation."""
        self._append(self.path / "eval.jsonl", [metrics])

    def log_evaluated(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the completions of an evaluation; of two after one step, the weights are equal."""
        path = self.path / "evaluations" / f"step-{step:06d}.jsonl"
        self._logs.pop(path, None)
        path.unlink(missing_ok=True)
        self._append(path, rows)

    def log_completions(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the completions of a step."""
        self._append(self.path / "completions" / f"step-{step:06d}.jsonl", rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what the run came to."""
        _replace(self.path / "summary.json", json.dumps(plain(summary), indent=2) + "\n")

    def settle(self) -> None:
        """Have every line of the logs on the disk.

        Raises:
            SaveError: lines that had to wait still cannot be written.
        """
        for log in self._logs.values():
            log.settle()
        # Pages of completions are one per step, and never written again.
        self._logs = {path: log for path, log in self._logs.items() if path.name in _LOGS}

    def _append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        log = self._logs.setdefault(path, LineFile(path))
        try:
            log.append(rows)
        except OSError as error:  # a full disk, say
            self._trouble(
                f"{str(path)!r} cannot be written: {error}; its lines wait in memory until there "
                "is room"
            )
        else:
            if path.name not in _LOGS:
                del self._logs[path]


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps is kept."""
    return run / f"checkpoint-{step:06d}"


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by their number of steps, ascending; their files are not read."""
    named = [(_CHECKPOINT.fullmatch(path.name), path) for path in run.glob("checkpoint-*")]
    found = {int(match[1]): path for match, path in named if match and durable.is_sealed(path)}
    return dict(sorted(found.items()))


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
    try:  # by trying: the superuser has every right, and still cannot write to a read-only disk
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(
            f"output_dir {str(path)!r} cannot be made: {existing} is not writable ({error})"
        ) from error


def prepare_run_directory(path: Path, trouble: Callable[[str], None]) -> RunDirectory:
    """Make the directory, and remove an earlier run's files from it (and nothing else)."""
    try:
        for name in (*_FILES, REPORT):
            (path / name).unlink(missing_ok=True)
        for folder in [folder for name in _FOLDERS for folder in path.glob(name)]:
            if folder.is_dir():
                shutil.rmtree(folder)
        (path / "completions").mkdir(parents=True)
        (path / "evaluations").mkdir()
    except OSError as error:
        raise OutputError(f"output_dir {str(path)!r} cannot be written: {error}") from error
    return RunDirectory(path, trouble)


def reopen_run_directory(
    path: Path, step: int, evaluations: int, trouble: Callable[[str], None]
) -> RunDirectory:
    """Go on in the directory of a run: what was logged after a step is cut off.

    What a kill has left half written or half removed goes; its name tells. Later checkpoints are
    set aside under another name: the run may now take another course.

    Args:
        path: of the directory.
        step: steps that are kept.
        evaluations: how many are kept; after one and the same step there may be two.
        trouble: as of `RunDirectory`.
    """
    try:
        _keep_lines(path / "metrics.jsonl", lambda place, row: row["step"] <= step)
        _keep_lines(path / "eval.jsonl", lambda place, row: place < evaluations)
        for page in [page for name in _PAGES for page in path.glob(f"{name}/*.jsonl")]:
            number = _PAGE.fullmatch(page.name)
            if number and int(number[1]) > step:
                page.unlink()
        (path / "summary.json").unlink(missing_ok=True)
        for partial in path.glob("*" + durable.PARTIAL):
            shutil.rmtree(partial)
        for gone in path.glob("*" + durable.REMOVED):
            if _CHECKPOINT.fullmatch(gone.name.removesuffix(durable.REMOVED)):
                shutil.rmtree(gone)
        for saved in path.glob("checkpoint-*"):
            named = _CHECKPOINT.fullmatch(saved.name)
            if named and int(named[1]) > step:
                durable.set_aside(saved)
        for name in ("completions", "evaluations"):
            (path / name).mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"output_dir {str(path)!r} cannot be written: {error}") from error
    return RunDirectory(path, trouble)


def _keep_lines(path: Path, keep: Callable[[int, Mapping[str, Any]], bool]) -> None:
    """Keep some lines of a log, by place and content; one that a kill cut off goes anyway."""
    if not path.exists():
        return
    kept = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for place, line in enumerate(text.splitlines(keepends=True)):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and keep(place, row):
            kept.append(line)
    durable.replace_text(path, "".join(kept))


def write_unscored(run: Path, step: int, rank: int, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Keep the completions that a reward failed on, in the form that ``rl4lm score`` reads.

    Returns:
        The file.

    Raises:
        SaveError: it cannot be written.
    """
    path = run / "unscored" / f"step-{step:06d}-process-{rank}.jsonl"
    lines = [json.dumps(plain(row), ensure_ascii=False, default=str) + "\n" for row in rows]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace_text(path, "".join(lines))
    except OSError as error:
        raise SaveError(f"{str(path)!r} cannot be written: {error}") from error
    return path


def _replace(path: Path, text: str) -> None:
    """Write a whole file so that a reader never sees half of it."""
    try:
        durable.replace_text(path, text)
    except OSError as error:
        raise SaveError(f"{str(path)!r} cannot be written: {error}") from error
