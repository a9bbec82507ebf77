"""What the launcher may ask for; what becomes of tensors that are not dealt; out of memory."""

from __future__ import annotations

import pytest
import torch

from rl4lm.errors import ConfigError, ModelError, TrainingError
from rl4lm.model.module import PolicyModule
from rl4lm.processes.sharding import (
    Shards,
    dealt_like,
    local,
    shard,
    sharding_asked_for,
    whole,
    whole_on_main,
)
from rl4lm.processes.world import World

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def ask(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return sharding_asked_for()


def test_without_fsdp_nothing_is_asked_for(monkeypatch):
    assert ask(monkeypatch) is None
    assert ask(monkeypatch, ACCELERATE_USE_FSDP="false") is None


def test_fsdp2_is_taken_with_its_settings(monkeypatch):
    assert ask(monkeypatch, **FSDP2).reshard_after_forward is True
    plugin = ask(monkeypatch, FSDP_RESHARD_AFTER_FORWARD="false")
    assert plugin.reshard_after_forward is False


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FSDP_VERSION", "1", "asks for FSDP1"),
        ("FSDP_OFFLOAD_PARAMS", "true", "asks for fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "activation_checkpointing is rl4lm's"),
    ],
)
def test_what_is_not_offered_is_refused(name, value, words, monkeypatch):
    with pytest.raises(ConfigError, match=rf"{words}.*fsdp2\.yaml"):
        ask(monkeypatch, **{**FSDP2, name: value})


@pytest.mark.parametrize("engine", ["DEEPSPEED", "MEGATRON_LM"])
def test_engines_that_make_steps_of_their_own_are_refused(engine, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(ConfigError, match=r"within the backward pass.*fsdp2\.yaml"):
        World()


def test_a_process_alone_keeps_its_parameters_whole(monkeypatch, tiny):
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    trainer = tiny.build_trainer(tiny.build_model("llama"))
    assert trainer.world.sharding is None
    assert not trainer.policy.shards


def test_tensors_that_are_not_dealt_stay_themselves():
    tensor, parameter = torch.ones(2, 3), torch.nn.Parameter(torch.zeros(2, 3))
    assert whole(tensor) is tensor
    assert local(tensor) is tensor
    assert dealt_like(tensor, parameter) is tensor
    nest = {"a": [tensor, 1], "b": {"c": None}}
    assert whole_on_main(nest, keep=False) == nest


def test_without_units_nothing_is_gathered_and_counts_stay():
    shards = Shards()
    with shards.gathered(), shards.gathered():
        assert shards.most(3) == 3
    assert not shards


def test_a_model_whose_layers_are_not_known_is_not_sharded(monkeypatch):
    plugin = ask(monkeypatch, **FSDP2)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="fsdp_transformer_layer_cls_to_wrap"):
        shard(model, model, plugin, torch.device("cpu"), int)


def test_out_of_memory_ends_a_sharded_run_since_others_wait_in_the_pass(tiny, monkeypatch):
    trainer = tiny.build_trainer(tiny.build_model("llama"))
    trainer.policy.shards = Shards([torch.nn.Linear(1, 1)])

    def run(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PolicyModule, "run", run)
    with pytest.raises(TrainingError, match="max_tokens_per_micro_batch"):
        trainer.gradient(tiny.random_rollout(), torch.ones(6))
