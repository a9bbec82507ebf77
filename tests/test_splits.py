"""Which prompts are trained on and which evaluated on."""

from __future__ import annotations

import json

import datasets
import pytest

from rl4lm.config import ReinforceConfig
from rl4lm.data.examples import from_dataset
from rl4lm.data.splits import (
    HELD_OUT,
    evaluated_split,
    hold_out,
    overlap,
    split_rows,
    training_splits,
)
from rl4lm.errors import DataError, MissingSplitError


def data(texts):
    return from_dataset([{"prompt": text, "answer": ""} for text in texts], "prompt", "train")


def texts(split):
    return [example.prompt for example in split.examples(range(len(split)))]


NUMBERS = [f"{k}+{k}=" for k in range(1000)]
ROWS = [{"prompt": text} for text in NUMBERS[:4]]


def test_a_share_of_the_prompts_is_held_out_and_nothing_is_lost():
    rest, held = hold_out(data(NUMBERS), 0.2, seed=1)
    assert sorted(texts(rest) + texts(held)) == sorted(NUMBERS)
    # Binomial(1000, 0.2) has standard deviation sqrt(160) = 12.6; five of them.
    assert abs(len(held) - 200) < 5 * 12.6
    assert held.split == HELD_OUT
    assert held.example(0).prompt_id == "held_out-0"


def words_of(split):
    return {" ".join(text.split()) for text in texts(split)}


def test_equal_prompts_are_on_one_side_whatever_their_spaces():
    twins = data([text for n in NUMBERS for text in (f"is {n} so", f" is  {n}\nso ")])
    rest, held = hold_out(twins, 0.3, seed=0)
    assert not words_of(rest) & words_of(held)
    assert len(words_of(rest)) + len(words_of(held)) == 1000
    # The control: rows held out by their place put twins on both sides.
    places = range(0, len(twins), 3)
    assert words_of(twins.only(places)) & words_of(twins.without(places))


def test_the_choice_depends_on_seed_and_content_and_on_nothing_else():
    chosen = set(texts(hold_out(data(NUMBERS), 0.2, seed=1)[1]))
    assert set(texts(hold_out(data(NUMBERS[::-1]), 0.2, seed=1)[1])) == chosen
    more = texts(hold_out(data([*NUMBERS, "new", "newer"]), 0.2, seed=1)[1])
    assert set(more) - {"new", "newer"} == chosen
    assert set(texts(hold_out(data(NUMBERS), 0.2, seed=2)[1])) != chosen
    assert chosen < set(texts(hold_out(data(NUMBERS), 0.4, seed=1)[1]))


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(("share", "words"), [(1e-9, "a larger share"), (1 - 1e-9, "a smaller")])
def test_a_share_that_leaves_a_side_empty_is_refused(share, words):
    with pytest.raises(DataError, match=f"held_out_share={share} would hold out.*{words}"):
        hold_out(data(NUMBERS[:3]), share, seed=0)


def test_conversations_are_held_out_by_their_words():
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in NUMBERS * 2]
    rest, held = hold_out(from_dataset(rows, "prompt", "train"), 0.2, seed=1)
    assert overlap(rest, held) == 0


def splits(train, test=None, **options):
    rows = [[{"prompt": text} for text in side] if side else None for side in (train, test)]
    return training_splits(ReinforceConfig(**options), *rows)


def test_prompts_that_are_both_trained_and_evaluated_on_are_counted():
    (warning,) = splits(["a", "b c"], ["x", "b  c", "a", "y"]).warnings
    assert warning.startswith("2 of the 4 prompts that are evaluated on are training prompts too")
    assert splits(["a", "b"], ["c"]).warnings == []
    assert splits(["a"], ["a"], eval_samples=0).warnings == []
    assert "1 of the 1" in splits(["a"], ["a", "a"], eval_samples=1).warnings[0]


def test_the_first_rows_are_trained_on_where_a_limit_is_set():
    assert texts(splits(["a", "b", "c"], max_train_samples=2).train) == ["a", "b"]
    assert texts(splits(["a", "b", "c"], max_train_samples=9).train) == ["a", "b", "c"]


def test_held_out_prompts_are_evaluated_on_and_a_line_says_so():
    found = splits(NUMBERS, held_out_share=0.1, max_train_samples=100)
    assert found.evaluation is not None
    assert len(found.train) + len(found.evaluation) == 100
    assert found.notes == [
        f"{len(found.evaluation)} of the 100 rows of split 'train' are held out, and evaluated on"
    ]


def test_a_share_beside_a_split_to_evaluate_on_is_refused():
    with pytest.raises(DataError, match=r"held_out_share=0\.1 is for data without a split"):
        splits(NUMBERS, ["x"], held_out_share=0.1)


