"""Every command of the documentation can be meant: verbs, options, targets, extras, files."""

from __future__ import annotations

import contextlib
import re
from functools import cache

import pytest
from documented import PAGES, ROOT, commands, mentioned

from rl4lm.cli import main
from rl4lm.commandline.commands import settings_for, train_parser
from rl4lm.options import config_from

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
LEFT_OUT = re.compile(r"…|\.\.\.|^\[|^[A-Z_]+$|\$")  # of a command that shows a form


def problem(words, capsys):
    """What is wrong with a command, or None."""
    program, *rest = words
    if program == "rl4lm":
        return problem_of_verb(rest, capsys)
    if program == "make":
        return None if f"\n{rest[0]}:" in MAKEFILE else f"no target {rest[0]}"
    if program == "pip":
        extras = re.findall(r"rl4lm\[(\w+)\]", " ".join(rest))
        return next((f"no extra {each}" for each in extras if each not in EXTRAS), None)
    files = [word for word in rest if word.startswith("recipes/")]
    return next((f"no file {each}" for each in files if not (ROOT / each).exists()), None)


def problem_of_verb(words, capsys):
    verb, *rest = words
    given = [word.partition("=")[0].lstrip("[") for word in rest if word.lstrip("[")[:2] == "--"]
    known = options_of(verb, capsys)
    unknown = [each for each in given if each.rstrip("]") not in known]
    if unknown:
        return f"{verb} does not take {unknown}"
    whole = "--help" not in rest and not any(LEFT_OUT.search(word) for word in rest)
    if verb == "train" and whole:
        config_from(train_parser().parse_args(rest), base_for=settings_for)
    return None


_HELP = {}


def options_of(verb, capsys):
    """The options that the help of a verb lists; none where there is no such verb."""
    if verb not in _HELP:
        with contextlib.suppress(SystemExit):  # argparse ends the program with its help
            assert main([verb, "--help"]) == 0, f"there is no verb {verb}"
        _HELP[verb] = set(re.findall(r"--\w+", capsys.readouterr().out))
    return _HELP[verb]


@cache
def typed(page):
    return commands(page)


@pytest.mark.parametrize("page", [page for page in PAGES if typed(page)])
def test_the_commands_of_a_page_can_be_meant(page, capsys):
    for words in typed(page):
        assert problem(words, capsys) is None, " ".join(words)


@pytest.mark.parametrize("page", [page for page in PAGES if mentioned(page)])
def test_options_of_commands_within_sentences_are_those_of_the_verb(page, capsys):
    for _, verb, *rest in mentioned(page):
        if verb.islower():  # not VERB
            given = {word.lstrip("[").rstrip("]") for word in rest if word.lstrip("[")[:2] == "--"}
            assert given <= options_of(verb, capsys) | {"--help"}, (verb, rest)


def test_commands_are_found_at_all():
    assert len(typed("README.md")) >= 6
    assert sum(len(typed(page)) for page in PAGES) > 60


@pytest.mark.parametrize(
    "words",
    [
        ["rl4lm", "train", "--learning_rte", "1"],
        ["make", "believe"],
        ["pip", "install", "rl4lm[everything]"],
        ["python", "recipes/nothing.py"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_nobody_can_mean_is_noticed(words, capsys):
    assert problem(words, capsys) is not None
