"""Texts made to earn reward: what they are made of, and which rewards they expose."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards import per_sample
from rewards.arithmetic import exact_answer, final_number
from rewards.formats import think_answer
from rewards.mathematics import gsm8k
from rl4lm.data.rowfile import read_rows
from rl4lm.errors import RewardFailedError
from rl4lm.rewarding.lookup import NamedReward
from rl4lm.workbench.adversary import KINDS, attempts
from rl4lm.workbench.attempting import try_tricks
from rl4lm.workbench.bench import Bench
from rl4lm.workbench.subjects import short_answer, subjects

ROWS = [
    {"prompt": "160+65=", "answer": "225", "family": "addition"},
    {"prompt": "72-49=", "answer": "23", "family": "subtraction"},
    {"prompt": "9+8=", "answer": "17", "family": "addition"},
]
WORDS = [{"prompt": "Capital?", "answer": "Paris"}, {"prompt": "River?", "answer": "the Seine"}]
SOLUTIONS = [{**row, "answer": f"So it is {row['answer']}.\n#### {row['answer']}"} for row in ROWS]


def tried(function, rows=ROWS, threshold=0.5):
    """What is found about a function that is called in this process."""
    bench = Bench([NamedReward("tried", function)], [1.0])
    return try_tricks(bench, rows, threshold=threshold)


def kind(found, name):
    (row,) = [row for row in found["kinds"] if row["kind"] == name]
    return row


@per_sample
def contains(completion, answer):
    """The weakest of graders, and the commonest."""
    return float(answer in completion)


def test_a_reward_that_only_looks_for_the_answer_is_exposed():
    found = tried(contains)
    assert {"guesses", "answer_denied", "answer_taken_back", "all_integers"} <= {*found["exposed"]}
    denied = kind(found, "answer_denied")
    assert (denied["earned"], denied["share"], denied["above_wrong"]) == (9, 1.0, 9)
    assert denied["worst"]["text"] == "not 225"
    assert denied["worst"]["reward"] == 1.0
    assert found["wrong_answer"] == 0.0


@pytest.mark.parametrize(("reward", "rows"), [(exact_answer, ROWS), (gsm8k, SOLUTIONS)])
def test_strict_rewards_come_out_clean_and_pay_the_answer(reward, rows):
    found = tried(reward, rows)
    assert found["exposed"] == []
    assert found["forms"] == []
    assert "answer" in found["answers"]
    assert kind(found, "answer")["share"] == 1.0


def test_a_reward_for_a_form_pays_no_empty_one_but_a_wrong_answer_in_it():
    found = tried(think_answer)
    assert found["exposed"] == []
    assert found["forms"] == ["wrong_answer_in_tags"]
    assert found["answers"] == ["answer_in_tags"]


def test_what_final_number_is_documented_to_take_is_shown():
    """The last number of a text, wherever it comes from: `17 or 18` is 18."""
    assert set(tried(final_number)["exposed"]) == {"guesses", "answer_denied"}


def test_a_reward_in_words_is_tried_with_words():
    found = tried(contains, WORDS)
    assert "guesses" in found["exposed"]
    assert kind(found, "guesses")["worst"]["text"] == "Paris, the Seine"
    assert "lookalikes" not in found["exposed"]


def test_rows_without_an_answer_are_tried_with_the_rest():
    found = tried(lambda completions, **k: [0.0] * len(completions), [{"prompt": "Say hello."}])
    names = {row["kind"] for row in found["kinds"]}
    assert {"empty", "prompt", "wrong_answer", "program_exits"} <= names
    assert not names & {"answer", "guesses", "answer_denied"}


def test_a_text_at_which_the_reward_raises_is_counted_and_stops_nothing():
    @per_sample
    def brittle(completion, answer):
        return 1.0 / len(completion.strip("x"))

    found = tried(brittle)
    empty = kind(found, "empty")
    assert (empty["failures"]["masked"], empty["share"]) == (3, None)
    assert kind(found, "prompt")["failures"]["masked"] == 0


def test_a_reward_that_raises_at_every_text_is_an_error():
    def broken(completions, **columns):
        raise KeyError("gold")

    with pytest.raises(
        RewardFailedError, match=r"no text could be scored: raised KeyError: 'gold'"
    ):
        tried(broken)


def test_chat_rows_are_tried_with_messages():
    seen = []

    def spy(completions, **columns):
        seen.extend(completions)
        return [0.0] * len(completions)

    tried(spy, [{"prompt": [{"role": "user", "content": "1+1?"}], "answer": "2"}])
    assert all(message[0]["role"] == "assistant" for message in seen)
    assert "1+1?" in {message[0]["content"] for message in seen}


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("6*3=18\n#### 18", "18"),
        ("so \\boxed{17} or \\boxed{18}.", "18"),
        (" Paris ", "Paris"),
        ("#### 1\n#### 2", "2"),
    ],
)
def test_the_short_answer_of_a_solution_is_what_it_declares(text, short):
    assert short_answer(text) == short


def test_a_wrong_answer_is_never_the_rows_own():
    equal = [{"prompt": str(i), "answer": "yes"} for i in range(3)]
    for subject in [*subjects(ROWS), *subjects(WORDS), *subjects(equal)]:
        assert subject.others
        assert subject.answer not in subject.others
    assert subjects(ROWS)[0].others == ["226", "23"]


def test_columns_of_a_runs_log_are_no_columns_of_the_data():
    row = {**ROWS[0], "reward": 1.0, "detail": "read 225", "advantage": 0.5, "completion": "225"}
    assert subjects([row])[0].columns == {"family": "addition"}


def test_the_function_that_a_program_should_define_is_found():
    named = [
        {"prompt": "", "entry_point": "one"},
        {"prompt": "", "tests": '{"kind": "call", "entry": "two", "tests": []}'},
        {"prompt": "# x\ndef three(x):\n"},
        {"prompt": "", "test_list": ["assert four(1) == 2"]},
        {"prompt": "nothing"},
    ]
    entries = [subject.entry for subject in subjects(named)]
    assert entries == ["one", "two", "three", "four", "solution"]


@pytest.mark.slow
def test_a_grader_that_believes_the_exit_status_is_exposed_and_one_that_does_not_is_clean():
    grader = str(Path(__file__).parents[1] / "recipes" / "hacking.py") + ":exit_status"
    rows = read_rows("builtin:code", required=["prompt"], most=2)
    weak = try_tricks(Bench.of(grader), rows, threshold=0.5)
    assert {"program_exits", "program_equals_all"} <= set(weak["exposed"])
    strict = try_tricks(Bench.of("rewards.programs:unit_tests"), rows, threshold=0.5)
    assert strict["exposed"] == []


def test_no_trick_is_the_right_answer_itself():
    seen = subjects(ROWS)
    for each in KINDS:
        for place, text in attempts(each, seen):
            assert each.group == "answer" or text.strip() != seen[place].answer


def test_very_long_texts_are_long_and_few():
    many = subjects([{"prompt": "p", "answer": str(i)} for i in range(50)])
    (long,) = [each for each in KINDS if each.name == "very_long"]
    made = attempts(long, many)
    assert {place for place, _ in made} == {0, 1, 2}
    assert all(len(text) == 100_000 for _, text in made)
    assert len(made) == 6
