"""Every command and every block of the documentation can be meant, and is run by some test.

The tests that run them are slow (`e2e/test_documented_runs`). What they leave to other tests, or to
nobody, stands in `e2e/documented_settings`, and nothing stands there that no page shows.
"""

from __future__ import annotations

import contextlib
import re

import documented_settings as settings
import pytest
from documented import FENCED, PAGES, ROOT, Shown, blocks, commands, text_of
from reader import elsewhere, typed

from rl4lm.cli import main
from rl4lm.commandline.commands import settings_for, train_parser
from rl4lm.options import config_from

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
LEFT_OUT = re.compile(r"…|\.\.\.|^\[|^[A-Z_]+$|\$")  # of a command that shows a form
TEXTS = [each.text for page in PAGES for each in commands(page)]
CODE = ["python", "bash", "text", ""]  # of which commands are looked for
DATA = ["yaml", "json", "markdown"]


def problem(words, capsys):
    """What is wrong with a command, or None."""
    program, *rest = words
    if program == "rl4lm" and rest:
        return problem_of_verb(rest, capsys)
    if program == "make":
        return None if f"\n{rest[0]}:" in MAKEFILE else f"no target {rest[0]}"
    if program == "pip":
        extras = re.findall(r"rl4lm\[(\w+)\]", " ".join(rest))
        unknown = [each for each in extras if each not in [*EXTRAS, "NAME"]]
        return f"no extra {unknown[0]}" if unknown else None
    named = [word for word in rest if re.match(r"(recipes|benchmarks|tests)/(?!NAME)", word)]
    files = [word.partition("::")[0] for word in named]
    return next((f"no file {each}" for each in files if not exists(each)), None)


def exists(file):
    """Whether a file is there, or is one that a page tells its readers to write."""
    return (ROOT / file).exists() or any(f"```python\n# {file}\n" in text_of(p) for p in PAGES)


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
        _HELP[verb] = {"--help", *re.findall(r"--\w+", capsys.readouterr().out)}
    return _HELP[verb]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_can_be_meant(page, capsys):
    for command in commands(page):
        assert problem(command.words, capsys) is None, command.text


def test_commands_are_found_at_all():
    assert len(commands("README.md")) >= 15
    assert len(TEXTS) > 120
    assert sum(len(blocks(page)) for page in PAGES) > 30


@pytest.mark.parametrize(
    "text",
    [
        "rl4lm train --learning_rte 1",
        "make believe",
        "pip install rl4lm[everything]",
        "python recipes/nothing.py",
    ],
    ids=lambda text: text.split()[0],
)
def test_a_command_that_nobody_can_mean_is_noticed(text, capsys):
    assert problem(Shown("command", text).words, capsys) is not None


@pytest.mark.parametrize("page", PAGES)
def test_no_block_of_a_page_is_passed_over(page):
    """Blocks are in languages that are known; all of Python is run, every line of bash found."""
    text = text_of(page)
    fences = FENCED.findall(text)
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(fences)
    assert {language for language, _ in fences} <= {*CODE, *DATA}
    assert len(blocks(page)) == text.count("```python\n")
    found = {command.text for command in commands(page)}
    for language, code in fences:
        for line in code.splitlines() if language == "bash" else ():
            assert line.startswith("#") or re.sub(r"\s+#\s.*", "", line) in found, line


SETTINGS = [
    (page, code)
    for page in PAGES
    for language, code in FENCED.findall(text_of(page))
    if language == "yaml"
]


@pytest.mark.parametrize(("page", "code"), SETTINGS, ids=[page for page, _ in SETTINGS])
def test_the_settings_of_a_page_can_be_meant(page, code, tmp_path):
    (tmp_path / "settings.yaml").write_text(code, encoding="utf-8")
    words = ["--config", str(tmp_path / "settings.yaml")]
    config_from(train_parser().parse_args(words), base_for=settings_for)


def test_every_command_is_run_by_a_test_or_has_a_reason():
    """The reader of `e2e/test_documented_runs` types all others, once they are whole."""
    for text in TEXTS:
        if elsewhere(text) is None:
            left = [word for word in typed(text).split() if LEFT_OUT.search(word)]
            assert left == [], f"{text}: the table of forms does not say what {left} are"


def test_a_form_that_nobody_filled_in_is_noticed():
    assert LEFT_OUT.search("RUN_DIR")
    assert elsewhere("rl4lm train --output_dir runs/mine") is None


@pytest.mark.parametrize("table", ["RUN_BY", "NOT_RUN", "FORMS", "REPLACED"])
def test_what_is_said_of_commands_is_said_of_some(table):
    for part in getattr(settings, table):
        if table == "FORMS":
            assert part in TEXTS
        elif table == "REPLACED":
            assert any(part in text for text in TEXTS), part
        else:
            assert any(text.startswith(part) for text in TEXTS), part


def test_what_is_said_of_pages_is_said_of_some():
    for page, parts in settings.SMALLER.items():
        code = "".join(blocks(page))
        assert all(part in code for part in parts), page
    for page in {*settings.RUNS, *settings.ROWS}:
        assert commands(page), page
    for page in settings.PYTHON_RUN_BY:
        assert blocks(page), page


@pytest.mark.parametrize(
    "test", [*settings.RUN_BY.values(), *settings.PYTHON_RUN_BY.values()], ids=str
)
def test_the_test_that_runs_something_is_one(test):
    file, _, name = test.partition("::")
    assert f"\ndef {name}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
