"""Rewards written for verl, used unchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rewards.adapters import Graded, PerSampleReward, per_sample


def from_verl(compute_score: Callable[..., Any]) -> PerSampleReward:
    """A reward from verl's `compute_score(data_source, solution_str, ground_truth, extra_info)`.

    In a file of your own, `mine = from_verl(compute_score)`, named `path/to/file.py:mine`.

    It reads verl's columns: `data_source`; the ground truth from `reward_model["ground_truth"]`, or
    from a column `ground_truth`; `extra_info` where there is one. A `dict` is paid its `"score"`,
    and the rest of it is the reason. What the function raises is not caught.

    How it is gamed is a matter of the function.

    Raises:
        ValueError: in a call, if a row has no ground truth, or a `dict` has no `"score"`.
    """

    @per_sample
    def verl_score(
        completion: str,
        data_source: str,
        reward_model: Mapping[str, Any] | None = None,
        ground_truth: Any = None,
        extra_info: Any = None,
    ) -> Graded:
        truth = (reward_model or {}).get("ground_truth", ground_truth)
        if truth is None:
            raise ValueError(
                "the row has no ground truth; expected a column `ground_truth`, or `reward_model` "
                "with an entry of that name, as verl has it"
            )
        result = compute_score(
            data_source=data_source,
            solution_str=completion,
            ground_truth=truth,
            extra_info=extra_info,
        )
        return _graded(result)

    return verl_score


def _graded(result: Any) -> Graded:
    if not isinstance(result, Mapping):
        return Graded(result)
    if "score" not in result:
        raise ValueError(f"compute_score returned {dict(result)!r:.80}; expected an entry 'score'")
    rest = [f"{name} {value}" for name, value in result.items() if name != "score"]
    return Graded(result["score"], ", ".join(rest)[:200])
