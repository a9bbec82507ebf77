"""A reward model on two processes, and in `rl4lm score`."""

from __future__ import annotations

import json

import pytest
import torch
from launching import RL4LM, TWO_PROCESSES, finished
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from rl4lm.builtin import model_path


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """The folder of a small random classifier."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models") / "judge"
    shape = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(
        **shape, num_attention_heads=2, num_labels=1, pad_token_id=0, initializer_range=0.5
    )
    LlamaForSequenceClassification(config).save_pretrained(place)
    AutoTokenizer.from_pretrained(model_path("builtin:tiny-arithmetic")).save_pretrained(place)
    return place


def train(command, judge, out):
    options = ["--prompts_per_step", "4", "--num_generations", "2", "--max_steps", "2"]
    quick = ["--eval_samples", "0", "--dtype", "float64", "--torch_threads", "1"]
    where = ["--reward_funcs", str(judge), "--output_dir", str(out)]
    finished([*command, "train", *where, *options, *quick])
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_processes_pay_what_one_pays(judge, tmp_path):
    one = train(RL4LM, judge, tmp_path / "one")
    two = train([*TWO_PROCESSES, "-m", "rl4lm"], judge, tmp_path / "two")
    for name in ("reward", "reward_std", "grad_norm", "texts_cut"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-5)


@pytest.mark.slow
def test_rows_of_a_file_are_scored_on_the_command_line(judge, tmp_path):
    data, out = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
    data.write_text('{"prompt": "1+1=", "completion": "2"}\n')
    name = ["--reward", str(judge), "--data", str(data), "--out", str(out), "--json"]
    done = finished([*RL4LM, "score", *name])
    assert json.loads(done.stdout)["scored"] == 1
    assert isinstance(json.loads(out.read_text())["reward"], float)
