"""`rl4lm eval` as a user meets it: alone, two models compared, on several processes."""

from __future__ import annotations

import json

import pytest
from launching import RL4LM, TWO_PROCESSES, finished

from rl4lm.builtin import model_path
from rl4lm.cli import main
from rl4lm.evaluation.paired import compare
from rl4lm.model.adapters import add_lora
from rl4lm.model.loading import load_model, open_model
from rl4lm.processes.world import World

SIZES = ["--eval_samples", "20", "--torch_threads", "1"]
REWARD = """
def even(completions, **_):
    return [float(text[-1:] in "02468") if text else None for text in completions]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapter that changes the built-in model, a metric, and a second data set."""
    import torch

    path = tmp_path_factory.mktemp("models")
    model = load_model(open_model("builtin:tiny-arithmetic"), dtype="float32", device="cpu")
    adapted = add_lora(model, r=2, alpha=4, target_modules="all-linear", seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(path / "adapter")
    config = json.loads((path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(model_path("builtin:tiny-arithmetic"))
    (path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (path / "metric.py").write_text(REWARD)
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1), "n": n} for n in range(10, 24)]
    (path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def evaluated(capsys):
    """What `rl4lm eval --json` finds."""

    def run(*words):
        assert main(["eval", *SIZES, "--json", *map(str, words)]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_two_models_are_compared_on_the_same_prompts(evaluated, folder, capsys, monkeypatch):
    closed = []
    monkeypatch.setattr(World, "close", lambda world: closed.append(world))
    words = ["--compare", folder / "adapter", "--out", folder / "rows.jsonl"]
    found = evaluated(*words, "--pass_at_k", 1, 3, "--num_generations", 4)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 20 * (1 + 4)
    values = [
        [r["reward"] for r in rows if r["model"] == model and r["greedy"]]
        for model in ("builtin:tiny-arithmetic", str(folder / "adapter"))
    ]
    assert values[0] != values[1]
    other = found["compared_with"]
    assert other["differences"]["accuracy"] == compare(*values).to_dict()
    assert other["differences"].keys() >= {"reward", "pass@1", "pass@3"}
    gap = found["pass@3"] - other["metrics"]["pass@3"]
    assert other["differences"]["pass@3"]["difference"] == pytest.approx(gap)
    assert len(closed) == 1, "the processes part at the end"
    words = ["--data", folder / "rows.jsonl", "--reward", "rewards.arithmetic:exact_answer"]
    assert main(["score", *map(str, words), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["mean"] == pytest.approx(sum(row["reward"] for row in rows) / len(rows))


@pytest.mark.slow
def test_a_model_does_not_differ_from_itself(evaluated):
    found = evaluated("--compare", "builtin:tiny-arithmetic", "--pass_at_k", 2)
    for pair in found["compared_with"]["differences"].values():
        assert (pair["difference"], pair["p_value"]) == (0.0, 1.0)


@pytest.mark.slow
def test_groups_metrics_and_further_data_sets_are_in_the_table(folder, capsys):
    words = ["--by", "n", "family", "--metric", f"{folder / 'metric.py'}:even"]
    words += ["--eval_dataset_name", str(folder / "sums.jsonl"), "--pass_at_k", "1", "2"]
    assert main(["eval", *SIZES, *words, "--compare", str(folder / "adapter")]) == 0
    said = capsys.readouterr().out
    for told in ("95 % interval", "metrics/even", "pass@2", "sums/accuracy", "n=10 to 13"):
        assert told in said
    for told in ("family=addition", "20 prompts, greedy, but for pass@k", "better", "worse"):
        assert told in said


def test_evaluation_by_chance_through_a_server_is_told_alike(serving, evaluated):
    source = open_model("builtin:tiny-arithmetic")
    twin = load_model(source, dtype="float32", device="cpu").eval()
    with serving.Server(twin, "builtin:tiny-arithmetic") as server:
        words = ["--pass_at_k", 1, 2, "--top_k", 5, "--top_p", 0.9, "--temperature", 0.7]
        found = evaluated(*words, "--sampler_url", server.url)
        drawn = [body for body in server.bodies if body["temperature"] == 0.7]
    assert {(body["top_k"], body["top_p"], body["n"]) for body in drawn} == {(5, 0.9, 2)}
    assert 0 <= found["pass@1"] <= found["pass@2"] <= 1
    assert found["sampled/completions"] == 2


def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(folder, capsys):
    cases = {
        "say nothing of pass@8": ["--pass_at_k", "8", "--num_generations", "4"],
        "all completions are greedy": ["--top_k", "5"],
        "top_p=1.5": ["--top_p", "1.5", "--pass_at_k", "1"],
        "has those of one": ["--compare", "a", "--sampler_url", "http://127.0.0.1:1"],
        "name a file in a folder that exists": ["--out", str(folder / "no" / "rows.jsonl")],
        "eval_by: the data": ["--by", "familly"],
        "would both be called": ["--eval_dataset_name", *[str(folder / "sums.jsonl")] * 2],
        "no model could be read from 'nothing": ["--compare", "nothing/here/at/all"],
    }
    for told, words in cases.items():
        assert main(["eval", *SIZES, *words]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_find_what_one_finds(folder):
    words = ["eval", "--json", *SIZES, "--pass_at_k", "1", "3", "--compare", folder / "adapter"]
    found = []
    for start in (RL4LM, [*TWO_PROCESSES, "-m", "rl4lm"]):
        done = finished([*start, *words], seconds=140)
        assert "Warning" not in done.stderr
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
