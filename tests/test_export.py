"""Exports: the folder holds what was trained, and its card what is known of it."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.errors import ConfigError, DataError, ModelError, OutputError, VerificationError
from rl4lm.export.exported import ExportChoices, export
from rl4lm.export.source import check_place, find_source
from rl4lm.rundir import durable

VOCABULARY = 97
IDS = torch.arange(40)[None] * 7 % VOCABULARY
BUILT_IN = {"max_steps": 2, "prompts_per_step": 4, "eval_samples": 8, "save_steps": 1}


def logprobs(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.log_softmax(-1)


def difference(found, expected):
    return float((found - expected).abs().max())


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def saved(tiny, tmp_path):
    """Save a tiny model, and an adapter with lively weights on it; returns both folders."""

    def save(architecture="llama", config=None, dtype=torch.float32, **settings):
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        model = tiny.build_model(architecture, dtype=dtype, **settings)
        model.save_pretrained(base)
        tiny.build_tokenizer().save_pretrained(base)
        if config is None:
            return base, base
        adapted = get_peft_model(loaded(base), config, autocast_adapter_dtype=False)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        adapted.save_pretrained(adapter)
        tiny.build_tokenizer().save_pretrained(adapter)
        return base, adapter

    return save


def lora(*targets, **settings):
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=list(targets), **settings)


def written(folder, out, **choices):
    return export(find_source(str(folder)), out, ExportChoices(**choices))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with adapters on the built-in model, with evaluations and two checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    settings = {"use_peft": True, "lora_r": 4, "stop_token_ids": [9], "stop_strings": ["=="]}
    args = ReinforceConfig(
        output_dir=str(folder), max_completion_length=6, learning_rate=0.01, **BUILT_IN, **settings
    )
    ReinforceTrainer(args=args).train()
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_merged_model_is_the_adapted_one(saved, tmp_path, dtype):
    base, adapter = saved(config=lora("q_proj", "down_proj"), dtype=dtype)
    expected = logprobs(PeftModel.from_pretrained(loaded(base), adapter))
    found = written(adapter, tmp_path / "out")
    merged = logprobs(loaded(tmp_path / "out"))
    assert found["kind"] == "merged"
    assert found["dtype"] == str(dtype).removeprefix("torch.")
    # Norm layers compute in float32 whatever the dtype: no finer than that.
    assert difference(merged, expected) < 2e-5
    assert difference(logprobs(loaded(base)), expected) > 0.01  # the adapter does something


TIED = {
    "adapter on the head": lora("q_proj", "lm_head"),
    "adapter on the embedding": lora("q_proj", "embed_tokens"),
    "trained head": lora("q_proj", modules_to_save=["lm_head"]),
    "trained embedding": lora("q_proj", modules_to_save=["embed_tokens"]),
}


@pytest.mark.parametrize("config", TIED.values(), ids=TIED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_adapted_of_a_tied_pair_is_untied(saved, tmp_path, config):
    base, adapter = saved(config=config, tied=True)
    expected = logprobs(PeftModel.from_pretrained(loaded(base), adapter))
    written(adapter, tmp_path / "out")
    model = loaded(tmp_path / "out")
    assert difference(logprobs(model), expected) < 1e-4
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_tied_weights_stay_tied_where_neither_is_adapted(saved, tmp_path):
    _, adapter = saved(config=lora("q_proj"), tied=True)
    written(adapter, tmp_path / "out")
    model = loaded(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in set(file.keys())


def test_adapters_of_a_mixture_of_experts_are_merged(saved, tmp_path):
    base, adapter = saved("mixtral", config=lora("q_proj", "o_proj"))
    expected = logprobs(PeftModel.from_pretrained(loaded(base), adapter))
    written(adapter, tmp_path / "out")
    assert difference(logprobs(loaded(tmp_path / "out")), expected) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_is_written_in_the_type_that_was_asked_for(saved, tmp_path, dtype):
    base, _ = saved()
    found = written(base, tmp_path / "out", dtype=dtype)
    model = loaded(tmp_path / "out")
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    expected = [p.to(model.dtype) for p in loaded(base).parameters()]
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), expected, strict=True))
    assert (found["rounding_gap"] > 0) == (dtype != "float32")
    assert found["reload_gap"] == 0


def test_by_default_nothing_is_rounded(saved, tmp_path):
    base, _ = saved(dtype=torch.bfloat16)
    assert written(base, tmp_path / "out")["dtype"] == "bfloat16"
    assert difference(logprobs(loaded(tmp_path / "out")), logprobs(loaded(base))) == 0


def test_weights_are_cut_into_files_of_the_size_that_was_asked_for(saved, tmp_path):
    base, _ = saved()
    written(base, tmp_path / "out", max_shard_size="20KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert difference(logprobs(loaded(tmp_path / "out")), logprobs(loaded(base))) == 0


def test_an_adapter_alone_is_the_same_adapter(saved, tmp_path):
    base, adapter = saved(config=lora("q_proj"))
    expected = logprobs(PeftModel.from_pretrained(loaded(base), adapter))
    shutil.move(base, tmp_path / "elsewhere")  # its base model is not needed for it
    found = written(adapter, tmp_path / "out", adapter_only=True)
    assert found["kind"] == "adapter"
    again = PeftModel.from_pretrained(loaded(tmp_path / "elsewhere"), tmp_path / "out")
    assert difference(logprobs(again), expected) == 0
    with pytest.raises(ModelError, match="is a whole model without an adapter"):
        written(tmp_path / "elsewhere", tmp_path / "other", adapter_only=True)


def test_an_adapter_that_is_no_change_of_weights_is_refused(saved, tmp_path):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    _, adapter = saved(config=config)
    with pytest.raises(ModelError, match=r"cannot be put on its base model: .*prompt learning"):
        written(adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_adapter_that_is_not_finite_is_not_merged(saved, tmp_path):
    _, adapter = saved(config=lora("q_proj"))
    file = adapter / "adapter_model.safetensors"
    weights = {name: tensor * float("nan") for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"cannot be merged .*NaNs.*--adapter_only"):
        written(adapter, tmp_path / "out")


def test_weights_that_are_quantised_already_are_refused(saved, tmp_path):
    base, _ = saved()
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantised already"):
        written(base, tmp_path / "out")


def test_a_folder_that_is_not_what_was_trained_is_not_kept(saved, tmp_path, monkeypatch):
    from rl4lm.export import exported

    def save_other_weights(model, *rest):
        with torch.no_grad():
            model.lm_head.weight[3] += 0.1
        save(model, *rest)

    save = exported._save
    monkeypatch.setattr(exported, "_save", save_other_weights)
    base, _ = saved()
    with pytest.raises(VerificationError, match="read again, gives other log-probs"):
        written(base, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_merge_that_goes_wrong_is_found_out(saved, tmp_path, monkeypatch):
    from rl4lm.model import adapters

    monkeypatch.setattr(adapters, "_untie", lambda model: None)
    _, adapter = saved(config=TIED["adapter on the head"], tied=True)
    with pytest.raises(VerificationError, match="the merged model gives other log-probs"):
        written(adapter, tmp_path / "out")


def test_a_run_is_exported_with_its_ends_and_a_card_of_what_is_known(run, tmp_path):
    found = written(run, tmp_path / "out")
    assert (found["kind"], found["step"]) == ("merged", 2)
    assert loaded(tmp_path / "out").generation_config.eos_token_id == [2, 9]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").vocab_size == 100
    text = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # it is not on the hub
    assert card.data.datasets is None
    summary = json.loads((run / "summary.json").read_text())
    for words in (
        "Fine-tuned from builtin:tiny-arithmetic by REINFORCE",
        "adapter of rank 4, alpha 8.0 was added into the weights",
        "`rewards.arithmetic:exact_answer` x 1",
        f"2 optimizer steps, {summary['samples']} completions, {summary['tokens']} tokens",
        "| accuracy | ",
        "Greedy completions of 8 prompts of the split `test`.",
        "Seed 0; one run.",
        "learning_rate: 0.01",
        "ended with one of the texts '=='",
        "states: apache-2.0",
    ):
        assert words in text, words
    assert str(run) not in text
    assert "output_dir" not in text


def test_a_checkpoint_of_a_run_says_what_is_known_of_its_own_step(run, tmp_path):
    source = find_source(str(run), checkpoint=1)
    found = export(source, tmp_path / "out", ExportChoices())
    assert found["step"] == 1
    text = (tmp_path / "out" / "README.md").read_text()
    assert "1 optimizer step.\n" in text
    assert "These weights were not evaluated." in text  # the run was, before and after it
    assert find_source(str(run / "checkpoint-000001")).run.step == 1
    assert find_source(str(run / "model")).run.step == 2
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not names & {"trainer_state.pt", durable.MANIFEST, "adapter_config.json"}


def test_a_run_that_was_not_evaluated_says_so(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "summary.json").write_text(json.dumps({"steps": 2, "eval_before": {}}))
    written(other, tmp_path / "out")
    assert "This run was not evaluated." in (tmp_path / "out" / "README.md").read_text()


def test_the_card_names_what_is_on_the_hub_and_hides_where_things_are_here(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    other = tmp_path / "run"
    shutil.copytree(run, other)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {
        "dataset_name": "openai/gsm8k",
        "reward_funcs": ["/home/ann/secret/mine.py:right", "rewards.text:contains"],
        "reward_weights": [0.5, 2.0],
        "sampler_url": "http://ann:sesame@10.0.0.1",
        "attn_implementation": "/home/ann/secret/kernel",
        "load_in_4bit": True,
    }
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    settings = other / "model" / "adapter_config.json"
    adapter = json.loads(settings.read_text())
    adapter["base_model_name_or_path"] = "org/base"
    settings.write_text(json.dumps(adapter))
    summary = json.loads((run / "summary.json").read_text())
    summary["eval_after"] |= {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.61}
    (other / "summary.json").write_text(json.dumps(summary))
    written(other, tmp_path / "out", adapter_only=True)
    card = ModelCard((tmp_path / "out" / "README.md").read_text())
    assert card.data.base_model == "org/base"
    assert card.data.library_name == "peft"
    assert card.data.datasets == ["openai/gsm8k"]
    assert "`mine.py:right` x 0.5, `rewards.text:contains` x 2" in card.text
    assert "| 50.0 % (40.0 % to 61.0 %) |" in card.text
    assert "accuracy_low" not in card.text
    assert "trained on base weights quantised to 4 bits" in card.text
    assert "from_pretrained('org/base')" in card.text
    for hidden in ("/home/ann", "sesame", "10.0.0.1"):
        assert hidden not in card.content


def test_a_model_without_a_run_is_not_said_to_be_trained(saved, tmp_path):
    base, _ = saved()
    written(base, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "no run of it is known to have trained it" in text
    assert "Before and after" not in text
    assert "no licence is known" in text


def test_what_is_no_source_is_refused(run, tmp_path):
    with pytest.raises(DataError, match=r"no complete checkpoint of step 7 \(there are: 1, 2\)"):
        find_source(str(run), checkpoint=7)
    with pytest.raises(ConfigError, match="checkpoint=1 is one of a run"):
        find_source("builtin:tiny-code", checkpoint=1)
    other = tmp_path / "run"
    shutil.copytree(run, other)
    shutil.rmtree(other / "model")
    with pytest.raises(DataError, match=r"has not ended; --checkpoint 2 exports"):
        find_source(str(other))
    (other / "checkpoint-000002" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be used: adapter_model\.safetensors has 0 bytes"):
        find_source(str(other), checkpoint=2)


def test_only_an_export_is_replaced_and_only_when_asked(run, saved, tmp_path):
    base, _ = saved()
    weights = str(run / "model")
    for out in (run, run / "model", run.parent, run / "checkpoint-000001", run / "models"):
        with pytest.raises(OutputError, match="of a run, or holds what is exported"):
            check_place(out, weights, overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    with pytest.raises(OutputError, match="holds other things than a model"):
        check_place(tmp_path / "notes", weights, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        check_place(tmp_path / "notes" / "diary.txt", weights, overwrite=True)
    with pytest.raises(OutputError, match="pass --overwrite_output_dir"):
        check_place(base, weights, overwrite=False)
    check_place(base, weights, overwrite=True)
    check_place(run / "export", weights, overwrite=False)
    check_place(tmp_path / "nothing", weights, overwrite=False)


def test_the_adapter_of_a_shipped_model_outlives_the_place_of_the_installation(run, tmp_path):
    other = tmp_path / "adapter"
    shutil.copytree(run / "model", other)
    text = (other / "adapter_config.json").read_text()
    moved = re.sub(
        r'"[^"]*/rl4lm/builtin/tiny-arithmetic"', '"/gone/rl4lm/builtin/tiny-arithmetic"', text
    )
    assert "/gone/" in moved
    (other / "adapter_config.json").write_text(moved)
    assert written(other, tmp_path / "out")["kind"] == "merged"
