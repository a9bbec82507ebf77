from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.text import exact_match, word_f1


def match(completion: str, answer: Any) -> float | None:
    return exact_match(completions=[completion], answer=[answer])[0]


def f1(completion: str, answer: Any) -> float | None:
    return word_f1(completions=[completion], answer=[answer])[0]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("Paris", "paris"),
        (" The Eiffel Tower.\n", "eiffel tower"),
        ("**Paris**", ["London", "Paris"]),
        ("well-known", "Well known!"),
        ("don't", "Don't."),
        ("-3", "\u22123"),
        ("$1.5", "1.5"),
        ("C++", "c++"),
        ("Ｐａｒｉｓ", "Paris"),
        ("巴黎", "巴黎。"),
    ],
)
def test_the_words_of_an_answer_match_it(completion: str, answer: Any) -> None:
    assert match(completion, answer) == f1(completion, answer) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("", "Paris"),
        ("the", "Paris"),
        ("Paris or London", "Paris"),
        ("Paris Paris", "Paris"),
        ("not Paris", "Paris"),
        ("Pari", "Paris"),
        ("Tower Eiffel", "Eiffel Tower"),
        ("London Paris", ["London", "Paris"]),
        ("3", "-3"),
        ("15", "1.5"),
        ("5%", "5"),
        ("C", "C++"),
        ("Pa ris", "Paris"),
        ("Paris" + " " * 100_000, "Paris"),
    ],
)
def test_other_words_do_not_match(completion: str, answer: Any) -> None:
    assert match(completion, answer) == 0.0


def test_the_f1_counts_shared_words() -> None:
    assert f1("not Paris", "Paris") == pytest.approx(2 / 3)
    assert f1("Paris Paris Paris", "Paris") == pytest.approx(1 / 2)
    assert f1("London", ["Paris", "London town"]) == pytest.approx(2 / 3)
    assert f1("", "Paris") == f1("Rome", "Paris") == 0.0


@pytest.mark.parametrize("answer", ["", "...", [], ["Paris", ""]])
def test_an_answer_without_words_is_an_error(answer: Any) -> None:
    with pytest.raises(ValueError, match="has no words"):
        match("Paris", answer)


def test_a_row_without_an_answer_is_left_out() -> None:
    assert match("Paris", None) is None
    assert f1("Paris", None) is None


# Of few words, so that most texts share some.
TEXTS = st.lists(st.sampled_from(["Paris", "paris,", "the", "1.5", "-3", "no", "…"]), min_size=1)


@given(st.text() | TEXTS.map(" ".join), TEXTS.map(lambda words: " ".join(["ja", *words])))
def test_the_f1_is_symmetric_and_one_for_a_match(one: str, other: str) -> None:
    one = f"{one} nein"  # both have words
    assert f1(one, other) == f1(other, one)
    assert f1(one, one) == match(one, one) == 1.0
    assert match(one, other) == 0.0
