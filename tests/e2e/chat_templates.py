"""Chat templates in the manner of well-known models, and a tiny checkpoint that has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, END, TURN = "<|begin|>", "<|end|>", "<|eot|>"
_SPECIAL = [BOS, END, TURN, "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>"]
_WORDS = ["<think>", "</think>"]  # tokens of their own, but part of the text

# Turns between <|im_start|> and <|im_end|>, and nothing before them.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A system message of its own where there is none; thinks unless it is told not to, which writes a
# block without thoughts; what was thought in earlier turns is left out.
QWEN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{% set said = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in said %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# The template writes the first token, and the tokenizer adds one to plain text too; refuses roles
# that do not alternate.
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + m.role) }}{% endif %}"
    "{{ '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
# The generation prompt opens the block of thoughts: the completion begins inside it.
OPENS_THINKING = LLAMA.replace(
    "assistant<|/head|>\n\n' }}{% endif", "assistant<|/head|>\n\n<think>\n' }}{% endif"
)

TEMPLATES = {"chatml": CHATML, "qwen": QWEN, "llama": LLAMA, "opens_thinking": OPENS_THINKING}


def chat_tokenizer(template: str | None, *, adds_bos: bool = True) -> Any:
    """A tokenizer of single bytes with the tokens of the templates above.

    Args:
        template: the chat template; None for a tokenizer without one, and without a pad token.
        adds_bos: whether a first token is put before plain text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: k for k, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(_SPECIAL)
    core.add_tokens(_WORDS)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BOS, eos_token=TURN)
    tokenizer.chat_template = template
    if template is not None:
        tokenizer.pad_token = END
    return tokenizer


def save_chat_checkpoint(
    folder: Path,
    template: str | None,
    *,
    adds_bos: bool = True,
    vocabulary: int = 0,
    context: int = 512,
) -> Path:
    """Write a tiny Llama with `chat_tokenizer`.

    Args:
        folder: where it is written to; given back.
        template, adds_bos: of the tokenizer.
        vocabulary: the least number of its token ids.
        context: tokens that it has positions for.
    """
    tokenizer = chat_tokenizer(template, adds_bos=adds_bos)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=max(len(tokenizer), vocabulary),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=context,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
