"""Where a subject stands in a prompt: compared without regard to Unicode form, quotes and case."""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass

from easyeditor.errors import SubjectNotFoundError

_ALIKE = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛ʼʹ′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—−", "-"),
        **dict.fromkeys("\u00a0\u202f\u2009\t\n", " "),
    }
)
_WORD_END = r"(?![\w\u0300-\u036f])"
"""Not before a letter, nor before an accent that combines with the last one."""
CLOSE_MATCH = 0.75
"""Least similarity (difflib's ratio) of words of the prompt that are suggested as the subject."""


@dataclass(frozen=True, slots=True)
class SubjectSpan:
    """An occurrence of a subject in a prompt.

    Attributes:
        start: index of its first character in the prompt.
        end: index after its last.
        written: the subject as the prompt writes it.
        occurrence: which of the occurrences was taken, from 1.
        occurrences: how many there are.
    """

    start: int
    end: int
    written: str
    occurrence: int
    occurrences: int

    def describe(self, subject: str) -> str:
        """A sentence on how the subject was matched; empty where there was nothing to decide."""
        if self.written == subject and self.occurrences == 1:
            return ""
        text = f"The subject {subject!r} is taken to be {self.written!r}"
        if self.occurrences > 1:
            text += f", occurrence {self.occurrence} of {self.occurrences}"
        return f"{text}, at characters {self.start} to {self.end} of the prompt."


def locate_subject(prompt: str, subject: str) -> SubjectSpan:
    """The subject's last occurrence as whole words, else its last occurrence at all.

    An occurrence as it is written goes before one that differs in Unicode form, quotes, dashes or
    capitals.

    Raises:
        SubjectNotFoundError: it is blank or does not occur; close matches are named.
    """
    if subject.strip():
        folded, origin = _folded(prompt)
        wanted = _folded(subject)[0]
        for whole in (True, False):
            for text, pattern, starts in (
                (prompt, subject, range(len(prompt))),
                (folded, wanted, origin),
            ):
                before, after = (r"(?<!\w)", _WORD_END) if whole else ("", "")
                spans = [
                    (starts[m.start()], starts[m.end() - 1] + 1)
                    for m in re.finditer(before + re.escape(pattern) + after, text)
                ]
                if spans:
                    start, end = spans[-1]
                    return SubjectSpan(start, end, prompt[start:end], len(spans), len(spans))
    raise SubjectNotFoundError(_not_found(prompt, subject))


def _not_found(prompt: str, subject: str) -> str:
    message = f"The subject {subject!r} does not occur in the prompt {prompt!r}"
    near = _nearest(prompt, subject)
    if near:
        return f"{message}. Did you mean {near!r}?"
    return f"{message}. Write it as the prompt does, accents included."


def _nearest(prompt: str, subject: str) -> str:
    """The words of the prompt that resemble the subject most, or nothing."""
    words = [m.span() for m in re.finditer(r"\S+", prompt)]
    size = len(subject.split())
    spans = [
        prompt[words[i][0] : words[i + n - 1][1]].strip(".,;:!?\"'()")
        for n in range(max(1, size - 1), size + 2)
        for i in range(len(words) - n + 1)
    ]
    plain = {_without_accents(span): span for span in spans}
    close = difflib.get_close_matches(_without_accents(subject), plain, 1, CLOSE_MATCH)
    return plain[close[0]] if close else ""


def _without_accents(text: str) -> str:
    return "".join(c for c in _folded(text)[0] if not unicodedata.combining(c))


def folded(text: str) -> str:
    """The text as subjects are compared: canonically decomposed, without case, plain quotes."""
    return _folded(text)[0]


def _folded(text: str) -> tuple[str, list[int]]:
    """Decomposed, case-folded text, and for each of its characters the index it comes from.

    Combining marks are put in canonical order, so that texts that are canonically equivalent fold
    to the same.
    """
    parts: list[tuple[str, int]] = []
    for i, char in enumerate(text):
        for piece in unicodedata.normalize("NFD", char.translate(_ALIKE)).casefold():
            parts += [(part, i) for part in unicodedata.normalize("NFD", piece)]
    start = 0
    for k in range(len(parts) + 1):
        if k == len(parts) or not unicodedata.combining(parts[k][0]):
            parts[start:k] = sorted(parts[start:k], key=lambda part: unicodedata.combining(part[0]))
            start = k
    return "".join(part for part, _ in parts), [i for _, i in parts]
