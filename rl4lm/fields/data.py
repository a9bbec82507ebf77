"""Prompts: where they come from, and which of them are used."""

from __future__ import annotations

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
    eval_dataset_name: list[str] = option(
        "data",
        [],
        "further data sets to evaluate on, named like dataset_name; their numbers go by "
        "NAME/metric; empty = none",
    )
