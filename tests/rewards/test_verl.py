from __future__ import annotations

from typing import Any

import pytest

from rewards.verl import from_verl


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None):
    return float(solution_str == ground_truth and data_source == "sums")


def with_reason(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None):
    return {"score": solution_str == ground_truth, "pred": solution_str, "level": extra_info}


def test_verls_columns_reach_the_function() -> None:
    scores = from_verl(compute_score)(
        prompts=["p"] * 3,
        completions=["4", "5", [{"role": "assistant", "content": "4"}]],
        data_source=["sums"] * 3,
        reward_model=[{"style": "rule", "ground_truth": "4"}] * 3,
        extra_info=[{"index": 0}] * 3,
    )
    assert scores == [1.0, 0.0, 1.0]


def test_the_ground_truth_may_be_a_column() -> None:
    reward = from_verl(compute_score)
    assert reward(completions=["4"], data_source=["sums"], ground_truth=["4"]) == [1.0]


def test_the_rest_of_a_dict_is_the_reason() -> None:
    logged: dict[str, list[str]] = {}
    scores = from_verl(with_reason)(
        completions=["4", "5"],
        data_source=["sums"] * 2,
        ground_truth=["4"] * 2,
        extra_info=[1, 2],
        log_extra=logged.__setitem__,
    )
    assert scores == [1.0, 0.0]
    assert logged["detail"] == ["pred 4, level 1", "pred 5, level 2"]


def test_a_row_without_ground_truth_is_an_error() -> None:
    with pytest.raises(ValueError, match="no ground truth"):
        from_verl(compute_score)(completions=["4"], data_source=["sums"])


def test_a_dict_without_a_score_is_an_error() -> None:
    reward = from_verl(lambda **columns: {"acc": 1.0})
    with pytest.raises(ValueError, match="an entry 'score'"):
        reward(completions=["4"], data_source=["sums"], ground_truth=["4"])


def test_what_the_function_raises_is_not_caught() -> None:
    def broken(**columns: Any) -> float:
        raise KeyError("missing")

    with pytest.raises(KeyError):
        from_verl(broken)(completions=["4"], data_source=["sums"], ground_truth=["4"])
