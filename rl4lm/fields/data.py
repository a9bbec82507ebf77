"""Prompts: where they come from, and which of them are used."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from rl4lm.schema import RULES, option


@dataclass(frozen=True, kw_only=True, config=RULES)
class DataFields:
    """Prompts: where they come from, and which of them are used."""

    dataset_name: str = option(
        "data",
        "builtin:arithmetic",
        "builtin:NAME, a jsonl, json, csv or parquet file, or a hub id",
    )
    dataset_train_split: str = option("data", "train", "split to train on")
    dataset_test_split: str | None = option(
        "data", "test", "split to evaluate on; none = no held-out evaluation"
    )
    prompt_column: str = option("data", "prompt", "column with the prompt, as text or as messages")
    max_prompt_length: int | None = option(
        "data",
        None,
        "tokens; longer prompts are refused and counted, never cut; none = the model's context",
        ge=1,
    )
    curriculum: Literal["none", "success"] = option(
        "data",
        "none",
        "which prompts a step draws: none takes them as they come, success those of some "
        "candidates whose success so far is nearest to 50 %, with rewards from 0 to 1",
    )
    curriculum_candidates: int = option(
        "data", 4, "prompts that a curriculum chooses one from; 1 = all are taken", ge=1, le=1000
    )
    curriculum_column: str = option(
        "data",
        "level",
        "column whose values share an estimate of success, for prompts that were not met lately; "
        "where the data have no column of the default name, such prompts count as 50 %",
    )
