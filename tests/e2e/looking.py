"""A page in a real browser, with what it says on its console and asks of any network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@contextmanager
def chromium_opened() -> Iterator[Browser]:
    """Chromium without a window."""
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


class Look:
    """A page that is open, with what it said and asked for."""

    def __init__(self, browser, file, width=1280, scheme="light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri() if hasattr(file, "as_uri") else file)
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)

    def column(self, place):
        return self.page.eval_on_selector_all(
            f"#table tbody tr td:nth-child({place})", "cells => cells.map(c => c.textContent)"
        )

    def shown(self):
        return int(self.page.inner_text("#shown").split(" ")[0].replace(",", ""))

    def wait_until_shown(self, number):
        self.page.wait_for_function(
            "n => document.getElementById('shown').textContent.startsWith(n + ' of')",
            arg=f"{number:,}",
        )

    def close(self):
        """Close it; nothing was asked of a network, and nothing is wrong on the console."""
        self.context.close()
        assert [url for url in self.asked if not url.startswith("file:")] == []
        assert self.said == []
