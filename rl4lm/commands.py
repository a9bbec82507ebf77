"""The verbs of the command line: each reads its options, does its work, and prints the result.

Modules that need torch are imported inside the functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl4lm.builtin import BUILTIN_MODELS, model_settings
from rl4lm.config import OPTIONS, ReinforceConfig
from rl4lm.errors import ConfigError
from rl4lm.options import OptionParser, add_config_arguments, config_from
from rl4lm.reward_lookup import resolve_rewards
from rl4lm.sources import check_source
from rl4lm.tracking import check_run_directory, plain

if TYPE_CHECKING:
    from rl4lm.policy import Policy
    from rl4lm.types import Rollout

_MODEL = ("model_name_or_path", "dtype", "trust_remote_code", "attn_implementation")
_ENDS = ("max_completion_length", "stop_strings", "stop_token_ids")
_EVAL = (
    *_MODEL,
    "dataset_name",
    "dataset_test_split",
    "prompt_column",
    "max_prompt_length",
    "reward_funcs",
    "reward_weights",
    "accuracy_func",
    *_ENDS,
    "eval_samples",
    "seed",
    "torch_threads",
)
_VERIFY = (
    "use_peft",
    "lora_r",
    "lora_alpha",
    "num_generations",
    "temperature",
    "baseline",
    "gamma",
    "beta",
    "kl_in",
    "entropy_coef",
    "entropy_in",
    "num_iterations",
    "epsilon",
    "activation_checkpointing",
    "seed",
)
_SAMPLE = (*_MODEL, *_ENDS, "num_generations", "temperature", "seed", "torch_threads")


def settings_for(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that a built-in model brings with it; none for any other model."""
    name = str(given["model_name_or_path"])
    if name not in BUILTIN_MODELS:
        return {}
    return model_settings(name, adapters=ReinforceConfig(use_peft=given["use_peft"]).use_peft)


def train(argv: Sequence[str]) -> None:
    """``rl4lm train``: the main job."""
    parser = OptionParser(
        prog="rl4lm train",
        description="Fine-tune a causal language model with REINFORCE on rule-based rewards.",
    )
    add_config_arguments(parser, brought=settings_for(_defaults()))
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    namespace = parser.parse_args(argv)
    run_training(config_from(namespace, base_for=settings_for), as_json=namespace.json)


def run_training(config: ReinforceConfig, as_json: bool = False) -> dict[str, Any]:
    """Train as a configuration says, as ``rl4lm train`` and the recipes do.

    Returns:
        The summary of the run.

    Raises:
        ConfigError: no output directory.
    """
    if config.output_dir is None:
        raise ConfigError("where should the run go? name a folder with --output_dir")
    # Again in the trainer; here they answer before torch is even imported.
    check_run_directory(Path(config.output_dir), config.overwrite_output_dir)
    check_source(config.dataset_name)
    resolve_rewards(config.reward_funcs)
    from rl4lm.console import Screen
    from rl4lm.trainer import ReinforceTrainer

    quiet_libraries()
    screen = Screen(stderr=as_json, logging_steps=config.logging_steps)
    trainer = ReinforceTrainer(args=config, screen=screen)
    summary = trainer.train()
    if as_json and trainer.world.is_main:
        _print_json(summary)
    trainer.world.close()
    return summary


