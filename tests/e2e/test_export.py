"""Exports as others meet them: in processes of their own, with and without rl4lm."""

from __future__ import annotations

import json
import sys

import pytest
from launching import finished

PLAIN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = tokenizer("12+34=", return_tensors="pt")
assert "rl4lm" not in sys.modules and "peft" not in sys.modules
print(tokenizer.decode(model.generate(**ids, max_new_tokens=6, do_sample=False)[0]))
"""
SIZES = ["--max_steps", "2", "--prompts_per_step", "4", "--eval_samples", "20"]


def run(words, folder, **environment):
    """A program in a folder of its own, that must succeed; its standard output."""
    return finished([sys.executable, *words], folder, seconds=240, **environment).stdout


@pytest.mark.slow  # test_export.py loads exports too, but beside rl4lm
def test_an_export_loads_without_rl4lm_and_goes_on_as_before(tmp_path):
    from rl4lm.export.exported import ExportChoices, export
    from rl4lm.export.source import find_source

    export(find_source("builtin:tiny-arithmetic"), tmp_path / "out", ExportChoices())
    said = run(["-c", PLAIN, "out"], tmp_path, HF_HUB_OFFLINE="1")
    assert said.startswith(("12+34=", "<s>12+34=", "<bos>12+34="))


@pytest.mark.slow
def test_a_run_with_adapters_is_trained_uploaded_exported_and_evaluated_alike(tmp_path, hub_server):
    with hub_server.Hub() as hub:
        reach = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "cache"),
        }
        push = ["--push_to_hub", "--hub_model_id", "ann/it"]
        words = ["-m", "rl4lm", "train", "--output_dir", "lora", "--use_peft", "--json"]
        summary = json.loads(run([*words, *SIZES, *push], tmp_path, **reach))
        words = ["-m", "rl4lm", "export", "lora", "--out", "out", "--push_to_hub", "ann/two"]
        hub.exists = False
        run(words, tmp_path, **reach)
    assert summary["hub_url"] == f"{hub.url}/ann/it"
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    words = ["-m", "rl4lm", "eval", "--model_name_or_path", "out", "--eval_samples", "20"]
    words += ["--max_completion_length", "6", "--json"]
    found = json.loads(run(words, tmp_path, HF_HUB_OFFLINE="1"))
    assert found["accuracy"] == summary["eval_after"]["accuracy"]
    said = run(["-c", PLAIN, "out"], tmp_path, HF_HUB_OFFLINE="1")
    assert "12+34=" in said
