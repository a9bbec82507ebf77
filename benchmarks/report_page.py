"""How long a report of 100,000 completions takes: to be written, to load, to filter and to sort.

    python benchmarks/report_page.py [--completions 100000]

Prints seconds and milliseconds, and whether the page keeps to its limits: loaded in 3 s, filtered
in 200 ms. Needs Chromium and `pip install 'rl4lm[dev]'`; about a minute.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
from made_runs import GROUP, make_run

from rl4lm.report.write import write_report

LOAD_MS, FILTER_MS = 3000, 200
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
FILTERS = {"one prompt": "11+", "a digit": "9", "nothing": "zzz", "everything": ""}


def milliseconds(page: Page, name: str) -> list[float]:
    """The durations that the page measured itself."""
    return page.evaluate("n => performance.getEntriesByName(n).map(e => e.duration)", name)


def measure(page: Page, file: Path) -> dict[str, float]:
    """Milliseconds of loading, of each filter, and of sorting by each column twice."""
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]")
    found = {
        name: milliseconds(page, name)[0] for name in ("load", "prepare")
    }  # the second in the first
    found["filter: first"] = milliseconds(page, "filter")[0]
    for name, words in FILTERS.items():
        before = len(milliseconds(page, "filter"))
        page.fill("#text", words)
        while len(milliseconds(page, "filter")) == before:
            page.wait_for_timeout(20)
        found[f"filter: {name}"] = milliseconds(page, "filter")[-1]
    for column in ("reward", "logprob"):
        page.click(f"th[data-name={column}] button")
        found[f"sort by {column}"] = milliseconds(page, "filter")[-1]
    return found


def main() -> int:
    """Make a run, write its page, open it, and print the figures; 1 where a limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--completions", type=int, default=100_000)
    asked = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no browser was found; one of these is needed: {', '.join(BROWSERS)}")
        return 2
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        run = make_run(Path(folder) / "run", steps=asked.completions // 100 // GROUP, prompts=100)
        file = Path(folder) / "report.html"
        began = time.monotonic()
        write_report([run], file, asked.completions)
        print(f"written in {time.monotonic() - began:.1f} s, {file.stat().st_size / 1e6:.1f} MB")
        opened = play.chromium.launch(executable_path=browser, args=FLAGS)
        found = measure(opened.new_page(), file)
        opened.close()
    for name, duration in found.items():
        print(f"{name:22} {duration:6.0f} ms")
    slowest = max(took for name, took in found.items() if name.startswith(("filter", "sort")))
    kept = found["load"] < LOAD_MS and slowest < FILTER_MS
    print(f"{'within' if kept else 'NOT within'} {LOAD_MS} ms to load and {FILTER_MS} ms to filter")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
