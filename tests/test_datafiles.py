"""Files by name and by pattern: which splits they make, and what is refused before reading."""

from __future__ import annotations

import json

import datasets
import pytest

from rl4lm.data.columns import Shape
from rl4lm.data.datafiles import check_prompts, find_files
from rl4lm.data.examples import load_split
from rl4lm.data.sources import Access
from rl4lm.errors import DataError, MissingSplitError


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, **prompts):
    """A jsonl file with a prompt for each name, where __ stands for a folder."""
    for name, prompt in prompts.items():
        path = folder / (name.replace("__", "/") + ".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"prompt": prompt}) + "\n")


def prompts(name, split="train", **access):
    data = load_split(name, split, "prompt", access=Access(**access))
    return [example.prompt for example in data.examples(range(len(data)))]


def refusal(name, split="train", **access):
    with pytest.raises(DataError) as caught:
        prompts(name, split, **access)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pattern_reads_all_its_files_in_the_order_of_their_names(place):
    write(place, b="2", a="1", deep__c="3")
    assert prompts("*.jsonl") == ["1", "2"]
    assert prompts("**/*.jsonl") == ["1", "2", "3"]
    assert prompts(f"{place}/[ab].jsonl") == ["1", "2"]


def test_names_of_files_and_folders_make_splits(place):
    write(place, train_1="1", train_2="2", my_test="3", dev="4", deep__test__x="5")
    assert prompts("*.jsonl") == ["1", "2"]
    assert prompts("*.jsonl", "test") == ["3"]
    assert prompts("*.jsonl", "validation") == ["4"]
    assert prompts("deep/**/*.jsonl", "test") == ["5"]


def test_the_folder_that_a_pattern_begins_with_names_no_split(place):
    write(place, test_data__a="1")
    assert prompts("test_data/*.jsonl") == ["1"]
    write(place, contest="2", untrained="3")  # words within other words neither
    assert prompts("*t*e*.jsonl") == ["2", "3"]


def test_files_of_which_some_name_a_split_are_refused(place):
    write(place, train="1", extra="2")
    assert "train.jsonl, and 1 that do not, such as extra.jsonl" in refusal("*.jsonl")


def test_a_pattern_that_no_file_fits_says_what_was_looked_for(place):
    message = refusal("data/*.jsonl")
    assert message.startswith(f"no file fits the pattern 'data/*.jsonl' (looked in {place})")


def test_a_pattern_of_several_kinds_of_files_is_refused(place):
    write(place, train="1")
    (place / "test.csv").write_text("prompt\n2\n")
    assert "files of several kinds, such as test.csv and train.jsonl" in refusal("t*")


def test_a_folder_is_read_as_the_datasets_library_reads_it(place):
    write(place, d__train="1", d__test="2")
    assert (prompts("d"), prompts("d", "test")) == (["1"], ["2"])
    datasets.Dataset.from_list([{"prompt": "3"}]).save_to_disk(place / "saved")
    assert prompts("saved") == ["3"]


def test_a_broken_line_is_found_in_whichever_file_it_is(place):
    write(place, a="1")
    (place / "b.jsonl").write_text('{"prompt": "2"}\n{"pro')
    assert "b.jsonl: line 2 is not JSON" in refusal("*.jsonl")


@pytest.mark.parametrize(
    "content",
    ['[{"prompt": "1"}]', '{"prompt": "1"}\n', '{"data": [{"prompt": "1"}], "version": 2}'],
    ids=["a list", "an object to a line", "a list under data"],
)
def test_json_may_be_a_list_or_lines_or_an_object_with_data(place, content):
    (place / "a.json").write_text(content)
    assert prompts("a.json") == ["1"]


def test_rows_whose_column_is_called_data_stay_rows(place):
    (place / "a.json").write_text('{"data": [{"prompt": "x"}], "prompt": "1"}\n{"prompt": "2"}\n')
    assert prompts("a.json") == ["1", "2"]


def test_of_a_stream_only_the_first_rows_are_read(place):
    lines = "".join(json.dumps({"prompt": str(k)}) + "\n" for k in range(2000))
    (place / "a.jsonl").write_text(lines)
    assert prompts("a.jsonl", streamed_rows=3) == ["0", "1", "2"]
    assert len(prompts("a.jsonl", streamed_rows=9999)) == 2000
    with pytest.raises(MissingSplitError, match="has no split 'test'"):
        prompts("a.jsonl", "test", streamed_rows=3)


def test_numbers_of_a_csv_file_arrive_as_numbers_and_nothing_as_none(place):
    (place / "a.csv").write_text("prompt,n,x,t\na,1,2.5,hi\nb,2,,\n")
    data = load_split("a.csv", "train", "prompt")
    assert [e.columns for e in data.examples([0, 1])] == [
        {"n": 1, "x": 2.5, "t": "hi"},
        {"n": 2, "x": None, "t": None},
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "*.jsonl", "builtin:arithmetic"])
def test_only_folders_and_the_hub_have_configurations(place, name):
    write(place, a="1")
    assert "dataset_config=main asks for a configuration" in refusal(name, configuration="main")


ROW = '{"question": "1+1", "answer": "2"}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "question,answer\n1+1,2\n"),
        ("a.jsonl", f"{ROW}\n"),
        ("a.json", f"[{ROW}]"),
        ("a.json", f'{{"data": [{ROW}]}}'),
    ],
    ids=["csv", "jsonl", "json", "json with data"],
)
def test_columns_are_checked_before_anything_is_read(name, content, place):
    (place / name).write_text(content)
    check_prompts(f"{name[0]}*", "question", Shape(rename={"answer": "solution"}))
    for shape in (Shape(), Shape(rename={"promt": "prompt"}), Shape(template="{prompt}")):
        with pytest.raises(DataError, match=r"no column 'prom.*question, answer"):
            check_prompts(name, "prompt", shape)


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(place):
    write(place, **{"a[1]": "1", "a1": "2"})
    assert prompts("a[1].jsonl") == ["1"]


def test_the_settings_of_a_procedural_task_are_no_pattern_of_files(place):
    name = "reasoning_gym:leg_counting?max_animals=5&size=20"
    assert find_files(name) is None
    check_prompts(name, "prompt", Shape())


def test_folders_and_ids_of_the_hub_are_no_files(place):
    assert find_files("acme/sums") is None
    assert find_files(str(place)) is None
