"""The pages of the documentation as blocks of code, with what is not run and why."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RUN = ("python", "sh")
"""The languages of blocks that are run."""
BLOCK = re.compile(r"(?:<!-- not run here: (.+?) -->\n)?^```(\w+)\n(.*?)^```", re.S | re.M)


@dataclass(frozen=True)
class Block:
    """One block of code: ``reason`` is why it is not run, None where it is."""

    language: str
    code: str
    reason: str | None

    def commands(self) -> list[list[str]]:
        """The words of each command of a block for the shell."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: str) -> list[Block]:
    """The Python and shell blocks of a page of ``docs/``."""
    text = (DOCS / page).read_text(encoding="utf-8")
    every = [Block(language, code, why or None) for why, language, code in BLOCK.findall(text)]
    return [block for block in every if block.language in RUN]


def commands(page: str) -> list[list[str]]:
    """The words of every command of a page that is run, without ``easyedit``."""
    words = [
        words
        for block in blocks(page)
        if block.language == "sh" and block.reason is None
        for words in block.commands()
    ]
    return [rest for name, *rest in words if name == "easyedit"]


def pages() -> list[str]:
    """Every page, as a path below ``docs/``."""
    return sorted(str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md"))
