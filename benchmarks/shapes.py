"""The models and prompts that the benchmarks run on: random weights from a fixed seed.

    size  architecture                    hidden  layers  vocabulary  new tokens  prompts x samples
    T     Llama, tied head                   128       4         100          16              8 x 8
    S     Llama, tied head                   512       8      32,000          64              8 x 8
    V     Llama, tied head                   256       4     151,936          64              8 x 8
    G     Qwen2.5-0.5B's, tied head          896      24     151,936         256             64 x 8
    L     Qwen2.5-1.5B's, tied head         1536      28     151,936         256             64 x 8

T, S and V have full multi-head attention (heads of 32, 64 and 64) and an MLP of four times the
hidden size. The prompts have 8 to 64 tokens, evenly spread; every word of a prompt is the decimal
number of its token id, so that one text gives the same ids to every program.

Variants: `fixed` (no completion can end early: the end token is an id that the model does not
have), `varied` (an end token that is drawn with the same probability at every place, which makes
the mean length about half of the longest), `lora` (fixed, with adapters of rank 8 on all linear
layers but the head), `single` (fixed, 64 prompts x 1 sample).
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

VARIANTS = ("fixed", "varied", "lora", "single")
LORA_RANK = 8
SHORTEST_PROMPT, LONGEST_PROMPT = 8, 64
_PAD, _FIRST_WORD = 0, 1  # ids; the pad id is in no prompt


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and the work of one step on it."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    new_tokens: int
    prompts: int = 8
    samples: int = 8
    tied: bool = True
    architecture: str = "llama"

    @property
    def completions(self) -> int:
        """Completions of a step."""
        return self.prompts * self.samples

    @property
    def kv_width(self) -> int:
        """Numbers in a token's keys of one layer."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_width
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head_parameters(self) -> int:
        """Weights of the output matrix."""
        return self.hidden * self.vocabulary


SHAPES = {
    "T": Shape("T", 128, 4, 4, 4, 512, 100, 16),
    "S": Shape("S", 512, 8, 8, 8, 2048, 32_000, 64),
    "V": Shape("V", 256, 4, 4, 4, 1024, 151_936, 64),
    "G": Shape("G", 896, 24, 14, 2, 4864, 151_936, 256, 64, 8, True, "qwen2"),
    "L": Shape("L", 1536, 28, 12, 2, 8960, 151_936, 256, 64, 8, True, "qwen2"),
}


def shape_of(size: str, variant: str) -> Shape:
    """The shape of a size, with the prompts and samples that a variant has."""
    shape = SHAPES[size]
    if variant == "single":
        return replace(shape, prompts=shape.completions, samples=1)
    return shape


def prompt_ids(shape: Shape, seed: int = 0) -> list[list[int]]:
    """Token ids of the prompts: lengths evenly spread from 8 to 64, ids drawn at random."""
    rng = random.Random(seed)
    last = max(1, shape.prompts - 1)
    span = LONGEST_PROMPT - SHORTEST_PROMPT
    lengths = [SHORTEST_PROMPT + round(k * span / last) for k in range(shape.prompts)]
    return [
        [rng.randrange(_FIRST_WORD, shape.vocabulary - 1) for _ in range(length)]
        for length in lengths
    ]


def as_text(ids: Sequence[int]) -> str:
    """The prompt that the tokenizer turns into these ids."""
    return " ".join(map(str, ids))


def build_tokenizer(shape: Shape, variant: str) -> Any:
    """A tokenizer whose words are the numbers of their ids.

    Its end token is the model's last id where lengths vary, and an id beyond the model's otherwise.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    pad, end = "<pad>", "<end>"  # a number would be found inside longer numbers
    special = {_PAD: pad, end_token(shape, variant): end}
    words = {special.get(k, str(k)): k for k in range(shape.vocabulary + 1)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=pad))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=pad, eos_token=end
    )


def end_token(shape: Shape, variant: str) -> int:
    """The id that ends a completion; one that the model cannot draw but where lengths vary."""
    return shape.vocabulary - 1 if variant == "varied" else shape.vocabulary


def build_model(shape: Shape, variant: str = "fixed", device: str = "cpu") -> Any:
    """A causal language model in float32 with random weights, the same at every call."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    with torch.device(device):
        if shape.architecture == "qwen2":
            model: Any = Qwen2ForCausalLM(Qwen2Config(**sizes))
        else:
            model = LlamaForCausalLM(LlamaConfig(**sizes))
    if variant == "varied":
        _make_ends_likely(model, shape)
    return model


def end_probability(new_tokens: int) -> float:
    """p of ending at each token for which the mean length is half of the longest.

    The mean of min(length, T) is (1 - (1 - p)^T) / p; p is found by bisection.
    """
    low, high = 1e-9, 1.0
    for _ in range(60):
        p = (low + high) / 2
        mean = -math.expm1(new_tokens * math.log1p(-p)) / p
        low, high = (p, high) if mean > new_tokens / 2 else (low, p)
    return low


@torch.no_grad()
def _make_ends_likely(model: Any, shape: Shape) -> None:
    """Give the end token about the same probability at every place, by a channel of its own.

    The first number of every embedding is made one constant as large as all others together, which
    the residual stream carries to the head; the head's weight of the end token on that number is
    then its bias. It is set by bisection on random text.
    """
    end, wanted = shape.vocabulary - 1, end_probability(shape.new_tokens)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embedding[:, 0] = 0.02 * math.sqrt(shape.hidden)
    hidden = _hidden_states(model, shape)  # [n, H]
    logits = hidden @ head.T  # [n, V]
    logits[:, end] = -math.inf
    others = logits.logsumexp(dim=-1)
    without = hidden[:, 1:] @ head[end, 1:]  # the end token's logit but for the channel
    low, high = -100.0, 100.0
    for _ in range(60):
        weight = (low + high) / 2
        p = torch.sigmoid(without + weight * hidden[:, 0] - others).mean()
        low, high = (weight, high) if p < wanted else (low, weight)
    head[end, 0] = low


def _hidden_states(model: Any, shape: Shape) -> Tensor:
    """Last hidden states [n, H] of some random text."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(_FIRST_WORD, shape.vocabulary - 1, (4, 48), generator=generator)
    return model.model(input_ids=ids.to(device)).last_hidden_state[:, 16:].flatten(0, 1).float()


def lora_config() -> Any:
    """Adapters on all linear layers but the head, for every program alike."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        target_modules="all-linear",
        lora_dropout=0.0,
    )


def hashed(completions: list[str], **columns: Any) -> list[float]:
    """A reward that costs nothing and tells completions apart: a hash of the text, 0 to 1."""
    return [zlib.crc32(text.encode()) / 2**32 for text in completions]