def evaluate(argv: Sequence[str]) -> None:
    """``rl4lm eval``: greedy accuracy and reward of a model."""
    parser = OptionParser(
        prog="rl4lm eval", description="Greedy accuracy and reward of a model on prompts."
    )
    add_config_arguments(parser, _EVAL, brought=settings_for(_defaults()))
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    namespace = parser.parse_args(argv)
    config = config_from(namespace, base_for=_only(_EVAL))
    from rl4lm.assembly import assemble_judges, assemble_policy, end_rule
    from rl4lm.console import Screen
    from rl4lm.data import load_split
    from rl4lm.evaluate import evaluate as measure
    from rl4lm.scoring import RewardContext
    from rl4lm.world import World

    quiet_libraries()
    split = config.dataset_test_split or config.dataset_train_split
    data = load_split(config.dataset_name, split, config.prompt_column)
    judges = assemble_judges(config, None, [data])
    world = World()
    world.use_threads(config.torch_threads)
    policy, _ = assemble_policy(config, None, None, None, [data], world)
    metrics = measure(
        policy,
        data,
        judges.scorer,
        judges.accuracy,
        samples=config.eval_samples,
        max_completion_length=config.max_completion_length,
        ends=end_rule(config, policy),
        context=RewardContext(0, 0, config.seed),
        world=world,
    )
    if not world.is_main:
        return
    if namespace.json:
        _print_json(metrics)
    else:
        Screen().metrics(f"{config.model_name_or_path} on {config.dataset_name}, {split}", metrics)


def sample(argv: Sequence[str]) -> None:
    """``rl4lm sample``: completions of prompts, to look at."""
    parser = OptionParser(prog="rl4lm sample", description="Completions of a model, to look at.")
    add_config_arguments(parser, _SAMPLE, brought=settings_for(_defaults()))
    parser.add_argument("--prompt", action="append", help="a prompt; may be repeated")
    parser.add_argument("--top_k", type=int, default=0, help="most likely tokens kept; 0 = all")
    parser.add_argument("--top_p", type=float, default=1.0, help="nucleus kept; 1 = all")
    parser.add_argument("--greedy", action="store_true", help="the most likely token each time")
    parser.add_argument("--json", action="store_true", help="print one JSON object per completion")
    namespace = parser.parse_args(argv)
    if not namespace.prompt:
        raise ConfigError("give at least one prompt with --prompt TEXT")
    if namespace.top_k < 0 or not 0 < namespace.top_p <= 1:
        raise ConfigError(
            f"top_k={namespace.top_k} must be 0 or more, and top_p={namespace.top_p} above 0 and "
            "at most 1"
        )
    config = config_from(namespace, base_for=_only(_SAMPLE))
    quiet_libraries()
    rows = list(_samples(config, namespace))
    for row in rows:
        if namespace.json:
            _print_json(row, indent=None)
    if not namespace.json:
        from rl4lm.console import Screen

        Screen().samples(rows)


