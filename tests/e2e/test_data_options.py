"""Whole runs on data as users have them: chat prompts made of columns, some held out, some long."""

from __future__ import annotations

import json
import signal
import sys

import datasets
import pytest
import torch
from chat_templates import LLAMA, QWEN, save_chat_checkpoint
from launching import TWO_PROCESSES, finished

from rl4lm.cli import main
from rl4lm.model.loading import load_model, open_model

LONG = "why " * 60
SIZES = (
    "--max_completion_length 3 --prompts_per_step 2 --num_generations 2 --eval_samples 50 "
    "--save_steps 1 --torch_threads 1 --learning_rate 0.01 --accuracy_func none "
    "--reward_funcs my.py:spread"
)
DATA = (
    "--dataset_name data/*.jsonl --rename question=prompt solution=answer --system_prompt Brief. "
    "--chat_template_kwargs enable_thinking=false --held_out_share 0.4 --seed 1 "
    "--max_prompt_length 150 --long_prompts drop"
)
REWARD = """
def spread(completion_ids, answer, prompts, completions, **_):
    assert all(p[0]["content"] == "Brief." for p in prompts)
    assert all(c[0]["role"] == "assistant" for c in completions)
    return [float(sum(ids) % 11 + a) for ids, a in zip(completion_ids, answer)]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "my.py").write_text(REWARD)
    (tmp_path / "data").mkdir()
    for part in range(2):
        rows = [{"question": f"{part}+{k}=", "solution": part + k} for k in range(8)]
        rows.append({"question": f"{LONG}{part}", "solution": 0})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "data" / f"part{part}.jsonl").write_text(text)
    save_chat_checkpoint(tmp_path / "chat", QWEN)
    return tmp_path


def run(words):
    handler = signal.getsignal(signal.SIGTERM)
    try:
        return main(words.split(" "))
    finally:
        signal.signal(signal.SIGTERM, handler)


def train(out, more=""):
    words = f"train --output_dir {out} --model_name_or_path chat --max_steps 6 {SIZES} {DATA}"
    return run(f"{words} {more}".rstrip())


def completions(out):
    return "".join(path.read_text() for path in sorted((out / "completions").iterdir()))


def prompts(out):
    return {json.loads(line)["prompt"][1]["content"] for line in completions(out).splitlines()}


def test_a_run_on_columns_made_into_chat_holds_out_drops_resumes_and_replays(place, capsys):
    assert train("whole") == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "are held out, and evaluated on" in said
    assert "are longer than 150 tokens and are left out (row" in said.replace("\n", " ")
    summary = json.loads((place / "whole" / "summary.json").read_text())
    assert summary["eval_on"] == "held_out"
    assert summary["dropped_prompts"] == 2
    asked = prompts(place / "whole")
    assert len(asked) + summary["eval_after"]["samples"] == 16
    assert not any(LONG in prompt for prompt in asked)

    assert train("rest", "--resume_from_checkpoint whole/checkpoint-000003") == 0, (
        capsys.readouterr().err
    )
    rest = completions(place / "rest")
    assert rest
    assert completions(place / "whole").endswith(rest)
    capsys.readouterr()

    assert run("replay whole --step 5") == 0, capsys.readouterr().err
    capsys.readouterr()
    evaluated = f"eval --json --model_name_or_path whole/model {DATA}"
    asked_for = "--accuracy_func none --reward_funcs my.py:spread --max_completion_length 3"
    assert run(f"{evaluated} {asked_for} --eval_samples 50") == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("samples", "reward")} == {
        name: summary["eval_after"][name] for name in ("samples", "reward")
    }


def test_sample_renders_prompts_as_training_does(place, capsys):
    words = "sample --json --model_name_or_path chat --max_completion_length 2 --num_generations 1"
    said = []
    for more in ("", " --as_chat", " --as_chat --chat_template_kwargs enable_thinking=false"):
        assert run(f"{words} --prompt 1+1={more}") == 0, capsys.readouterr().err
        said.append(json.loads(capsys.readouterr().out))
    assert {row["prompt"] for row in said} == {"1+1="}
    assert len({row["logprob"] for row in said}) == 3


@pytest.mark.slow
def test_a_vocabulary_of_150_000_trains(place, capsys):
    save_chat_checkpoint(place / "wide", LLAMA, vocabulary=151_936)
    words = f"train --output_dir out --model_name_or_path wide --max_steps 1 {SIZES}"
    assert run(f"{words} {DATA.replace('enable_thinking=false', 'x=1')}") == 0, capsys.readouterr()
    before, after = (
        load_model(open_model(name), dtype="float32", device=torch.device("cpu"))
        for name in ("wide", "out/model")
    )
    assert before.get_input_embeddings().weight.shape[0] == 151_936
    moved = after.get_output_embeddings().weight - before.get_output_embeddings().weight
    assert (moved.abs().amax(dim=1) > 0).all()  # the softmax reaches every row


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_hold_out_drop_and_draw_what_one_does(place):
    (place / "run.py").write_text("from rl4lm.cli import main\nraise SystemExit(main())\n")
    words = f"train --model_name_or_path chat --max_steps 2 --dtype float64 {SIZES} {DATA}".split()
    found = []
    for name, start in (("one", [sys.executable]), ("two", TWO_PROCESSES)):
        finished([*start, "run.py", *words, "--output_dir", name], seconds=240)
        rows = [json.loads(line) for line in completions(place / name).splitlines()]
        summary = json.loads((place / name / "summary.json").read_text())
        ids = [(row["prompt_id"], row["prompt"], row["completion_ids"]) for row in rows]
        found.append((summary["processes"], summary["dropped_prompts"], ids))
    (one, *alone), (two, *together) = found
    assert (one, two) == (1, 2)
    assert alone == together
