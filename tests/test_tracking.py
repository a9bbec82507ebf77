"""The run directory: what is written, and what is never written over."""

from __future__ import annotations

import json
import math
import os

import pytest
import yaml

from rl4lm.errors import OutputError
from rl4lm.tracking import check_run_directory, holds_a_run, prepare_run_directory


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run(tmp_path):
    """A finished run's directory with a file in it that no run wrote."""
    directory = prepare_run_directory(tmp_path / "deep" / "run")
    directory.write_config({"seed": 3, "stop_strings": ["é"]}, {"processes": 2})
    directory.log_step({"step": 1, "reward": 0.5})
    directory.log_completions(1, [{"completion": "é"}])
    (directory.path / "notes.txt").write_text("mine")
    (directory.path / "model").mkdir()
    return directory


def test_the_configuration_reads_back_with_the_layout_as_comments(run):
    text = (run.path / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith("# processes: 2\n")
    assert yaml.safe_load(text) == {"seed": 3, "stop_strings": ["é"]}


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
    prepare_run_directory(run.path)
    left = sorted(p.name for p in run.path.rglob("*"))
    assert left == ["completions", "notes.txt"]
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
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(OutputError, match=f"{tmp_path} is not writable"):
        check_run_directory(tmp_path / "run", overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_relative_directory_is_looked_at_from_where_one_is(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    check_run_directory(Path("runs/first"), overwrite=False)
    assert not (tmp_path / "runs").exists()
