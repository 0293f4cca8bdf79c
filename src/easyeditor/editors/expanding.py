"""One request becomes several prompts: question, chat form, rewordings, aliases, the inverse.

An edit that is made with the sentence alone may not hold in the chat, or in other words. An
expanded edit has further prompts (:attr:`Edit.expansions`): methods that search a value search one
over all of them, methods that train do so on all. What is scored is never edited with: a further
prompt that holds the words of a probe of its case is dropped, and a note says so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from easyeditor.edits import Case, Edit, Generate, ImageRef, Prompt
from easyeditor.errors import EditError, SubjectNotFoundError
from easyeditor.evaluate.degeneration import answer_mentions
from easyeditor.evaluate.generation_metrics import natural_answer, normalise
from easyeditor.evaluate.probes import probe_in
from easyeditor.joining import join
from easyeditor.lm.image_files import open_image
from easyeditor.lm.inference import generate
from easyeditor.lm.model import LM
from easyeditor.pictures import distorted
from easyeditor.rewording import inverse_of, is_question, question_of, rewordings_of, statement_of
from easyeditor.subjects import locate_subject

log = logging.getLogger(__name__)

TRIES_PER_PROMPT = 3
"""Samples drawn from the model for each rewording that is asked of it."""
WRITTEN_TOKENS = 40
"""Tokens at most of a question that the model writes."""
ANSWER_TOKENS = 24
"""Tokens of the answers by which such a question is checked."""
TOLD = 8
"""So many prompts that are scored, and therefore dropped, are named."""
OPENING_TOKENS = 8
"""Tokens of a reply that are read to see how it begins."""
INSTRUCTION = (
    "Write one short question about {subject} whose answer completes this sentence: "
    '"{sentence} ...". Do not answer it.'
)


@dataclass(frozen=True, slots=True)
class Expansion:
    """Which further prompts an edit is made with.

    Attributes:
        chat: the sentence and its question as a user's turn; None: where the tokenizer has a chat
            template.
        rewordings: at most so many sentences by templates (English).
        written: at most so many questions that the model itself writes; kept is what names the
            subject and what the unedited model answers as it answers the edit's own prompt.
        views: of an edit about images, so many times its question about its images turned, moved
            and lit otherwise (:func:`easyeditor.pictures.distorted`).
        inverse: also the fact from its answer back, as a second edit, for relations that are
            one-to-one ("Lyon is the capital of" → "France").

    Raises:
        EditError: a number is negative, or ``chat`` is no boolean.
    """

    chat: bool | None = None
    rewordings: int = 4
    written: int = 0
    inverse: bool = False
    views: int = 3

    def __post_init__(self) -> None:
        for name in ("rewordings", "written", "views"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise EditError(f"Expansion: {name}={value!r}; give a whole number from 0.")
        if not isinstance(self.chat, (bool, type(None))):
            raise EditError(f"Expansion: chat={self.chat!r}; give True, False or None.")


Expand = bool | Expansion | None
"""What an ``expand`` argument may be: True stands for the defaults."""


def expanded_cases(lm: LM, cases: Sequence[Case], expand: Expand) -> list[Case]:
    """The cases with their edits expanded, and with no further prompt that is scored.

    Prompts that a case's edits have already (aliases, a question of the user's) stay first; without
    ``expand`` they are all, less those that hold a probe of their case.

    Raises:
        EditError: ``expand`` is neither a boolean nor an :class:`Expansion`, or chat prompts are
            asked of a model without a chat template.
    """
    if not isinstance(expand, (bool, Expansion, type(None))):
        raise EditError(
            f"expand={expand!r:.80} must be True, False or an Expansion(...), not "
            f"{type(expand).__name__}."
        )
    dropped: list[str] = []
    if not expand:
        left = [_unscored(case, dropped) for case in cases]
        _tell(dropped)
        return left
    how = Expansion() if expand is True else expand
    template = bool(getattr(lm.tokenizer, "chat_template", None))
    if how.chat and not template:
        raise EditError(
            f"Expansion(chat=True): the tokenizer of {lm.name} has no chat template. Use an "
            "instruction-tuned model, or chat=None."
        )
    chat = template if how.chat is None else how.chat
    result = []
    for case in cases:
        edits = []
        for edit in case.edits:
            candidates = [*_by_templates(lm, edit, how, chat), *_views(edit, how.views)]
            if how.written and edit.subject_words is not None:
                candidates += _written_by_model(lm, edit, how.written, chat)
            edits.append(_with(lm, case, edit, candidates, dropped))
        inverse = _inverse(case) if how.inverse else []
        result.append(replace(case, edit=edits[0], also=(*edits[1:], *inverse)))
    _tell(dropped)
    return _with_openings(lm, result)


def _with_openings(lm: LM, cases: Sequence[Case]) -> list[Case]:
    """The cases; their targets in chat form are the sentence with the answer, not the answer alone.

    Asked "What is the capital of France?", most chat models write the sentence and then the answer;
    the answer alone would be another way of replying, for which a far larger change is needed. A
    model whose reply begins with the old answer (the ground truth, else what it says to the plain
    prompt) gets the answer alone.
    """
    edits = [edit for case in cases for edit in case.edits]
    in_chat = [other.prompt for edit in edits for other in edit.expansions if other.prompt.chat]
    unknown = [edit.prompt for edit in edits if _in_chat(edit) and not edit.ground_truth]
    texts = generate(lm, [*in_chat, *unknown], OPENING_TOKENS) if in_chat else []
    replies, answers = iter(texts[: len(in_chat)]), iter(texts[len(in_chat) :])

    def opened(edit: Edit) -> Edit:
        if not _in_chat(edit):
            return edit
        sentence: str | None = edit.prompt.text_after_images.strip()
        if is_question(edit.prompt.text):
            sentence = statement_of(edit.prompt.text_after_images)
        old = normalise(edit.ground_truth or next(answers)).split()[:1]
        expansions = []
        for other in edit.expansions:
            if other.prompt.chat:
                direct = normalise(next(replies)).split()[:1] == old
                if sentence is not None and not direct:
                    other = replace(other, target=join(sentence, other.target.strip()))
            expansions.append(other)
        return replace(edit, expansions=tuple(expansions))

    return [
        replace(case, edit=opened(case.edit), also=tuple(map(opened, case.also))) for case in cases
    ]


def _in_chat(edit: Edit) -> bool:
    """Whether one of the edit's further prompts is in chat form."""
    return any(other.prompt.chat for other in edit.expansions)


