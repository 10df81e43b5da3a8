"""A Chromium for the page's tests: it opens the page, and remembers what went wrong in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.page_server import Script


def chromium() -> str:
    """The browser's program. The test fails, rather than being skipped, when there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    named = os.environ.get("SLM_CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(
            "no Chromium was found. Debian, Ubuntu: apt install chromium fonts-noto-cjk; or name one with"
            " SLM_CHROMIUM=FILE",
            pytrace=False,
        )
    return found


@contextmanager
def launched() -> Iterator[Any]:
    """A running Chromium."""
    from playwright.sync_api import sync_playwright

    program = chromium()
    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@dataclass
class Open:
    """Opens the page and remembers what went wrong in it."""

    browser: Any
    script: Script
    faults: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)

    def __call__(self, url: str = "", **options: Any) -> Any:
        options = {"locale": "en-US", "viewport": {"width": 1100, "height": 760}, **options}
        context = self.browser.new_context(**options)
        self.contexts.append(context)
        context.set_default_timeout(8000)
        page = context.new_page()
        self.watch(page, url or self.script.url)
        page.goto(url or self.script.url)
        return page

    def watch(self, page: Any, url: str) -> None:
        def console(message: Any) -> None:
            if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
                self.faults.append(message.text)

        def request(asked: Any) -> None:
            if not asked.url.startswith((url, "data:", "blob:")):
                self.faults.append(f"a request to {asked.url}")

        page.on("console", console)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", request)
        page.on("dialog", lambda dialog: self.faults.append(dialog.message))


def send(page: Any, text: str = "Hello") -> None:
    page.fill("#input", text)
    page.press("#input", "Enter")


def answered(page: Any, count: int = 1) -> Any:
    """Wait for the count-th answer to be whole; its element."""
    page.wait_for_selector(f"article.assistant:not(.live) >> nth={count - 1}")
    page.wait_for_selector("#send:visible")
    return page.locator("article.assistant").nth(count - 1)
