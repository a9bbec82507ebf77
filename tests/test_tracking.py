"""The run directory: what is written, and what is never written over."""

from __future__ import annotations

import errno
import json
import math
import tempfile
from pathlib import Path

import pytest
import yaml

from rl4lm.errors import OutputError, SaveError
from rl4lm.rundir.tracking import (
    check_run_directory,
    holds_a_run,
    prepare_run_directory,
    reopen_run_directory,
    write_unscored,
)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run(tmp_path):
    """A finished run's directory with a file in it that no run wrote."""
    directory = prepare_run_directory(tmp_path / "deep" / "run", pytest.fail)
    directory.write_config({"seed": 3, "stop_strings": ["é"]}, {"processes": 2})
    directory.log_step({"step": 1, "reward": 0.5})
    directory.log_completions(1, [{"completion": "é"}])
    (directory.path / "notes.txt").write_text("mine")
    (directory.path / "model").mkdir()
    return directory


def test_the_configuration_reads_back_with_the_layout_as_comments(run):
    text = (run.path / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith("# processes: 2\n")
    again = {"resume_from_checkpoint": None, "resume_anyway": False}
    assert yaml.safe_load(text) == {"seed": 3, "stop_strings": ["é"], **again}


def test_lines_are_on_disk_as_soon_as_they_are_written(run):
    run.log_step({"step": 2, "reward": None})
    assert lines(run.path / "metrics.jsonl") == [
        {"step": 1, "reward": 0.5},
        {"step": 2, "reward": None},
    ]
    run.log_completions(12, [{"a": 1}, {"a": 2}])
    assert lines(run.path / "completions" / "step-000012.jsonl") == [{"a": 1}, {"a": 2}]
    run.log_eval({"accuracy": 1.0})
    assert lines(run.path / "eval.jsonl") == [{"accuracy": 1.0}]


def test_what_json_cannot_say_is_null(run):
    run.log_step({"nan": math.nan, "deep": [{"inf": -math.inf}], "tuple": (1.0,)})
    assert lines(run.path / "metrics.jsonl")[-1] == {
        "nan": None,
        "deep": [{"inf": None}],
        "tuple": [1.0],
    }
    run.write_summary({"eval_after": {"reward": math.nan}})
    assert json.loads((run.path / "summary.json").read_text()) == {"eval_after": {"reward": None}}


def test_a_new_run_replaces_the_files_of_a_run_and_nothing_else(run):
    run.log_completions(7, [{}])
    prepare_run_directory(run.path, pytest.fail)
    left = sorted(p.name for p in run.path.rglob("*"))
    assert left == ["completions", "evaluations", "notes.txt"]
    assert (run.path / "notes.txt").read_text() == "mine"


def test_a_directory_that_holds_a_run_is_refused_unless_told_otherwise(run):
    with pytest.raises(OutputError, match=r"already holds a run.*--overwrite_output_dir"):
        check_run_directory(run.path, overwrite=False)
    check_run_directory(run.path, overwrite=True)
    assert lines(run.path / "metrics.jsonl")  # checking has removed nothing


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json", "completions"])
def test_any_trace_of_a_run_counts(name, tmp_path):
    assert not holds_a_run(tmp_path)
    (tmp_path / "other.txt").touch()
    check_run_directory(tmp_path, overwrite=False)
    (tmp_path / name).touch()
    assert holds_a_run(tmp_path)


def test_a_place_where_nothing_can_be_made_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OutputError, match="is a file; name a directory"):
        check_run_directory(file, overwrite=True)
    with pytest.raises(OutputError, match=f"cannot be made: {file} is a file"):
        check_run_directory(file / "below" / "run", overwrite=False)

    def refuses(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    with pytest.raises(OutputError, match=f"{tmp_path} is not writable"):
        check_run_directory(tmp_path / "run", overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_relative_directory_is_looked_at_from_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_run_directory(Path("runs/first"), overwrite=False)
    assert not (tmp_path / "runs").exists()


class FullDisk:
    """A disk with room for nothing, for as long as it is full."""

    def __init__(self, monkeypatch):
        self.full, self._open = True, Path.open
        monkeypatch.setattr(Path, "open", lambda path, *a, **k: self._opened(path, *a, **k))

    def _opened(self, path, mode="r", *args, **kwargs):
        file = self._open(path, mode, *args, **kwargs)
        if self.full and mode == "a":
            file.write('{"half a')  # as much as there was room for
            file.close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return file


def test_lines_wait_while_the_disk_is_full_and_none_is_lost_or_cut(tmp_path, monkeypatch):
    said = []
    run = prepare_run_directory(tmp_path / "run", said.append)
    run.log_step({"step": 1})
    disk = FullDisk(monkeypatch)
    run.log_step({"step": 2})
    run.log_step({"step": 3})
    assert lines(run.path / "metrics.jsonl") == [{"step": 1}]
    assert len(said) == 2
    assert "No space left on device" in said[0]
    assert "wait in memory" in said[0]
    with pytest.raises(SaveError, match=r"2 lines of .*metrics.jsonl' cannot be written"):
        run.settle()
    disk.full = False
    run.log_step({"step": 4})
    assert lines(run.path / "metrics.jsonl") == [{"step": k} for k in (1, 2, 3, 4)]
    run.settle()


def test_a_run_goes_on_from_a_step_and_later_traces_are_gone(run):
    for k in (2, 3):
        run.log_step({"step": k})
        run.log_completions(k, [{"a": k}])
    write_unscored(run.path, 3, 0, [{"prompt": "a"}])
    own = ("checkpoint-000002", "checkpoint-000003", "checkpoint-000004.partial")
    for name in (*own, "checkpoint-000001.removed", "mine.removed"):
        (run.path / name).mkdir()
    (run.path / "summary.json").write_text("{}")
    for k in (0, 2, 3, 3):
        run.log_eval({"step": k})
    reopen_run_directory(run.path, 2, 3, pytest.fail).log_step({"step": 3, "again": True})
    assert [row["step"] for row in lines(run.path / "eval.jsonl")] == [0, 2, 3]
    assert [row["step"] for row in lines(run.path / "metrics.jsonl")] == [1, 2, 3]
    pages = sorted(path.name for path in (run.path / "completions").iterdir())
    assert pages == ["step-000001.jsonl", "step-000002.jsonl"]
    left = {path.name for path in run.path.iterdir()}
    assert "checkpoint-000002" in left
    assert "checkpoint-000003.superseded" in left
    gone = {"checkpoint-000003", "checkpoint-000004.partial", "summary.json"}
    assert not left & {*gone, "checkpoint-000001.removed"}
    assert "mine.removed" in left
    assert not list(run.path.glob("unscored/*"))
    assert (run.path / "notes.txt").exists()
