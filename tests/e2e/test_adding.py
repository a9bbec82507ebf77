"""What docs/architecture.md says of adding a reward, a baseline and a recipe, done as it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from documented import FENCED, ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PLACE = re.compile(
    r"(?:# |<!-- )(?P<file>[\w/]+\.\w+)(?:, (?P<side>above|below): (?P<line>.+?))?(?: -->)?\n"
)
TITLES = ("A reward", "A baseline", "A recipe")
KEPT_OUT = (".git", ".venv", ".*_cache", "__pycache__", "runs", "site")
SECONDS = 600
PYTHON = (sys.executable, "-m")


def section(title):
    """The text below a heading of the page."""
    return re.search(rf"^### {title}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]


def edits(title):
    """Of every block of a section: file, side, line, and what is written there."""
    for language, code in FENCED.findall(section(title)):
        place = PLACE.match(code)
        assert place, f"{language}: a block must begin with its file"
        yield *place.groups(), code[place.end() :]


def edited(folder, file, side, line, text):
    """What a file holds with a block: a new one, or above or below the one line that begins so."""
    path = folder / file
    if side is None:
        assert not path.exists(), file
        return text.lstrip("\n")
    if file.endswith(".py") and not text.startswith(" "):
        text += "\n\n"  # between functions
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [i for i, each in enumerate(lines) if each.strip().startswith(line)]
    assert len(found) == 1, f"{file}: {len(found)} lines begin with {line}"
    lines.insert(found[0] + (side == "below"), text)
    return "".join(lines)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository in which everything of the page has been added."""
    folder = tmp_path_factory.mktemp("copy") / "rl4lm"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*KEPT_OUT))
    for title in TITLES:
        for edit in edits(title):
            (folder / edit[0]).write_text(edited(folder, *edit), encoding="utf-8")
    return folder


def run(copy, *words):
    """Run a program in the copy; what it printed."""
    done = subprocess.run(
        words,
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("title", TITLES)
def test_the_places_that_the_page_names_are_there(title):
    for edit in edits(title):
        assert edit[-1].strip() in edited(ROOT, *edit)


def test_a_place_that_is_not_there_is_noticed():
    for file, line in (("README.md", "no such line"), ("nothing/at/all.md", "x")):
        with pytest.raises((AssertionError, OSError)):
            edited(ROOT, file, "below", line, "text")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_added_passes_the_checks(copy):
    """`make check`, in the environment that runs this test, which is not set up again."""
    run(copy, "make", "-o", f"{sys.prefix}/.ready", "check", f"VENV={sys.prefix}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("title", TITLES)
def test_what_was_added_passes_the_tests_that_the_page_names(copy, title):
    named = re.findall(r"`pytest ([^`]+)`", section(title))
    assert named
    for words in named:
        run(copy, *PYTHON, "pytest", "-q", *shlex.split(words))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_added_baseline_is_exact(copy):
    words = ("rl4lm", "verify", "--baseline", "median_of_others", "--json")
    report = json.loads(run(copy, *PYTHON, *words))
    assert report["verdict"] == "exact"
    assert report["variance"]["median_of_others"] < 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_added_reward_is_asked(copy):
    words = ("score", "--reward", "rewards.closeness:close", "--data", "builtin:arithmetic")
    report = json.loads(run(copy, *PYTHON, "rl4lm", *words, "--adversarial", "--json"))
    assert report["adversarial"]
