"""Training on from an adapter: it is the one that the first run ended with."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig

from rl4lm import ReinforceConfig, ReinforceTrainer
from rl4lm.errors import ConfigError, ModelError
from rl4lm.model.adapting import check_continued
from rl4lm.model.loading import open_model

OPTIONS = {
    "max_steps": 2,
    "prompts_per_step": 2,
    "max_completion_length": 4,
    "eval_samples": 0,
    "accuracy_func": "none",
    "learning_rate": 0.05,
    "temperature": 3.0,  # so that the completions of a prompt differ
}
ROWS = [{"prompt": "12+34="}, {"prompt": "5-3="}, {"prompt": "8+8="}]


def digits(completions, **_):
    return [float(sum(map(ord, text))) for text in completions]


def trainer(**options):
    args = ReinforceConfig(**{**OPTIONS, **options})
    return ReinforceTrainer(reward_funcs=digits, args=args, train_dataset=ROWS)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of two steps with adapters of rank 4, and its trainer."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    trained = trainer(output_dir=str(folder), use_peft=True, lora_r=4)
    trained.train()
    return folder / "model", trained


def logprobs(policy, tiny):
    return policy.completion_logprobs(tiny.random_rollout(vocabulary=100))


def weights(policy):
    return {name: parameter.detach().clone() for name, parameter in policy.trainable().items()}


def test_a_run_on_an_adapter_begins_with_the_policy_that_the_first_run_ended_with(first, tiny):
    folder, before = first
    second = trainer(model_name_or_path=str(folder), use_peft=True)
    assert torch.equal(logprobs(second.policy, tiny), logprobs(before.policy, tiny))
    mine, others = weights(second.policy), weights(before.policy)
    assert mine.keys() == others.keys()
    assert all("lora_" in name for name in mine)
    assert all(torch.equal(mine[name], others[name]) for name in mine)
    second.train()
    assert not any(torch.equal(mine[n], p) for n, p in weights(second.policy).items())


def test_the_kl_of_a_run_on_an_adapter_is_measured_from_the_base_model(first, tiny):
    folder, _ = first
    second = trainer(model_name_or_path=str(folder), beta=0.1)
    base = trainer().policy
    rollout = tiny.random_rollout(vocabulary=100)
    with second.policy.without_adapter():
        assert torch.equal(
            second.policy.completion_logprobs(rollout), base.completion_logprobs(rollout)
        )
    assert not torch.equal(logprobs(second.policy, tiny), logprobs(base, tiny))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora_r": 8}, r"lora_r=8 given, but the adapter .* has 4; leave lora_r out"),
        ({"lora_alpha": 3.0}, r"lora_alpha=3\.0 given, .* has 8"),
        ({"lora_target_modules": ["q_proj"]}, r"lora_target_modules=\['q_proj'\] given"),
    ],
    ids=str,
)
def test_another_shape_than_that_of_the_adapter_is_refused(first, options, words):
    folder, _ = first
    with pytest.raises(ConfigError, match=words):
        trainer(model_name_or_path=str(folder), **options)


def test_the_adapters_own_shape_may_be_said(first):
    folder, _ = first
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    given = {"lora_r": 4, "lora_alpha": 8.0, "lora_target_modules": sorted(targets)}
    check_continued(str(folder), ReinforceConfig(**given))


def test_an_adapter_handed_over_beside_one_that_is_there_is_refused(first):
    folder, _ = first
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    args = ReinforceConfig(**OPTIONS, model_name_or_path=str(folder))
    with pytest.raises(ConfigError, match="peft_config asks for an adapter, and the model has one"):
        ReinforceTrainer(reward_funcs=digits, args=args, train_dataset=ROWS, peft_config=config)


def test_a_base_model_that_has_moved_is_named_with_the_place_to_mend(first, tmp_path):
    folder, _ = first
    shutil.copytree(folder, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "base_model_name_or_path": "/gone/base"}))
    with pytest.raises(ModelError) as caught:
        open_model(str(tmp_path / "adapter"))
    assert "there is no directory '/gone/base'" in str(caught.value)
    assert "write its new place into base_model_name_or_path" in str(caught.value)
