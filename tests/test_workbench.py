"""Scoring rows of a file without a model."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import pytest

from rewards import per_sample
from rewards.arithmetic import exact_answer
from rl4lm.data.rowfile import read_rows, write_rows
from rl4lm.errors import DataError, OutputError, RewardError, RewardFailedError
from rl4lm.rewarding.lookup import NamedReward
from rl4lm.workbench.bench import Bench, batch_of, examine, score_rows
from rl4lm.workbench.tallying import summarize_scores

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


def test_a_conversational_completion_is_scored_by_its_last_message():
    chat = [{"role": "assistant", "content": "2"}]
    (row,) = score_rows([{"prompt": "p", "completion": chat, "answer": "2"}], EXACT)
    assert row["reward"] == 1.0
    assert row["completion"] == chat


def test_a_summary_of_rows_without_a_reward_has_no_numbers():
    summary = summarize_scores([{"reward": None}])
    assert (summary["scored"], summary["none"]) == (0, 1)
    assert [summary[name] for name in ("mean", "std", "min", "max")] == [None] * 4


def test_rows_of_a_runs_log_have_the_columns_of_the_data_as_their_own(file):
    logged = {"prompt_id": "train-4", "sampling_logprob": -1.0, "prompt": "p", "completion": "2"}
    rows = [
        {**logged, "step": 1, "columns": {"answer": "2", "step": "of the data", "prompt": "other"}},
        {**logged, "step": 1, "columns": {"step": "of the data"}},  # a long answer, written once
        {**logged, "step": 1, "columns": {}, "prompt_id": "train-5"},
    ]
    first, second, other = read_rows(file("".join(json.dumps(row) + "\n" for row in rows)))
    assert first == second
    assert (first["answer"], first["step"], first["prompt"]) == ("2", "of the data", "p")
    assert "answer" not in other
    mine = {"prompt": "p", "completion": "2", "columns": {"answer": "2"}}  # no log's
    assert read_rows(file(json.dumps(mine))) == [mine]


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


SUMS = [
    {"prompt": "1+1=", "completion": text, "answer": "2"}
    for text in ("2", "3", "x", "2 ", "", "22")
]


def bench(*functions, **settings):
    """Functions that are called in this process, without a time limit."""
    named = [NamedReward(f"r{i}", function) for i, function in enumerate(functions)]
    return Bench(named, settings.pop("weights", [1.0] * len(named)), **settings)


def test_a_reward_that_says_the_same_twice_is_deterministic():
    checks = examine(bench(exact_answer), SUMS).checks
    assert checks["deterministic"] is True
    assert (checks["differing"], checks["alone"]) == ([], [])
    assert checks["depends_on_batch"] is False
    assert checks["failures"] == dict.fromkeys(("timeouts", "crashes", "retried", "masked"), 0)


def test_a_reward_that_draws_numbers_is_found_out_with_its_rows():
    draws = random.Random(0)
    checks = examine(
        bench(lambda completions, **k: [draws.random() for _ in completions]), SUMS
    ).checks
    assert checks["deterministic"] is False
    assert [row["row"] for row in checks["differing"]] == [1, 2, 3, 4, 5]
    assert all(row["first"] != row["again"] for row in checks["differing"])


def test_a_reward_that_compares_completions_depends_on_the_batch_and_is_deterministic():
    def rank(completions, **columns):
        return [float(sorted(completions).index(text)) for text in completions]

    checks = examine(bench(rank), SUMS).checks
    assert (checks["deterministic"], checks["depends_on_batch"]) == (True, True)
    assert {"row": 1, "first": 1.0, "again": 0.0} in checks["alone"]


def test_latency_is_that_of_calls_about_one_row_beside_one_call_about_all():
    def slow(completions, **columns):
        time.sleep(0.02)
        return [0.0] * len(completions)

    latency = examine(bench(slow), SUMS).checks["latency_s"]
    assert latency["calls_alone"] == 6
    assert 0.02 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert latency["call"] >= 0.02
    assert latency["per_row"] == latency["call"] / 6


def test_a_reward_that_needs_several_rows_has_no_time_for_one():
    def spread(completions, **columns):
        if len(completions) < 2:
            raise ValueError("two at least")
        return [0.0] * len(completions)

    latency = examine(bench(spread), SUMS).checks["latency_s"]
    assert (latency["p50"], latency["calls_alone"]) == (None, 0)
    assert latency["per_row"] > 0


def test_several_rewards_are_added_up_by_their_weights_and_told_apart():
    def length(completions, log_extra, **columns):
        log_extra("detail", [f"{len(text)} characters" for text in completions])
        return [float(len(text)) for text in completions]

    scored = examine(bench(exact_answer, length, weights=[1.0, 0.1]), SUMS).rows
    assert scored[3]["reward"] == pytest.approx(1.2)
    assert scored[3]["rewards"] == {"r0": 1.0, "r1": 2.0}
    assert scored[3]["r1/detail"] == "2 characters"
    assert scored[3]["r0/detail"] == "read 2, expected 2"


def test_what_a_reward_notes_is_written_where_the_row_has_no_such_column():
    def noting(completions, log_extra, **columns):
        log_extra("answer", ["mine"] * len(completions))
        log_extra("parsed", ["yes"] * len(completions))
        return [0.0] * len(completions)

    (row,) = examine(bench(noting), SUMS[:1]).rows
    assert (row["answer"], row["parsed"]) == ("2", "yes")


def test_rows_of_a_run_are_scored_again_as_they_are():
    logged = {
        "step": 3, "prompt_id": "train-0", "sample": 0, "prompt": "1+1=", "completion": "2",
        "prompt_ids": [1], "completion_ids": [5, 2], "reward": 0.0, "rewards": {"r0": 0.0},
        "advantage": -0.5, "sampling_logprob": -1.0, "truncated": False, "detail": "old",
    }  # fmt: skip
    seen = {}

    def counting(completions, completion_ids, **columns):
        seen.update(columns)
        return [float(len(ids)) for ids in completion_ids]

    (row,) = examine(bench(counting), [logged]).rows
    assert row == {**logged, "reward": 2.0, "detail": None}
    assert seen["advantage"] == [-0.5]


def test_a_reward_of_token_ids_is_refused_rows_without_them():
    def length(completions, completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    @per_sample
    def one_by_one(completion, completion_ids):
        return float(len(completion_ids))

    rows = [{**SUMS[0], "completion_ids": [5]}, SUMS[1]]
    for function in (length, one_by_one):
        with pytest.raises(DataError, match=r"row 2 has none.*--tokenizer NAME"):
            batch_of(bench(function), rows)
        made = batch_of(bench(function), rows, lambda texts: [[7, 7]] * len(texts))
        assert made.completion_ids == [[5], [7, 7]]
    assert batch_of(bench(exact_answer), rows).completion_ids == [[5], []]


def test_messages_of_a_completion_are_handed_over_as_they_are():
    seen = []

    def spy(completions, **columns):
        seen.extend(completions)
        return [0.0] * len(completions)

    chat = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    asked = [{"role": "user", "content": "?"}]
    rows = [("p", "text"), ("p", chat), (asked, "text"), (asked, chat)]
    batch_of(bench(spy), [{"prompt": p, "completion": c} for p, c in rows]).scored_by(
        bench(spy).scorer()
    )
    assert seen == ["text", chat, [{"role": "assistant", "content": "text"}], chat]


def test_a_reward_annotated_for_messages_gets_texts_as_messages():
    def reads(completions: list[list[dict[str, str]]], **columns):
        return [float(completion[0]["content"] == "2") for completion in completions]

    def either(completions: list[str] | list[list[dict[str, str]]], **columns):
        return [float(completion == "2") for completion in completions]

    for function in (reads, either):
        scored = examine(bench(function), SUMS).rows
        assert [row["reward"] for row in scored] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_a_reward_that_raises_is_masked_where_that_was_asked_for():
    @per_sample
    def inverse(completion):
        return 1.0 / len(completion)

    trial = examine(bench(inverse, on_error="mask"), SUMS)
    assert [row["reward"] is None for row in trial.rows] == [not row["completion"] for row in SUMS]
    assert trial.checks["failures"]["masked"] == 1
    with pytest.raises(RewardFailedError, match="ZeroDivisionError"):
        examine(bench(inverse), SUMS)


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_rows_are_read_from_tables_and_lists_too(ending, tmp_path):
    path = tmp_path / f"rows.{ending}"
    rows = [{"prompt": "1+1=", "completion": "two", "answer": "zwei"}] * 2
    if ending == "json":
        path.write_text(json.dumps(rows))
    else:
        import pandas

        frame = pandas.DataFrame(rows)
        frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    assert read_rows(path) == rows
    assert read_rows(path, most=1) == rows[:1]


def test_a_data_set_of_training_gives_rows_without_completions():
    rows = read_rows("builtin:arithmetic", required=["prompt"], split="test", most=3)
    assert [set(row) >= {"prompt", "answer"} for row in rows] == [True] * 3
    with pytest.raises(DataError, match=r"completion is missing.*--model NAME"):
        read_rows("builtin:arithmetic")


def test_the_prompts_may_have_another_columns_name(file):
    path = file('{"question": "q", "completion": "c", "answer": "a"}')
    assert read_rows(path, prompt_column="question") == [
        {"prompt": "q", "completion": "c", "answer": "a"}
    ]
    with pytest.raises(DataError, match="prompt is missing"):
        read_rows(path)


class Heard:
    """Notes what it is told of every stage: the last count."""

    def __init__(self):
        self.stages = {}

    def begin(self, what):
        self.what = what
        self.stages[what] = None

    def told(self, done, total):
        self.stages[self.what] = (done, total)


def test_who_watches_is_told_of_every_stage_and_of_rows_asked_about_alone():
    def raises_at_c(completions, **columns):
        if "c" in completions:
            raise ValueError
        return [1.0] * len(completions)

    rows = [{"prompt": "p", "completion": text} for text in "abcd"]
    heard = Heard()
    bench = Bench([NamedReward("r", raises_at_c)], [1.0], on_error="mask", stages=heard)
    examine(bench, rows)
    assert heard.stages == {
        "scoring 4 rows": (4, 4),  # one by one, since a call about all failed
        "scoring 4 rows again": (4, 4),
        "scoring rows one by one": (4, 4),
    }
    examine(replace(bench, stages=(quick := Heard())), rows[:2])
    assert quick.stages["scoring 2 rows"] is None  # one call, which nobody can look into
