"""What the command line can do: the verbs by theme, and what is said where none is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from rl4lm.commandline import commands, evaluating, exporting, inspecting, score
from rl4lm.commandline.shell_completion import completion, completion_parser
from rl4lm.options import OptionParser


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb: what runs it, what its options are, and what it is for."""

    theme: str
    run: Callable[[Sequence[str]], None]
    parser: Callable[[], OptionParser]
    meaning: str
    example: str = ""  # for the verbs that one needs first


VERBS: Mapping[str, Verb] = {
    "train": Verb(
        "train",
        commands.train,
        commands.train_parser,
        "fine-tune a model; with no model named, the built-in one",
        "rl4lm train --output_dir runs/first",
    ),
    "export": Verb(
        "train",
        exporting.export,
        exporting.export_parser,
        "weights, tokenizer and model card for others; upload them",
    ),
    "score": Verb(
        "rewards",
        score.score,
        score.score_parser,
        "try a reward before training: completions of a file, and tricks",
        "rl4lm score --reward my_rewards.py:brevity --data rows.jsonl",
    ),
    "eval": Verb(
        "models",
        evaluating.evaluate,
        evaluating.eval_parser,
        "how good a model is on held-out prompts, or two compared",
        "rl4lm eval --model_name_or_path runs/first/model",
    ),
    "sample": Verb(
        "models", commands.sample, commands.sample_parser, "look at completions of a model"
    ),
    "report": Verb(
        "runs",
        inspecting.report,
        inspecting.report_parser,
        "a page to look at a run, or at several side by side",
        "rl4lm report runs/first",
    ),
    "doctor": Verb(
        "runs",
        inspecting.doctor,
        inspecting.doctor_parser,
        "why a run does not learn: look through its files",
        "rl4lm doctor runs/first",
    ),
    "replay": Verb(
        "runs",
        inspecting.replay,
        inspecting.replay_parser,
        "do a logged step again, and compare loss and gradient norm",
    ),
    "verify": Verb(
        "the gradient",
        inspecting.verify,
        inspecting.verify_parser,
        "compare the gradient with the exact one, by enumeration",
    ),
    "completion": Verb(
        "the shell",
        lambda argv: completion(argv, {n: (v.meaning, v.parser) for n, v in VERBS.items()}),
        completion_parser,
        "a script with which bash, zsh or fish completes verbs and options",
    ),
}


def welcome() -> str:
    """The commands that one needs, each with an example."""
    lines = [
        "Fine-tune causal language models with REINFORCE on rule-based rewards.",
        "",
    ]
    for name, verb in VERBS.items():
        if verb.example:
            lines += [f"  {name:8}{verb.meaning}", f"          $ {verb.example}"]
    lines += ["", "all verbs: rl4lm help    options of a verb: rl4lm VERB --help"]
    return "\n".join(lines)


def overview() -> str:
    """Every verb, by theme."""
    lines = ["usage: rl4lm VERB [--option value ...]"]
    theme = ""
    for name, verb in VERBS.items():
        if verb.theme != theme:
            theme = verb.theme
            lines += ["", f"{theme}:"]
        lines.append(f"  {name:12}{verb.meaning}")
    lines += ["", "rl4lm VERB --help lists the options; rl4lm --version says which version this is"]
    return "\n".join(lines)
