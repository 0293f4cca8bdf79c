"""Where a writer puts a space: what stands between a text and its continuation.

Prompt and target are two strings, and the model is trained and scored on their concatenation, so
one function decides what stands between them. The rule follows ordinary typography: by the
script (Chinese, Japanese, Thai and others write no spaces), by the last character of the text
(``$``, ``(``, ``@``, an opening quote, a hyphen take none after them) and by the first of the
continuation (``,``, ``.``, ``)``, ``'s`` take none before them).
"""

from __future__ import annotations

import re
import unicodedata

BLANKS = " \u00a0\u202f"
"""Spaces within a line; line breaks are the writer's own and stay."""

# First and last code points. Chinese and Japanese write no spaces around other scripts either; the
# others do.
_CJK = (
    (0x2E80, 0x303F),  # radicals, CJK punctuation
    (0x3040, 0x31FF),  # kana, bopomofo, strokes
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA000, 0xA4CF),  # Yi
    (0xF900, 0xFAFF),
    (0xFE30, 0xFE4F),
    (0xFF01, 0xFF0F),  # full-width punctuation
    (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF9F),  # and half-width katakana
    (0x20000, 0x3FFFF),
)
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0xA980, 0xA9DF),  # Javanese
    (0xAA60, 0xAADF),  # Myanmar extended, Tai Viet
)

_SUFFIX = re.compile(r"['’](?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE)
_ELISION = re.compile(
    r"\b(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu|quoiqu|presqu|aujourd|[dns]?ell|all|dall|sull|coll"
    r"|un|quest|quell|sant|o)['’]$",
    re.IGNORECASE,
)
_CLOSING = frozenset(",;:!?…%‰")
_OPENING = frozenset("@#/\\~^¿¡")
_APOSTROPHES = frozenset("'’")


def _within(char: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(low <= ord(char) <= high for low, high in ranges)


def cjk(char: str) -> bool:
    """Whether the character is Chinese or Japanese, full-width punctuation included."""
    return _within(char, _CJK)


def unspaced(char: str) -> bool:
    """Whether the character's script puts no spaces between words."""
    return cjk(char) or _within(char, _UNSPACED)


def separator(text: str, continuation: str) -> str:
    """What a writer puts between ``text`` and ``continuation``: one space or nothing.

    Blanks at the end of ``text`` say that there is a space; a caller drops them before joining.
    """
    if not text or not continuation or continuation[0].isspace():
        return ""
    if text[-1] in BLANKS:
        return " "
    if text[-1].isspace():
        return ""
    return "" if _tight(text, continuation) else " "


def join(text: str, continuation: str) -> str:
    """``text`` continued by ``continuation`` as one running text."""
    return text.rstrip(BLANKS) + separator(text, continuation) + continuation


def _tight(text: str, continuation: str) -> bool:
    last, first = text[-1], continuation[0]
    if cjk(last) or (cjk(first) and any(map(cjk, text))):
        return True
    if unspaced(last) and unspaced(first):
        return True
    before = text[-2:-1]
    apart = not before or before.isspace()
    return _closes(continuation) or _opens(text, last, before, apart, continuation)


def _closes(continuation: str) -> bool:
    """Whether the continuation begins with what stands directly behind a word."""
    first, following = continuation[0], continuation[1:2]
    if first in _APOSTROPHES:
        return _SUFFIX.match(continuation) is not None or not following
    if first == ".":  # ".5" is a number, ".NET" a name, ".com" an ending, "..." an ellipsis
        return not (following.isdigit() or following.isupper())
    if first in "-‐‑":
        return following.isalpha()
    if first == "/":  # "/or", but a path is a word of its own
        return "/" not in continuation[1:]
    if first in _CLOSING:
        return not following.isalpha() or first in "%‰"
    if first == '"':
        return not following or following in ".,;:!?)"
    return unicodedata.category(first) in {"Pe", "Pf"}


def _opens(text: str, last: str, before: str, apart: bool, continuation: str) -> bool:
    """Whether the text ends in what stands directly before a word."""
    first = continuation[0]
    line = text.rpartition("\n")[2]
    if last in _OPENING or unicodedata.category(last) in {"Ps", "Pi"}:
        return True
    if unicodedata.category(last) == "Sc":  # "$7", "US$7", but "5 € less"
        return not line[:-1].rstrip(BLANKS)[-1:].isdigit()
    if last in '"`':
        return line.count(last) % 2 == 1
    if last in _APOSTROPHES:
        if _SUFFIX.match(last + continuation) is not None and before.isalnum():
            return True
        return (apart and last == "'") or before in "([{" or _ELISION.search(text) is not None
    if last in "-‐‑":
        return not apart or first.isdigit()
    if last in "–—":
        return not apart
    if last in "&=+<|":
        return bool(before) and not apart
    if last in "*_":
        return line.count(last) % 2 == 1 or (line.endswith("**") and line.count("**") % 2 == 1)
    if last in ".:," and first.isdigit():  # 3.|50, 10:|30, 1,|000
        return before.isdigit() and (
            last != "," or re.match(r"\d{3}(?!\d)", continuation) is not None
        )
    return text.lower().endswith("www.")
