"""Tiny models, a tokenizer made of numbers, and naive references that share no code with rl4lm."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rl4lm import ReinforceConfig, ReinforceTrainer, Rollout
from rl4lm.cli import main
from rl4lm.model.policy import Policy
from rl4lm.model.preparing import make_policy
from rl4lm.text import TextCodec

# Besides those of e2e/.
_LONG = {"test_verify.py", "test_invariance_of_the_built_in_model.py", "test_early.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that workers end at about the same time."""
    items.sort(key=lambda item: item.path.name not in _LONG and "e2e" not in item.path.parts)


VOCABULARY = 97
EOS = 0  # also the padding id: pad == eos is common, and masks must not be recomputed from ids

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries
    "max_position_embeddings": 64,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # dropout 0.1 by default
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "llama": LLAMA,
    "qwen2": LLAMA,
    "gemma": {**LLAMA, "head_dim": 8},
    "mistral": {**LLAMA, "sliding_window": 4},
    "gemma2": {**LLAMA, "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 4},
    "granite": {**LLAMA, "logits_scaling": 4.0},
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "bert": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "is_decoder": False,
    },
}


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The helpers of this file, by name."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def serving() -> ModuleType:
    """The completions server of `serving.py`."""
    return _beside("serving")


@pytest.fixture(scope="session")
def hub_server() -> ModuleType:
    """The stand-in for the hub of `hub_server.py`."""
    return _beside("hub_server")


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Take a stand-in for the hub; nothing is waited for between tries."""
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    return lambda url: monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """A command line in this process: its exit code is checked; what it said, as `out` and `err`.

    For what a verb finds and says; a process of its own, which takes seconds to import torch, is
    for what has to do with processes.
    """
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: object, code: int = 0) -> Any:
        capsys.readouterr()
        found = main([str(word) for word in words])
        said = capsys.readouterr()
        assert found == code, said.out + said.err
        return said

    yield run
    signal.signal(signal.SIGTERM, handler)


def _beside(name: str) -> ModuleType:
    """A module beside this file."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """More threads make models of this size slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build_model(
    architecture: str,
    *,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    vocabulary: int = VOCABULARY,
    std: float = 0.3,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """A random model whose weights are large enough for lively logits and visible mistakes."""
    config = AutoConfig.for_model(
        architecture,
        **{**SETTINGS[architecture], **settings},
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=None,  # an embedding row named as padding never receives a gradient
    )
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(std * noise)
            else:
                parameter.add_(0.1 * noise)
    return exact_norms(model.to(dtype)) if dtype == torch.float64 else model.to(dtype)


def exact_norms(model: Any) -> Any:
    """Give a float64 model norm layers of torch's own.

    Those of Llama and its kin compute in float32 whatever the dtype, which ends every comparison
    at seven digits.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in ("LlamaRMSNorm", "Qwen2RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model


def build_tokenizer(vocabulary: int = VOCABULARY) -> Any:
    """Words "t0" … to ids 0 …, split at blanks; no special tokens are added."""
    words = models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token=f"t{EOS}")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=f"t{EOS}", pad_token=f"t{EOS}"
    )


def naive_logprobs(
    model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """log π [T] of one completion: the whole model on one sequence, alone and without padding."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    steps = []
    for t, token in enumerate(completion):
        scores = logits[len(prompt) - 1 + t] / temperature
        steps.append(scores[token] - scores.logsumexp(0))
    return torch.stack(steps)


def naive_table(model: Any, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """`naive_logprobs` of every completion of a rollout, [B, T] with 0 outside the mask."""
    rows = zip(prompts_of_rows(rollout), rollout.completion_lists(), strict=True)
    table = torch.zeros(rollout.completion_ids.shape, dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        for i, (prompt, completion) in enumerate(rows):
            table[i, : len(completion)] = naive_logprobs(model, prompt, completion, temperature)
    return table


def naive_gradient(
    model: Any,
    rollout: Rollout,
    advantages: Tensor,
    temperature: float = 1.0,
    reduce: Callable[[Tensor], Tensor] = torch.sum,
    total: int | None = None,
) -> dict[str, Tensor]:
    """∇ of ``-(1/N) Σ_i reduce_t(A_{i,t} log π_{i,t})``, one sequence at a time by autograd."""
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradient = {name: torch.zeros_like(p) for name, p in trainable.items()}
    rows = zip(prompts_of_rows(rollout), rollout.completion_lists(), strict=True)
    for i, (prompt, completion) in enumerate(rows):
        weights = advantages[i, : len(completion)] if advantages.dim() == 2 else advantages[i]
        logprobs = naive_logprobs(model, prompt, completion, temperature)
        loss = -reduce(weights * logprobs) / (total or len(rollout.completion_ids))
        parts = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        for name, part in zip(trainable, parts, strict=True):
            if part is not None:
                gradient[name] += part
    return gradient


def prompts_of_rows(rollout: Rollout) -> list[list[int]]:
    """The prompt of each completion, B lists."""
    return [prompt for prompt in rollout.prompt_lists() for _ in range(rollout.num_generations)]


def gap(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, float]:
    """(‖actual - expected‖ / ‖expected‖, |‖actual‖ / ‖expected‖ - 1|), norms over all tensors.

    The second number is there because a cosine, or a loose first one, does not see scale.
    """
    assert actual.keys() == expected.keys()
    size = global_norm(expected.values())
    difference = global_norm(actual[name] - expected[name] for name in expected)
    return difference / size, abs(global_norm(actual.values()) / size - 1)


def global_norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([t.double().pow(2).sum() for t in tensors]).sum().sqrt())


def random_rollout(
    lengths: Sequence[tuple[int, Sequence[int]]] = ((1, (4, 2)), (6, (3, 7)), (3, (1, 5))),
    vocabulary: int = VOCABULARY,
    seed: int = 0,
) -> Rollout:
    """Random ids; per prompt its length and the lengths of its completions. One prompt opens
    with EOS."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(1, vocabulary, (count,), generator=generator).tolist()

    drawn = [(draw(q), [draw(t) for t in completions]) for q, completions in lengths]
    drawn[1][0][0] = EOS
    prompts = [prompt for prompt, completions in drawn for _ in completions]
    completions = [completion for _, rows in drawn for completion in rows]
    return Rollout.from_lists(prompts, completions, num_generations=len(lengths[0][1]))


def build_policy(model: Any, **options: Any) -> Policy:
    """A policy around a model, as training makes it but without the probe."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return make_policy(model, TextCodec(build_tokenizer(vocabulary)), dtype="auto", **options)


def build_trainer(model: Any, **options: Any) -> ReinforceTrainer:
    """A trainer around a model object, with one prompt and a reward that is never asked."""
    peft_config = options.pop("peft_config", None)
    settings = {"max_completion_length": 4, "eval_samples": 0, "accuracy_func": "none"}
    return ReinforceTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=ReinforceConfig(**{**settings, **options}),
        train_dataset=[{"prompt": "t1 t2"}],
        processing_class=build_tokenizer(model.get_input_embeddings().weight.shape[0]),
        peft_config=peft_config,
    )


def pad_more(rollout: Rollout, prompt: int, completion: int) -> Rollout:
    """The same rollout with more padding, of ids that would change everything if they were read."""

    def wide(values: Tensor, left: int, right: int, fill: float) -> Tensor:
        return nn.functional.pad(values, (left, right), value=fill)

    return replace(
        rollout,
        prompt_ids=wide(rollout.prompt_ids, prompt, 0, 5),
        prompt_mask=wide(rollout.prompt_mask, prompt, 0, False),
        completion_ids=wide(rollout.completion_ids, 0, completion, 7),
        completion_mask=wide(rollout.completion_mask, 0, completion, False),
        sampling_logprobs=wide(rollout.sampling_logprobs, 0, completion, 0.0),
    )
