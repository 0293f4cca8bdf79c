"""What a model is given: a text, with images and a system message where there are any."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from easyeditor.errors import EditError, ImageError
from easyeditor.pictures import file_digest, pixel_digest, upright

PROMPT_FIELDS = frozenset({"text", "images", "system", "raw", "chat"})
"""What a prompt is written with in JSON."""
IMAGE = "<image>"
"""Where an image stands in a prompt's text, whatever the model's own placeholder is; as the subject
of an edit the image itself."""


def checked_text(owner: str, name: str, value: object) -> str:
    """The value, which must be text.

    Raises:
        EditError: it is not, or holds half of a character.
    """
    if not isinstance(value, str):
        raise EditError(f"{owner}: {name} must be text, not {type(value).__name__} ({value!r}).")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise EditError(
            f"{owner}: {name} {value!r} holds half of a character (a lone surrogate): it was read "
            "in a wrong encoding. Give it as UTF-8."
        ) from None
    return value


def checked_prompt(owner: str, value: object) -> Prompt:
    """:func:`as_prompt`, with the name of the owner in its error.

    Raises:
        EditError: the value is no prompt.
    """
    if not isinstance(value, (Prompt, Mapping)):
        checked_text(owner, "prompt", value)
    return as_prompt(value)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image, identified by its contents: two paths to the same bytes are equal.

    Pixels are read when a model is asked about it, once per pass, and not kept.

    Attributes:
        path: where the file lies; of an image in memory a name for people.
        sha256: digest of the file's bytes, or of an image in memory its size and upright RGB
            pixels, in hexadecimal.
        picture: of an image in memory a copy, upright and as RGB.
    """

    path: str = field(compare=False)
    sha256: str
    picture: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, image: object) -> ImageRef:
        """The reference to a file or to a PIL image, with the digest of what it holds now.

        Raises:
            ImageError: the file cannot be read or is too large, a URL was given, or it is neither.
        """
        if isinstance(image, ImageRef):
            return image
        if hasattr(image, "tobytes") and hasattr(image, "convert"):
            name = str(getattr(image, "filename", ""))
            picture = upright(image, name or "in memory")
            digest = pixel_digest(picture)
            return cls(name or f"image-{digest[:8]}", digest, picture)
        if not isinstance(image, (str, os.PathLike)):
            raise ImageError(
                f"An image must be the path of a file or a PIL image, not {type(image).__name__} "
                f"({image!r:.80})."
            )
        path = str(os.fspath(image))
        if re.match(r"[a-z][a-z0-9+.-]*://|data:", path, re.IGNORECASE):
            raise ImageError(
                f"The image {path!r:.80} is a URL, and nothing is fetched here; download it and "
                "give the path of the file."
            )
        try:
            return cls(path, file_digest(path))
        except (OSError, ValueError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
            raise ImageError(
                f"The image {path!r} cannot be read ({reason}); give the path of an image "
                "file, e.g. a PNG or JPEG."
            ) from None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is given: a text, with images and a system message where there are any.

    A ``str`` is accepted wherever a prompt is and means ``Prompt(text)``. A prompt without images
    and system message equals its text and hashes like it, so mappings keyed by prompts can be
    read with plain strings. ``str(prompt)`` is the text alone.

    Attributes:
        text: the text to continue. Blanks at its end are not fed: they say that a space follows.
        images: what the text is about.
        system: the system message of a chat.
        raw: continue the text exactly as it stands; nothing is trimmed and an answer is appended
            to it character by character (see :mod:`easyeditor.joining` for the rule otherwise).
        chat: True writes it as a user's turn by the tokenizer's template, False as plain text;
            None: as the model was loaded (``chat_template``).

    Raises:
        EditError: the text or the system message is not text, ``chat`` is no boolean, or an image
            is no ``ImageRef``.
    """

    text: str
    images: tuple[ImageRef, ...] = ()
    system: str | None = None
    raw: bool = False
    chat: bool | None = None

    def __post_init__(self) -> None:
        checked_text("Prompt", "text", self.text)
        if self.system is not None:
            checked_text("Prompt", "system", self.system)
        if not isinstance(self.chat, (bool, type(None))):
            raise EditError(
                f"Prompt: chat must be True, False or None, not {type(self.chat).__name__} "
                f"({self.chat!r})."
            )
        images: Any = self.images
        object.__setattr__(
            self, "images", (images,) if isinstance(images, ImageRef) else tuple(images)
        )
        for image in self.images:
            if not isinstance(image, ImageRef):
                raise EditError(
                    f"Prompt: images must be ImageRef, not {type(image).__name__} ({image!r}); "
                    "use ImageRef.of(path)."
                )

    @property
    def bare(self) -> bool:
        """Whether the prompt is plain text, to be continued as a writer would."""
        return not self.images and self.system is None and not self.raw and self.chat is None

    @property
    def text_after_images(self) -> str:
        """The text without the places of its images where all stand in front of it."""
        return self.text.removeprefix(IMAGE * len(self.images))

    @property
    def with_places(self) -> Prompt:
        """The prompt with a place for every image written out: in front, where it has none."""
        if not self.images or IMAGE in self.text:
            return self
        return self.with_text(IMAGE * len(self.images) + self.text)

    def with_text(self, text: str) -> Prompt:
        """The same images, system message and mode with another text."""
        return Prompt(text, self.images, self.system, self.raw, self.chat)

    def to_json(self) -> str | dict[str, Any]:
        """The text of a bare prompt; else a dict that :func:`as_prompt` reads."""
        if self.bare:
            return self.text
        data: dict[str, Any] = {"text": self.text}
        if self.images:
            data["images"] = [{"path": i.path, "sha256": i.sha256} for i in self.images]
        if self.system is not None:
            data["system"] = self.system
        if self.raw:
            data["raw"] = True
        if self.chat is not None:
            data["chat"] = self.chat
        return data

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        if self.bare:
            return repr(self.text)
        return (
            f"Prompt({self.text!r}, images={self.images!r}, system={self.system!r}, "
            f"raw={self.raw!r}, chat={self.chat!r})"
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return self.bare and self.text == other
        if not isinstance(other, Prompt):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self.text if self.bare else self._key())

    def _key(self) -> tuple[object, ...]:
        return (self.text, self.images, self.system, self.raw, self.chat)


def as_prompt(value: object) -> Prompt:
    """A prompt from a prompt, a text, or what :meth:`Prompt.to_json` wrote.

    Raises:
        EditError: it is none of these.
    """
    if isinstance(value, Prompt):
        return value
    if isinstance(value, str):
        return Prompt(value)
    if isinstance(value, Mapping) and set(value) <= PROMPT_FIELDS:
        try:
            images = tuple(
                ImageRef(str(i["path"]), str(i["sha256"])) for i in value.get("images", ())
            )
            raw, chat = value.get("raw") is True, value.get("chat")
            return Prompt(value["text"], images, value.get("system"), raw, chat)
        except (KeyError, TypeError):
            pass
    raise EditError(f"A prompt must be text or a Prompt, not {type(value).__name__} ({value!r}).")
