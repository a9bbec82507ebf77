"""What the probe switches to the plain path, what it refuses, and what it names."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers.models.llama import modeling_llama

from rl4lm.errors import ModelError, TrainingError
from rl4lm.estimator.losses import TokenWeights
from rl4lm.model import teacher_forcing
from rl4lm.model.adapters import add_adapter
from rl4lm.model.preparing import inference_mode_of
from rl4lm.preflight.packability import why_not_packable
from rl4lm.preflight.probe import probe
from rl4lm.preflight.yardstick import made_up_rollout, plain_logprobs
from rl4lm.randomness import Stream
from rl4lm.sampling.drawing import InverseCdf
from rl4lm.sampling.loop import EndRule, generate

TEMPERATURE = 0.7
ADVANTAGES = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0, 0.7])


def gaps(tiny, model, policy) -> list[float]:
    """Distances from the naive loop: of the sampler, of a forward pass, and of the gradient."""
    choose = InverseCdf(
        seed=1,
        stream=Stream.TRAINING,
        step=0,
        places=range(64),
        num_generations=3,
        temperature=TEMPERATURE,
    )
    with inference_mode_of(policy.module):
        drawn = generate(
            policy,
            [[3, 4], list(range(5, 17)), [0, 0, 7]],  # one far longer than a window of 4
            choose,
            num_generations=3,
            max_completion_length=8,
            ends=EndRule([0, 1, 2]),
        )
    expected = tiny.naive_table(model, drawn, TEMPERATURE)
    rollout = tiny.random_rollout(((1, (4, 2)), (12, (3, 7)), (3, (1, 5))))
    weights = -ADVANTAGES[:, None].expand(rollout.completion_ids.shape) / 6
    for parameter in model.parameters():
        parameter.grad = None
    weights = TokenWeights(weights, torch.zeros_like(weights))
    policy.accumulate_gradient(rollout, weights, TEMPERATURE, max_tokens=30)
    actual = {name: parameter.grad for name, parameter in policy.trainable().items()}
    naive = tiny.naive_gradient(model, rollout, ADVANTAGES, TEMPERATURE)
    return [
        float((drawn.sampling_logprobs - expected).abs().max()),
        float((policy.completion_logprobs(drawn, TEMPERATURE) - expected).abs().max()),
        *tiny.gap(actual, naive),
    ]


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama", "qwen2", "gemma"])
def test_the_usual_architectures_keep_the_fast_path(architecture, tiny):
    model = tiny.build_model(architecture)
    policy = tiny.build_policy(model)
    assert probe(policy) == []
    assert policy.module.separate_head
    assert policy.module.packs
    sampler, forward, difference, scale = gaps(tiny, model, policy)
    assert max(sampler, forward) < 1e-4
    assert max(difference, scale) < 1e-5


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("mistral", "it asks its attention for sliding_window"),
        ("gemma2", "it asks its attention for sliding_window"),
    ],
)
@pytest.mark.parametrize("std", [0.3, 0.02], ids=["lively", "fresh"])
def test_attention_that_cannot_be_replaced_keeps_padded_rows(architecture, why, std, tiny):
    """A window of 4 tokens, shorter than a prompt here; on fresh weights hardly a number tells."""
    model = tiny.build_model(architecture, std=std)
    policy = tiny.build_policy(model)
    (note,) = [note for note in probe(policy) if "rows are padded" in note]
    assert why in note
    assert not policy.module.packs
    sampler, forward, difference, scale = gaps(tiny, model, policy)
    assert max(sampler, forward) < 1e-4
    assert max(difference, scale) < 1e-5


def test_the_fast_path_can_be_switched_off(tiny):
    policy = tiny.build_policy(tiny.build_model("llama"))
    assert probe(policy, fast_path=False) == []
    assert not policy.module.packs


@pytest.mark.parametrize("std", [0.3, 0.02], ids=["lively", "fresh"])
def test_layers_that_look_at_their_neighbours_are_found_in_a_packed_row(std, tiny, monkeypatch):
    """A convolution over tokens, as hybrid models have: harmless alone, a leak in a packed row."""
    policy = tiny.build_policy(tiny.build_model("llama", std=std))
    forward = modeling_llama.LlamaMLP.forward

    def mixing(self, states):
        before = torch.nn.functional.pad(states, (0, 0, 1, 0))[:, :-1]
        return forward(self, states + 1e-3 * before)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", mixing)
    rollout = made_up_rollout(policy)
    reference = plain_logprobs(policy, rollout)
    why = why_not_packable(policy, rollout, reference)
    assert why == "sequences of a packed row see one another"


def test_a_model_that_keeps_its_own_attention_is_found(tiny, monkeypatch):
    """Half of the layers do not ask for the function that stands in the configuration."""
    policy = tiny.build_policy(tiny.build_model("llama"))
    own = modeling_llama.LlamaAttention.forward

    def sometimes(self, *given, **named):
        if self.layer_idx == 1:
            named.pop("layout", None)
            self.config = copy.deepcopy(self.config)
            self.config._attn_implementation = "sdpa"
        return own(self, *given, **named)

    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", sometimes)
    rollout = made_up_rollout(policy)
    why = why_not_packable(policy, rollout, plain_logprobs(policy, rollout))
    assert why == "1 of its 2 layers let their attention be replaced"


@pytest.mark.parametrize("architecture", ["gemma2", "granite"])
@pytest.mark.parametrize("std", [0.3, 0.02], ids=["lively", "fresh"])
def test_a_head_that_is_more_than_a_matrix_takes_the_plain_path(architecture, std, tiny):
    """Gemma 2 caps its logits and Granite scales them; on fresh weights a cap is nearly
    invisible, and it must be found all the same."""
    model = tiny.build_model(architecture, std=std)
    policy = tiny.build_policy(model)
    note, *further = probe(policy)
    assert "its logits are more than the head's output" in note
    assert len(further) == (architecture == "gemma2")  # which has a window, too
    assert not policy.module.separate_head
    sampler, forward, difference, scale = gaps(tiny, model, policy)
    assert max(sampler, forward) < 1e-4
    assert max(difference, scale) < 1e-5


@pytest.mark.parametrize("architecture", ["gemma2", "granite"])
def test_the_fast_path_would_be_wrong_there(architecture, tiny):
    model = tiny.build_model(architecture)
    assert min(gaps(tiny, model, tiny.build_policy(model))) > 0.05


@pytest.mark.parametrize("std", [0.3, 0.02], ids=["lively", "fresh"])
def test_a_state_space_model_is_refused(std, tiny):
    """It ignores the cache it is handed, and would sample every token without its prompt."""
    with pytest.raises(ModelError, match="MambaForCausalLM cannot be served by the generation"):
        probe(tiny.build_policy(tiny.build_model("mamba", std=std)))


def test_an_encoder_with_a_language_model_head_is_refused(tiny):
    with pytest.raises(ModelError, match="BertLMHeadModel"):
        probe(tiny.build_policy(tiny.build_model("bert")))


@pytest.mark.parametrize("std", [0.3, 0.02], ids=["lively", "fresh"])
def test_attention_to_later_tokens_is_refused(monkeypatch, std, tiny):
    policy = tiny.build_policy(tiny.build_model("llama", std=std, attn_implementation="eager"))
    assert probe(policy) == []
    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **_: None)
    with pytest.raises(ModelError, match="LlamaForCausalLM"):
        probe(policy)


def test_a_trainable_parameter_that_nothing_uses_is_named(tiny):
    model = tiny.build_model("llama")
    model.model.register_parameter("forgotten", nn.Parameter(torch.ones(3)))
    with pytest.raises(TrainingError, match=r"1 of \d+ trainable tensors.*: model\.forgotten;"):
        probe(tiny.build_policy(model))
    model.model.forgotten.requires_grad_(False)
    assert probe(tiny.build_policy(model)) == []


def test_parameters_without_gradient_are_counted_when_there_are_many(tiny):
    model = tiny.build_model("llama")
    for i in range(7):
        model.register_parameter(f"forgotten{i}", nn.Parameter(torch.ones(3)))
    with pytest.raises(TrainingError, match="forgotten4 and 2 more; freeze them"):
        probe(tiny.build_policy(model))


def test_a_gradient_that_is_not_finite_is_named(tiny):
    model = tiny.build_model("llama")
    model.model.norm.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(TrainingError, match=r"model\.norm\.weight"):
        probe(tiny.build_policy(model))


def test_a_model_without_anything_to_train_is_refused(tiny):
    model = tiny.build_model("llama").requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter is trainable"):
        probe(tiny.build_policy(model))


def adapted(tiny):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    return add_adapter(tiny.build_model("llama"), config, seed=0)


def test_an_adapter_whose_b_receives_no_gradient_is_named(tiny):
    """A's gradient is 0 at the start because B is 0, so a test for zeros alone would refuse every
    adapter, and a test for presence alone would pass one that is cut off."""
    model = adapted(tiny)
    assert probe(tiny.build_policy(model)) == []
    layer = model.get_base_model().model.layers[1].self_attn.v_proj
    layer.lora_B["default"].register_forward_hook(lambda module, inputs, output: 0 * output)
    with pytest.raises(TrainingError, match=r"1 of 8 .*layers\.1\.self_attn\.v_proj\.lora_B"):
        probe(tiny.build_policy(model))


def test_an_adapter_with_dropout_is_refused(tiny):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], lora_dropout=0.1)
    with pytest.raises(ModelError, match=r"lora_dropout=0\.1 is refused"):
        add_adapter(tiny.build_model("llama"), config, seed=0)


def test_the_probe_leaves_no_gradient_and_no_mode_behind(tiny):
    policy = tiny.build_policy(tiny.build_model("llama"))
    before = {name: value.clone() for name, value in policy.module.state_dict().items()}
    probe(policy)
    assert all(parameter.grad is None for parameter in policy.trainable().values())
    assert policy.module.training
    assert all(torch.equal(before[n], v) for n, v in policy.module.state_dict().items())


def test_a_probe_of_a_broken_fast_path_would_notice(monkeypatch, tiny):
    """Targets shifted by one in the very code that trains."""
    tiled = teacher_forcing.tiled_logprobs
    monkeypatch.setattr(
        teacher_forcing,
        "tiled_logprobs",
        lambda hidden, head, targets, *rest: tiled(hidden, head, targets.roll(1), *rest),
    )
    with pytest.raises(ModelError, match="other log-probabilities in a padded batch than alone"):
        probe(tiny.build_policy(tiny.build_model("llama")))


def test_a_gradient_other_than_the_models_own_is_refused(tiny, monkeypatch):
    """The control beside every model that passes: half a gradient from head to backbone."""
    whole = teacher_forcing.tiled_gradient

    def halved(*arguments):
        logprobs, gradient = whole(*arguments)
        return logprobs, gradient / 2

    policy = tiny.build_policy(tiny.build_model("llama"))
    assert probe(policy) == []
    monkeypatch.setattr(teacher_forcing, "tiled_gradient", halved)
    with pytest.raises(ModelError, match=r"the gradient of .* has norm"):
        probe(policy)
