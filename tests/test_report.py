"""What a report page holds: made of the files of runs, whatever state they are in."""

from __future__ import annotations

import base64
import gzip
import json
import re

import pytest
from made_runs import GROUP, make_run

from rl4lm.errors import ConfigError, DataError, OutputError
from rl4lm.report.completions import read_completions
from rl4lm.report.curves import columns, figures
from rl4lm.report.page import render
from rl4lm.report.payload import payload
from rl4lm.report.picture import draw
from rl4lm.report.write import watch, write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("report") / "first")


def only(found):
    (run,) = found["runs"]
    return run


def test_all_completions_are_there_where_a_page_has_room(run):
    found = read_completions(run, {}, most=1000)
    assert found["rows"] == 12 * 4 * GROUP
    assert found["steps"] == found["logged_steps"] == 12
    held = found["columns"]
    logged = [
        json.loads(line)
        for page in sorted((run / "completions").iterdir())
        for line in page.read_text().splitlines()
    ]
    assert [held["prompts"][place] for place in held["prompt"]] == [r["prompt"] for r in logged]
    assert held["text"] == [row["completion"] for row in logged]
    assert held["reward"] == [row["reward"] for row in logged]
    assert held["parts"]["short"] == [row["rewards"]["short"] for row in logged]
    assert held["detail"] == [f"right/detail: {row['right/detail']}" for row in logged]
    for place, row in enumerate(logged):
        span = slice(held["starts"][place], held["starts"][place + 1])
        assert held["tokens"][span] == row["completion_ids"]
        assert held["hundredths"][span] == [round(100 * p) for p in row["sampling_logprobs"]]


def test_a_page_with_less_room_has_whole_steps_spread_over_the_run(run):
    found = read_completions(run, {}, most=3 * 4 * GROUP)
    assert sorted(set(found["columns"]["step"])) == [1, 7, 12]
    assert found["rows"] == 3 * 4 * GROUP
    assert found["logged_steps"] == 12
    assert set(read_completions(run, {}, most=1)["columns"]["step"]) == {12}
    assert read_completions(run, {}, most=0)["rows"] == 0


def test_tokens_have_the_texts_of_the_runs_tokenizer(run):
    config = {"model_name_or_path": "builtin:tiny-arithmetic"}
    pieces = read_completions(run, config, most=1000)["vocabulary"]
    assert pieces["2"] == "<eos>"
    assert all(len(pieces[str(token)]) == 1 for token in range(16, 26))
    assert read_completions(run, {}, most=1000)["vocabulary"] == {}  # nobody knows the tokenizer


def test_a_log_without_log_probs_of_tokens_shades_nothing(tmp_path):
    made = make_run(tmp_path / "old", steps=1)
    page = made / "completions" / "step-000001.jsonl"
    rows = [json.loads(line) for line in page.read_text().splitlines()]
    for row in rows:
        del row["sampling_logprobs"]
    page.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1, "compl')
    found = read_completions(made, {}, most=100)
    assert found["rows"] == len(rows)  # the line that breaks off is none
    assert found["columns"]["tokens"] == []


def test_metrics_become_columns_and_many_of_them_means():
    rows = [{"step": k, "reward": float(k), "name": "x", "empty": None} for k in range(1, 5001)]
    rows[10]["reward"] = None
    found = columns(rows)
    assert set(found) == {"step", "reward"}
    assert found["step"][:2] == [3.0, 6.0]
    assert found["step"][-1] == 5000
    assert found["reward"][0] == 2.0
    assert found["reward"][3] == (10 + 12) / 2  # what has no value is left out of the mean
    few = columns(rows[:3])
    assert few["reward"] == [1.0, 2.0, 3.0]


def test_a_figure_is_drawn_where_a_run_has_something_for_it(run):
    titles = [figure["title"] for figure in payload([run], 10)["figures"]]
    assert "Reward" in titles
    assert "Each reward" in titles
    assert "KL from the reference" not in titles
    one = {"steps": {"reward": [1.0], "rewards/only/mean": [1.0]}, "evaluations": {}}
    other = {"steps": {"reward": [1.0], "rewards/other/mean": [1.0]}, "evaluations": {}}
    assert [figure["title"] for figure in figures([one, other])] == ["Reward"]
    both = {"steps": {**one["steps"], **other["steps"]}, "evaluations": {}}
    assert [figure["title"] for figure in figures([one, both])] == ["Reward", "Each reward"]


def test_the_headline_says_before_and_after_and_how_sure_it_is(run):
    headline = only(payload([run], 10))["headline"]
    assert (headline["before"], headline["after"]) == (0.5, 0.75)
    # 1.96 sqrt(0.5² / 400) = 0.049 and 1.96 sqrt(0.75 · 0.25 / 400) = 0.0424
    assert "95 % intervals 45.1 to 54.9 % → 70.8 to 79.2 %" in headline["said"]
    assert "400 held-out prompts" in headline["said"]
    rows = {row["label"]: (row["before"], row["after"]) for row in headline["rows"]}
    assert rows == {  # bounds stand beside their metric and are no rows of their own
        "accuracy": ("50.0 % (45.1 to 54.9)", "75.0 % (70.8 to 79.2)"),
        "reward": ("1.000", "1.500"),
        "ended": ("100.0 %", "100.0 %"),
        "mean_length": ("3.5", "3.5"),
        "accuracy, easy": ("60.0 %", "85.0 %"),
        "accuracy, hard": ("40.0 % (30.0 to 50.0)", "65.0 % (55.0 to 75.0)"),
    }


