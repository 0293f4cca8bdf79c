"""The vocabulary: prompts, edits, and the questions a model is asked before and after."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import chain
from typing import Any

from easyeditor.errors import (
    ContradictingEditsError,
    EditError,
    EmptyTargetError,
    SubjectNotFoundError,
)
from easyeditor.prompts import IMAGE as IMAGE
from easyeditor.prompts import ImageRef as ImageRef
from easyeditor.prompts import Prompt as Prompt
from easyeditor.prompts import as_prompt as as_prompt
from easyeditor.prompts import checked_prompt, checked_text
from easyeditor.subjects import locate_subject


@dataclass(frozen=True, slots=True)
class Edit:
    """After editing, ``prompt`` continues with ``target``.

    The trap: locate-and-edit methods find the fact by ``subject``, which must occur in the prompt
    (capitals, quotes and the Unicode form of accents may differ).

    Attributes:
        prompt: what the target continues; a ``str`` is accepted.
        target: what shall be said.
        subject: what the fact is about. :data:`~easyeditor.prompts.IMAGE` is the prompt's (last)
            image itself, whose place the prompt then has written out.
        ground_truth: what is said now, where known.
        rejected: what shall no longer be said (deletion, preference pairs, safety).
        expansions: the same fact in other words, each with its own target and subject: what the
            edit is made with beside its prompt (:mod:`easyeditor.editors.expanding`).
        keep: prompts whose answers the edit shall leave as they are, such as the same question
            about other images; for methods with :attr:`Method.keeps`, the others ignore them.

    Raises:
        EditError: a field is not text, the prompt is blank, an expansion is no edit, has
            expansions of its own or names no subject where the edit does, or a prompt is to be
            edited and kept.
        EmptyTargetError: the target is blank.
        SubjectNotFoundError: the subject is blank or does not occur in the prompt.
    """

    prompt: Prompt
    target: str
    subject: str | None = None
    ground_truth: str | None = None
    rejected: str | None = None
    expansions: tuple[Edit, ...] = ()
    keep: tuple[Prompt, ...] = ()

    def __init__(
        self,
        prompt: Prompt | str,
        target: str,
        subject: str | None = None,
        ground_truth: str | None = None,
        rejected: str | None = None,
        expansions: Iterable[Edit] = (),
        keep: Iterable[Prompt | str] = (),
    ) -> None:
        values = {
            "prompt": checked_prompt("Edit", prompt),
            "target": checked_text("Edit", "target", target),
            "subject": subject,
            "ground_truth": ground_truth,
            "rejected": rejected,
            "expansions": tuple(map(_expansion, expansions)),
            "keep": _kept(keep),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if subject == IMAGE and self.prompt.images:
            object.__setattr__(self, "prompt", self.prompt.with_places)
            object.__setattr__(self, "keep", tuple(other.with_places for other in self.keep))
        if not self.prompt.text_after_images.strip():
            raise EditError("Edit: the prompt is empty; write the text the target continues.")
        if not target.strip():
            raise EmptyTargetError(f"The target of {self.prompt!r} is empty; write the new answer.")
        for name in ("subject", "ground_truth", "rejected"):
            if values[name] is not None:
                checked_text("Edit", name, values[name])
        edited = {self.prompt, *(other.prompt for other in self.expansions)}
        if edited & set(self.keep):
            raise EditError(
                f"The edit of {self.prompt!r} keeps a prompt that it changes; leave that out of "
                "keep."
            )
        if subject is not None:
            if subject == IMAGE and IMAGE not in self.prompt.text:
                raise SubjectNotFoundError(
                    f"The subject of {self.prompt!r} is the image ({IMAGE}), and the prompt has "
                    "none; give it an image, or the words of the prompt that the fact is about."
                )
            try:
                locate_subject(self.prompt.text, subject)
            except SubjectNotFoundError as error:
                hint = f" If only the image shows it, give subject={IMAGE!r}."
                raise SubjectNotFoundError(f"{error}{hint * bool(self.prompt.images)}") from None
            for other in self.expansions:
                if other.subject is None:
                    raise EditError(
                        f"The expansion {other.prompt!r} names no subject, and the edit of "
                        f"{self.prompt!r} does; name it as the expansion's prompt writes it."
                    )

    @property
    def subject_words(self) -> str | None:
        """The subject where it is words; None where there is none, or it is the image itself."""
        return None if self.subject == IMAGE and self.prompt.images else self.subject

    @property
    def rows(self) -> tuple[Edit, ...]:
        """The edit without its expansions, then each of these."""
        if not self.expansions:
            return (self,)
        return (replace(self, expansions=()), *self.expansions)


def _expansion(value: object) -> Edit:
    if isinstance(value, Mapping):  # as a file has it
        value = Edit(**value)
    if not isinstance(value, Edit):
        raise EditError(
            f"An expansion must be an Edit, not {type(value).__name__} ({value!r:.80})."
        )
    if value.expansions:
        raise EditError(f"The expansion {value.prompt!r} has expansions of its own; list them all.")
    return value


def _kept(prompts: Iterable[Prompt | str]) -> tuple[Prompt, ...]:
    if isinstance(prompts, (str, Prompt, Mapping)):
        prompts = [prompts]  # type: ignore[list-item]
    result = tuple(dict.fromkeys(checked_prompt("Edit", prompt) for prompt in prompts))
    if not all(prompt.text.strip() for prompt in result):
        raise EditError("A prompt to be kept is empty; write the question, or leave it out.")
    return result


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
        object.__setattr__(self, "prompt", checked_prompt("Probe", prompt))
        object.__setattr__(self, "answers", tuple(answers))
        object.__setattr__(self, "kind", kind)
        if not self.prompt.text.strip():
            raise EditError(f"A {kind} probe has an empty prompt.")
        if not self.answers or not all(
            checked_text("Probe", "answer", a).strip() for a in self.answers
        ):
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
class ConditionalTest:
    """Questions that count only where the unedited model answers its conditions.

    Attributes:
        name: the criterion it belongs to.
        questions: what the edited model is asked; each is one or several probes of one prompt
            (several: the text must hold an answer of every one).
        conditions: what the unedited model must answer, in the same form; none: it always counts.
        any: whether one right question is enough; else all must be right.
    """

    name: str
    questions: tuple[tuple[Probe, ...], ...]
    conditions: tuple[tuple[Probe, ...], ...] = ()
    any: bool = True


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
        tests: questions that count on conditions.
    """

    id: str
    edit: Edit
    probes: tuple[Probe, ...] = ()
    also: tuple[Edit, ...] = ()
    generation: tuple[Prompt, ...] = ()
    references: tuple[str, ...] = ()
    tests: tuple[ConditionalTest, ...] = ()

    def __init__(
        self,
        id: str,
        edit: Edit,
        probes: Iterable[Probe] = (),
        also: Iterable[Edit] = (),
        generation: Iterable[Prompt | str] = (),
        references: Iterable[str] = (),
        tests: Iterable[ConditionalTest] = (),
    ) -> None:
        values = {
            "id": id,
            "edit": edit,
            "probes": tuple(probes),
            "also": tuple(also),
            "generation": tuple(checked_prompt("Case", prompt) for prompt in generation),
            "references": tuple(references),
            "tests": tuple(tests),
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
        object.__setattr__(self, "prompt", checked_prompt("Score", prompt))
        object.__setattr__(self, "answer", checked_text("Score", "answer", answer))


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
        object.__setattr__(self, "prompt", checked_prompt("Generate", prompt))
        object.__setattr__(self, "max_new_tokens", max_new_tokens)
        object.__setattr__(self, "seed", seed)


@dataclass(frozen=True, slots=True)
class NextToken:
    """The question how probable every token is directly after a prompt.

    Attributes:
        prompt: the text to continue; a ``str`` is accepted.
        written: the beginning of the answer, behind which is read; in a chat it belongs to the
            model's turn.
    """

    prompt: Prompt
    written: str = ""

    def __init__(self, prompt: Prompt | str, written: str = "") -> None:
        object.__setattr__(self, "prompt", checked_prompt("NextToken", prompt))
        object.__setattr__(self, "written", checked_text("NextToken", "written", written))


Query = Score | Generate | NextToken
"""A question to a model. It is hashable and is its own key wherever replies are stored."""


def to_json(value: Any) -> Any:
    """An edit, probe or case as JSON types; bare prompts as plain text."""
    if isinstance(value, Prompt):
        return value.to_json()
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if is_dataclass(value):
        named = {item.name: getattr(value, item.name) for item in fields(value)}
        # Files from before these existed read alike.
        for name in ("rejected", "expansions", "keep", "tests"):
            if not named.get(name, True):
                del named[name]
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


def kept_prompts(edits: Sequence[Edit]) -> list[tuple[Prompt, ...]]:
    """What each edit keeps, without the prompts that another of the edits changes."""
    changed = {row.prompt for edit in edits for row in edit.rows}
    return [tuple(prompt for prompt in edit.keep if prompt not in changed) for edit in edits]


def check_consistent(edits: Iterable[Edit]) -> None:
    """Refuse a request that asks for two things at once.

    Raises:
        EditError: there are no edits.
        ContradictingEditsError: one prompt has two different targets.
    """
    wanted: dict[Prompt, str] = {}
    for edit in chain.from_iterable(edit.rows for edit in edits):
        prompt = edit.prompt.with_text(edit.prompt.text_after_images.strip())
        target = wanted.setdefault(prompt, edit.target.strip())
        if target != edit.target.strip():
            raise ContradictingEditsError(
                f"Two edits of {edit.prompt!r} contradict each other: {target!r} and "
                f"{edit.target!r}. Keep one, or apply them in two calls, the later one last."
            )
    if not wanted:
        raise EditError("There is nothing to edit: the list of edits is empty.")
