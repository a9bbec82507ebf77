from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rewards import Graded, per_sample
from rewards.arithmetic import exact_answer


@per_sample
def matches(completion: str, answer: str) -> float:
    """1.0 for the answer."""
    return float(completion == answer)


@per_sample
def explained(completion: str, answer: str | None) -> Graded | None:
    if answer is None:
        return None
    return Graded(float(completion == answer), f"expected {answer}")


def test_every_completion_is_scored_with_its_own_columns() -> None:
    scores = matches(prompts=["p", "q"], completions=["a", "b"], answer=["a", "c"])
    assert scores == [1.0, 0.0]


def test_an_empty_batch_has_no_scores() -> None:
    assert matches(completions=[], answer=[]) == []


def test_the_function_gets_only_the_columns_it_names() -> None:
    scores = matches(
        prompts=["p"],
        completions=["a"],
        completion_ids=[[5]],
        trainer_state=object(),
        log_metric=print,
        answer=["a"],
        difficulty=[3],
    )
    assert scores == [1.0]


def test_a_function_with_kwargs_gets_every_column_and_nothing_else() -> None:
    seen: list[dict[str, Any]] = []

    @per_sample
    def everything(completion: str, **columns: Any) -> float:
        seen.append(columns)
        return 0.0

    everything(
        prompts=["p"],
        completions=["a"],
        completion_ids=[[5]],
        trainer_state=object(),
        log_extra=lambda name, values: None,
        log_metric=lambda name, value: None,
        answer=["x"],
        level=[2],
    )
    assert seen == [{"answer": "x", "level": 2}]


def test_the_prompt_and_the_ids_are_passed_where_they_are_named() -> None:
    seen: list[tuple[Any, ...]] = []

    @per_sample
    def named(completion: str, prompt: Any, completion_ids: list[int]) -> float:
        seen.append((prompt, completion, completion_ids))
        return 0.0

    chat = [{"role": "user", "content": "hello"}]
    named(prompts=["p", chat], completions=["a", "b"], completion_ids=[[1], [2, 3]])
    assert seen == [("p", "a", [1]), (chat, "b", [2, 3])]


def test_the_sampled_completion_wins_over_a_column_of_that_name() -> None:
    assert matches(completions=["a"], completion=["reference"], answer=["a"]) == [1.0]


def test_a_conversational_completion_is_passed_as_the_text_of_its_last_message() -> None:
    chat = [{"role": "assistant", "content": "thinking"}, {"role": "assistant", "content": "a"}]
    assert matches(prompts=[[]], completions=[chat], answer=["a"]) == [1.0]


@pytest.mark.parametrize(
    "completion",
    [None, 46, [], ["a"], b"a", {"content": "a"}, [{"role": "assistant", "content": None}]],
)
def test_a_completion_without_text_is_an_error(completion: Any) -> None:
    with pytest.raises(TypeError, match=r"matches: completion 0 is .* expected a text"):
        matches(completions=[completion], answer=["a"])


def test_a_missing_column_is_named_together_with_the_columns_given() -> None:
    with pytest.raises(TypeError) as error:
        matches(prompts=["p"], completions=["a"], solution=["a"], level=[1])
    for word in ("matches", "'answer'", "'solution'", "'level'"):
        assert word in str(error.value)


def test_a_missing_column_is_an_error_also_without_any_column() -> None:
    with pytest.raises(TypeError, match="columns given: none"):
        matches(completions=["a"])


def test_a_parameter_with_a_default_is_an_optional_column() -> None:
    @per_sample
    def scaled(completion: str, scale: float = 2.0) -> float:
        return scale

    assert scaled(completions=["a"]) == [2.0]
    assert scaled(completions=["a"], scale=[3.0]) == [3.0]


def test_a_column_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="'answer' has 1 values for 2 completions"):
        matches(completions=["a", "b"], answer=["a"])


@pytest.mark.parametrize("column", ["ab", b"ab", 46])
def test_a_single_value_in_place_of_a_column_is_an_error(column: Any) -> None:
    with pytest.raises(TypeError, match="'answer' is a"):
        matches(completions=["a", "b"], answer=column)


def test_reasons_go_through_log_extra_once_per_batch() -> None:
    logged: list[tuple[str, list[str]]] = []
    scores = explained(
        completions=["a", "b", "c"],
        answer=["a", "x", None],
        log_extra=lambda name, values: logged.append((name, values)),
    )
    assert scores == [1.0, 0.0, None]
    assert logged == [("detail", ["expected a", "expected x", ""])]


def test_without_reasons_nothing_is_logged() -> None:
    logged: list[Any] = []
    matches(completions=["a"], answer=["a"], log_extra=lambda *entry: logged.append(entry))
    assert logged == []


def test_reasons_are_optional_for_the_caller() -> None:
    assert explained(completions=["a"], answer=["a"]) == [1.0]


@pytest.mark.parametrize("score", [1, True, np.float32(1.0), np.int64(1)])
def test_scores_become_floats(score: Any) -> None:
    (result,) = per_sample(lambda completion: score)(completions=["a"])
    assert result == 1.0
    assert type(result) is float


@pytest.mark.parametrize("score", ["1.0", [0.5, 0.5], (1.0, "reason"), {"score": 1.0}])
def test_a_score_that_is_no_number_is_an_error(score: Any) -> None:
    with pytest.raises(TypeError, match="completion 0; expected a number"):
        per_sample(lambda completion: score)(completions=["a"])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), Graded(float("-inf"))])
def test_a_score_that_is_not_finite_is_an_error(score: Any) -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        per_sample(lambda completion: score)(completions=["a"])


def test_an_exception_of_the_function_is_not_turned_into_a_score() -> None:
    @per_sample
    def broken(completion: str) -> float:
        raise KeyError("table")

    with pytest.raises(KeyError, match="table"):
        broken(completions=["a"])


def test_the_reward_says_that_it_is_per_sample_and_keeps_its_name() -> None:
    assert matches.per_sample is True
    assert matches.__name__ == "matches"
    assert matches.__doc__ == "1.0 for the answer."
    assert matches.__wrapped__(completion="a", answer="a") == 1.0


def test_the_signature_is_that_of_the_batch_form() -> None:
    parameters = inspect.signature(matches).parameters
    assert {"completions", "prompts", "completion_ids", "log_extra"} <= set(parameters)
    assert "answer" not in parameters
    assert set(matches.__annotations__) >= {"completions", "return"}


def test_the_reward_is_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(exact_answer)) is exact_answer


def _takes_the_batch(completions: list[str]) -> list[float]:
    return []


def _takes_the_state(completion: str, trainer_state: Any) -> float:
    return 0.0


def _lacks_the_completion(text: str, answer: str) -> float:
    return 0.0


def _takes_positions(completion: str, *columns: Any) -> float:
    return 0.0


async def _waits(completion: str) -> float:
    return 0.0


@pytest.mark.parametrize(
    "function",
    [_takes_the_batch, _takes_the_state, _lacks_the_completion, _takes_positions, _waits],
)
def test_a_function_of_another_form_is_refused_when_it_is_decorated(
    function: Callable[..., Any],
) -> None:
    with pytest.raises(TypeError, match=f"per_sample: {function.__name__}"):
        per_sample(function)


def test_decorating_twice_is_refused() -> None:
    with pytest.raises(TypeError, match="leave the decorator out"):
        per_sample(matches)
