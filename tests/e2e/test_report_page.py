"""The report page in a real browser: read, filtered, sorted, pointed at, reached by keyboard."""

from __future__ import annotations

import subprocess
import sys

import pytest
from axe_playwright_python.sync_playwright import Axe
from looking import BROWSER, Look, chromium_opened
from made_runs import make_run

from rl4lm.report.write import write_report

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def chromium():
    with chromium_opened() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of one run, and of two."""
    folder = tmp_path_factory.mktemp("pages")
    first = make_run(folder / "first", steps=30)
    second = make_run(folder / "second", steps=20, seed=1, learning_rate=0.5)
    write_report([first], folder / "one.html")
    write_report([first, second], folder / "two.html")
    return folder


@pytest.fixture
def look(chromium, pages):
    opened = []

    def open_page(name, **kwargs):
        opened.append(Look(chromium, pages / name, **kwargs))
        return opened[-1]

    yield open_page
    for each in opened:
        each.close()


def test_one_run_is_shown_whole(look):
    page = look("one.html").page
    assert page.title() == "first"
    assert page.inner_text(".big") == "50.0 % → 75.0 %"
    titles = page.eval_on_selector_all("figcaption h3", "all => all.map(each => each.textContent)")
    assert titles[:3] == ["Reward", "Held-out accuracy", "Each reward"]
    assert titles[-1] == "Time of a step"
    assert page.locator("figure canvas").count() == len(titles)
    told = page.get_attribute("figure canvas", "aria-label")
    assert told.startswith("Reward over the steps. mean: from 0.")
    assert not page.is_visible("text=Run >> select")  # there is one


def test_completions_are_filtered_by_every_field(look):
    seen = look("one.html")
    page = seen.page
    assert seen.shown() == 30 * 16
    page.fill("#step-from", "3")
    page.fill("#step-to", "4")
    seen.wait_until_shown(32)
    assert set(seen.column(1)) == {"3", "4"}
    page.fill("#text", "11+")
    seen.wait_until_shown(8)
    assert all(prompt.startswith("11+") for prompt in seen.column(2))
    page.click("#filters button[type=reset]")
    seen.wait_until_shown(480)
    page.check("#truncated")
    seen.wait_until_shown(30)
    page.uncheck("#truncated")
    page.fill("#reward-from", "2")
    page.wait_for_function(
        "() => document.querySelector('#table tbody td:nth-child(4)').textContent === '2'"
    )
    assert set(seen.column(4)) == {"2"}
    page.click("#filters button[type=reset]")
    page.select_option("#advantage", "above")
    page.wait_for_function(
        "() => document.querySelector('#table tbody td:nth-child(5)').textContent === '0.5'"
    )
    assert set(seen.column(5)) == {"0.5"}
    page.click("#filters button[type=reset]")
    page.check("#disagree")
    page.wait_for_function(
        "() => document.querySelector('#table tbody td:nth-child(7)').textContent === '1'"
    )
    assert set(seen.column(4)) == {"1"}  # one of two functions was content


def test_completions_are_sorted_and_leafed_through(look):
    seen = look("one.html")
    page = seen.page
    head = page.locator("th[data-name=logprob]")
    head.locator("button").click()
    down = [float(value) for value in seen.column(6)]
    assert down == sorted(down, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    up = [float(value) for value in seen.column(6)]
    assert up == sorted(up)
    assert up[0] < down[-1]
    assert page.is_disabled("#previous")
    page.click("#next")
    assert page.inner_text("#page") == "page 2 of 10"
    assert float(seen.column(6)[0]) >= up[-1]


def test_a_view_can_be_kept_as_an_address(look, pages):
    seen = look("one.html")
    seen.page.fill("#text", "12+")
    seen.page.locator("th[data-name=reward] button").click()
    seen.wait_until_shown(120)
    kept = seen.page.url
    seen.page.goto("about:blank")
    seen.page.goto(kept)
    seen.page.wait_for_selector("html[data-ready]")
    assert seen.shown() == 120
    assert seen.page.get_attribute("th[data-name=reward]", "aria-sort") == "descending"
    seen.asked.remove("about:blank") if "about:blank" in seen.asked else None


def test_the_samples_of_a_prompt_stand_side_by_side_with_shaded_tokens(look):
    page = look("one.html").page
    page.locator("#table tbody button").first.click()
    dialog = page.locator("dialog[open]")
    assert dialog.locator("article").count() == 4
    assert dialog.locator("article.chosen").count() == 1
    tokens = dialog.locator("article").first.locator(".tokens span")
    assert tokens.count() == 3
    assert tokens.last.inner_text() == "<eos>"
    assert tokens.first.get_attribute("title").startswith("log π = -")
    assert "rgba(" in tokens.first.get_attribute(
        "style"
    ) or "var(--shade)" in tokens.first.get_attribute("style")
    assert "rl4lm replay" in dialog.inner_text()
    assert "--step 1" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_values_stand_under_the_pointer_and_in_a_table(look):
    page = look("one.html").page
    figure = page.locator("figure").first
    figure.scroll_into_view_if_needed()
    box = figure.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(
        "() => document.querySelector('figure .u-legend .u-value').textContent.match(/^[0-9]+$/)"
    )
    figure.locator("summary").click()
    rows = figure.locator("details tbody tr")
    assert rows.count() >= 15
    assert rows.last.locator("td").first.inner_text() == "30"


def test_smoothing_and_theme_draw_the_curves_anew(look):
    page = look("one.html").page
    picture = "document.querySelector('figure canvas').toDataURL()"
    before = page.evaluate(picture)
    page.fill("#smoothing", "20")
    smoothed = page.evaluate(picture)
    assert smoothed != before
    page.select_option("#theme", "dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate(picture) != smoothed
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(20, 23, 26)"
    assert (
        look("one.html", scheme="dark").page.evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        == dark
    )  # as the system says


def test_two_runs_are_compared(look):
    seen = look("two.html")
    page = seen.page
    assert page.locator("#cards article").count() == 2
    assert page.locator("#options tbody tr").all_inner_texts() == [
        "learning_rate\t1e-05\t0.5",
        "seed\t0\t1",
    ]
    page.uncheck("#differing")
    assert page.locator("#options tbody tr").count() > 60
    assert seen.shown() == 480
    page.select_option("#run", label="second")
    seen.wait_until_shown(320)
    legend = page.locator("figure").first.locator(".u-legend").inner_text()
    assert "first" in legend
    assert "second" in legend
    assert "raw" not in legend  # the thin line belongs to the thick one


def test_a_curve_that_is_clicked_away_takes_its_raw_values_with_it(look):
    page = look("one.html").page
    shown = "curves.drawn[0].plot.series.map(each => each.show)"
    assert page.evaluate(shown) == [True, True, True]
    page.locator("figure").first.locator(".u-legend .u-series").nth(2).click()
    assert page.evaluate(shown) == [True, False, False]


def test_a_point_of_an_evaluation_says_its_interval(look):
    page = look("one.html").page
    figure = page.locator("figure").nth(1)
    figure.scroll_into_view_if_needed()
    box = figure.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    page.wait_for_function(
        "() => document.querySelectorAll('figure')[1].querySelector('.u-legend')"
        ".textContent.includes('75.0 % (70.8 to 79.2)')"
    )


def test_everything_is_reached_by_keyboard(look):
    page = look("one.html").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.focus("th[data-name=reward] button")
    page.keyboard.press("Enter")
    assert page.get_attribute("th[data-name=reward]", "aria-sort") == "descending"
    page.locator("#table tbody button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog[open]").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(look, scheme):
    seen = look("two.html", scheme=scheme)
    found = Axe().run(seen.page).response["violations"]
    assert [(each["id"], each["impact"]) for each in found] == []
    seen.page.locator("#table tbody button").first.click()
    found = Axe().run(seen.page).response["violations"]
    assert [(each["id"], each["impact"]) for each in found] == []


def test_axe_would_find_a_field_without_a_name(look):
    seen = look("one.html")
    seen.page.evaluate("document.querySelector('#theme').closest('label').firstChild.remove()")
    found = Axe().run(seen.page).response["violations"]
    assert [(each["id"], each["impact"]) for each in found] == [("select-name", "critical")]


def test_nothing_is_wider_than_a_phone(look):
    page = look("two.html", width=390).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    inside = "cards => cards.every(card => card.scrollWidth <= card.clientWidth)"
    assert page.eval_on_selector_all("#cards article", inside)
    page.locator("#table tbody button").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_verb_writes_page_and_picture(tmp_path):
    made = make_run(tmp_path / "run", steps=3)
    command = [sys.executable, "-m", "rl4lm", "report", str(made), "--png", "curves.png", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (made / "report.html").stat().st_size > 50_000
    assert (tmp_path / "curves.png").exists()
    assert '"report"' in done.stdout
    missing = subprocess.run(
        [*command[:4], "nothing"], cwd=tmp_path, capture_output=True, text=True
    )
    assert missing.returncode == 2
    assert "is no directory" in missing.stderr
