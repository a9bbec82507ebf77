"""Columns: renamed, put into templates, made conversations; and what is refused of options."""

from __future__ import annotations

import datasets
import pytest

from rl4lm.config import ReinforceConfig
from rl4lm.data.columns import Shape, shape_of
from rl4lm.data.examples import from_dataset
from rl4lm.errors import ConfigError, DataError

ROWS = [
    {"question": "1+1?", "solution": "2", "level": 1},
    {"question": "2+5?", "solution": "7", "level": 2},
]
TALK = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
]


def first(rows=ROWS, column="prompt", **options):
    data = from_dataset(rows, column, "train", shape_of(ReinforceConfig(**options)))
    return data.example(0)


def refusal(rows=ROWS, column="prompt", **options):
    with pytest.raises(DataError) as caught:
        first(rows, column, **options)
    return str(caught.value)


def option_refusal(**options):
    with pytest.raises(ConfigError) as caught:
        ReinforceConfig(**options)
    return str(caught.value)


def test_renamed_columns_reach_prompts_and_rewards_under_their_new_names():
    example = first(rename=["question=prompt", "solution=answer"])
    assert example.prompt == "1+1?"
    assert example.columns == {"answer": "2", "level": 1}


def test_two_columns_may_change_names_with_each_other():
    example = first(column="question", rename=["question=solution", "solution=question"])
    assert example.prompt == "2"
    assert example.columns == {"solution": "1+1?", "level": 1}


def test_a_mapping_or_its_json_says_the_same_as_pairs():
    pairs = ["a=b", "c=d"]
    assert ReinforceConfig(rename={"a": "b", "c": "d"}).rename == pairs
    assert ReinforceConfig(rename=['{"a": "b", "c": "d"}']).rename == pairs
    given = {"enable_thinking": False, "effort": "low", "budget": 3, "date": None}
    assert ReinforceConfig(chat_template_kwargs=given).template_variables == given
    typed = ["enable_thinking=False", "effort=low", "budget=3", "date=none"]
    assert ReinforceConfig(chat_template_kwargs=typed).template_variables == given


def test_a_template_writes_columns_into_the_prompt_and_leaves_them_to_the_rewards():
    example = first(prompt_template="{{Level {level}}}\nQ: {question}\nA:")
    assert example.prompt == "{Level 1}\nQ: 1+1?\nA:"
    assert example.columns == ROWS[0]


def test_a_template_may_hold_the_prompt_itself():
    assert first([{"prompt": "1+1"}], prompt_template="Compute {prompt}.").prompt == "Compute 1+1."


@pytest.mark.parametrize("value", [None, ["a"], {"a": 1}])
def test_a_template_takes_text_and_numbers_only(value):
    rows = [{"question": value}, {"question": "?"}]
    assert "row 0 of split 'train': prompt_template: the column 'question' must be text" in refusal(
        rows, prompt_template="{question}"
    )


def test_text_becomes_what_a_user_says_where_chat_is_asked_for():
    user = {"role": "user", "content": "1+1?"}
    system = {"role": "system", "content": "Be brief."}
    asked = {"column": "question", "as_chat": True}
    assert first(**asked).prompt == [user]
    assert first(**asked, system_prompt="Be brief.").prompt == [system, user]
    assert first(column="question", system_prompt="Be brief.").prompt == [system, user]
    assert first(column="question").prompt == "1+1?"


def test_a_column_of_conversations_serves_where_there_is_no_prompt():
    rows = [{"messages": TALK, "level": 3}]
    example = first(rows)
    assert example.prompt == TALK[:1]
    assert example.columns == rows[0]  # with the answer, for rewards that compare
    assert first(rows, column="messages") == example
    # A prompt that ends with the assistant is one to go on from, and is not cut.
    assert first([{"prompt": TALK, "messages": []}]).prompt == TALK


def test_keys_that_other_messages_brought_into_the_table_are_taken_out():
    named = {"role": "user", "name": "Ada", "content": "hi"}
    table = datasets.Dataset.from_list([{"prompt": TALK[:1]}, {"prompt": [named]}])
    assert table[0]["prompt"][0]["name"] is None  # the control: Arrow has put it there
    data = from_dataset(table, "prompt", "train")
    assert [example.prompt for example in data.examples([0, 1])] == [TALK[:1], [named]]
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert first([{"prompt": [*TALK, called]}]).prompt == [*TALK, called]


def test_columns_reach_the_rewards_as_they_are():
    nested = {"tests": [{"in": [1, None], "out": 2.5}], "none": None, "text": "001", "number": 1}
    assert first([{"prompt": "a", **nested}]).columns == nested


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("rename: there is no column 'solutoin'; did you mean solution?", ["solutoin=answer"]),
        ("'question' and 'solution' would both be called 'solution'", ["question=solution"]),
        ("would both be called 'x'", ["question=x", "solution=x"]),
    ],
)
def test_a_renaming_that_cannot_be_meant_names_the_columns(words, options):
    assert words in refusal(rename=options)


def test_a_template_that_names_no_column_there_is_names_those_there_are():
    message = refusal(prompt_template="{qestion}")
    assert "no column 'qestion'; did you mean question?; they have: question, solution" in message


def test_a_system_message_besides_one_in_the_row_is_refused():
    rows = [{"prompt": [{"role": "system", "content": "a"}, TALK[0]]}]
    assert "a system message of its own, and system_prompt is set" in refusal(
        rows, system_prompt="b"
    )


@pytest.mark.parametrize("template", ["{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{}", "{ }"])
def test_a_field_is_the_name_of_a_column_and_nothing_more(template):
    assert "is more or less than the name of a column" in option_refusal(prompt_template=template)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("'{' encountered", {"prompt_template": "{a} {"}),
        ("names no column", {"prompt_template": "Hello {{a}}"}),
        ("'answer' given, expected two names with =", {"rename": ["answer"]}),
        ("'a' is given twice", {"rename": ["a=b", "a=c"]}),
        ("tokenize is no variable", {"chat_template_kwargs": ["tokenize=true"]}),
        ("needs max_train_samples", {"dataset_streaming": True}),
        ("leave one", {"held_out_share": 0.1, "dataset_test_split": "validation"}),
        ("held_out_share: 1.0 given", {"held_out_share": 1.0}),
        ("expected one of refuse, drop", {"long_prompts": "cut"}),
    ],
)
def test_options_for_data_that_cannot_be_meant_are_refused(words, options):
    assert words in option_refusal(**options)


def test_without_options_rows_are_left_as_they_are():
    assert shape_of(ReinforceConfig()) == Shape()
