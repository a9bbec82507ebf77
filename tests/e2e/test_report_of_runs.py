"""The report of runs that were really trained, one alone and two compared, in a real browser."""

from __future__ import annotations

import json

import pytest
from looking import BROWSER, Look, chromium_opened

from rl4lm.cli import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
    pytest.mark.timeout(600),
]
_SHORT = ["--max_steps", "12", "--prompts_per_step", "32", "--eval_samples", "60"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Two runs with different baselines, each with the page that it ends with, and one of both."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [str(folder / name) for name in ("rloo", "mean")]
    for run, baseline in zip(runs, ("prompt_leave_one_out", "batch_mean"), strict=True):
        assert main(["train", "--output_dir", run, "--baseline", baseline, *_SHORT]) == 0
    assert main(["report", *runs, "--out", str(folder / "both.html")]) == 0
    return folder


def logged(run):
    """Every completion of a run."""
    files = sorted((run / "completions").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_run_of_the_main_job_is_read_filtered_sorted_and_pointed_at(pages):
    rows = logged(pages / "rloo")
    with chromium_opened() as browser:
        seen = Look(browser, pages / "rloo" / "report.html")
        page = seen.page
        summary = json.loads((pages / "rloo" / "summary.json").read_text())
        before, after = (summary[f"eval_{when}"]["accuracy"] for when in ("before", "after"))
        assert page.inner_text(".big") == f"{100 * before:.1f} % → {100 * after:.1f} %"
        assert seen.shown() == len(rows) == 12 * 32 * 4
        page.fill("#text", "9")
        right = [row for row in rows if "9" in row["prompt"] or "9" in row["completion"]]
        seen.wait_until_shown(len(right))
        page.click("th[data-name=reward] button")
        assert {float(each) for each in seen.column(4)} == {1.0}  # the best come first
        page.locator("#table tbody button").first.click()
        assert page.locator("dialog[open] article").count() == 4
        page.keyboard.press("Escape")
        figure = page.locator("figure").first
        figure.scroll_into_view_if_needed()
        box = figure.locator(".u-over").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_function(
            "() => /^[0-9]+$/.test(document.querySelector('figure .u-value').textContent)"
        )
        for theme in ("dark", "light"):
            page.select_option("#theme", theme)
            assert page.evaluate("document.documentElement.dataset.theme") == theme
        seen.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_two_runs_stand_side_by_side(pages, width):
    with chromium_opened() as browser:
        seen = Look(browser, pages / "both.html", width=width)
        page = seen.page
        assert page.eval_on_selector_all("#cards h3", "all => all.map(h => h.textContent)") == [
            "rloo",
            "mean",
        ]
        assert page.locator("#options tbody tr").all_inner_texts() == [
            "baseline\tprompt_leave_one_out\tbatch_mean"
        ]
        page.select_option("#run", label="mean")
        page.select_option("#advantage", "above")
        kept = [row for row in logged(pages / "mean") if row["advantage"] > 0]
        seen.wait_until_shown(len(kept))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.select_option("#theme", "dark")
        seen.close()
