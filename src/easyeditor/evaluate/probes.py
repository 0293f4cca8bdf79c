"""Probes made from any edit by stated rules: its question, its chat form, distracting neighbours.

No model writes them. What an edit is made with is never scored as a probe: a question whose words
stand in a prompt of the edit is left out (see :mod:`easyeditor.editors.expanding` for the reverse).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from easyeditor.edits import IMAGE, Case, Edit, Probe, Prompt, as_prompt
from easyeditor.lm.model import LM
from easyeditor.rewording import is_question, question_of, statement_of, with_fact

ASKED, DISTRACTING, NEIGHBORS = "asked", "locality/distracting", "locality/neighborhood"


def with_asked(lm: LM, case: Case) -> Case:
    """The case with the questions that a user would ask, each with the edit's target as answer.

    ``asked/question``: the bare question; ``asked/chat`` and ``asked/chat_question``: the sentence
    and the question as a user's turn, where the tokenizer has a chat template; ``asked/sentence``:
    the sentence, where the edit is made with a question. Left out is what the edit is made with,
    and what no rule gives. English.
    """
    present = {(probe.kind, probe.prompt) for probe in case.probes}
    probes = [
        Probe(prompt, (case.edit.target,), f"{ASKED}/{name}")
        for name, prompt in _questions(lm, case.edit)
        if not _edited_with(lm, case, prompt)
    ]
    probes = [probe for probe in probes if (probe.kind, probe.prompt) not in present]
    return replace(case, probes=(*case.probes, *probes)) if probes else case


def _questions(lm: LM, edit: Edit) -> Iterator[tuple[str, Prompt]]:
    """Names and prompts of :func:`with_asked`, before any is left out."""
    base = edit.prompt
    if base.raw:  # it may hold a template already
        return
    text = base.text_after_images.strip()
    sentence = statement_of(text) if is_question(text) else text
    question = text if is_question(text) else question_of(text)
    template = bool(getattr(lm.tokenizer, "chat_template", None))

    def prompt(content: str, *, chat: bool | None) -> Prompt:
        return Prompt(content, base.images, base.system, chat=chat)

    if base.system is None:  # with one it has no plain form
        plain = False if template else None
        yield "question", prompt(question, chat=plain)
        if sentence is not None:
            yield "sentence", prompt(sentence, chat=plain)
    if template:
        if sentence is not None:
            yield "chat", prompt(sentence, chat=True)
        yield "chat_question", prompt(question, chat=True)


def _edited_with(lm: LM, case: Case, prompt: Prompt) -> bool:
    """Whether an edit of the case is made with this prompt.

    Its own prompt counts in its own form, a further prompt of the edit in either.
    """
    words, chat = words_of(prompt.text_after_images), _chat(lm, prompt)
    return any(
        (words == words_of(edit.prompt.text_after_images) and chat == _chat(lm, edit.prompt))
        or any(f" {words} " in f" {words_of(other.prompt.text)} " for other in edit.expansions)
        for edit in case.edits
    )


def _chat(lm: LM, prompt: Prompt) -> bool:
    return lm.text.chat_template if prompt.chat is None else prompt.chat


def with_distractors(case: Case) -> Case:
    """The case with the edited fact as a sentence before every neighbourhood prompt.

    Each becomes a ``locality/distracting`` probe with the answers of its neighbour: an edit that
    answers everything near it alike fails there (CounterFact+, arXiv 2305.17553). Where the case
    has no ``locality/neighborhood`` probes all its locality probes are neighbours. Prompts that are
    there already are not added again, and images or a chat form stay as the neighbour has them.
    """
    local = [p for p in case.probes if p.group == "locality" and p.kind != DISTRACTING]
    neighbors = [probe for probe in local if probe.kind == NEIGHBORS] or local
    present = {probe.prompt for probe in case.probes if probe.kind == DISTRACTING}
    new = [
        probe
        for probe in (distracted(case.edit, neighbor) for neighbor in neighbors)
        if probe.prompt not in present
    ]
    return replace(case, probes=(*case.probes, *new)) if new else case


def distracted(edit: Edit, neighbor: Probe) -> Probe:
    """The neighbour's question with the edited fact as a sentence before it.

    The fact's images are not shown, so their places are left out.
    """
    fact = re.sub(rf"{IMAGE}[ \t]*", "", edit.prompt.text)
    text = with_fact(fact, edit.target, neighbor.prompt.text)
    return Probe(neighbor.prompt.with_text(text), neighbor.answers, DISTRACTING)


def probe_in(prompt: Prompt | str, case: Case) -> str | None:
    """The first probe of the case whose words stand in the prompt one after the other.

    Only probes about the prompt's own images count: the same words about another image are
    another question.
    """
    prompt = as_prompt(prompt)
    words = f" {words_of(prompt.text)} "
    for probe in _scored(case):
        if probe.prompt.images != prompt.images:
            continue
        scored = words_of(probe.prompt.text)
        if scored and f" {scored} " in words:
            return probe.prompt.text
    return None


def _scored(case: Case) -> Iterable[Probe]:
    yield from case.probes
    for test in case.tests:
        for question in test.questions:
            yield from question


def words_of(text: str) -> str:
    """The words of a text: letters' case, spaces and punctuation aside."""
    return " ".join(re.findall(r"\w+", text.casefold()))
