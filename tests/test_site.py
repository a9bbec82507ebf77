"""The documentation as a site: whole, linked, documented, and without any network."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rl4lm.config import OPTIONS
from rl4lm.settings.refusals import NOT_OFFERED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
ANCHORED = re.compile(r"\]\(([\w/.]*)#([\w-]+)\)")
LOADED = re.compile(r"""(?:<(?:script|img|iframe)[^>]*src|<link[^>]*href)=["']?(https?:)?//""")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def tables():
    """The module that mkdocs takes tables from."""
    spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = tables()


def listed(entries):
    """The pages that a navigation names, in order."""
    for entry in entries:
        for inner in entry.values():
            yield from [inner] if isinstance(inner, str) else listed(inner)


def slugs(page):
    """The anchors of a page's headings."""
    text = (DOCS / page).read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


def exists(name):
    """Whether a module has that name, or something in one."""
    parent, _, last = name.rpartition(".")
    try:
        return importlib.import_module(name) is not None
    except ModuleNotFoundError:
        return hasattr(importlib.import_module(parent), last)


def test_every_page_stands_in_the_navigation_once():
    assert sorted(listed(SETTINGS["nav"])) == PAGES


def test_everything_public_has_a_docstring():
    assert list(TABLES.undocumented()) == []


def test_something_public_without_a_docstring_is_noticed():
    lacking = list(TABLES.lacking(ast.parse("class A:\n    def f(self): pass\n\ndef _g(): pass")))
    assert lacking == ["module", "A", "A.f"]


@pytest.mark.parametrize("page", PAGES)
def test_anchors_lead_to_headings(page):
    for target, anchor in ANCHORED.findall((DOCS / page).read_text(encoding="utf-8")):
        other = (DOCS / page).parent / target if target else DOCS / page
        if other.suffix == ".md":
            assert anchor in slugs(other.resolve().relative_to(DOCS)), f"{target}#{anchor}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("reference/")])
def test_the_reference_names_what_there_is(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE):
        assert exists(name), name
    for mark in re.findall(r"<!-- table: (\w+) -->", text):
        assert mark in TABLES.TABLES


def test_the_tables_hold_every_option():
    text = TABLES.on_page_markdown("<!-- table: options -->\n<!-- table: refusals -->")
    for name in (*OPTIONS, *NOT_OFFERED):
        assert f"| `{name}` |" in text
    assert "\n| `learning_rate` | " in text
    assert "a number >= 0 | `1e-05` |" in text


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_and_its_pages_load_nothing_from_a_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        assert not LOADED.search(page.read_text(encoding="utf-8")), page.name
    assert "reward_weights" in (site / "reference" / "options.html").read_text(encoding="utf-8")


def test_a_page_that_loads_from_a_network_would_be_noticed():
    assert LOADED.search('<script async src="https://elsewhere.org/x.js">')
    assert LOADED.search('<link rel="stylesheet" href="//elsewhere.org/x.css">')
    assert not LOADED.search('<a href="https://arxiv.org/abs/2107.03374">')


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_pages_and_their_search_work_from_disk(site):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = opened.new_page()
        said, asked = [], []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "reference" / "options.html").as_uri())
        page.keyboard.press("/")
        page.keyboard.type("leave one out")
        page.wait_for_selector(".md-search-result__item", timeout=60_000)
        opened.close()
    assert said == []
    assert all(url.startswith("file:") for url in asked)
