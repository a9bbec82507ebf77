"""Chat prompts: the ids of the tokenizer's own template, with one first token, ready to answer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from chat_templates import BOS, LLAMA, OPENS_THINKING, QWEN, TEMPLATES, chat_tokenizer

from rewards.formats import tagged
from rl4lm.data.chat import up_to_last_user, with_system
from rl4lm.errors import DataError
from rl4lm.text import TextCodec

USER = {"role": "user", "content": "What is 2+3?"}
SYSTEM = {"role": "system", "content": "Be brief."}
THOUGHT = {"role": "assistant", "content": "<think>\nwell\n</think>\n\n4"}
CONVERSATIONS = {
    "a question": [USER],
    "a system message": [SYSTEM, USER],
    "several turns": [SYSTEM, USER, {"role": "assistant", "content": "5"}, USER],
    "turns with thoughts": [USER, THOUGHT, USER],
    "spaces and letters": [{"role": "user", "content": "  ça va? \n"}],
}


def own_ids(tokenizer, messages, **variables):
    return tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, **variables
    )["input_ids"]


@pytest.mark.parametrize("adds_bos", [True, False], ids=["adds bos", "adds nothing"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_are_those_of_the_tokenizers_own_template(name, adds_bos):
    tokenizer = chat_tokenizer(TEMPLATES[name], adds_bos=adds_bos)
    rows = TextCodec(tokenizer).encode(list(CONVERSATIONS.values()))
    assert rows == [own_ids(tokenizer, messages) for messages in CONVERSATIONS.values()]
    writes_bos = "bos_token" in TEMPLATES[name]
    assert [row.count(tokenizer.bos_token_id) for row in rows] == [int(writes_bos)] * len(rows)
    # The control: what comes of rendering first and tokenizing the text like any other.
    doubled = tokenizer(tokenizer.decode(rows[0]))["input_ids"]
    assert doubled.count(tokenizer.bos_token_id) == writes_bos + adds_bos


def published_templates():
    spec = importlib.util.find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec else Path("none")
    names = ("llama3", "qwen2_5", "qwen3", "deepseek_r1_distill", "gemma", "phi3", "glm4moe")
    return [path for name in names if (path := folder / f"{name}.jinja").is_file()]


@pytest.mark.parametrize("path", published_templates(), ids=lambda path: path.stem)
def test_templates_of_published_models_give_their_own_ids(path):
    tokenizer = chat_tokenizer(path.read_text())
    (row,) = TextCodec(tokenizer).encode([[USER]])
    assert row == own_ids(tokenizer, [USER])
    assert row.count(tokenizer.bos_token_id) == path.read_text().count("bos_token")


def test_variables_of_the_template_reach_it():
    tokenizer = chat_tokenizer(QWEN)
    (quiet,) = TextCodec(tokenizer, {"enable_thinking": False}).encode([[USER]])
    (usual,) = TextCodec(tokenizer).encode([[USER]])
    assert quiet == own_ids(tokenizer, [USER], enable_thinking=False)
    assert tokenizer.decode(quiet) == tokenizer.decode(usual) + "<think>\n\n</think>\n\n"


def test_thoughts_of_earlier_turns_are_left_out_where_the_template_leaves_them_out():
    (row,) = TextCodec(chat_tokenizer(QWEN)).encode([CONVERSATIONS["turns with thoughts"]])
    assert "well" not in chat_tokenizer(QWEN).decode(row)
    (control,) = TextCodec(chat_tokenizer(LLAMA)).encode([CONVERSATIONS["turns with thoughts"]])
    assert "well" in chat_tokenizer(LLAMA).decode(control)


def test_a_last_message_of_the_assistant_is_continued():
    begun = [USER, {"role": "assistant", "content": "2+3 is"}]
    for template in (LLAMA, QWEN):
        tokenizer = chat_tokenizer(template)
        (row,) = TextCodec(tokenizer).encode([begun])
        assert tokenizer.decode(row).endswith("2+3 is")
        assert (
            row
            == tokenizer.apply_chat_template(
                begun, tokenize=True, continue_final_message=True, return_dict=True
            )["input_ids"]
        )


def test_a_completion_begins_inside_a_block_that_the_template_opens():
    codec = TextCodec(chat_tokenizer(OPENS_THINKING))
    (prompt,) = codec.encode([[USER]])
    assert codec.tokenizer.decode(prompt).endswith("<think>\n")
    said = "two and three</think><answer>5</answer>"
    (text,) = codec.decode([codec.tokenizer(said, add_special_tokens=False)["input_ids"]])
    assert text == said  # <think> and </think> are tokens, and stay in what rewards see
    opened, whole = tagged("think", "answer", first_is_open=True), tagged("think", "answer")
    assert opened(completions=[text]) == [1.0]
    assert whole(completions=[text]) == [0.0]


def test_text_and_conversations_may_be_mixed():
    codec = TextCodec(chat_tokenizer(LLAMA))
    plain, chat = codec.encode(["hello", [USER]])
    assert codec.tokenizer.decode(plain) == f"{BOS}hello"
    assert chat == own_ids(codec.tokenizer, [USER])


def test_a_tokenizer_without_template_and_pad_token_takes_text_only():
    codec = TextCodec(chat_tokenizer(None))
    assert codec.tokenizer.pad_token is None
    assert len(codec.encode(["hello", "you there"])) == 2
    with pytest.raises(DataError, match="the tokenizer has no chat template; give plain text"):
        codec.encode([[USER]])


def test_what_a_template_refuses_is_said_in_its_words():
    with pytest.raises(DataError, match=r"does not take the prompt .*unknown role tool; mend"):
        TextCodec(chat_tokenizer(LLAMA)).encode([[{"role": "tool", "content": "5"}]])


def test_a_conversation_is_cut_after_the_last_turn_of_the_user():
    turns = [SYSTEM, USER, THOUGHT, USER, THOUGHT, {"role": "tool", "content": "5"}]
    assert up_to_last_user(turns) == turns[:4]
    assert up_to_last_user(turns[:4]) == turns[:4]
    with pytest.raises(ValueError, match="no turn of a user"):
        up_to_last_user([SYSTEM, THOUGHT])


def test_a_system_message_comes_first_and_only_once():
    assert with_system("Be brief.", [USER]) == [SYSTEM, USER]
    assert with_system("Be brief.", "What is 2+3?") == [SYSTEM, USER]
    with pytest.raises(ValueError, match="system message of its own"):
        with_system("Be brief.", [SYSTEM, USER])
