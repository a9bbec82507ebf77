"""The pages are followed from top to bottom, with small settings: files, commands, Python.

What stands in for the hub, a server, two machines and larger settings is in
`documented_settings`, and so is what cannot be run, with the reason.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from chat_templates import CHATML, save_chat_checkpoint
from documented import FILE, PAGES, blocks, results, shown, write_files
from reader import Reader, smaller

SANDBOXED = re.compile(r"rewards\.(sandbox|programs)|recipes/(coding|hacking)")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to work in, and a chat model in the place of the hub's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return save_chat_checkpoint(tmp_path / "chat", CHATML, context=8192)


@pytest.fixture
def reader_of(workplace, request, capfd):
    """A reader of a page."""
    return lambda page: Reader(page, workplace, request.getfixturevalue)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if shown(page)])
def test_the_commands_of_a_page_run(page, reader_of):
    if sys.platform != "linux" and any(SANDBOXED.search(each.text) for each in shown(page)):
        pytest.skip("programs are run on Linux only")
    reader_of(page).follow()


@pytest.mark.slow
def test_a_command_that_fails_is_noticed(reader_of):
    reader = reader_of("docs/index.md")
    for wrong in ("rl4lm train --model_name_or_path nowhere", "python recipes/nothing.py"):
        with pytest.raises(AssertionError, match=r"nowhere|nothing"):
            reader.type(wrong)


def test_the_readmes_program_runs(workplace, capsys, monkeypatch):
    write_files("README.md", Path.cwd())
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    program = next(block for block in blocks("README.md") if "ReinforceTrainer" in block)
    small = smaller("README.md", program).replace("Qwen/Qwen2.5-0.5B-Instruct", str(workplace))
    exec(small, {"__name__": "program"})
    assert json.loads(Path("runs/python/summary.json").read_text())["steps"] == 1


def test_the_tutorials_program_runs(workplace, capsys):
    write_files("docs/tutorial.md", Path.cwd())
    program = next(block for block in blocks("docs/tutorial.md") if "ReinforceTrainer" in block)
    exec(smaller("docs/tutorial.md", program), {"__name__": "program"})
    assert json.loads(Path("runs/python/summary.json").read_text())["steps"] == 1


def test_the_tutorials_rewards_pay_what_the_page_says():
    namespace = {"__name__": "rewards_of_the_tutorial"}
    for block in blocks("docs/tutorial.md"):
        if FILE.match(block):
            exec(block, namespace)
    said = ["46", "47", "45", "48", "the number 46", ""]
    assert namespace["even"](completions=said) == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    near = namespace["near"](completions=said, answer=["46"] * 6)
    assert near == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert namespace["near"](completions=["46", "48"], answer=["47"] * 2) == [1.0, 1.0]


def test_the_values_of_the_page_about_programs_are_so():
    pairs = [pair for block in blocks("docs/code.md") for pair in results(block, {})]
    assert pairs
    assert all(given == written for given, written in pairs)
