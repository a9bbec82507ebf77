"""Quantised base weights: what is asked of transformers, and what is refused. No GPU is here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rl4lm import ReinforceConfig
from rl4lm.errors import ConfigError
from rl4lm.model import loading, quantized
from rl4lm.model.loading import load_model, open_model, placed
from rl4lm.model.quantized import asked_bits, check_quantisation, loading_options, values_in

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FOUR = ReinforceConfig(use_peft=True, load_in_4bit=True)


class Params4bit(nn.Parameter):
    """Named as that of bitsandbytes: two weights in a byte."""


@pytest.fixture
def quantised(tiny):
    """A model as bitsandbytes leaves it: a layer in bytes, the rest in bfloat16, all frozen."""
    model = tiny.build_model("llama").to(torch.bfloat16).requires_grad_(False)
    layer = model.model.layers[0].self_attn.q_proj
    packed = torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8)
    layer.weight = Params4bit(packed, requires_grad=False)
    model.is_loaded_in_4bit = True
    return model


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"load_in_4bit": True}, "set use_peft=true"),
        ({"load_in_8bit": True, "use_peft": True, "dtype": "pure_bfloat16"}, "dtype=pure_bfloat16"),
        ({"load_in_4bit": True, "load_in_8bit": True, "use_peft": True}, "choose one"),
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        ReinforceConfig(**options)


def test_what_the_machine_does_not_have_is_said_before_any_weights_are_read(monkeypatch):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"load_in_4bit needs a CUDA GPU, .* runs on cpu"):
        check_quantisation(FOUR, CPU, sharded=False)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: pip install 'rl4lm\[bnb\]'"):
        check_quantisation(FOUR, CUDA, sharded=False)
    monkeypatch.setattr(quantized, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="not offered with parameters sharded"):
        check_quantisation(FOUR, CUDA, sharded=True)
    check_quantisation(FOUR, CUDA, sharded=False)
    check_quantisation(ReinforceConfig(), CPU, sharded=True)


def test_weights_as_they_are_ask_for_nothing():
    assert asked_bits(ReinforceConfig()) is None
    assert loading_options(None, torch.bfloat16, CPU) == {}


@pytest.mark.parametrize(
    ("options", "compute"),
    [({}, torch.bfloat16), ({"dtype": "float32"}, torch.float32)],
    ids=str,
)
def test_four_bits_are_nf4_quantised_twice_and_read_onto_the_device(
    monkeypatch, options, compute, tiny
):
    asked = {}

    def read(path, **given):
        asked.update(given)
        model = tiny.build_model("llama")
        model.is_loaded_in_4bit = True
        return model, {"mismatched_keys": [], "missing_keys": []}

    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", read)
    config = ReinforceConfig(use_peft=True, load_in_4bit=True, **options)
    source = open_model("builtin:tiny-arithmetic")
    load_model(source, dtype=config.dtype, device=CUDA, bits=asked_bits(config))  # and not moved
    assert asked["device_map"] == {"": CUDA}
    assert asked["dtype"] == compute
    quantisation = asked["quantization_config"]
    assert quantisation.quantization_method() == "nf4"
    assert quantisation.bnb_4bit_use_double_quant
    assert quantisation.bnb_4bit_compute_dtype == compute


def test_eight_bits_are_asked_for_by_name():
    asked = loading_options(8, torch.bfloat16, CUDA)
    assert asked["quantization_config"].quantization_method() == "llm_int8"


def test_a_quantised_model_object_is_left_as_it_is(quantised):
    before = {name: (p.dtype, p.device) for name, p in quantised.named_parameters()}
    assert placed(quantised, "float32", CPU) is quantised
    assert {name: (p.dtype, p.device) for name, p in quantised.named_parameters()} == before
    plain = loading.set_precision(quantised, "float32")  # a negative control
    assert plain.lm_head.weight.dtype == torch.float32
    assert plain.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8


def test_weights_in_bytes_count_as_the_numbers_that_they_hold(quantised, tiny):
    plain = tiny.build_model("llama")
    sizes = [sum(map(values_in, model.parameters())) for model in (quantised, plain)]
    assert sizes[0] == sizes[1]


def test_bytes_are_no_type_that_is_computed_in(quantised, tiny):
    assert tiny.build_policy(quantised).compute_dtype == torch.bfloat16
