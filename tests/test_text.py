"""Between text and ids: special tokens once, prompts never closed, nothing decoded twice."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rl4lm.errors import DataError
from rl4lm.text import TextCodec

WORDS = ["<pad>", "<s>", "</s>", "one", "two", "user:", "assistant:"]
BOS, END, ONE, TWO, USER, ASSISTANT = range(1, 7)
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def codec(*, template=None, adds=()):
    """A tokenizer of seven words; `adds` is what it puts around a text."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds:
        core.post_processor = processors.TemplateProcessing(
            single=" ".join(adds), special_tokens=[("<s>", BOS), ("</s>", END)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = template
    return TextCodec(tokenizer)


def test_text_gets_the_special_tokens_that_the_tokenizer_adds():
    assert codec().encode(["one two"]) == [[ONE, TWO]]
    assert codec(adds=("<s>", "$A")).encode(["one two"]) == [[BOS, ONE, TWO]]


def test_a_chat_template_that_writes_the_first_token_does_not_get_a_second_one():
    messages = [{"role": "user", "content": "one"}]
    expected = [BOS, USER, ONE, ASSISTANT]
    with_bos = codec(template=TEMPLATE, adds=("<s>", "$A"))
    assert with_bos.encode([messages]) == [expected]
    # The same text, rendered by the user, gets none either; the control is the bare tokenizer.
    text = "<s> user: one assistant:"
    assert with_bos.encode([text]) == [expected]
    assert with_bos.tokenizer([text])["input_ids"] == [[BOS, *expected]]


def test_only_a_first_token_that_the_tokenizer_added_is_taken_off():
    adding, silent = codec(adds=("<s>", "$A")), codec()
    assert adding.encode(["<s> <s> one", "one <s>"]) == [[BOS, BOS, ONE], [BOS, ONE, BOS]]
    assert silent.encode(["<s> one", "<s> <s> one"]) == [[BOS, ONE], [BOS, BOS, ONE]]


def test_an_end_token_that_the_tokenizer_appends_is_taken_off():
    assert codec(adds=("<s>", "$A", "</s>")).encode(["one two"]) == [[BOS, ONE, TWO]]
    assert codec(adds=("$A", "</s>")).encode(["one"]) == [[ONE]]


def test_an_end_token_that_stands_in_the_prompt_stays():
    assert codec(adds=("<s>", "$A")).encode(["one </s>"]) == [[BOS, ONE, END]]


def test_text_and_messages_keep_their_order():
    messages = [{"role": "user", "content": "two"}]
    rows = codec(template=TEMPLATE).encode(["one", messages, "two"])
    assert rows == [[ONE], [BOS, USER, TWO, ASSISTANT], [TWO]]


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(DataError, match="has no tokens"):
        codec().encode(["one", ""])
    assert codec(adds=("<s>", "$A")).encode([""]) == [[BOS]]


def test_messages_without_a_chat_template_are_refused():
    with pytest.raises(DataError, match="no chat template"):
        codec().encode([[{"role": "user", "content": "one"}]])


def test_decoding_leaves_special_tokens_out():
    assert codec().decode([[ONE, TWO, END], [END]]) == ["one two", ""]
