"""The verb ``rl4lm completion``: what can follow on a command line, read from the parsers.

The scripts hold all words themselves, so that a shell starts no Python where it completes.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence

from rl4lm.builtin import BUILTIN_DATASETS, BUILTIN_MODELS
from rl4lm.commandline.shells import SCRIPTS, Kind, Offer
from rl4lm.config import OPTIONS
from rl4lm.errors import ConfigError, did_you_mean
from rl4lm.options import OptionParser

_FOLDERS = ("output_dir", "run", "runs", "source")
_FILES = (
    "config",
    "model_name_or_path",
    "dataset_name",
    "eval_dataset_name",
    "reward_funcs",
    "accuracy_func",
    "eval_metrics",
    "resume_from_checkpoint",
    "compare",
    "reward",
    "data",
    "out",
    "png",
    "tokenizer",
)
_BRIEF = 70  # characters of a meaning
_SAFE = str.maketrans({"'": "’", "`": "’", "[": "(", "]": ")", "\\": "/", "$": ""})
_BUILTIN = {
    **dict.fromkeys(("model_name_or_path", "compare", "tokenizer"), tuple(BUILTIN_MODELS)),
    **dict.fromkeys(("dataset_name", "eval_dataset_name", "data"), tuple(BUILTIN_DATASETS)),
}


def completion_parser() -> OptionParser:
    """The options of ``rl4lm completion``."""
    parser = OptionParser(
        prog="rl4lm completion",
        description="Print a script with which a shell completes verbs, options, values and files. "
        "bash: source <(rl4lm completion bash) in ~/.bashrc; zsh: the same with zsh in ~/.zshrc, "
        "after compinit; fish: rl4lm completion fish > ~/.config/fish/completions/rl4lm.fish",
        usage=f"%(prog)s {'|'.join(SCRIPTS)}",
    )
    parser.add_argument("shell", metavar="SHELL", nargs="?", help=", ".join(SCRIPTS))
    return parser


def completion(
    argv: Sequence[str], verbs: Mapping[str, tuple[str, Callable[[], OptionParser]]]
) -> None:
    """``rl4lm completion``: print the script of a shell.

    Args:
        argv: the words after the verb.
        verbs: each with what it is for, and what makes its parser.
    """
    shell = completion_parser().parse_args(argv).shell
    if shell is None:
        raise ConfigError(f"name a shell: {', '.join(SCRIPTS)}")
    if shell not in SCRIPTS:
        nearest = did_you_mean(shell, SCRIPTS)
        raise ConfigError(f"shell: {shell!r} given, expected one of {', '.join(SCRIPTS)}{nearest}")
    told = {name: (_brief(what), offers(make())) for name, (what, make) in verbs.items()}
    print(SCRIPTS[shell](told))


def offers(parser: argparse.ArgumentParser) -> list[Offer]:
    """Everything that a parser takes and its help shows, the negations of flags left out."""
    return [
        _offer(action, name)
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for name in (action.option_strings or [""])
        if not name or name.startswith("--")
    ]


def _offer(action: argparse.Action, name: str) -> Offer:
    words = _words(action)
    kind: Kind = "any"
    if words and action.dest not in _FILES:
        kind = "words"
    elif action.nargs == 0:
        kind = "nothing"
    elif action.dest in _FOLDERS or action.metavar == "FOLDER":
        kind = "folder"
    elif action.dest in _FILES:
        kind = "file"
    many = action.nargs in ("*", "+")
    return Offer(name, _brief(action.help), kind, words, many)


def _words(action: argparse.Action) -> tuple[str, ...]:
    """The values that are known; for models and data sets the built-in ones, beside files."""
    if action.dest == "shell":
        return tuple(SCRIPTS)
    if action.dest in _BUILTIN:
        return _BUILTIN[action.dest]
    if action.choices is not None:
        return tuple(map(str, action.choices))
    option = OPTIONS.get(action.dest)
    # A verb's own option may have the name of one of training, and a default then.
    if option is None or action.default != argparse.SUPPRESS:
        return ()
    words = ("true", "false") if option.kind is bool else option.choices
    return (*words, "none") if option.optional and words else words


def _brief(text: str | None) -> str:
    """The first clause of a help text, without what shells would take for their own."""
    clause = (text or "").replace("%%", "%").split(" [")[0].split("; ")[0].split(". ")[0]
    safe = clause.translate(_SAFE)
    return textwrap.shorten(safe, _BRIEF, placeholder=" …")