def _by_templates(lm: LM, edit: Edit, how: Expansion, chat: bool) -> Iterator[Edit]:
    """The sentence and its question in chat form, the other form of the prompt, rewordings."""
    text = edit.prompt.text_after_images.strip()
    stated = [other.prompt.text for other in edit.expansions if is_question(other.prompt.text)]
    if is_question(text):
        statement, question = statement_of(text), text
    else:
        statement, question = text, next(iter(stated), None) or question_of(text)
    if chat:
        yield _reworded(edit, question, chat=True)
        if statement is not None:
            yield _reworded(edit, statement, chat=True)
    if edit.prompt.system is not None:  # it has no plain form
        return
    plain = False if getattr(lm.tokenizer, "chat_template", None) else None
    if statement is not None:
        yield _reworded(edit, statement, chat=plain)
    rewordings = rewordings_of(statement, edit.subject_words, question)
    for sentence in rewordings[: how.rewordings]:
        yield _reworded(edit, sentence, chat=plain)


def _reworded(edit: Edit, text: str, *, chat: bool | None) -> Edit:
    prompt = Prompt(text, edit.prompt.images, edit.prompt.system, chat=chat)
    return Edit(prompt, edit.target.strip(), edit.subject)


def _with(lm: LM, case: Case, edit: Edit, candidates: Sequence[Edit], dropped: list[str]) -> Edit:
    """The edit with those of its further prompts that are new and are not scored."""
    chat = lm.text.chat_template
    forms = {_form(edit.prompt, chat)}
    expansions: list[Edit] = []
    for other in _not_scored(case, (*edit.expansions, *candidates), dropped):
        form = _form(other.prompt, chat)
        if form in forms:
            continue
        forms.add(form)
        expansions.append(other)
    return replace(edit, expansions=tuple(expansions))


