r"""Takes the pictures of docs/page.md: the page with the embedded model, in a real browser.

    easyedit bench --methods rome,ft --limit 4 --answers 0 --continuation-tokens 0 \
        --heldout none --out runs/first
    python scripts/page_pictures.py --runs runs            # all of them
    python scripts/page_pictures.py inside                 # one

Needs the extra ``dev`` and Chromium (``apt-get install chromium``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
SIZE = {"width": 1280, "height": 800}
PATIENCE_MS = 1_800_000
COLOURS = 256
"""Of a picture, which makes its file a third of the size."""
SHADED = {"inside"}
"""Pictures of a heat map, whose shades a palette would change."""
CODE = "The same in Python"

sys.path.insert(0, str(ROOT / "tests"))
import browsing  # noqa: E402


def without_seconds(window: browsing.Window, status: str) -> None:
    """Take the seconds out of a message: they are those of this machine and of its other work."""
    window.page.evaluate(
        "id => { const message = document.querySelector(`#${id} .ee-message`);"
        " message.textContent = message.textContent.replace(/ Seconds: .*$/, ''); }",
        status,
    )


def shot(window: browsing.Window, name: str) -> None:
    """Write one picture of the whole page."""
    file = PICTURES / f"page-{name}.png"
    window.page.mouse.move(0, 0)
    window.page.wait_for_timeout(600)
    window.page.screenshot(path=str(file), full_page=True)
    picture = Image.open(file).convert("RGB")
    if name not in SHADED:
        picture = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(file, optimize=True)


def edit(window: browsing.Window) -> None:
    """A fact, edited."""
    window.press("edit-button", "edit-status")
    without_seconds(window, "edit-status")


def many(window: browsing.Window) -> None:
    """Two facts of a table, edited."""
    window.open("Edit many")
    window.press("batch-button", "batch-status")
    without_seconds(window, "batch-status")


def compare(window: browsing.Window) -> None:
    """Four answers."""
    window.open("Compare")
    window.press("compare-button", "compare-status")


def edits(window: browsing.Window) -> None:
    """The list, a file to download, and the code."""
    window.open("Edits")
    window.press("edits-save", "edits-status")
    window.page.get_by_role("button", name=CODE).locator("visible=true").click()


def inside(window: browsing.Window) -> None:
    """A causal trace."""
    window.open("Look inside")
    window.page.get_by_label("hidden states").click()
    window.press("inside-button", "inside-status")
    window.page.wait_for_selector("#inside-picture img")


def runs(window: browsing.Window) -> None:
    """Table and pictures of the first run."""
    window.open("Benchmarks")
    window.page.locator("#runs-chosen input").click()
    window.page.get_by_role("option").locator("visible=true").first.click()
    window.press("runs-button", "runs-status")
    window.page.wait_for_selector("#runs-pictures img")


SCENES: dict[str, Callable[[browsing.Window], None]] = {
    scene.__name__: scene for scene in (edit, many, compare, edits, inside, runs)
}


def main() -> None:
    """One picture after the other, in one window."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENES))
    parser.add_argument("--runs", default="")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(SCENES))
    if unknown:
        parser.error(f"no picture {', '.join(unknown)}; there are {', '.join(SCENES)}")
    names = given.names or [name for name in SCENES if name != "runs" or given.runs]
    with (
        browsing.serving("smollm2-135m", *([given.runs] if given.runs else [])) as address,
        browsing.browser() as opened,
    ):
        window = browsing.Window(opened, address)
        window.page.set_viewport_size(SIZE)
        window.page.set_default_timeout(PATIENCE_MS)
        for name in names:
            SCENES[name](window)
            shot(window, name)


if __name__ == "__main__":
    main()
