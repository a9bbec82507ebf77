"""``rl4lm eval``: how good a model is, and whether it is better than another one.

Modules that need torch are imported inside the functions.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4lm.commandline.commands import (
    CHAT,
    ENDS,
    MODEL,
    check_data,
    check_restriction,
    default_values,
    only,
    print_json,
    quiet_libraries,
)
from rl4lm.commandline.commands import settings_for as brought_for
from rl4lm.config import ReinforceConfig
from rl4lm.data.rowfile import write_rows
from rl4lm.errors import ConfigError, OutputError
from rl4lm.options import (
    OptionParser,
    add_config_arguments,
    add_output_arguments,
    config_from,
)
from rl4lm.rewarding.lookup import resolve_rewards
from rl4lm.rundir.lines import plain
from rl4lm.settings.address import without_password

if TYPE_CHECKING:
    from rl4lm.evaluation.evaluate import Evaluated, Exam
    from rl4lm.processes.world import World

_EVAL = (
    *MODEL,
    "dataset_name",
    "eval_dataset_name",
    "dataset_train_split",
    "dataset_test_split",
    "dataset_config",
    "dataset_streaming",
    "max_train_samples",
    "held_out_share",
    "prompt_column",
    "rename",
    "prompt_template",
    *CHAT,
    "max_prompt_length",
    "long_prompts",
    "reward_funcs",
    "reward_weights",
    "reward_timeout_s",
    "on_reward_error",
    "accuracy_func",
    "eval_metrics",
    *ENDS,
    "temperature",
    "sampler_url",
    "sampler_model",
    "sampler_timeout_s",
    "eval_samples",
    "eval_by",
    "eval_pass_at_k",
    "eval_num_generations",
    "eval_pass_threshold",
    "eval_confidence",
    "seed",
    "torch_threads",
)
# Short names of this verb -> the option that they stand for.
_SHORT = {
    "pass_at_k": "eval_pass_at_k",
    "num_generations": "eval_num_generations",
    "by": "eval_by",
    "metric": "eval_metrics",
    "confidence": "eval_confidence",
}
_MANY = ("pass_at_k", "by", "metric")


def evaluate(argv: Sequence[str]) -> None:
    """``rl4lm eval``: reward, accuracy and pass@k of a model, with intervals."""
    namespace = eval_parser().parse_args(argv)
    config = config_from(namespace, base_for=only(_EVAL))
    _check(config, namespace)
    from rl4lm.assembly import assemble_judges
    from rl4lm.data.fitting import leave_out_unfit
    from rl4lm.data.splits import evaluated_split
    from rl4lm.evaluation.exams import assemble_exams
    from rl4lm.preflight.opening import fit_evaluated
    from rl4lm.processes.world import World
    from rl4lm.sampling.served import check_server
    from rl4lm.screen.console import Screen

    quiet_libraries()
    check_server(config, temperature=None)
    data = evaluated_split(config)
    judges = assemble_judges(config, None, [data])
    data, notes = leave_out_unfit(judges.scorer.rewards, data)
    exams, more = assemble_exams(config, judges.scorer, judges.accuracy, data)
    exams, long = fit_evaluated(config, exams)
    world = World()
    world.use_threads(config.torch_threads)
    screen = Screen(stderr=namespace.json, terse=namespace.quiet)
    screen.only_if(world.is_main)
    for note in [*notes, *more, *long]:
        screen.note(note)
    with judges.scorer:  # the processes of rewards end with the evaluation
        found = _evaluations(config, namespace, exams, world)
    compared = _compared(config, found)
    if namespace.out is not None and world.is_main:
        write_rows(Path(namespace.out), _rows(found))
    if namespace.json and world.is_main:
        print_json(compared)
    if not namespace.json:
        _show(screen, config, namespace, data.split, compared)
    world.close()


def eval_parser() -> OptionParser:
    """The options of ``rl4lm eval``."""
    parser = OptionParser(
        prog="rl4lm eval",
        description="Reward, accuracy and pass@k of a model on held-out prompts, with confidence "
        "intervals, alone or compared with another model on the same prompts.",
    )
    add_config_arguments(parser, _EVAL, brought=brought_for(default_values()))
    short = parser.add_argument_group("short names")
    for name, option in _SHORT.items():
        many: dict[str, Any] = {"nargs": "*", "action": "extend"} if name in _MANY else {}
        short.add_argument(
            f"--{name}",
            dest=option,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"as --{option}",
            **many,
        )
    parser.add_argument(
        "--compare",
        metavar="MODEL",
        help="evaluate this model too (checkpoint, adapter folder, builtin:NAME or hub id), on the "
        "same prompts with the same random numbers, and test the differences; default none",
    )
    parser.add_argument(
        "--top_k", type=int, default=0, help="most likely tokens kept by pass@k; 0 = all [>= 0]"
    )
    parser.add_argument(
        "--top_p", type=float, default=1.0, help="nucleus kept by pass@k; 1 = all [> 0 and <= 1]"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="jsonl file for the completions; default none"
    )
    add_output_arguments(parser, "the metrics", quiet="warnings, errors and the metrics")
    return parser


def _check(config: ReinforceConfig, namespace: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        ConfigError: says which options.
        DataError, RewardError: data or functions that are not there.
        OutputError: a file for the completions that cannot be written.
    """
    if not config.eval_samples:
        raise ConfigError("eval_samples=0 leaves nothing to evaluate; give 1 or more")
    check_restriction(namespace)
    drawn = config.eval_pass_at_k or config.eval_num_generations
    if (namespace.top_k or namespace.top_p < 1) and not drawn:
        raise ConfigError(
            "top_k and top_p restrict what is drawn by chance, and all completions are greedy; add "
            "--pass_at_k K, or leave them out"
        )
    if namespace.compare is not None and config.sampler_url is not None:
        raise ConfigError(
            f"compare={namespace.compare} reads the weights of both models, and "
            f"{without_password(config.sampler_url)} has those of one; leave out one of the two"
        )
    if namespace.out is not None and not Path(namespace.out).absolute().parent.is_dir():
        raise OutputError(f"--out {namespace.out!r}: name a file in a folder that exists")
    check_data(config)
    resolve_rewards([*config.reward_funcs, *config.eval_metrics])


