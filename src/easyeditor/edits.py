"""The vocabulary: what is to change (:class:`Edit`) and how the change is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from easyeditor.errors import (
    ContradictingEditsError,
    EditError,
    EmptyTargetError,
    SubjectNotFoundError,
)


def _text(owner: str, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise EditError(f"{owner}: {name} must be text, not {type(value).__name__} ({value!r}).")
    return value


@dataclass(frozen=True, slots=True)
class Edit:
    """After editing, ``prompt`` continues with ``target``.

    The trap: locate-and-edit methods find the fact by ``subject``, which must occur in the
    prompt as it is written there.

    Raises:
        EditError: a field is not text, or the prompt is blank.
        EmptyTargetError: the target is blank.
        SubjectNotFoundError: the subject is blank or does not occur in the prompt.
    """

    prompt: str
    target: str
    subject: str | None = None
    ground_truth: str | None = None

    def __post_init__(self) -> None:
        if not _text("Edit", "prompt", self.prompt).strip():
            raise EditError("Edit: the prompt is empty; write the text the target continues.")
        if not _text("Edit", "target", self.target).strip():
            raise EmptyTargetError(f"The target of {self.prompt!r} is empty; write the new answer.")
        if self.ground_truth is not None:
            _text("Edit", "ground_truth", self.ground_truth)
        if self.subject is not None:
            subject = _text("Edit", "subject", self.subject)
            if not subject.strip() or subject not in self.prompt:
                raise SubjectNotFoundError(
                    f"The subject {subject!r} does not occur in the prompt {self.prompt!r}. "
                    "Write it exactly as the prompt does, capitals and accents included."
                )


@dataclass(frozen=True, slots=True)
class Probe:
    """One question asked before and after the edit.

    Attributes:
        prompt: the text to continue.
        answers: the accepted continuations; the first is the one scored token by token.
        kind: ``"rephrase"``, ``"locality/<name>"`` or ``"portability/<name>"``.
    """

    prompt: str
    answers: tuple[str, ...]
    kind: str

    def __post_init__(self) -> None:
        if not _text("Probe", "prompt", self.prompt).strip():
            raise EditError(f"A {self.kind} probe has an empty prompt.")
        if not self.answers or not all(_text("Probe", "answer", a).strip() for a in self.answers):
            raise EditError(f"The {self.kind} probe {self.prompt!r} has no answer to score.")

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
    probes: tuple[Probe, ...] = field(default=())
    also: tuple[Edit, ...] = field(default=())
    generation: tuple[str, ...] = field(default=())
    references: tuple[str, ...] = field(default=())

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Every edit of the case, ``edit`` first."""
        return (self.edit, *self.also)


def check_consistent(edits: Iterable[Edit]) -> None:
    """Refuse a request that asks for two things at once.

    Raises:
        EditError: there are no edits.
        ContradictingEditsError: one prompt has two different targets.
    """
    wanted: dict[str, str] = {}
    for edit in edits:
        target = wanted.setdefault(edit.prompt.strip(), edit.target.strip())
        if target != edit.target.strip():
            raise ContradictingEditsError(
                f"Two edits of {edit.prompt!r} contradict each other: {target!r} and "
                f"{edit.target!r}. Keep one, or apply them in two calls, the later one last."
            )
    if not wanted:
        raise EditError("There is nothing to edit: the list of edits is empty.")
