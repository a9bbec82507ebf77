"""``rl4lm score``: the workbench for a reward, before any training.

Modules that need torch are imported inside the functions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4lm.commandline.commands import (
    default_values,
    only,
    print_json,
    quiet_libraries,
    settings_for,
)
from rl4lm.config import ReinforceConfig
from rl4lm.data.rowfile import REQUIRED, Row, read_rows, write_rows
from rl4lm.errors import ConfigError
from rl4lm.options import OptionParser, add_config_arguments, config_from
from rl4lm.rewarding.lookup import resolve_rewards
from rl4lm.workbench.options import OWN
from rl4lm.workbench.tallying import compare_with_labels, summarize_scores

if TYPE_CHECKING:
    from rl4lm.workbench.bench import Bench, Ids

_OPTIONS = (
    "reward_timeout_s",
    "on_reward_error",
    "prompt_column",
    "max_prompt_length",
    "num_generations",
    "temperature",
    "max_completion_length",
    "stop_strings",
    "stop_token_ids",
    "dtype",
    "trust_remote_code",
    "attn_implementation",
    "seed",
    "torch_threads",
)
_DISAGREEMENTS = 10  # listed in the summary; --out has them all


def score(argv: Sequence[str]) -> None:
    """``rl4lm score``: rewards over completions, of a file or of a model, and over tricks."""
    namespace, config = _parsed(argv)
    rewards = resolve_rewards(namespace.reward)  # a misspelt name is answered before data are read
    samples = hasattr(namespace, "model_name_or_path")
    rows = _rows(namespace, config, samples)
    from rl4lm.screen.console import Screen
    from rl4lm.workbench.bench import Bench

    screen = Screen(stderr=namespace.json, terse=namespace.quiet)
    with screen.stages() as stages:
        bench = Bench(
            rewards,
            config.weights_for(len(rewards)),
            config.reward_timeout_s,
            config.on_reward_error,
            stages,
        )
        rows, ids = _completed(bench, config, rows, samples, namespace.tokenizer)
        scored, summary = _scored(bench, rows, ids, namespace)
        if namespace.adversarial:
            summary["adversarial"] = _adversarial(bench, rows, ids, namespace)
    if namespace.out is not None:
        write_rows(Path(namespace.out), scored)
    if namespace.json:
        print_json(summary)
    else:
        screen.scores(" + ".join(namespace.reward), scored, summary)


def _parsed(argv: Sequence[str]) -> tuple[argparse.Namespace, ReinforceConfig]:
    parser = score_parser()
    namespace = parser.parse_args(argv)
    for name in ("reward", "data"):
        if getattr(namespace, name) is None:
            raise parser.lacks(f"--{name} is missing")
    if namespace.weights is not None and len(namespace.weights) != len(namespace.reward):
        raise ConfigError(
            f"--weights has {len(namespace.weights)} values for {len(namespace.reward)} rewards; "
            "give one weight for each, in the order of --reward"
        )

    config = config_from(namespace, base_for=only(_OPTIONS))
    # Not those of a run's own configuration, which --config may name.
    return namespace, replace(
        config, reward_funcs=namespace.reward, reward_weights=namespace.weights
    )


def score_parser() -> OptionParser:
    """The options of ``rl4lm score``."""
    parser = OptionParser(
        prog="rl4lm score",
        description="Try rewards before training: on completions that a file holds or a model "
        "samples, twice and one by one; against labels; and on texts made to earn reward.",
        usage="%(prog)s --reward NAME --data rows.jsonl [--option value ...]",
    )
    for name, settings in OWN.items():
        parser.add_argument(f"--{name}", **settings)
    parser.add_argument(
        "--model",
        "--model_name_or_path",
        dest="model_name_or_path",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="samples completions of the rows' prompts first",
    )
    add_config_arguments(parser, _OPTIONS, brought=settings_for(default_values()))
    return parser


def _rows(namespace: argparse.Namespace, config: ReinforceConfig, samples: bool) -> list[Row]:
    bare = samples or namespace.adversarial
    rows = read_rows(
        namespace.data,
        required=REQUIRED[:1] if bare else REQUIRED,
        prompt_column=config.prompt_column,
        split=namespace.split,
        most=namespace.samples,
    )
    if namespace.out is not None and not samples and not _all_completed(rows):
        raise ConfigError(
            f"--out {namespace.out!r} would hold no rows, since those of --data have no "
            "completions; leave it out (--json prints what --adversarial finds), or name a --model"
        )
    return rows


def _all_completed(rows: Sequence[Row]) -> bool:
    return all(row.get("completion") is not None for row in rows)


def _completed(
    bench: Bench, config: ReinforceConfig, rows: list[Row], samples: bool, tokenizer: str | None
) -> tuple[list[Row], Ids | None]:
    """The rows with completions, and what makes token ids of texts."""
    if not samples and tokenizer is None:
        return rows, None
    from rl4lm.workbench.completing import complete_rows, tokenizer_ids

    quiet_libraries()
    ids = None
    if samples:
        rows, ids = complete_rows(config, rows, bench.stages)
    if tokenizer is not None:
        ids = tokenizer_ids(tokenizer, config.trust_remote_code)
    return rows, ids


def _scored(
    bench: Bench, rows: Sequence[Row], ids: Ids | None, namespace: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The scored rows, and what is said of them; nothing where they have no completions."""
    from rl4lm.workbench.bench import examine

    if not _all_completed(rows):
        return [], {"rows": len(rows), "scored": 0}
    trial = examine(bench, rows, ids)
    summary = {**summarize_scores(trial.rows), **trial.checks}
    if len(bench.rewards) > 1:
        summary["rewards"] = {r.name: _of_one(trial.rows, r.name) for r in bench.rewards}
    return _with_labels(trial.rows, summary, namespace.label, namespace.threshold)


def _of_one(rows: Sequence[Row], name: str) -> dict[str, Any]:
    return summarize_scores([{"reward": row["rewards"][name]} for row in rows])


def _with_labels(
    rows: list[dict[str, Any]], summary: dict[str, Any], label: str, threshold: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and summary with the comparison, where the rows have labels."""
    if all(row.get(label) is None for row in rows):
        return rows, summary
    try:
        confusion, agrees = compare_with_labels(rows, label, threshold)
    except ValueError as error:
        problem = f"the column {label!r} holds {error!s:.60}, neither true nor false, 1 nor 0"
        return rows, {**summary, "label_problem": problem}
    rows = [{**row, "agrees": same} for row, same in zip(rows, agrees, strict=True)]
    wrong = [
        {"row": i, **{n: row[n] for n in ("prompt", "completion", "reward", "detail")}}
        | {"label": row[label]}
        for i, row in enumerate(rows, start=1)
        if row["agrees"] is False
    ]
    return rows, {**summary, "confusion": confusion, "disagreements": wrong[:_DISAGREEMENTS]}


def _adversarial(
    bench: Bench, rows: Sequence[Row], ids: Ids | None, namespace: argparse.Namespace
) -> dict[str, Any]:
    from rl4lm.workbench.attempting import try_tricks

    first = [row for row in rows if not row.get("sample")][: namespace.adversarial]
    return try_tricks(
        bench,
        first,
        threshold=namespace.threshold,
        answer_column=namespace.answer_column,
        ids=ids,
    )