def _evaluations(
    config: ReinforceConfig, namespace: argparse.Namespace, exams: Sequence[Exam], world: World
) -> list[tuple[str, Evaluated]]:
    """The model's evaluation, and that of the one to compare with, after their names."""
    models = [(_named(config), config)]
    if namespace.compare is not None:
        from rl4lm.model.loading import open_model

        # What cannot be read is told before the first model is run.
        open_model(namespace.compare, trust_remote_code=config.trust_remote_code)
        other = replace(config, model_name_or_path=namespace.compare)
        models.append((namespace.compare, other))
    return [(name, _evaluated(each, namespace, exams, world)) for name, each in models]


def _evaluated(
    config: ReinforceConfig, namespace: argparse.Namespace, exams: Sequence[Exam], world: World
) -> Evaluated:
    """One model on all data sets; its weights are gone afterwards."""
    from rl4lm.assembly import assemble_evaluated, end_rule
    from rl4lm.evaluation.evaluate import evaluate_completions
    from rl4lm.evaluation.exams import evaluation_of
    from rl4lm.scoring import RewardContext

    model, sampler = assemble_evaluated(config, [exam.data for exam in exams], world)
    what = evaluation_of(config, end_rule(config, model), namespace.top_p, namespace.top_k)
    with model.shards.gathered():  # once: the processes may differ in batches
        return evaluate_completions(
            sampler, model.codec, exams, what, RewardContext(0, 0, config.seed), world
        )


def _compared(config: ReinforceConfig, found: Sequence[tuple[str, Evaluated]]) -> dict[str, Any]:
    """The metrics of the model, and under ``compared_with`` those of the other one."""
    from rl4lm.evaluation.paired import compare_all

    (_, first), *others = found
    result: dict[str, Any] = dict(first.metrics)
    for name, other in others:
        pairs = compare_all(first.outcomes, other.outcomes, config.eval_confidence, config.seed)
        result["compared_with"] = {
            "model": name,
            "metrics": other.metrics,
            "differences": {name: pair.to_dict() for name, pair in pairs.items()},
        }
    return result


def _rows(found: Sequence[tuple[str, Evaluated]]) -> list[dict[str, Any]]:
    return [plain({"model": name, **row}) for name, each in found for row in each.rows]


def _show(
    screen: Any,
    config: ReinforceConfig,
    namespace: argparse.Namespace,
    split: str,
    compared: Mapping[str, Any],
) -> None:
    title = f"{_named(config)} on {config.dataset_name}, {split}"
    screen.metrics(title, compared, _drawn(config, namespace))
    if "compared_with" in compared:
        other = compared["compared_with"]
        names = (other["model"], _named(config))
        screen.comparison(names, other["metrics"], compared, other["differences"])


def _drawn(config: ReinforceConfig, namespace: argparse.Namespace) -> str:
    """How the completions came about."""
    drawn = config.eval_num_generations or max(config.eval_pass_at_k, default=0)
    if not drawn:
        return "greedy"
    limits = f", top_k {namespace.top_k}" if namespace.top_k else ""
    limits += f", top_p {namespace.top_p:g}" if namespace.top_p < 1 else ""
    return (
        f"greedy, but for pass@k and sampled: {drawn} completions of each at temperature "
        f"{config.temperature:g}{limits}"
    )


def _named(config: ReinforceConfig) -> str:
    """The model that an evaluation is of, and where it is."""
    if config.sampler_url is None:
        return config.model_name_or_path
    return f"{config.sampler_model or config.model_name_or_path} at {config.sampler_url}"
