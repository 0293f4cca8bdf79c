"""The page served by another process, and a browser to use it with."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SETUP = (
    "no browser: install Chromium (Debian, Ubuntu: apt-get install chromium), or name one in "
    "EASYEDITOR_BROWSER"
)
DONE = ":is(.ee-done, .ee-problem)"


def browser_path() -> str:
    """The browser of this machine; the test is skipped where there is none."""
    named = os.environ.get("EASYEDITOR_BROWSER")
    path = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(SETUP)
    return path


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window."""
    path = browser_path()
    sync_api = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[dev]"')
    with sync_api.sync_playwright() as player:
        opened = player.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


@contextlib.contextmanager
def serving(*words: str) -> Iterator[str]:
    """The address of a page in a process of its own; ``words`` are those of ``page_child.py``."""
    command = [sys.executable, str(Path(__file__).with_name("page_child.py")), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            address = child.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:")
            yield address
        finally:
            child.terminate()
            child.wait(20)


class Window:
    """One window of the browser with the page in it.

    Attributes:
        page: Playwright's.
        foreign: addresses outside of the page's server that were asked for.
    """

    def __init__(self, opened: Any, address: str) -> None:
        self.page = opened.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(120_000)
        self.foreign: list[str] = []
        self._former: dict[str, str] = {}
        self.page.on("request", lambda asked: self._note(asked.url, address))
        self.page.goto(address)
        self.page.wait_for_selector("#edit-button")

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.foreign.append(url)

    def open(self, tab: str) -> None:
        """Show a tab."""
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def write(self, **fields: str) -> None:
        """Fill in text fields: ``edit_prompt`` is the one with the id ``edit-prompt``."""
        for name, text in fields.items():
            box = self.page.locator(f"#{name.replace('_', '-')} :is(textarea, input)").first
            box.fill(text)

    def set(self, name: str, text: str) -> None:
        """The settings of a tab, whose accordion may be closed."""
        field = self.page.locator(f"#{name}-settings textarea")
        if not field.is_visible():
            self.page.get_by_role("button", name="Settings").locator("visible=true").click()
        field.fill(text)

    def choose(self, name: str, value: str) -> None:
        """One of the values of a list; :meth:`ended` waits for what ``{name}-status`` then says."""
        self._look(f"{name}-status")
        self.page.locator(f"#{name} input").click()
        self.page.get_by_role("option", name=value, exact=True).locator("visible=true").click()

    def press(self, name: str, status: str) -> str:
        """Press a button and wait until its tab's message says how it ended."""
        self.start(name, status)
        return self.ended(status)

    def start(self, name: str, status: str) -> None:
        """Press a button whose work :meth:`ended` waits for."""
        self._look(status)
        self.page.click(f"#{name}")

    def _look(self, status: str) -> None:
        """Note what a tab's message is, so that it is not taken for what comes next."""
        shown = self.page.query_selector(f"#{status} {DONE}")
        self._former[status] = "" if shown is None else str(shown.get_attribute("data-number"))

    def ended(self, status: str) -> str:
        """The message at the end."""
        former = self._former.get(status, "")
        new = self.page.wait_for_selector(f'#{status} {DONE}:not([data-number="{former}"])')
        return str(new.inner_text()).strip()

    def text(self, name: str) -> str:
        """What an element shows."""
        return str(self.page.inner_text(f"#{name}"))

    def value(self, name: str) -> str:
        """What a text field holds."""
        return str(self.page.input_value(f"#{name} textarea"))

    def upload(self, name: str, file: Path) -> None:
        """Send a file."""
        self.page.set_input_files(f"#{name} input[type=file]", str(file))

    def download(self, name: str, folder: Path) -> Path:
        """Fetch the file that an element offers."""
        with self.page.expect_download() as waiting:
            self.page.locator(f"#{name} a").first.click()
        file = folder / waiting.value.suggested_filename
        waiting.value.save_as(file)
        return file
