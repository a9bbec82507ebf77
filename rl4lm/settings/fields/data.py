"""Prompts: where they come from, and which of them are used."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from rl4lm.settings.schema import RULES, option


@dataclass(frozen=True, kw_only=True, config=RULES)
class DataFields:
    """Prompts: where they come from, and which of them are used."""

    dataset_name: str = option(
        "data",
        "builtin:arithmetic",
        "builtin:NAME, reasoning_gym:TASK, a jsonl, json, csv or parquet file, a folder or pattern "
        "(data/*.jsonl) of such files, or a hub id",
    )
    dataset_train_split: str = option("data", "train", "split to train on")
    dataset_test_split: str | None = option(
        "data", "test", "split to evaluate on; none = no held-out evaluation"
    )
    prompt_column: str = option("data", "prompt", "column with the prompt, as text or as messages")
    max_prompt_length: int | None = option(
        "data",
        None,
        "tokens; longer prompts are never cut, see long_prompts; none = the model's context",
        ge=1,
    )
    dataset_config: str | None = option(
        "data", None, "configuration of a data set that has several; none = its only one"
    )
    dataset_streaming: bool = option(
        "data", False, "read rows as they come instead of the whole; needs max_train_samples"
    )
    max_train_samples: int | None = option(
        "data", None, "rows to train on, the first of the split; none = all", ge=1
    )
    rename: list[str] = option(
        "data", [], "columns to rename, as old=new; all other options use the new names"
    )
    prompt_template: str | None = option(
        "data",
        None,
        "text of a prompt with {column} where a column's value goes, such as 'Question: "
        "{question}'; a brace is doubled; none = the prompt column as it is",
    )
    as_chat: bool = option(
        "data", False, "make each text prompt a user's message for the tokenizer's chat template"
    )
    system_prompt: str | None = option(
        "data", None, "system message put before every prompt; text prompts become chat; none = no"
    )
    chat_template_kwargs: list[str] = option(
        "data", [], "variables of the chat template, as name=value, such as enable_thinking=false"
    )
    long_prompts: Literal["refuse", "drop"] = option(
        "data",
        "refuse",
        "what becomes of prompts over max_prompt_length or the model's context: refuse ends with "
        "an error, drop leaves them out and counts them",
    )
    held_out_share: float = option(
        "data",
        0.0,
        "share of the prompts that is kept out of training and evaluated on, where there is no "
        "test split; chosen by seed and content; 0 = none",
        ge=0,
        lt=1,
    )
    eval_dataset_name: list[str] = option(
        "data",
        [],
        "further data sets to evaluate on, named like dataset_name; their numbers go by "
        "NAME/metric; empty = none",
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
