"""The verbs that run a model: each reads its options, does its work, and prints the result.

Modules that need torch are imported inside the functions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rl4lm.builtin import BUILTIN_MODELS, model_settings
from rl4lm.config import OPTIONS, ReinforceConfig
from rl4lm.data.columns import shape_of
from rl4lm.data.datafiles import check_prompts
from rl4lm.eightbit import check_optimizer
from rl4lm.errors import ConfigError
from rl4lm.export.hub import check_publishing
from rl4lm.options import (
    OptionParser,
    add_config_arguments,
    add_output_arguments,
    config_from,
)
from rl4lm.rewarding.lookup import resolve_rewards
from rl4lm.rundir.lines import plain
from rl4lm.rundir.resume import find_start
from rl4lm.sampling.offpolicy import check_off_policy
from rl4lm.trackers import check_trackers

if TYPE_CHECKING:
    from rl4lm.model.policy import Policy
    from rl4lm.types import Rollout

MODEL = ("model_name_or_path", "dtype", "trust_remote_code", "attn_implementation")
ENDS = ("max_completion_length", "stop_strings", "stop_token_ids")
CHAT = ("as_chat", "system_prompt", "chat_template_kwargs")
_SAMPLE = (*MODEL, *CHAT, *ENDS, "num_generations", "temperature", "seed", "torch_threads")


def settings_for(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that a built-in model brings with it; none for any other model."""
    name = str(given["model_name_or_path"])
    if name not in BUILTIN_MODELS:
        return {}
    return model_settings(name, adapters=ReinforceConfig(use_peft=given["use_peft"]).use_peft)


def train_parser() -> OptionParser:
    """Every option of training."""
    parser = OptionParser(
        prog="rl4lm train",
        description="Fine-tune a causal language model with REINFORCE on rule-based rewards.",
    )
    add_config_arguments(parser, brought=settings_for(default_values()))
    add_output_arguments(parser, "the summary", quiet="warnings, errors and the result")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="set up, make one step, say what a run would take, and keep nothing",
    )
    return parser


def train(argv: Sequence[str]) -> None:
    """``rl4lm train``: the main job."""
    namespace = train_parser().parse_args(argv)
    run_training(
        config_from(namespace, base_for=settings_for),
        as_json=namespace.json,
        dry_run=namespace.dry_run,
        terse=namespace.quiet,
    )


def run_training(
    config: ReinforceConfig, as_json: bool = False, dry_run: bool = False, terse: bool = False
) -> dict[str, Any]:
    """Train as a configuration says, as ``rl4lm train`` and the recipes do.

    Args:
        config: what to train, on what, how long.
        as_json: print the summary to the standard output, and all else to the error output.
        dry_run: make one step and keep nothing, so that no output directory is asked for.
        terse: show only warnings and the result.

    Returns:
        The summary of the run; of a dry run what `rl4lm.commandline.rehearsal.rehearse` found.

    Raises:
        ConfigError: no output directory.
    """
    if config.output_dir is None and not dry_run:
        raise ConfigError("where should the run go? name a folder with --output_dir")
    # Again in the trainer; here they answer before torch is even imported.
    check_off_policy(config)
    check_trackers(config.report_to or ())
    check_optimizer(config)
    find_start(config, thorough=False)
    check_data(config)
    resolve_rewards([*config.reward_funcs, *config.eval_metrics])
    check_publishing(config)
    from rl4lm.commandline.rehearsal import rehearse
    from rl4lm.screen.console import Screen
    from rl4lm.trainer import ReinforceTrainer

    quiet_libraries()
    screen = Screen(stderr=as_json, logging_steps=config.logging_steps, terse=terse)
    trainer = ReinforceTrainer(args=config, screen=screen)
    summary = rehearse(trainer) if dry_run else trainer.train()
    if as_json and trainer.world.is_main:
        print_json(summary)
    trainer.world.close()
    return summary


def check_data(config: ReinforceConfig) -> None:
    """Refuse files that are not there or lack a column, before torch is imported."""
    column, shape = config.prompt_column, shape_of(config)
    check_prompts(config.dataset_name, column, shape, config.dataset_config)
    for name in config.eval_dataset_name:
        check_prompts(name, column, shape)


