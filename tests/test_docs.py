"""What the documentation names exists: functions, tests, options, files."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from rl4lm.config import OPTIONS

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
TESTS = re.compile(r"`((?:\w+/)*test_\w+)::(test_\w+)`")
FUNCTIONS = re.compile(r"`([a-z_.]+):([A-Za-z_]+(?:\.[a-z_]+)*)`")
LINKS = re.compile(r"\]\(([^)#]+)\)")
MATHS = (ROOT / "docs" / "maths.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("file", "test"), sorted(set(TESTS.findall(MATHS))))
def test_a_proof_that_the_mathematics_page_names_is_a_test(file, test):
    source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
    assert f"\ndef {test}(" in source


def test_a_function_that_the_mathematics_page_names_can_be_called():
    no_module = {*OPTIONS, "module"}  # `kl_in: loss`, and how the page itself says it
    named = [(m, f) for m, f in FUNCTIONS.findall(MATHS) if m not in no_module]
    assert len(named) > 20
    for module, name in named:
        found = importlib.import_module(f"rl4lm.{module}")
        for part in name.split("."):
            found = getattr(found, part)


def test_the_mathematics_page_has_every_baseline_and_every_estimator_option():
    for name, option in OPTIONS.items():
        if option.theme == "estimator":
            assert re.search(rf"`{name}\b", MATHS), name
    for name in OPTIONS["baseline"].choices:
        assert f"`{name}`" in MATHS, name


def test_the_data_page_has_every_option_for_data():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for name, option in OPTIONS.items():
        if option.theme == "data":
            assert f"`{name}`" in page, name


def test_links_are_found_at_all():
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    assert sum(len(LINKS.findall(text)) for text in pages) > 50


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    path = ROOT / page
    for target in LINKS.findall(path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