def _tell(dropped: Sequence[str]) -> None:
    """Warn of prompts that were dropped: of the first ones each by its words."""
    for sentence in dropped[:TOLD]:
        log.warning("%s", sentence)
    if len(dropped) > TOLD:
        log.warning("… and of %d more prompts.", len(dropped) - TOLD)


def _unscored(case: Case, dropped: list[str]) -> Case:
    """The case without further prompts that are scored; the same object where it has none."""
    edits = []
    for edit in case.edits:
        prompts = tuple(_not_scored(case, edit.expansions, dropped))
        same = len(prompts) == len(edit.expansions)
        edits.append(edit if same else replace(edit, expansions=prompts))
    if all(new is old for new, old in zip(edits, case.edits, strict=True)):
        return case
    return replace(case, edit=edits[0], also=tuple(edits[1:]))


def _not_scored(case: Case, prompts: Sequence[Edit], dropped: list[str]) -> list[Edit]:
    """The prompts that hold no probe of the case; a sentence in ``dropped`` for each other one."""
    by_key = {(other.prompt.text, other.prompt.images): other.prompt for other in prompts}
    probes = {key: probe_in(prompt, case) for key, prompt in by_key.items()}
    for (text, _), probe in probes.items():
        if probe is not None:
            dropped.append(
                f"Case {case.id}: the prompt {text!r} holds {probe!r}, which is scored, so the "
                "edit is not made with it."
            )
    return [other for other in prompts if probes[other.prompt.text, other.prompt.images] is None]


def _form(prompt: Prompt, chat: bool) -> tuple[str, tuple[ImageRef, ...], bool]:
    form = chat if prompt.chat is None else prompt.chat
    return " ".join(prompt.text.split()), prompt.images, form


def _views(edit: Edit, count: int) -> Iterator[Edit]:
    """The edit's own question about its images as other photographs of the same things."""
    for seed in range(count if edit.prompt.images else 0):
        images = tuple(
            ImageRef.of(distorted(open_image(image), seed)) for image in edit.prompt.images
        )
        yield Edit(replace(edit.prompt, images=images), edit.target.strip(), edit.subject)


def _inverse(case: Case) -> list[Edit]:
    """The inverses of the case's edits that are not scored."""
    result = []
    for edit in case.edits:
        if edit.subject_words is None:
            continue
        sentence = inverse_of(edit.prompt.text, edit.subject_words, edit.target.strip())
        if sentence is not None and probe_in(sentence, case) is None:
            result.append(Edit(sentence, edit.subject_words, edit.target.strip()))
    return result


def _written_by_model(lm: LM, edit: Edit, count: int, chat: bool) -> list[Edit]:
    """Questions about the subject that the model writes, and answers as it answers the prompt."""
    assert edit.subject is not None
    form = True if chat else None
    instruction = INSTRUCTION.format(subject=edit.subject, sentence=edit.prompt.text.strip())
    request = Prompt(instruction, chat=form)
    samples = range(count * TRIES_PER_PROMPT)
    texts = generate(lm, [Generate(request, WRITTEN_TOKENS, seed) for seed in samples])
    questions = [text for text in dict.fromkeys(map(_question_in, texts)) if text]
    prompts = [
        Prompt(text, chat=form) for text in questions if _usable(text, edit.subject, edit.target)
    ]
    plain = natural_answer(generate(lm, [edit.prompt], ANSWER_TOKENS)[0], lm.text.chat_template)
    known = edit.ground_truth or _first_words(plain)
    answers = generate(lm, prompts, ANSWER_TOKENS)
    return [
        Edit(prompt, edit.target.strip(), edit.subject)
        for prompt, answer in zip(prompts, answers, strict=True)
        if known and answer_mentions(answer, known)
    ][:count]


def _question_in(text: str) -> str:
    """The first question of a text, without quotes."""
    match = re.search(r"[^.!?\n\"]+\?", text)
    return match[0].strip(" \"'") if match else ""


def _usable(question: str, subject: str, target: str) -> bool:
    """Whether the question names the subject and does not give the answer away."""
    try:
        locate_subject(question, subject)
    except SubjectNotFoundError:
        return False
    return not answer_mentions(question, target.strip())


def _first_words(text: str) -> str:
    """What a free answer says before its first mark of punctuation."""
    return re.split(r"[.,;:!?\n(]", text.strip())[0].strip()
