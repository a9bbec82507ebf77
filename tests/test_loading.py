"""Checkpoints: what is refused before its weights are read, and how the rest is made a policy."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

from rl4lm.builtin import model_path
from rl4lm.errors import ConfigError, ModelError
from rl4lm.model import reachable
from rl4lm.model.adapters import add_adapter, add_lora
from rl4lm.model.loading import load_model, open_model, open_tokenizer
from rl4lm.model.preparing import describe, inference_mode_of, make_policy
from rl4lm.model.reachable import why_unreachable
from rl4lm.text import TextCodec

CPU = torch.device("cpu")
VOCABULARY = 100  # of the built-in tokenizer
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1}
GPT2 = {"n_embd": 8, "n_layer": 2, "n_head": 1, "n_positions": 32, "bos_token_id": 1}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Tiny checkpoints by name, each with the built-in tokenizer unless its name says otherwise."""
    logging.set_verbosity_error()
    root = tmp_path_factory.mktemp("zoo")
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=VOCABULARY, **BERT)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, eos_token_id=2, **GPT2))
    gpt2.to(torch.bfloat16)
    models = {
        "masked": BertForMaskedLM(bert),
        "backbone": BertModel(bert),
        "t5": T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **T5)),
        "gpt2": gpt2,
        "no_tokenizer": gpt2,
        "garbage": gpt2,
        "other_shape": gpt2,
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        if name != "no_tokenizer":
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(model_path("builtin:tiny-arithmetic") / file, root / name)
    (root / "garbage" / "model.safetensors").write_bytes(b"garbage")
    config = root / "other_shape" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_embd": 12}))
    (root / "vacant").mkdir()
    return root


def load(path, dtype="float32"):
    return load_model(open_model(str(path)), dtype=dtype, device=CPU)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("masked", "is a BertForMaskedLM, not a causal language model"),
        ("t5", "is a T5ForConditionalGeneration, not a causal language model"),
        ("no_tokenizer", "no tokenizer could be read from"),
        ("vacant", "no model could be read from"),
        ("nowhere", "there is no directory"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_weights(name, words, zoo):
    with pytest.raises(ModelError, match=words):
        open_model(str(zoo / name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("backbone", "lacks .* weights of a BertLMHeadModel, such as cls.predictions"),
        ("garbage", "cannot be loaded: a file is broken or cut short: Error while deserializing"),
        ("other_shape", "cannot be loaded"),
    ],
)
def test_weights_that_are_not_all_there_are_refused(name, words, zoo):
    source = open_model(str(zoo / name))
    with pytest.raises(ModelError, match=words):
        load_model(source, dtype="float32", device=CPU)


def test_a_built_in_name_that_does_not_exist_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'builtin:tiny-arithmetic'"):
        open_model("builtin:tiny-arithmetics")


def test_a_tokenizer_that_is_handed_over_stands_in_for_a_missing_one(zoo):
    tokenizer = open_model("builtin:tiny-arithmetic").tokenizer
    assert open_model(str(zoo / "no_tokenizer"), tokenizer=tokenizer).tokenizer is tokenizer


def test_the_context_is_known_before_the_weights(zoo):
    assert open_model(str(zoo / "gpt2")).context_length == 32
    assert open_model("builtin:tiny-arithmetic").context_length == 512


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.float32),
        ("pure_bfloat16", torch.bfloat16),
        ("float64", torch.float64),
    ],
)
def test_masters_are_float32_unless_another_precision_is_asked_for_by_name(dtype, expected, zoo):
    model = load(zoo / "gpt2", dtype)  # a bfloat16 checkpoint
    assert {p.dtype for p in model.parameters()} == {expected}


def test_dropout_is_off_in_modules_and_attributes_and_the_model_stays_in_train_mode(zoo):
    model = load(zoo / "gpt2")
    ids = torch.arange(8)[None]
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)  # GPT-2 drops by default
    policy = make_policy(model, TextCodec(None), dtype="float32")
    assert model.training
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert model.config.attn_pdrop == 0.1  # so that a saved model is what it was
    with inference_mode_of(policy.module):
        assert not model.training
    assert model.training


def test_stop_tokens_join_the_ends_that_the_model_declares(zoo):
    model, tokenizer = load(zoo / "gpt2"), open_model(str(zoo / "gpt2")).tokenizer

    def ends(stop_token_ids=()):
        codec = TextCodec(tokenizer)
        return make_policy(
            model, codec, dtype="float32", stop_token_ids=stop_token_ids
        ).end_token_ids

    assert ends() == (2,)
    assert ends([7, 2]) == (2, 7)
    model.generation_config.eos_token_id = [5, 6]
    assert ends([7]) == (5, 6, 7)


