"""What the command line says of itself: without a verb, and behind --help."""

from __future__ import annotations

import re
import shlex

import pytest

from rl4lm.cli import main
from rl4lm.commandline import commands
from rl4lm.commandline.verbs import VERBS
from rl4lm.config import OPTIONS

NO_OFF_VALUE = {
    name for name, option in OPTIONS.items() if option.off is None and option.kind is not str
}


def help_of(verb, columns, monkeypatch, capsys):
    """The help of a verb as a screen of that width shows it."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0
    return capsys.readouterr().out


def test_without_a_verb_five_commands_are_shown_that_can_be_typed_as_they_are(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    examples = [line.split("$ ")[1] for line in text.splitlines() if "$ " in line]
    assert len(examples) == 5
    for example in examples:
        program, verb, *words = shlex.split(example)
        assert program == "rl4lm"
        VERBS[verb].parser().parse_args(words)
    assert "all verbs: rl4lm help" in text
    assert max(map(len, text.splitlines())) <= 80


def test_help_lists_every_verb_once_under_its_theme(capsys):
    assert main(["help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    theme, found = "", {}
    for line in lines[1:-1]:
        if line.endswith(":"):
            theme = line[:-1]
        elif line:
            found[line.split()[0]] = theme
    assert found == {name: verb.theme for name, verb in VERBS.items()}
    assert max(map(len, lines)) <= 80


def test_the_help_of_training_tells_range_default_and_off_value_of_every_option(
    monkeypatch, capsys
):
    text = " ".join(help_of("train", 80, monkeypatch, capsys).split())
    entries = re.split(r" --(?=\w+ )", text)
    told = {entry.split()[0]: entry for entry in entries}
    brought = commands.settings_for(commands.default_values())
    for name, option in OPTIONS.items():
        meaning, _, bracket = told[name].rpartition(" [")
        assert option.expected in bracket, name
        assert "; default " in bracket, name
        if brought.get(name, option.default) != option.default:
            assert "default model" in bracket, name
        if option.off is not None:
            assert re.search(rf"\b{option.off}( or \w+)* = ", f"{meaning} {bracket}"), name


def test_only_options_without_which_nothing_runs_have_no_off_value():
    assert {"temperature", "prompts_per_step", "max_steps", "seed"} <= NO_OFF_VALUE
    assert not {"beta", "save_steps", "use_peft", "max_time", "gamma", "baseline"} & NO_OFF_VALUE


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("columns", [80, 200])
def test_the_help_of_a_verb_fits_the_screen(verb, columns, monkeypatch, capsys):
    lines = help_of(verb, columns, monkeypatch, capsys).splitlines()
    assert max(map(len, lines)) <= min(columns, 98)
    assert lines[0].startswith(f"usage: rl4lm {verb}")


def test_the_help_is_grouped_by_theme(monkeypatch, capsys):
    lines = help_of("train", 98, monkeypatch, capsys).splitlines()
    headings = [line[:-1] for line in lines if re.fullmatch(r"[a-z]+:", line)]
    assert headings == ["options", *dict.fromkeys(each.theme for each in OPTIONS.values())]


def test_names_that_one_copies_are_not_broken_at_their_hyphens(monkeypatch, capsys):
    assert "builtin:tiny-arithmetic" in help_of("train", 80, monkeypatch, capsys)