def _samples(config: ReinforceConfig, namespace: Any) -> Iterator[dict[str, Any]]:
    from rl4lm.assembly import assemble_policy, end_rule
    from rl4lm.data import PromptData
    from rl4lm.preparing import inference_mode_of
    from rl4lm.randomness import Stream
    from rl4lm.sampling import InverseCdf, generate, greedy, keep_most_likely
    from rl4lm.world import World

    data = PromptData([{"prompt": p} for p in namespace.prompt], "prompt", "given")
    world = World()
    world.use_threads(config.torch_threads)
    policy, _ = assemble_policy(config, None, None, None, [data], world)
    restricted = namespace.top_k or namespace.top_p < 1
    draw = InverseCdf(
        seed=config.seed,
        stream=Stream.EVALUATION,
        step=0,
        first_prompt=0,
        num_generations=config.num_generations,
        temperature=config.temperature,
        restrict=keep_most_likely(namespace.top_k, namespace.top_p) if restricted else None,
    )
    with inference_mode_of(policy.module):
        rollout = generate(
            policy,
            policy.codec.encode(namespace.prompt),
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


def score(argv: Sequence[str]) -> None:
    """``rl4lm score``: a reward over completions in a file."""
    parser = OptionParser(
        prog="rl4lm score",
        description="Run a reward over rows that hold prompt, completion and any columns.",
        usage="%(prog)s --reward NAME --data rows.jsonl [--out scored.jsonl] [--json]",
    )
    parser.add_argument("--reward", help="package.module:function or path/to/file.py:function")
    parser.add_argument("--data", help="a jsonl file with a row per line")
    parser.add_argument("--out", help="where the rows go with `reward` and `detail` added")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    namespace = parser.parse_args(argv)
    for name in ("reward", "data"):
        if getattr(namespace, name) is None:
            raise ConfigError(f"--{name} is missing; usage: {parser.format_usage()[7:].strip()}")
    resolve_rewards([namespace.reward])
    from rl4lm.workbench import read_rows, score_rows, summarize_scores, write_rows

    scored = score_rows(read_rows(Path(namespace.data)), namespace.reward)
    if namespace.out is not None:
        write_rows(Path(namespace.out), scored)
    summary = summarize_scores(scored)
    if namespace.json:
        _print_json(summary)
    else:
        from rl4lm.console import Screen

        Screen().scores(namespace.reward, scored, summary)


def verify(argv: Sequence[str]) -> None:
    """``rl4lm verify``: the gradient against exact enumeration."""
    parser = OptionParser(
        prog="rl4lm verify",
        description="Compare the trainer's own gradient with the exact one, by enumerating every "
        "completion of a tiny model. Estimator options are taken, those of a whole run too in "
        "--config; model, data and rewards are the tiny problem's, with at most 3 completions a "
        "prompt.",
    )
    add_config_arguments(parser, _VERIFY, brought=settings_for(_defaults()))
    parser.add_argument("--token_rewards", action="store_true", help="pay every token apart")
    parser.add_argument("--all", action="store_true", help="every baseline and estimator option")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    namespace = parser.parse_args(argv)
    config = config_from(namespace, base_for=settings_for)
    from rl4lm.console import Screen
    from rl4lm.errors import VerificationError
    from rl4lm.verify import verify as check
    from rl4lm.verify import verify_all
    from rl4lm.world import World

    quiet_libraries()
    world = World()
    screen = Screen(stderr=namespace.json)
    screen.only_if(world.is_main)
    if namespace.all:
        reports = []
        for report in verify_all(config, prepare=quiet_libraries):
            reports.append(report.to_dict())
            screen.verified(reports[-1])
    else:
        reports = [check(config, namespace.token_rewards).to_dict()]
        screen.verification(reports[0])
    if namespace.json and world.is_main:
        _print_json(reports if namespace.all else reports[0])
    failed = sum(found["verdict"] == "failed" for found in reports)
    if namespace.all:
        exact = sum(found["passed"] for found in reports)
        screen.note(
            f"{len(reports)} sets of options: {exact} exact, {len(reports) - exact - failed} with "
            f"another objective, as documented, {failed} failed"
        )
    world.close()
    if failed:
        raise VerificationError(f"{failed} of {len(reports)} sets of options failed")


def replay(argv: Sequence[str]) -> None:
    """``rl4lm replay``: a logged step done again."""
    parser = OptionParser(
        prog="rl4lm replay",
        description="Recompute the loss and the gradient norm of a logged step from the nearest "
        "earlier checkpoint, or the start of the run, through the logged completions.",
        usage="%(prog)s RUN_DIR --step N [--json]",
    )
    parser.add_argument("run", metavar="RUN_DIR", nargs="?", help="folder of the run")
    parser.add_argument("--step", type=int, help="the step, counted from 1 as in metrics.jsonl")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    namespace = parser.parse_args(argv)
    if namespace.run is None or namespace.step is None:
        raise ConfigError(f"name a run and a step; usage: {parser.format_usage()[7:].strip()}")
    from rl4lm.console import Screen
    from rl4lm.errors import VerificationError
    from rl4lm.replay import replay as do_again

    quiet_libraries()
    found = do_again(Path(namespace.run), namespace.step)
    screen = Screen(stderr=namespace.json)
    screen.replayed(found.to_dict())
    if namespace.json:
        _print_json(found.to_dict())
    if not found.agrees:
        raise VerificationError(f"step {namespace.step} does not come out as it was logged")


def _defaults() -> dict[str, Any]:
    return {name: option.default for name, option in OPTIONS.items()}


def _only(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
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


def _print_json(value: Any, indent: int | None = 2) -> None:
    print(json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False))