def sample_parser() -> OptionParser:
    """The options of ``rl4lm sample``."""
    parser = OptionParser(prog="rl4lm sample", description="Completions of a model, to look at.")
    add_config_arguments(parser, _SAMPLE, brought=settings_for(default_values()))
    parser.add_argument("--prompt", action="append", help="a prompt; may be repeated")
    parser.add_argument("--top_k", type=int, default=0, help="most likely tokens kept; 0 = all")
    parser.add_argument("--top_p", type=float, default=1.0, help="nucleus kept; 1 = all")
    parser.add_argument("--greedy", action="store_true", help="the most likely token each time")
    parser.add_argument("--json", action="store_true", help="print one JSON object per completion")
    return parser


def sample(argv: Sequence[str]) -> None:
    """``rl4lm sample``: completions of prompts, to look at."""
    namespace = sample_parser().parse_args(argv)
    if not namespace.prompt:
        raise ConfigError("give at least one prompt with --prompt TEXT")
    check_restriction(namespace)
    config = config_from(namespace, base_for=only(_SAMPLE))
    quiet_libraries()
    rows = list(_samples(config, namespace))
    for row in rows:
        if namespace.json:
            print_json(row, indent=None)
    if not namespace.json:
        from rl4lm.screen.console import Screen

        Screen().samples(rows)


def check_restriction(namespace: argparse.Namespace) -> None:
    """Refuse a ``--top_k`` or ``--top_p`` that keeps nothing."""
    if namespace.top_k < 0 or not 0 < namespace.top_p <= 1:
        raise ConfigError(
            f"top_k={namespace.top_k} must be 0 or more, and top_p={namespace.top_p} above 0 and "
            "at most 1"
        )


def _samples(config: ReinforceConfig, namespace: Any) -> Iterator[dict[str, Any]]:
    from rl4lm.assembly import assemble_policy, end_rule
    from rl4lm.data.examples import PromptData
    from rl4lm.model.preparing import sampling_mode
    from rl4lm.processes.world import World
    from rl4lm.randomness import Stream
    from rl4lm.sampling.drawing import InverseCdf, greedy, keep_most_likely
    from rl4lm.sampling.loop import generate

    rows = [{"prompt": prompt} for prompt in namespace.prompt]
    data = PromptData(rows, "prompt", "given", shape_of(config))
    world = World()
    world.use_threads(config.torch_threads)
    policy, _ = assemble_policy(config, None, None, None, [data], world)
    restricted = namespace.top_k or namespace.top_p < 1
    draw = InverseCdf(
        seed=config.seed,
        stream=Stream.EVALUATION,
        step=0,
        places=range(len(namespace.prompt)),
        num_generations=config.num_generations,
        temperature=config.temperature,
        restrict=keep_most_likely(namespace.top_k, namespace.top_p) if restricted else None,
    )
    with sampling_mode(policy):
        rollout = generate(
            policy,
            policy.codec.encode([e.prompt for e in data.examples(range(len(data)))]),
            greedy if namespace.greedy else draw,
            num_generations=1 if namespace.greedy else config.num_generations,
            max_completion_length=config.max_completion_length,
            ends=end_rule(config, policy),
        )
    yield from _sample_rows(policy, namespace.prompt, rollout)


def _sample_rows(
    policy: Policy, prompts: Sequence[str], rollout: Rollout
) -> Iterator[dict[str, Any]]:
    texts = policy.codec.decode(rollout.completion_lists())
    logprobs = rollout.sampling_logprobs.sum(dim=1).tolist()
    for i, text in enumerate(texts):
        yield {
            "prompt": prompts[i // rollout.num_generations],
            "completion": text,
            "logprob": logprobs[i],
            "truncated": not bool(rollout.ended[i]),
        }


def default_values() -> dict[str, Any]:
    """Every option at its default, as a command line that names none would have it."""
    return {name: option.default for name, option in OPTIONS.items()}


def only(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """`settings_for`, but only the settings that a verb takes."""
    return lambda given: {k: v for k, v in settings_for(given).items() if k in names}


def quiet_libraries() -> None:
    """Keep loading bars and deprecations of other libraries off the screen; errors still show."""
    import warnings

    from transformers.utils import logging

    # What they deprecate among themselves is no business of the user's.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\b")
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def print_json(value: Any, indent: int | None = 2) -> None:
    """Write a value to the standard output; what JSON cannot say becomes null."""
    print(json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False))