def test_an_adapter_starts_as_the_base_model_and_depends_on_the_seed_alone(zoo):
    ids = torch.arange(8)[None]
    base = load(zoo / "gpt2").eval()
    expected = base(ids).logits

    def adapted(seed):
        torch.rand(1)  # the global generator is somewhere else each time
        state = torch.random.get_rng_state()
        model = add_lora(
            load(zoo / "gpt2"), r=2, alpha=4, target_modules="all-linear", seed=seed
        ).eval()
        assert torch.equal(model(ids).logits, expected)
        assert torch.equal(torch.random.get_rng_state(), state)
        return {n: p for n, p in model.named_parameters() if "lora_A" in n}

    first, again, other = adapted(1), adapted(1), adapted(2)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first)


def test_adapters_train_only_what_they_add(zoo):
    plain = describe(load(zoo / "gpt2"))
    assert plain["trainable"] == plain["parameters"]
    sizes = describe(add_lora(load(zoo / "gpt2"), r=2, alpha=4, target_modules=["c_fc"], seed=0))
    added = 2 * 2 * (8 + 4 * 8)  # layers · r · (in + out)
    assert sizes == {"parameters": plain["parameters"] + added, "trainable": added}


def test_adapters_that_drop_or_do_not_fit_are_refused(zoo):
    from peft import LoraConfig

    model = load(zoo / "gpt2")
    with pytest.raises(ModelError, match=r"lora_dropout=0\.1 is refused"):
        add_adapter(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1), seed=0)
    with pytest.raises(ModelError, match=r"does not fit the model.*nowhere"):
        add_lora(model, r=2, alpha=4, target_modules=["nowhere"], seed=0)


def test_a_run_in_the_place_of_a_model_is_told_where_its_weights_are(tmp_path, zoo):
    (tmp_path / "config.yaml").write_text("max_steps: 3\n")
    for opens in (open_model, open_tokenizer):
        with pytest.raises(ModelError, match="the directory of a run, which has saved no weights"):
            opens(str(tmp_path))
    for folder in ("model", "checkpoint-999999", "checkpoint-1000000"):
        shutil.copytree(zoo / "gpt2", tmp_path / folder)
    (tmp_path / "checkpoint-1000001").mkdir()  # half removed
    told = f"final weights are in '{tmp_path}/model' and whose newest checkpoint is '{tmp_path}/"
    for opens in (open_model, open_tokenizer):
        with pytest.raises(ModelError, match=re.escape(f"{told}checkpoint-1000000'")):
            opens(str(tmp_path))
    open_model(str(tmp_path / "model"))


def server_socket():
    """A socket on a free port, which listens once it is told to."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    return server


@pytest.fixture
def hub_at(monkeypatch, tmp_path):
    """Moves the hub to a port of this machine, and its cache to an empty folder."""
    monkeypatch.setattr(reachable, "_PAUSE_S", 0.01)
    monkeypatch.setattr(reachable, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def move(server):
        port = server.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")

    return move


def test_a_hub_where_nobody_listens_is_told_without_its_clients_retries(hub_at):
    with server_socket() as server:
        hub_at(server)
        began = time.monotonic()
        with pytest.raises(ModelError, match=r"http://127.*cannot be reached .*refused.*no direct"):
            open_model("nobody/nothing")
        assert time.monotonic() - began < 5  # the client alone takes 23 s


def test_a_hub_that_may_answer_is_left_to_its_client(hub_at, monkeypatch):
    with server_socket() as server:
        hub_at(server)
        assert "refused" in why_unreachable("nobody/nothing")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # answered at once
        assert why_unreachable("nobody/nothing") is None
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(reachable, "getproxies", lambda: {"https": "http://proxy"})
        assert why_unreachable("nobody/nothing") is None
        monkeypatch.setattr(reachable, "getproxies", dict)
        assert why_unreachable("no name of the hub") is None
        server.listen()
        assert why_unreachable("nobody/nothing") is None

    def slow(*args, **keywords):
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", slow)
    assert why_unreachable("nobody/nothing") is None


def test_a_model_in_the_hubs_cache_needs_no_hub(hub_at, tmp_path):
    snapshot = tmp_path / "models--some--one" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    with server_socket() as server:
        hub_at(server)
        assert why_unreachable("some/one") is None
        assert why_unreachable("some/other") is not None
