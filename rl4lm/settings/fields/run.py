"""A run: its folder, its processes, its evaluations and checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from rl4lm.settings.schema import RULES, option


@dataclass(frozen=True, kw_only=True, config=RULES)
class RunFields:
    """A run: its folder, its processes, its evaluations and checkpoints."""

    output_dir: str | None = option(
        "run", None, "folder of the run; none = nothing is written, which only Python allows"
    )
    overwrite_output_dir: bool = option("run", False, "replace a run that is already there")
    seed: int = option("run", 0, "seed of everything that is drawn", ge=0, le=2**32 - 1)
    torch_threads: int | None = option(
        "run",
        None,
        "CPU threads of torch, shared by the processes of a machine; none = torch's own choice",
        ge=1,
        le=1024,
    )
    ddp_timeout: float | None = option(
        "run",
        1800.0,
        "seconds that a process waits for another one, which may be slow or hang in a function of "
        "yours; then the run ends and says which one, and what it was doing; none = no limit",
        gt=0,
    )
    eval_steps: int | None = option(
        "run", None, "evaluate every so many steps too; none or 0 = only before and after", ge=0
    )
    eval_samples: int = option("run", 500, "held-out prompts of an evaluation; 0 = off", ge=0)
    save_steps: int = option(
        "run",
        0,
        "steps between checkpoints, where `rl4lm replay` can begin; 0 = only the final weights",
        ge=0,
    )
    save_total_limit: int | None = option(
        "run",
        None,
        "checkpoints kept: the newest ones and, where there are evaluations, the best; none = all",
        ge=1,
    )
    resume_from_checkpoint: str | None = option(
        "run",
        None,
        "go on from a checkpoint: its folder, or true for the newest complete one in output_dir "
        "(a start from the beginning where there is none); none or false = off",
    )
    resume_anyway: bool = option(
        "run", False, "resume although options differ from those of the checkpoint"
    )
    noise_every: int = option(
        "run",
        20,
        "steps between measurements of the gradient's noise, with the baseline and without: one "
        "more backward pass; 0 = never",
        ge=0,
    )
    sample_table_steps: int = option(
        "run", 50, "steps between tables of sample completions; 0 = never", ge=0
    )
    logging_steps: int = option("run", 10, "steps between lines where the log is a file", ge=1)
    report_to: list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] | None = option(
        "run", None, "programs that follow the run, each an extra of its name; none = no such one"
    )
    project: str = option("run", "rl4lm", "under which those programs gather runs")
    run_name: str | None = option(
        "run", None, "name of the run there; none = the folder of output_dir"
    )
    eval_by: list[str] = option(
        "run",
        ["family"],
        "columns that the numbers of an evaluation are also given by, each value or range a group; "
        "the default one where the rows have it; empty = none",
    )
    eval_pass_at_k: list[PositiveInt] = option(
        "run",
        [],
        "for each k, the share of prompts that k completions drawn at `temperature` solve, besides "
        "the greedy ones; empty = off",
    )
    eval_num_generations: int | None = option(
        "run",
        None,
        "completions of a prompt that pass@k is estimated from; none = the largest k, or off "
        "without eval_pass_at_k",
        ge=1,
        le=65536,
    )
    eval_pass_threshold: float = option(
        "run",
        1.0,
        "a completion passes at this score or more: its accuracy, or its reward where the rows "
        "have no answers",
    )
    eval_confidence: float = option(
        "run",
        0.95,
        "how often the intervals of an evaluation are to hold the truth",
        gt=0.5,
        lt=1,
    )
    push_to_hub: bool = option(
        "run",
        False,
        "upload model, tokenizer and model card at the end of the run; the token is that of "
        "HF_TOKEN or of `hf auth login`",
    )
    hub_model_id: str | None = option(
        "run",
        None,
        "repository of the upload, ORG/NAME; none = the name of output_dir, in the token's account",
    )
    hub_private_repo: bool = option("run", False, "make that repository a private one")
