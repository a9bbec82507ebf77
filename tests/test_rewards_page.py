"""What docs/rewards.md shows is true: its code runs and gives the values behind `#`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from documented import results

from rl4lm import ReinforceConfig
from rl4lm.cli import main
from rl4lm.config import OPTIONS

PAGE = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n?)*)", PAGE, re.MULTILINE))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_CODE = [title for title, text in SECTIONS.items() if BLOCK.search(text)]
COMMAND = re.compile(r"^    (rl4lm .+)$", re.MULTILINE)


def run_section(title):
    """Every pair of given and written value of a section, whose blocks go on from one another."""
    namespace = {"__name__": "my_rewards"}
    blocks = BLOCK.findall(SECTIONS[title])
    return [pair for block in blocks for pair in results(block, namespace)]


@pytest.mark.parametrize("title", WITH_CODE)
def test_the_code_of_a_section_gives_what_it_says(title):
    if "from trl" in SECTIONS[title]:
        pytest.importorskip("trl")
        pytest.importorskip("math_verify")
    for given, written in run_section(title):
        assert given == written


def test_the_sections_that_claim_values_have_some():
    for title in ("Write one in five minutes", "The ways it is gamed", "From verl to here"):
        assert run_section(title), title


def test_a_wrong_value_on_the_page_would_be_noticed():
    given, written = next(iter(results("x = 1\nx + 1  # 3\n", {})))
    assert given != written


def test_the_commands_of_the_page_name_options_that_there_are():
    commands = COMMAND.findall(PAGE)
    assert len(commands) > 1
    for command in commands:
        words = shlex.split(command)
        options = [word[2:] for word in words if word.startswith("--")]
        if words[1] == "train":
            assert set(options) <= set(OPTIONS)
            pairs = zip(words[2::2], words[3::2], strict=True)
            ReinforceConfig(**{name[2:]: value for name, value in pairs})


def test_the_five_minutes_are_a_file_that_scores_rows(tmp_path, monkeypatch, capsys):
    code = BLOCK.search(SECTIONS["Write one in five minutes"])[1]
    row = json.loads(re.search(r"^    (\{.*\})$", PAGE, re.MULTILINE)[1])
    rows = [{**row, "completion": f"So it is {n}."} for n in (46, 47)]
    monkeypatch.chdir(tmp_path)
    Path("my_rewards.py").write_text(code, encoding="utf-8")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = next(each for each in COMMAND.findall(PAGE) if " score " in each)
    assert main([*shlex.split(command)[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] == 0.5
    scored = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in scored] == [1.0, 0.0]
    assert scored[1]["detail"] == "read 47, expected 46"