def test_intervals_that_were_logged_are_taken_as_they_are(tmp_path):
    made = make_run(tmp_path / "run", steps=2)
    row = {"step": 2, "samples": 9, "accuracy": 1.0, "accuracy_low": 0.7, "accuracy_high": 1.0}
    (made / "eval.jsonl").write_text(json.dumps({**row, "accuracy_stderr": 0.0}) + "\n")
    headline = only(payload([made], 10))["headline"]
    assert headline["before"] is None  # one evaluation is no before and after
    assert "95 % intervals 70.0 to 100.0 %" in headline["said"]


def test_a_run_that_goes_on_has_a_page_and_says_so(tmp_path):
    made = make_run(tmp_path / "run", steps=2)
    (made / "summary.json").unlink()
    found = only(payload([made], 10))
    assert not found["finished"]
    assert "has not ended" in found["headline"]["said"]
    (made / "eval.jsonl").unlink()
    assert only(payload([made], 10))["headline"] is None


def test_of_one_run_the_options_that_differ_from_the_defaults_are_marked(run):
    marked = {o["name"]: o["values"] for o in payload([run], 0)["options"] if o["differs"]}
    assert marked == {}
    other = make_run(run.parent / "second", steps=2, learning_rate=0.5, output_dir="elsewhere")
    marked = {o["name"]: o["values"] for o in payload([other], 0)["options"] if o["differs"]}
    assert marked == {"learning_rate": ["0.5"]}  # where a run is, is no setting of it
    beside = [o for o in payload([run, other], 0)["options"] if o["differs"]]
    assert [(o["name"], o["values"]) for o in beside] == [("learning_rate", ["1e-05", "0.5"])]


def test_runs_are_named_by_as_much_of_their_paths_as_tells_them_apart(tmp_path):
    a, b = make_run(tmp_path / "a" / "run", 1), make_run(tmp_path / "b" / "run", 1)
    assert [run["name"] for run in payload([a, b], 0)["runs"]] == ["a/run", "b/run"]
    assert only(payload([a], 0))["name"] == "run"


def test_what_a_model_wrote_never_stands_in_the_page_as_markup(tmp_path):
    made = make_run(tmp_path / "<b>run", steps=1)
    page = made / "completions" / "step-000001.jsonl"
    evil = "</script><script>alert(1)</script>"
    page.write_text(page.read_text().replace('"completion": "', f'"completion": "{evil}'))
    shown = payload([made], 100)
    text = render(shown, only(shown)["name"])
    assert "alert(1)" not in text
    assert "<b>run" not in text
    assert "&lt;b&gt;run" in text
    packed = re.search(r'<script id="data"[^>]*>([^<]*)<', text)[1]
    assert json.loads(gzip.decompress(base64.b64decode(packed))) == json.loads(json.dumps(shown))
    assert evil in shown["runs"][0]["completions"]["columns"]["text"][0]


def test_a_page_asks_nothing_of_any_network(run):
    text = render(payload([run], 10), "run")
    assert "default-src 'none'" in text
    assert not re.search(r'(src|href)="(?!#)', text)


def test_the_same_run_gives_the_same_page(run, tmp_path):
    write_report([run], tmp_path / "a.html")
    write_report([run], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_page_is_written_again_until_the_run_has_ended(tmp_path):
    made = make_run(tmp_path / "run", steps=1)
    summary = (made / "summary.json").read_text()
    (made / "summary.json").unlink()
    out, written = tmp_path / "page.html", []

    def wait(seconds):
        written.append((seconds, '"refresh":5.0' in data_of(out)))
        if len(written) == 2:
            (made / "summary.json").write_text(summary)

    watch([made], out, 10, every_s=5.0, sleep=wait)
    assert written == [(5.0, True), (5.0, True)]


def data_of(page):
    packed = re.search(r'<script id="data"[^>]*>([^<]*)<', page.read_text())[1]
    return gzip.decompress(base64.b64decode(packed)).decode()


def test_what_is_no_run_and_what_cannot_be_written_is_said(run, tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(OutputError, match="--out"):
        write_report([run], tmp_path / "missing" / "page.html")


def test_the_main_curves_are_drawn_as_a_picture(run, tmp_path):
    shown = payload([run, make_run(tmp_path / "other", seed=1)], 0)
    draw(shown, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(OutputError, match="--png"):
        draw(shown, tmp_path / "curves.nothing")


def test_without_matplotlib_a_picture_is_refused_in_words(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ConfigError, match=r"rl4lm\[plots\]"):
        draw(payload([run], 0), tmp_path / "curves.png")
