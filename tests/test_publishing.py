"""What reaches the hub of a run or an export; and what a failed upload costs, which is nothing."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard, constants
from peft import LoraConfig, get_peft_model

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.cli import main
from rl4lm.errors import HubError
from rl4lm.export.publishing import publish
from rl4lm.rundir.tracking import RunDirectory
from rl4lm.screen.console import Screen

OPTIONS = {
    "max_steps": 1,
    "prompts_per_step": 2,
    "max_completion_length": 4,
    "eval_samples": 0,
    "accuracy_func": "none",
    "push_to_hub": True,
    "hub_model_id": "ann/it",
}


def train(folder, **options):
    return ReinforceTrainer(
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=ReinforceConfig(output_dir=str(folder), **{**OPTIONS, **options}),
        train_dataset=[{"prompt": "12+34="}, {"prompt": "5-3="}],
    ).train()


def everything_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_run_is_uploaded_when_it_has_ended(reach, hub_server, tmp_path, capfd):
    with hub_server.Hub() as hub:
        reach(hub.url)
        summary = train(tmp_path / "run", hub_private_repo=True, use_peft=True, lora_r=2)
    assert summary["hub_url"] == f"{hub.url}/ann/it"
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    # The base model is not on the hub, so that the adapter goes merged.
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= hub.files.keys()
    assert "adapter_config.json" not in hub.files
    assert "# ann/it" in hub.files["README.md"].decode()
    assert hub.private
    assert hub.requests[0] == "GET /api/whoami-v2"
    assert not list((tmp_path / "run").glob("model-*"))
    said = "".join(capfd.readouterr()).encode()
    assert hub.token.encode() not in said + everything_below(tmp_path) + repr(hub.files).encode()


def test_an_adapter_whose_base_model_is_on_the_hub_goes_as_an_adapter(
    reach, hub_server, tmp_path, tiny
):
    adapted = get_peft_model(
        tiny.build_model("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    )
    adapted.peft_config["default"].base_model_name_or_path = "org/base"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model_name_or_path: org/base\n")
    adapted.save_pretrained(tmp_path / "run" / "model")
    config = ReinforceConfig(
        output_dir=str(tmp_path / "run"), push_to_hub=True, hub_model_id="ann/it"
    )
    summary = {}
    with hub_server.Hub() as hub:
        reach(hub.url)
        directory = RunDirectory(tmp_path / "run", trouble=print)
        publish(config, directory, Screen(quiet=True), summary)
    assert summary["hub_url"] == f"{hub.url}/ann/it"
    assert {"adapter_model.safetensors", "adapter_config.json"} <= hub.files.keys()
    assert "model.safetensors" not in hub.files
    assert ModelCard(hub.files["README.md"].decode()).data.base_model == "org/base"


def test_an_upload_that_fails_costs_the_run_nothing(reach, hub_server, tmp_path, capfd):
    with hub_server.Hub(fails={"/commit": 500}) as hub:
        reach(hub.url)
        summary = train(tmp_path / "run")
    assert summary["steps"] == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["hub_url"] is None
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    said = capfd.readouterr().out
    assert "ann/it cannot be uploaded: the hub answered 500" in said
    assert f"rl4lm export {tmp_path / 'run'} --out FOLDER --push_to_hub ann/it" in said


def test_a_token_that_will_not_do_ends_a_run_before_it_begins(reach, hub_server, tmp_path):
    with hub_server.Hub(token="another") as hub:
        reach(hub.url)
        with pytest.raises(HubError, match="does not know the token"):
            train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def export(folder, *words):
    upload = ["--push_to_hub", "ann/it", "--json"]
    return main(["export", "builtin:tiny-arithmetic", "--out", str(folder), *upload, *words])


def test_what_arrives_is_what_was_exported(reach, hub_server, tmp_path, capsys):
    with hub_server.Hub(files={}) as hub:  # the repository is there already
        reach(hub.url)
        assert export(tmp_path / "out", "--dtype", "bfloat16") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hub_url"] == f"{hub.url}/ann/it"
    assert found["dtype"] == "bfloat16"
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(
    ("settings", "code", "kept"),
    [
        ({"fails": {"/commit": 500}}, 1, True),
        ({"fails": {"/create": 403}}, 1, True),
        ({"token": "another"}, 1, False),
    ],
    ids=str,
)
def test_an_export_whose_upload_fails_says_how_to_repeat_it(
    reach, hub_server, tmp_path, capsys, settings, code, kept
):
    with hub_server.Hub(**settings) as hub:
        reach(hub.url)
        assert export(tmp_path / "out") == code
    assert (tmp_path / "out" / "model.safetensors").is_file() == kept
    said = capsys.readouterr().err
    assert ("the same command with --overwrite_output_dir" in said) == kept
    assert "Traceback" not in said


def test_an_upload_without_the_network_is_refused_before_the_export(
    reach, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert export(tmp_path / "out") == 2
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a run"),
        (["builtin:tiny-code"], "the folder to write"),
        (["builtin:tiny-code", "--out", "x", "--dtype", "bf16"], "did you mean bfloat16?"),
        (["builtin:tiny-code", "--out", "x", "--checkpoint", "last"], "the step of a checkpoint"),
        (["builtin:tiny-code", "--out", "x", "--private"], "--private is said of an upload"),
        (["nowhere/at/all", "--out", "x"], "there is no directory 'nowhere/at/all'"),
    ],
    ids=str,
)
def test_a_command_line_that_cannot_be_meant_is_refused_in_words(
    words, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
