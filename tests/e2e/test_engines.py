"""`rl4lm eval` and `rl4lm train` with a server that draws the completions."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from launching import RECIPES, RL4LM, TWO_PROCESSES, finished

from rl4lm.cli import main
from rl4lm.model.loading import load_model, open_model

MODEL = "builtin:tiny-arithmetic"


@pytest.fixture(scope="module")
def twin():
    source = open_model(MODEL)
    return load_model(source, dtype="float32", device=torch.device("cpu")).eval()


def rl4lm(*words, code=0, **environment):
    return finished([*RL4LM, *words], code=code, seconds=200, **environment)


def test_eval_through_a_server_gives_the_numbers_of_the_model_itself(
    twin, serving, capsys, monkeypatch
):
    monkeypatch.setenv("RL4LM_SAMPLER_API_KEY", "s3cret")
    words = ["eval", "--eval_samples", "12", "--json"]
    assert main(words) == 0
    local = json.loads(capsys.readouterr().out)
    with serving.Server(twin, MODEL, key="s3cret") as server:
        assert main([*words, "--sampler_url", server.url]) == 0
    assert json.loads(capsys.readouterr().out) == local
    assert local["samples"] == 12


def test_the_table_says_which_server_it_is_of(twin, serving, capsys):
    with serving.Server(twin, "twin") as server:
        named = ["--sampler_url", server.url, "--sampler_model", "twin"]
        assert main(["eval", "--eval_samples", "2", *named]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"twin at {server.url} on builtin:arithmetic" in said
    assert "accuracy" in said


@pytest.mark.slow
def test_a_server_that_dies_ends_the_run_in_words_and_the_run_goes_on_with_another(
    twin, serving, tmp_path
):
    sizes = ["--prompts_per_step", "2", "--num_generations", "4", "--max_completion_length", "6"]
    run = ["train", "--output_dir", tmp_path / "run", *sizes, "--max_steps", "4"]
    run += ["--eval_samples", "0", "--epsilon", "0.2", "--resume_from_checkpoint", "true"]
    with serving.Server(twin, MODEL, status=lambda count: 200 * (count <= 8)) as server:
        died = rl4lm(*run, "--sampler_url", server.url, code=1, RL4LM_SAMPLER_API_KEY="s3cret")
    assert f"the server {server.url} cannot be reached" in died.stderr
    assert "after step 2 of 4; saved in" in died.stderr
    assert "Traceback" not in died.stderr
    with serving.Server(twin, MODEL) as server:
        again = rl4lm(*run, "--sampler_url", server.url, code=2)  # it is another option
        assert "--resume_anyway" in again.stderr
        rl4lm(*run, "--sampler_url", server.url, "--resume_anyway", "true")
    steps = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == [1, 2, 3, 4]
    kept = "".join(p.read_text() for p in (tmp_path / "run").glob("*.yaml"))
    assert server.url in kept
    assert "s3cret" not in kept + died.stdout + died.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_processes_get_from_a_server_what_one_gets(twin, serving, tmp_path):
    recipe = [RECIPES / "arithmetic.py", "--epsilon", "0.2", "--max_steps", "2"]
    recipe += ["--prompts_per_step", "4", "--num_generations", "2", "--eval_samples", "0"]
    drawn = []
    with serving.Server(twin, MODEL) as server:
        for name, launch in (("one", [sys.executable]), ("two", TWO_PROCESSES)):
            words = [*launch, *recipe, "--output_dir", tmp_path / name, "--sampler_url", server.url]
            finished(words, seconds=180)
            pages = sorted((tmp_path / name / "completions").iterdir())
            rows = [json.loads(line) for page in pages for line in page.read_text().splitlines()]
            drawn.append([(row["prompt"], row["completion_ids"]) for row in rows])
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--output_dir", "nowhere"], "set epsilon, the range of the ratio"),
        (["train", "--output_dir", "nowhere", "--epsilon", "1"], "cannot be reached"),
        (["eval"], "cannot be reached"),
    ],
    ids=["no_ratio", "train", "eval"],
)
def test_what_cannot_be_is_said_before_anything_is_begun(words, said, verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in verb(*words, "--sampler_url", "http://127.0.0.1:9", code=2).err
    assert not (tmp_path / "nowhere").exists()
