"""Placeholder tokens that know their image, so that nothing is shared between two images.

The trap: the placeholders of two images have the *same* token ids, so whatever shares work by ids
would answer about one picture from the states of another. Every placeholder in a row is an
:class:`ImageToken`: it feeds the same id, and it equals only the same place of the same image (by
digest). Rows of two images never share a prefix, a cached state or a batch's plan, and rows of one
image do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from easyeditor.prompts import ImageRef


class ImageToken(int):
    """A token id that stands for one place of an indivisible unit, mostly of an image.

    It is the id wherever numbers are needed; it equals, and hashes like, only the same place of
    the same unit.

    Attributes:
        unit: what it is a part of: an image's digest, or (of a prefix language model) a prompt.
        index, count: which part, of how many.
        images: of the first part the images whose pixels the unit needs.
    """

    unit: Hashable
    index: int
    count: int
    images: tuple[Any, ...]

    @classmethod
    def of(
        cls, token: int, unit: Hashable, index: int, count: int, images: tuple[Any, ...] = ()
    ) -> ImageToken:
        """The token ``token`` as part ``index`` of ``count`` of ``unit``."""
        result = cls(token)
        result.unit, result.index, result.count, result.images = unit, index, count, images
        return result

    def _key(self) -> tuple[int, str, int]:
        return int(self), repr(self.unit), self.index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageToken) and self._key() == other._key()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._key())

    def __lt__(self, other: int) -> bool:
        if isinstance(other, ImageToken):
            return self._key() < other._key()
        return int(self) <= int(other)  # before the plain token of the same id

    def __gt__(self, other: int) -> bool:
        return not self < other and self != other

    def __le__(self, other: int) -> bool:
        return self < other or self == other

    def __ge__(self, other: int) -> bool:
        return not self < other

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (int(self), self.unit, self.index, self.count, self.images)
        return ImageToken.of, parts


def whole_units(ids: Sequence[int], length: int) -> int:
    """The largest number of tokens up to ``length`` that cuts no image (no unit) in two."""
    for i in range(min(length, len(ids)) - 1, -1, -1):
        token = ids[i]
        if isinstance(token, ImageToken):
            if token.index + 1 == token.count:
                return length
            while not (isinstance(token := ids[i], ImageToken) and token.index == 0):
                i -= 1
            return i
    return length


def through_unit(ids: Sequence[int], length: int) -> int:
    """The smallest number of tokens from ``length`` on that cuts no image (no unit) in two."""
    last = ids[length - 1] if length else None
    while isinstance(last, ImageToken) and last.index + 1 < last.count:
        length += 1
        token = ids[length - 1]
        last = token if isinstance(token, ImageToken) else last
    return length


def has_image(ids: Iterable[int]) -> bool:
    """Whether a token is an image's (of a prefix language model, a prompt's with one)."""
    return any(isinstance(token, ImageToken) for token in ids)


def images_of(ids: Iterable[int]) -> tuple[Any, ...]:
    """The images whose pixels a token sequence needs, in their order.

    Raises:
        ValueError: the sequence begins or ends inside an image.
    """
    images: tuple[Any, ...] = ()
    expected, count = 0, 0
    for token in ids:
        if isinstance(token, ImageToken):
            if token.index != expected:
                raise ValueError("a token sequence begins inside an image")
            images += token.images
            expected, count = token.index + 1, token.count
            if expected == count:
                expected = 0
    if expected:
        raise ValueError("a token sequence ends inside an image")
    return images


@dataclass(frozen=True, slots=True)
class Instructed:
    """An image that a model reads with the text about it in view (InstructBLIP's Q-Former)."""

    image: ImageRef
    text: str


Seen = ImageRef | Instructed
