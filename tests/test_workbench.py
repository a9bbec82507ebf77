"""Scoring rows of a file without a model."""

from __future__ import annotations

import json

import pytest

from rl4lm.errors import DataError, OutputError, RewardError, RewardFailedError
from rl4lm.rowfile import read_rows, write_rows
from rl4lm.workbench import score_rows, summarize_scores

EXACT = "rewards.arithmetic:exact_answer"


@pytest.fixture
def file(tmp_path):
    def write(text, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_rows_gain_a_reward_and_a_detail_and_keep_the_rest():
    rows = [
        {"prompt": "1+1=", "completion": "2", "answer": "2", "id": 7},
        {"prompt": "1+1=", "completion": "3", "answer": "2"},
        {"prompt": "1+1=", "completion": "3", "answer": None},
    ]
    scored = score_rows(rows, EXACT)
    assert scored[0] == {**rows[0], "reward": 1.0, "detail": "read 2, expected 2"}
    assert [row["reward"] for row in scored] == [1.0, 0.0, None]
    assert summarize_scores(scored) == {
        "rows": 3,
        "scored": 2,
        "none": 1,
        "mean": 0.5,
        "std": pytest.approx(0.5**0.5),
        "min": 0.0,
        "max": 1.0,
    }


def test_a_conversational_completion_is_scored_by_its_last_message():
    chat = [{"role": "assistant", "content": "2"}]
    (row,) = score_rows([{"prompt": "p", "completion": chat, "answer": "2"}], EXACT)
    assert row["reward"] == 1.0
    assert row["completion"] == chat


def test_a_summary_of_rows_without_a_reward_has_no_numbers():
    summary = summarize_scores([{"reward": None}])
    assert (summary["scored"], summary["none"]) == (0, 1)
    assert [summary[name] for name in ("mean", "std", "min", "max")] == [None] * 4


def test_lines_end_at_line_feeds_only(file):
    """JSON may hold other characters that Python takes for line ends, and so do completions."""
    texts = ["a\u2028b", "a\x85b", "a\u2029", "a\rb"]
    rows = [{"prompt": "p", "completion": text} for text in texts]
    dumped = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read_rows(file(dumped)) == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('\n\n{"prompt": 1\n', "line 3: not JSON"),
        (
            '{"prompt": "p", "completion": "c"}\n[1]\n',
            "line 2: .* prompt and completion is missing",
        ),
        ('{"prompt": "p"}', "line 1: .* and completion is missing"),
        ('{"completion": "c", "prompt": null}', "line 1: .* and prompt is missing"),
        ('{"prompt": "p", "completion": 3}', "line 1: the completion must be text .* got 3"),
        ('{"prompt": "p", "completion": []}', r"line 1: the completion must be text .* got \[\]"),
        ('{"prompt": "p", "completion": [{"role": "a"}]}', "line 1: the completion must be text"),
        ("", "has no rows"),
        ("\n \n", "has no rows"),
    ],
)
def test_a_line_that_is_no_row_is_refused_by_its_number(text, words, file):
    with pytest.raises(DataError, match=words):
        read_rows(file(text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match=f"--data '{path}' cannot be read"):
            read_rows(path)
    with pytest.raises(DataError, match=r"binary, line 1: not JSON: 'utf-8' codec"):
        read_rows(tmp_path / "binary")


def test_rewards_that_fail_fail_here_too(file):
    path = file(
        "def short(completions, **k): return []\n"
        "def broken(completions, **k): raise KeyError('gold')\n"
        "def needs(completions, gold, **k): return [0.0]\n",
        "mine.py",
    )
    rows = [{"prompt": "p", "completion": "c"}]
    with pytest.raises(RewardError, match="'short' returned 0 values for 1 completions"):
        score_rows(rows, f"{path}:short")
    with pytest.raises(RewardFailedError, match="'broken' raised KeyError"):
        score_rows(rows, f"{path}:broken")
    with pytest.raises(RewardError, match="'needs' needs the column 'gold'"):
        score_rows(rows, f"{path}:needs")


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "scored.jsonl"
    write_rows(path, [{"a": "é"}, {"a": None}])
    assert path.read_text(encoding="utf-8") == '{"a": "é"}\n{"a": null}\n'
    with pytest.raises(OutputError, match="cannot be written"):
        write_rows(path, [{"a": "b"}, {"a": "\ud800"}])
    assert path.read_text(encoding="utf-8") == '{"a": "é"}\n{"a": null}\n'
    with pytest.raises(OutputError, match="cannot be written"):
        write_rows(tmp_path / "nowhere" / "scored.jsonl", [])
