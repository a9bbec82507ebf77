"""The verb `rl4lm score`, from its command line to what it prints and writes."""

from __future__ import annotations

import json
import shutil

import pytest

from rl4lm.builtin import model_path
from rl4lm.cli import main
from rl4lm.screen import stages

EXACT = "rewards.arithmetic:exact_answer"
MINE = """
import ctypes, time
from rewards import per_sample

@per_sample
def hangs(completion, answer):
    while completion == "hang":
        time.sleep(1)
    return float(completion == answer) - 0.25

hangs.minimum = -1.0

@per_sample
def slow(completion, **columns):
    time.sleep(0.3)
    return 1.0

@per_sample
def crashes(completion, answer):
    return float(completion == answer) if completion != "crash" else ctypes.string_at(0)

def contains(completions, answer, **columns):
    return [float(a in c) for a, c in zip(answer, completions)]

def messages(prompts, completions, **columns):
    return [float(isinstance(p, str) == isinstance(c, str)) for p, c in zip(prompts, completions)]

def tokens(completions, completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.fixture
def score(folder, capsys):
    """Run the verb on rows; gives what it found, or the whole text without ``--json``."""

    def run(*words, rows=None, as_json=True):
        if rows is not None:
            text = "".join(json.dumps({"prompt": "1+1=", "answer": "2", **r}) + "\n" for r in rows)
            (folder / "rows.jsonl").write_text(text)
            words = (*words, "--data", "rows.jsonl")
        code = main(["score", *map(str, words), *(["--json"] if as_json else [])])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out) if as_json else printed.out

    return run


def written(folder):
    return [json.loads(line) for line in (folder / "scored.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("reward", "text", "counter", "least"),
    [
        ("hangs", "hang", "timeouts", -1.0),
        pytest.param("crashes", "crash", "crashes", 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_row_that_breaks_the_reward_scores_its_minimum_and_is_counted(
    reward, text, counter, least, score, folder
):
    rows = [{"completion": c} for c in ("2", text, "3")]
    limits = ["--reward_timeout_s", 1, "--out", "scored.jsonl"]
    found = score("--reward", f"mine.py:{reward}", *limits, rows=rows)
    assert found["failures"][counter] == 1
    assert found["failures"]["retried"] == 3
    assert found["min"] == least
    assert found["latency_s"]["calls_alone"] == 2  # not of the row that gives no answer
    row = written(folder)[1]
    assert row["reward"] == least
    assert f"scored {least:g}" in row["detail"]


def test_labels_give_a_confusion_matrix_and_every_row_its_agreement(score, folder):
    rows = [{"completion": "2", "label": True}, {"completion": "3", "label": 0}]
    rows += [{"completion": "two", "label": 1}, {"completion": "2"}]
    found = score("--reward", EXACT, "--out", "scored.jsonl", rows=rows)
    assert found["confusion"]["true_positive"] == found["confusion"]["true_negative"] == 1
    assert found["confusion"]["recall"] == 0.5
    assert [row["row"] for row in found["disagreements"]] == [3]
    assert [row["agrees"] for row in written(folder)] == [True, True, False, None]


def test_a_label_that_is_none_is_told_and_stops_nothing(score):
    found = score("--reward", EXACT, rows=[{"completion": "2", "label": "cat"}])
    assert found["mean"] == 1.0
    assert "'label' holds cat, neither true nor false" in found["label_problem"]
    assert "confusion" not in found


def test_a_weak_reward_is_exposed_and_that_is_no_failure(score):
    rows = [{"prompt": f"{a}+1=", "answer": str(a + 1)} for a in (41, 52, 63)]
    found = score("--reward", "mine.py:contains", "--adversarial", 2, rows=rows)
    assert found["adversarial"]["rows"] == 2
    assert {"guesses", "answer_denied"} <= set(found["adversarial"]["exposed"])
    assert "mean" not in found  # there are no completions


def test_what_is_shown_fits_eighty_columns(score):
    rows = [{"prompt": "x" * 90, "completion": c * 90, "label": 1} for c in "123\n"]
    text = score("--reward", "mine.py:contains", "--adversarial", rows=rows, as_json=False)
    assert "EARNED BY TRICKS: " in text
    assert "scored twice: every row earned the same" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_takes_long_tells_how_far_it_is_where_it_spoils_no_results(
    folder, capsys, monkeypatch
):
    monkeypatch.setattr(stages.Stages.__init__, "__defaults__", (0.05,))
    (folder / "rows.jsonl").write_text('{"prompt": "p", "completion": "2", "answer": "2"}\n')
    words = ["score", "--reward", "mine.py:slow", "--data", "rows.jsonl"]
    assert main(words) == 0
    assert "scoring 1 rows: 0:0" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    assert "scoring 1 rows: 0:0" in printed.err
    assert json.loads(printed.out)["scored"] == 1
    assert main([*words, "--json", "--quiet"]) == 0
    assert "scoring" not in capsys.readouterr().err


def test_a_quiet_score_leaves_the_rows_out_and_tells_what_they_come_to(score):
    rows = [{"completion": "a mark of its own 2"}]
    words = ["--reward", "mine.py:contains"]
    assert "a mark of its own" in score(*words, rows=rows, as_json=False)
    text = score(*words, "--quiet", rows=rows, as_json=False)
    assert "a mark of its own" not in text
    assert "mine.py:contains: 1 rows, mean reward 1.000" in text


def test_completions_are_sampled_first_where_a_model_is_named(score, folder):
    words = ["--reward", EXACT, "--data", "builtin:arithmetic", "--split", "test", "--samples", 4]
    words += ["--model", "builtin:tiny-arithmetic", "--num_generations", 3]
    found = score(*words, "--out", "scored.jsonl")
    rows = written(folder)
    assert (found["rows"], len(rows)) == (12, 12)
    assert [row["sample"] for row in rows] == [0, 1, 2] * 4
    for row in rows:
        assert row["reward"] == float(row["completion"].strip() == row["answer"])
        assert len(row["completion_ids"]) == len(row["completion"]) + (not row["truncated"])
    assert len({(row["prompt"], row["completion"]) for row in rows}) > 4  # drawn, not greedy
    score(*words, "--out", "again.jsonl")
    assert (folder / "again.jsonl").read_bytes() == (folder / "scored.jsonl").read_bytes()


def test_chat_prompts_are_rendered_for_the_model_and_told_as_messages(score, folder):
    from transformers import AutoTokenizer

    shutil.copytree(model_path("builtin:tiny-arithmetic"), folder / "chatty")
    tokenizer = AutoTokenizer.from_pretrained(folder / "chatty")
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder / "chatty")
    words = ["--reward", "mine.py:messages", "--num_generations", 2, "--max_completion_length", 6]
    words += ["--model", "chatty", "--out", "scored.jsonl"]
    asked = [{"role": "user", "content": "12+34="}]
    found = score(*words, rows=[{"prompt": asked}, {"prompt": "12+34="}])
    assert found["mean"] == 1.0  # every completion came as was to be expected
    rows = written(folder)
    assert [row["prompt"] for row in rows] == [asked, asked, "12+34=", "12+34="]
    assert [row["completion"] for row in rows[:2]] != [""] * 2


def test_completions_of_a_run_are_scored_as_the_run_scored_them(folder, score, capsys):
    small = ["--prompts_per_step", 4, "--max_steps", 1, "--eval_samples", 0, "--noise_every", 0]
    assert main(["train", "--output_dir", "run", *map(str, small), "--quiet"]) == 0
    capsys.readouterr()
    page = "run/completions/step-000001.jsonl"
    score("--reward", EXACT, "--data", page, "--out", "scored.jsonl")
    logged = [json.loads(line)["reward"] for line in (folder / page).read_text().splitlines()]
    assert [row["reward"] for row in written(folder)] == logged
    assert 0 < sum(logged) < len(logged)


def test_a_tokenizer_makes_the_ids_that_rows_lack(score, folder):
    rows = [{"completion": "22"}, {"completion": "1", "completion_ids": [1, 2, 3]}]
    words = ["--reward", "mine.py:tokens", "--tokenizer", "builtin:tiny-arithmetic"]
    score(*words, "--out", "scored.jsonl", rows=rows)
    assert [row["reward"] for row in written(folder)] == [2.0, 3.0]


def test_the_options_of_a_run_serve_but_for_its_rewards(score, folder):
    (folder / "run.yaml").write_text(
        "reward_funcs: [a:b, c:d]\nreward_weights: [1, 2]\nreward_timeout_s: 5\nmax_steps: 7\n"
    )
    rows = [{"completion": "2"}]
    assert score("--reward", EXACT, "--config", "run.yaml", rows=rows)["mean"] == 1.0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--reward mine.py:tokens", "--tokenizer NAME"),
        ("--reward mine.py:tokens --tokenizer ./nowhere", "no tokenizer could be read from"),
        (f"--reward {EXACT} mine.py:tokens --weights 1", "--weights has 1 values for 2 rewards"),
        (f"--reward {EXACT} {EXACT}", "names a reward twice"),
        (f"--reward {EXACT} --samples 0", "'0' given, expected a whole number >= 1"),
        (f"--reward {EXACT} --reward_timeout_s 0", "reward_timeout_s: '0' given"),
        (f"--reward {EXACT} --adversarial --answer_column anser", "did you mean answer"),
        (f"--reward {EXACT} --max_steps 3", "is an option of training"),
        (f"--reward {EXACT} --model nowhere/at/all", "no model could be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, told, folder, capsys):
    (folder / "rows.jsonl").write_text('{"prompt": "p", "completion": "2", "answer": "2"}\n')
    assert main(["score", *words.split(), "--data", "rows.jsonl"]) == 2
    assert told in capsys.readouterr().err


def test_there_is_nothing_to_write_of_rows_without_completions(folder, capsys):
    (folder / "rows.jsonl").write_text('{"prompt": "p", "answer": "2"}\n')
    words = ["--reward", EXACT, "--data", "rows.jsonl", "--adversarial", "--out", "scored.jsonl"]
    assert main(["score", *words]) == 2
    assert "'scored.jsonl' would hold no rows" in capsys.readouterr().err
