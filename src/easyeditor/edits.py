"""The vocabulary: prompts, edits, and the questions a model is asked before and after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from easyeditor.errors import (
    ContradictingEditsError,
    EditError,
    EmptyTargetError,
)
from easyeditor.subjects import locate_subject


def _text(owner: str, name: str, value: object) -> str:
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


def _prompt(owner: str, value: object) -> Prompt:
    if not isinstance(value, (Prompt, Mapping)):
        _text(owner, "prompt", value)
    return as_prompt(value)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image file, identified by its contents: two paths to the same bytes are equal.

    Attributes:
        path: where the file lies.
        sha256: digest of its bytes, in hexadecimal.
    """

    path: str = field(compare=False)
    sha256: str

    @classmethod
    def of(cls, path: str | Path) -> ImageRef:
        """The reference to a file, with the digest of what it holds now.

        Raises:
            EditError: the file cannot be read.
        """
        try:
            return cls(str(path), hashlib.sha256(Path(path).read_bytes()).hexdigest())
        except (OSError, ValueError) as error:
            raise EditError(
                f"The image {str(path)!r} cannot be read ({error}); give the path of a file."
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

    Raises:
        EditError: the text or the system message is not text, or an image is no ``ImageRef``.
    """

    text: str
    images: tuple[ImageRef, ...] = ()
    system: str | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        _text("Prompt", "text", self.text)
        if self.system is not None:
            _text("Prompt", "system", self.system)
        object.__setattr__(self, "images", tuple(self.images))
        for image in self.images:
            if not isinstance(image, ImageRef):
                raise EditError(
                    f"Prompt: images must be ImageRef, not {type(image).__name__} ({image!r}); "
                    "use ImageRef.of(path)."
                )

    @property
    def bare(self) -> bool:
        """Whether the prompt is plain text, to be continued as a writer would."""
        return not self.images and self.system is None and not self.raw

    def with_text(self, text: str) -> Prompt:
        """The same images, system message and mode with another text."""
        return Prompt(text, self.images, self.system, self.raw)

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
        return data

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        if self.bare:
            return repr(self.text)
        return (
            f"Prompt({self.text!r}, images={self.images!r}, system={self.system!r}, "
            f"raw={self.raw!r})"
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
        return (self.text, self.images, self.system, self.raw)


def as_prompt(value: object) -> Prompt:
    """A prompt from a prompt, a text, or what :meth:`Prompt.to_json` wrote.

    Raises:
        EditError: it is none of these.
    """
    if isinstance(value, Prompt):
        return value
    if isinstance(value, str):
        return Prompt(value)
    if isinstance(value, Mapping) and set(value) <= {"text", "images", "system", "raw"}:
        try:
            images = tuple(
                ImageRef(str(i["path"]), str(i["sha256"])) for i in value.get("images", ())
            )
            return Prompt(value["text"], images, value.get("system"), value.get("raw") is True)
        except (KeyError, TypeError):
            pass
    raise EditError(f"A prompt must be text or a Prompt, not {type(value).__name__} ({value!r}).")


@dataclass(frozen=True, slots=True)
class Edit:
    """After editing, ``prompt`` continues with ``target``.

    The trap: locate-and-edit methods find the fact by ``subject``, which must occur in the prompt
    (capitals, quotes and the Unicode form of accents may differ).

    Attributes:
        prompt: what the target continues; a ``str`` is accepted.
        target: what shall be said.
        subject: what the fact is about.
        ground_truth: what is said now, where known.
        rejected: what shall no longer be said (deletion, preference pairs, safety).

    Raises:
        EditError: a field is not text, or the prompt is blank.
        EmptyTargetError: the target is blank.
        SubjectNotFoundError: the subject is blank or does not occur in the prompt.
    """

    prompt: Prompt
    target: str
    subject: str | None = None
    ground_truth: str | None = None
    rejected: str | None = None

    def __init__(
        self,
        prompt: Prompt | str,
        target: str,
        subject: str | None = None,
        ground_truth: str | None = None,
        rejected: str | None = None,
    ) -> None:
        values = {
            "prompt": _prompt("Edit", prompt),
            "target": _text("Edit", "target", target),
            "subject": subject,
            "ground_truth": ground_truth,
            "rejected": rejected,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if not self.prompt.text.strip():
            raise EditError("Edit: the prompt is empty; write the text the target continues.")
        if not target.strip():
            raise EmptyTargetError(f"The target of {self.prompt!r} is empty; write the new answer.")
        for name in ("subject", "ground_truth", "rejected"):
            if values[name] is not None:
                _text("Edit", name, values[name])
        if subject is not None:
            locate_subject(self.prompt.text, subject)


@dataclass(frozen=True, slots=True)
class Probe:
    """One question asked before and after the edit.

    Attributes:
        prompt: the text to continue; a ``str`` is accepted.
        answers: the accepted continuations; the first is the one scored token by token.
        kind: ``"rephrase"``, ``"locality/<name>"``, ``"portability/<name>"``, or the kind of a
            scorer that was added.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    kind: str

    def __init__(self, prompt: Prompt | str, answers: tuple[str, ...], kind: str) -> None:
        object.__setattr__(self, "prompt", _prompt("Probe", prompt))
        object.__setattr__(self, "answers", tuple(answers))
        object.__setattr__(self, "kind", kind)
        if not self.prompt.text.strip():
            raise EditError(f"A {kind} probe has an empty prompt.")
        if not self.answers or not all(_text("Probe", "answer", a).strip() for a in self.answers):
            raise EditError(f"The {kind} probe {self.prompt!r} has no answer to score.")

    @property
    def group(self) -> str:
        """The part of ``kind`` before the slash: rephrase, locality or portability."""
        return self.kind.partition("/")[0]

    @property
    def name(self) -> str:
        """The part of ``kind`` after the slash."""
        return self.kind.partition("/")[2]


@dataclass(frozen=True, slots=True)
class Case:
    """What the evaluator knows. A method is given only ``edits``, so probes cannot leak.

    Attributes:
        id: names the case in every result.
        edit: the fact that is changed; the scores named ``rewrite_…`` are of this one.
        probes: what is asked before and after.
        also: further edits that belong to the same case and are made together with ``edit``
            (a multi-hop question that rests on several new facts).
        generation: prompts to be continued freely, for fluency and consistency.
        references: texts that say what is true after the edit, for consistency.
    """

    id: str
    edit: Edit
    probes: tuple[Probe, ...] = ()
    also: tuple[Edit, ...] = ()
    generation: tuple[Prompt, ...] = ()
    references: tuple[str, ...] = ()

    def __init__(
        self,
        id: str,
        edit: Edit,
        probes: Iterable[Probe] = (),
        also: Iterable[Edit] = (),
        generation: Iterable[Prompt | str] = (),
        references: Iterable[str] = (),
    ) -> None:
        values = {
            "id": id,
            "edit": edit,
            "probes": tuple(probes),
            "also": tuple(also),
            "generation": tuple(_prompt("Case", prompt) for prompt in generation),
            "references": tuple(references),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Every edit of the case, ``edit`` first."""
        return (self.edit, *self.also)


@dataclass(frozen=True, slots=True)
class Score:
    """The question how probable an answer is after a prompt, token by token (teacher forcing)."""

    prompt: Prompt
    answer: str

    def __init__(self, prompt: Prompt | str, answer: str) -> None:
        object.__setattr__(self, "prompt", _prompt("Score", prompt))
        object.__setattr__(self, "answer", _text("Score", "answer", answer))


@dataclass(frozen=True, slots=True)
class Generate:
    """The question what a model writes after a prompt.

    Attributes:
        prompt: the text to continue; a ``str`` is accepted.
        max_new_tokens: tokens at most.
        seed: of the sampling among the five most probable tokens; None: greedy. The trap: an
            encoder-decoder, which is not trained to write freely, answers greedily all the same.
    """

    prompt: Prompt
    max_new_tokens: int
    seed: int | None = None

    def __init__(self, prompt: Prompt | str, max_new_tokens: int, seed: int | None = None) -> None:
        object.__setattr__(self, "prompt", _prompt("Generate", prompt))
        object.__setattr__(self, "max_new_tokens", max_new_tokens)
        object.__setattr__(self, "seed", seed)


Query = Score | Generate
"""A question to a model. It is hashable and is its own key wherever replies are stored."""


def to_json(value: Any) -> Any:
    """An edit, probe or case as JSON types; bare prompts as plain text."""
    if isinstance(value, Prompt):
        return value.to_json()
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if is_dataclass(value):
        named = {item.name: getattr(value, item.name) for item in fields(value)}
        if named.get("rejected", "") is None:  # files from before it existed read alike
            del named["rejected"]
        return {name: to_json(item) for name, item in named.items()}
    return value


def canonical_json(value: Any) -> str:
    """Edits, probes or cases as one text that is the same for equal content in any process.

    An image counts by its contents, not by the path it lies at.
    """

    def without_paths(data: Any) -> Any:
        if isinstance(data, list):
            return [without_paths(item) for item in data]
        if isinstance(data, dict):
            image = data.keys() == {"path", "sha256"}
            return {k: without_paths(v) for k, v in data.items() if not (image and k == "path")}
        return data

    return json.dumps(without_paths(to_json(value)), sort_keys=True)


def check_consistent(edits: Iterable[Edit]) -> None:
    """Refuse a request that asks for two things at once.

    Raises:
        EditError: there are no edits.
        ContradictingEditsError: one prompt has two different targets.
    """
    wanted: dict[Prompt, str] = {}
    for edit in edits:
        prompt = edit.prompt.with_text(edit.prompt.text.strip())
        target = wanted.setdefault(prompt, edit.target.strip())
        if target != edit.target.strip():
            raise ContradictingEditsError(
                f"Two edits of {edit.prompt!r} contradict each other: {target!r} and "
                f"{edit.target!r}. Keep one, or apply them in two calls, the later one last."
            )
    if not wanted:
        raise EditError("There is nothing to edit: the list of edits is empty.")
