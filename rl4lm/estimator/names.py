"""The names of the baselines, where options find them without waiting for torch."""

from __future__ import annotations

from typing import Literal

BaselineName = Literal[
    "none",
    "batch_mean",
    "batch_leave_one_out",
    "prompt_mean",
    "prompt_leave_one_out",
    "length_weighted",
    "moving_average",
    "prompt_value",
    "linear_value",
]

# These need several completions of a prompt; a lone one would be compared with itself.
COMPARES_WITHIN_PROMPT: frozenset[BaselineName] = frozenset(
    {
        "prompt_mean",
        "prompt_leave_one_out",
        "length_weighted",
    }
)
