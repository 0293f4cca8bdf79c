"""Takes the pictures of docs/page.md: the page with the embedded model, in a real browser.

    python scripts/page_pictures.py

Needs the extra ``dev`` and Chromium (``apt-get install chromium``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
SETTINGS = {"width": 1280, "height": 800}
COLOURS = 64
"""Of a picture: text and bars need few, and the file gets a third of the size."""

sys.path.insert(0, str(ROOT / "tests"))
import browsing  # noqa: E402


def shot(window: browsing.Window, name: str) -> None:
    """Write one picture of the whole page."""
    file = PICTURES / f"page-{name}.png"
    window.page.mouse.move(0, 0)
    window.page.wait_for_timeout(600)
    window.page.screenshot(path=str(file), full_page=True)
    picture = Image.open(file).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(file, optimize=True)


def main() -> None:
    """Edit, compare, list, look inside; one picture of each."""
    with (
        browsing.serving("smollm2-135m", *sys.argv[1:]) as address,
        browsing.browser() as opened,
    ):
        window = browsing.Window(opened, address)
        window.page.set_viewport_size(SETTINGS)
        window.page.set_default_timeout(1_800_000)
        window.press("edit-button", "edit-status")
        shot(window, "edit")
        window.open("Edit many")
        window.press("batch-button", "batch-status")
        shot(window, "many")
        window.open("Compare")
        window.press("compare-button", "compare-status")
        shot(window, "compare")
        window.open("Edits")
        window.press("edits-save", "edits-status")
        code = window.page.get_by_role("button", name="The same in Python")
        code.locator("visible=true").click()
        shot(window, "edits")
        window.open("Look inside")
        window.page.get_by_label("hidden states").click()
        window.press("inside-button", "inside-status")
        window.page.wait_for_selector("#inside-picture img")
        shot(window, "inside")
        window.open("Benchmarks")
        run = window.page.locator("#runs-chosen input")
        if sys.argv[1:]:
            run.click()
            window.page.get_by_role("option").locator("visible=true").first.click()
            window.press("runs-button", "runs-status")
            shot(window, "runs")


if __name__ == "__main__":
    main()
