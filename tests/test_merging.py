"""Adapters merged into copies: the same policy, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rl4lm.model import preparing
from rl4lm.model.merging import merged_adapters
from rl4lm.preflight.probe import probe
from rl4lm.sampling.drawing import greedy
from rl4lm.sampling.loop import EndRule, generate


def adapted(tiny, architecture="llama", dtype=torch.float64, std=0.2, **settings):
    model = tiny.build_model(architecture, std=0.2, dtype=dtype)
    config = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear", **settings)
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(std * noise)
    return model.to(dtype).eval()


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 3, 8, 1]])).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_merged_copy_computes_what_layer_and_adapter_do(architecture, tiny):
    model = adapted(tiny, architecture)
    kept = {name: p.clone() for name, p in model.named_parameters()}
    plain = logits_of(model)
    with merged_adapters(model):
        inside = logits_of(model)
        own = [m for m in model.modules() if "forward" in vars(m)]
        assert own, "something was merged"
        assert model.state_dict().keys() == adapted(tiny, architecture).state_dict().keys()
    assert float((inside - plain).abs().max()) < 1e-12
    assert torch.equal(logits_of(model), plain)
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
    assert not any("forward" in vars(m) for m in own)


def test_layers_are_given_back_when_sampling_fails(tiny):
    model = adapted(tiny)

    def broken():
        with merged_adapters(model):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert not any("forward" in vars(m) for m in model.modules())


def test_what_is_not_two_plain_matrices_is_left_alone(tiny):
    for settings in ({"use_dora": True}, {"bias": "none", "lora_bias": True}):
        model = adapted(tiny, "opt", **settings)
        plain = logits_of(model)
        with merged_adapters(model):
            assert not any("forward" in vars(m) for m in model.modules())
            assert torch.equal(logits_of(model), plain)
    model = adapted(tiny, dtype=torch.bfloat16)
    with merged_adapters(model):
        assert not any("forward" in vars(m) for m in model.modules())
    model = adapted(tiny)
    with model.disable_adapter():
        base = logits_of(model)
        with merged_adapters(model):
            assert torch.equal(logits_of(model), base)


@pytest.mark.parametrize("fast_path", [True, False])
def test_sampling_merges_and_training_does_not(fast_path, tiny):
    policy = tiny.build_policy(adapted(tiny))
    assert probe(policy, fast_path) == []
    with preparing.sampling_mode(policy):
        own = [m for m in policy.module.modules() if "forward" in vars(m)]
        rollout = generate(
            policy,
            [[5, 3], [8, 1, 4]],
            greedy,
            num_generations=2,
            max_completion_length=4,
            ends=EndRule(()),
        )
    assert bool(own) == fast_path
    assert not any("forward" in vars(m) for m in policy.module.modules())
    logprobs = policy.completion_logprobs(rollout)
    assert float((logprobs - rollout.sampling_logprobs).abs().max()) < 1e-12


def test_an_adapter_that_is_left_out_of_the_copy_would_be_noticed(tiny):
    policy = tiny.build_policy(adapted(tiny))
    probe(policy)
    with policy.without_adapter(), preparing.sampling_mode(policy):
        rollout = generate(
            policy,
            [[5, 3]],
            greedy,
            num_generations=1,
            max_completion_length=4,
            ends=EndRule(()),
        )
    gap = (policy.completion_logprobs(rollout) - rollout.sampling_logprobs).abs().max()
    assert float(gap) > 0.01
