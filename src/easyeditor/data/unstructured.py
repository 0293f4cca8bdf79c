"""Texts to be edited in: questions with paragraphs as answers, and questions about their facts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields, as_written, probe
from easyeditor.edits import Case, Edit, Probe
from easyeditor.errors import DataError

SUB_QUESTION = "portability/sub_question"
END_MARKS = ("<|eot_id|>", "<|im_end|>", "<|endoftext|>", "</s>")
"""Ends of turns that some files write behind their answers."""


class UnstructuredDataset(CaseDataset):
    """UnKEBench (arXiv 2405.15349), EditEverything (2502.05628) and AKEW (2402.18909).

    UnKEBench and EditEverything: ``question`` and ``answer`` are the edit, every ``para_question``
    a rephrase, and ``sub_question`` with ``sub_answer`` are ``portability/sub_question`` probes.
    AKEW: ``requested_rewrite`` holds ``fact_new_uns``, the text; its prompt is ``prompt_full``,
    else ``question``, else ``prompt`` with its subject; ``paraphrase_prompts`` are rephrases and
    the triplets ``unsfact_triplets_GPT`` sub-questions. Of several rewrites the others are
    ``also``.

    A mark of the end of a turn behind an answer (``<|eot_id|>``) is left out: the setting
    ``append_eos`` adds the tokenizer's own.

    Args:
        path: the file.
        size: use only the first so many records.
        config: stored as an attribute, not used.
        sub_questions: how many are asked of each text; the papers ask the first five.
    """

    name = "unstructured"
    title = "paragraphs as answers, with questions about their facts"
    probes = ("rephrase", SUB_QUESTION)

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | None = None,
        config: Any = None,
        *,
        sub_questions: int = 5,
    ) -> None:
        super().__init__(path, size, config)
        if isinstance(sub_questions, bool) or sub_questions < 0:
            raise DataError(
                f"sub_questions={sub_questions!r} is how many are asked of each text: 0 or more."
            )
        self.sub_questions = sub_questions

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It has a rewrite with ``fact_new_uns``, or a question, its answer and no prompt."""
        rewrite = record.get("requested_rewrite")
        first = rewrite[0] if isinstance(rewrite, list) and rewrite else rewrite
        if isinstance(first, Mapping):
            return "fact_new_uns" in first
        plain = {"question", "answer"} <= record.keys()
        parts = ("para_question", "sub_question", "subject")
        return plain and "prompt" not in record and any(name in record for name in parts)

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        name = case_id(record.raw, index) or str(index)
        if "requested_rewrite" in record:
            return self._akew(record, name)
        question = record.text("question")
        edit = _edit(question, record.text("answer"), record.maybe("subject"))
        probes = _rephrases(edit, record.texts("para_question"))
        questions, answers = record.texts("sub_question"), record.texts("sub_answer")
        if len(questions) != len(answers):
            raise DataError(
                f"sub_question lists {len(questions)} questions and sub_answer {len(answers)} "
                "answers; every question has one."
            )
        probes += self._sub_questions(zip(questions, answers, strict=True))
        return Case(name, edit, tuple(probes))

    def _akew(self, record: Fields, name: str) -> Case:
        value = record.raw["requested_rewrite"]
        rewrites = (
            record.objects("requested_rewrite")
            if isinstance(value, list)
            else [record.object("requested_rewrite")]
        )
        edit, *also = [_edit_of(rewrite) for rewrite in rewrites]
        probes = _rephrases(edit, record.texts("paraphrase_prompts"))
        if "prompt_full" in rewrites[0] and "question" in rewrites[0]:
            probes += _rephrases(edit, [rewrites[0].text("question")])
        probes += self._sub_questions(
            (_filled(triplet), triplet.text("target"))
            for triplet in rewrites[0].objects("unsfact_triplets_GPT")
        )
        return Case(name, edit, tuple(probes), tuple(also))

    def _sub_questions(self, pairs: Iterator[tuple[str, str]]) -> list[Probe]:
        probes = [
            item for question, answer in pairs for item in probe(SUB_QUESTION, question, (answer,))
        ]
        return probes[: self.sub_questions]


def _edit_of(rewrite: Fields) -> Edit:
    if "prompt_full" in rewrite:
        prompt = rewrite.text("prompt_full")
    elif "question" in rewrite:
        prompt = rewrite.text("question")
    else:
        prompt = _filled(rewrite)
    return _edit(prompt, rewrite.text("fact_new_uns"), rewrite.maybe("subject"))


def _edit(prompt: str, text: str, subject: str | None) -> Edit:
    text = text.strip()
    for mark in END_MARKS:
        text = text.removesuffix(mark)
    return Edit(prompt, text.strip(), as_written(subject, prompt) if subject else None)


def _rephrases(edit: Edit, prompts: list[str]) -> list[Probe]:
    texts = dict.fromkeys(text for text in prompts if text.strip() and text != edit.prompt.text)
    return [Probe(text, (edit.target,), "rephrase") for text in texts]


def _filled(triplet: Fields) -> str:
    """The prompt with its subject in the gap."""
    return triplet.text("prompt").replace("{}", triplet.text("subject"))
