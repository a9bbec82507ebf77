"""Prompts: what can be read, what is refused in which words, and the order of the stream."""

from __future__ import annotations

import json

import datasets
import pytest

from rl4lm.data.examples import PromptData, from_dataset, load_split, stream_indices
from rl4lm.errors import DataError, MissingSplitError

ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+5=", "answer": "7"}]


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def file(tmp_path):
    """Write a file of text or bytes and return its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def refusal(name, split="train", column="prompt"):
    with pytest.raises(DataError) as caught:
        list(load_split(name, split, column).prompts())
    return str(caught.value)


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_file_format_gives_the_same_examples(kind, tmp_path):
    path = tmp_path / f"rows.{kind}"
    table = datasets.Dataset.from_list([{"prompt": r["prompt"], "answer": "a"} for r in ROWS])
    if kind == "json":
        path.write_text(json.dumps(table.to_list()))
    else:
        {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[kind](path)
    data = load_split(str(path), "train", "prompt")
    assert data.columns == ("answer",)
    assert [(e.prompt_id, e.prompt, e.columns) for e in data.examples([1, 0])] == [
        ("train-1", "2+5=", {"answer": "a"}),
        ("train-0", "1+1=", {"answer": "a"}),
    ]


def test_rows_read_together_are_those_read_one_by_one():
    rows = [{"prompt": f"{k}", "x": [k, None], "y": {"z": k} if k % 2 else None} for k in range(9)]
    table = datasets.Dataset.from_list(rows)
    formatted = table.with_transform(lambda batch: {"prompt": batch["prompt"]})
    for data in (rows, table, formatted):
        split = from_dataset(data, "prompt", "train")
        for some in (split, split.only([7, 1, 4]), split.without([0]).only([5, 5, 2])):
            places = [2, 0, 1, 1]
            assert some.examples(places) == [some.example(place) for place in places]
            assert list(some.prompts()) == [some.example(k).prompt for k in range(len(some))]


def test_rows_from_python_may_be_a_list_or_a_dataset():
    for rows in (ROWS, datasets.Dataset.from_list(ROWS)):
        data = from_dataset(rows, "prompt", "train")
        assert len(data) == 2
        assert data.example(1).columns == {"answer": "7"}


def test_the_built_in_data_set_has_two_splits():
    assert len(load_split("builtin:arithmetic", "test", "prompt")) >= 500
    assert "answer" in load_split("builtin:arithmetic", "train", "prompt").columns


def test_another_column_can_hold_the_prompt(file):
    name = file("q.jsonl", jsonl([{"question": "1+1=", "prompt": 0}]))
    data = load_split(name, "train", "question")
    assert data.example(0).prompt == "1+1="
    assert data.columns == ("prompt",)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.jsonl", '{"prompt": "a"}\n{"prompt": \n', "cannot be read: JSON parse error"),
        ("empty.jsonl", "", "is empty"),
        ("blank.jsonl", "\n", "has no rows"),
        ("header.csv", "prompt,answer\n", "has no rows"),
        ("ragged.csv", "prompt\na\nb,c,d\n", "cannot be read: Error tokenizing data"),
        ("no.parquet", "text", "cannot be read: Parquet file size"),
        ("latin.jsonl", b'{"prompt": "\xff"}\n', "row 0 of split 'train' is not UTF-8"),
        ("notes.txt", "a", "is a .txt file; prompts are read from .jsonl, .json, .csv, .parquet"),
        ("number.jsonl", '{"prompt": 3}\n', "row 0 of split 'train': the prompt must be text or"),
        ("null.jsonl", '{"prompt": "a"}\n{"prompt": null}\n', "row 1 of split 'train': the prompt"),
        ("list.jsonl", '{"prompt": ["a"]}\n', "must be text or a list of"),
        ("none.jsonl", '{"prompt": []}\n', "must be text or a list of"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_in_words(name, content, words, file):
    message = refusal(file(name, content))
    assert words in message
    assert "\n" not in message


def test_a_missing_file_is_named_with_the_folder_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("rows.jsonl") == f"there is no file 'rows.jsonl' (looked in {tmp_path})"


def test_a_missing_prompt_column_names_those_there_are_and_the_nearest(file):
    message = refusal(file("typo.csv", "promt,answer\n1+1=,2\n"))
    assert "no column 'prompt'; did you mean promt?" in message
    assert "they have: promt, answer" in message
    assert "--prompt_column" in message


def test_a_missing_split_names_those_there_are(file):
    name = file("rows.jsonl", jsonl(ROWS))
    with pytest.raises(MissingSplitError, match=r"no split 'test'; it has: train.*--dataset_test"):
        load_split(name, "test", "prompt")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no rows"),
        (["1+1="], "must be mappings"),
        ({"train": ROWS}, r"pass one of them, such as data\['train'\]"),
        (iter(ROWS), "must be a datasets.Dataset or a list of rows"),
    ],
)
def test_rows_from_python_that_cannot_serve_are_refused(rows, words):
    with pytest.raises(DataError, match=words):
        from_dataset(rows, "prompt", "train")


def test_a_row_that_lacks_a_column_of_the_first_gives_none():
    data = PromptData([*ROWS, {"prompt": "3+3="}], "prompt", "train")
    assert data.example(2).columns == {"answer": None}


def test_the_stream_is_one_permutation_after_another():
    drawn = stream_indices(5, seed=3, start=0, count=20)
    epochs = [drawn[k : k + 5] for k in range(0, 20, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert drawn != stream_indices(5, seed=4, start=0, count=20)


def test_a_position_of_the_stream_does_not_depend_on_where_one_starts():
    whole = stream_indices(7, seed=1, start=0, count=30)
    assert [stream_indices(7, seed=1, start=k, count=1)[0] for k in range(30)] == whole
    assert stream_indices(7, seed=1, start=5, count=9) == whole[5:14]  # straddles two epochs


def test_a_step_may_ask_for_more_rows_than_there_are():
    assert sorted(stream_indices(2, seed=0, start=0, count=6)) == [0, 0, 0, 1, 1, 1]