def test_evaluation_takes_the_prompts_that_training_held_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": text}) + "\n" for text in NUMBERS[:50]))
    config = ReinforceConfig(
        dataset_name=str(path), rename=["q=prompt"], held_out_share=0.3, prompt_template="{prompt}?"
    )
    trained = training_splits(config)
    assert texts(evaluated_split(config)) == texts(trained.evaluation)
    assert all(text.endswith("=?") for text in texts(trained.train))


def test_a_stream_is_read_as_far_as_each_split_needs_it(tmp_path):
    for name in ("train", "test"):
        lines = (json.dumps({"prompt": f"{name} {k}"}) for k in range(300))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    options = {"dataset_name": f"{tmp_path}/*.jsonl", "max_train_samples": 5, "eval_samples": 2}
    streamed = training_splits(ReinforceConfig(dataset_streaming=True, **options))
    assert texts(streamed.train) == [f"train {k}" for k in range(5)]
    assert texts(streamed.evaluation) == ["test 0", "test 1"]
    whole = training_splits(ReinforceConfig(**options))
    assert texts(whole.train) == texts(streamed.train)
    assert len(whole.evaluation) == 300
    # With what is held out, the same rows whether they were streamed or not.
    alone = {**options, "dataset_test_split": "none", "held_out_share": 0.5}
    halves = [training_splits(ReinforceConfig(dataset_streaming=s, **alone)) for s in (True, False)]
    assert texts(halves[0].evaluation) == texts(halves[1].evaluation)


def test_rows_keep_their_numbers_in_what_is_said_of_them():
    chosen = data(NUMBERS).only(range(500, 600)).without(range(7))
    assert chosen.number(0) == 507
    rows = [*({"prompt": "a"} for _ in range(3)), {"prompt": 5}]
    broken = from_dataset(rows, "prompt", "train").only([0, 3])
    with pytest.raises(DataError, match="row 3 of split 'train'"):
        broken.example(1)


def test_a_stream_from_python_is_read_as_far_as_the_limit():
    stream = datasets.Dataset.from_list(
        [{"prompt": text} for text in NUMBERS]
    ).to_iterable_dataset()
    limited = training_splits(ReinforceConfig(max_train_samples=5), stream)
    assert texts(limited.train) == NUMBERS[:5]
    with pytest.raises(DataError, match=r"got IterableDataset; of a stream.*max_train_samples"):
        training_splits(ReinforceConfig(), stream)


def test_the_column_of_conversations_is_named_where_it_stands_in_for_prompts():
    rows = [{"messages": [{"role": "user", "content": "hi"}]}]
    assert (
        "prompts are the conversations in the column 'messages'"
        in training_splits(ReinforceConfig(), rows).notes[0]
    )


def doubled(row):
    return {**row, "twice": 2 * row["answer"]}


def test_rows_are_made_anew_in_both_splits(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    for split, answers in {"train": (3, 4), "test": (5,)}.items():
        rows = [{"prompt": f"{answer}=", "answer": answer} for answer in answers]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    train, test = split_rows(ReinforceConfig(dataset_name=str(folder)), doubled)
    assert [row["twice"] for row in train] == [6, 8]
    assert test == [{"prompt": "5=", "answer": 5, "twice": 10}]


def test_of_a_file_with_one_split_no_rows_are_made_to_evaluate_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "3=", "answer": 3}) + "\n")
    named = {"dataset_name": str(path)}
    for given in ({}, {"dataset_test_split": None}):
        train, test = split_rows(ReinforceConfig(**named, **given), doubled)
        assert (len(train), test) == (1, None)
    # A split that was asked for by name is not passed over in silence.
    with pytest.raises(MissingSplitError, match="has no split 'validation'"):
        split_rows(ReinforceConfig(**named, dataset_test_split="validation"), doubled)


def test_several_data_sets_to_evaluate_on_come_by_name_and_the_first_is_the_main_one():
    some, more = ([{"prompt": f"{name}{i}"} for i in range(3)] for name in "ab")
    splits = training_splits(ReinforceConfig(), ROWS, {"easy": some, "hard": more})
    assert [example.prompt for example in splits.evaluation.examples([0])] == ["a0"]
    assert [example.prompt_id for example in splits.further["hard"].examples([2])] == ["hard-2"]
    assert splits.notes == [
        "numbers of evaluations without a name are those of 'easy'; others are hard/…"
    ]
    alone = training_splits(ReinforceConfig(), ROWS, {"easy": some})
    assert (alone.further, alone.notes) == ({}, [])
    assert training_splits(ReinforceConfig(), ROWS, some).further == {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "at least one name"),
        ({"": ROWS, "b": ROWS}, "got the names \\['', 'b'\\]"),
        ({"easy": {"test": ROWS}}, "one split is expected, got a mapping with test"),
        ({"prompt": ["a", "b"]}, "must be mappings"),
    ],
)
def test_a_mapping_that_names_no_data_sets_is_refused(given, told):
    with pytest.raises(DataError, match=told):
        training_splits(ReinforceConfig(), ROWS, given)
