"""A plain file of edits: JSON, JSONL or CSV with the names of ``editor.edit``'s arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from easyeditor.data.conditional import tests_of
from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields, as_written, first_text, kind_of
from easyeditor.data.prompts import with_prompts
from easyeditor.edits import Case, Edit, Probe, Prompt, as_prompt
from easyeditor.errors import DataError, EditError, did_you_mean
from easyeditor.rewording import sentence_of, with_name

log = logging.getLogger(__name__)

EDIT_FIELDS = {
    "prompt": "prompt",
    "prompts": "prompt",
    "target_new": "target",
    "target": "target",
    "subject": "subject",
    "ground_truth": "ground_truth",
    "target_true": "ground_truth",  # ROME's name
    "rejected": "rejected",
    "target_neg": "rejected",
    "relation": "relation",
    "relation_id": "note",
    "question": "question",
    "aliases": "aliases",
    "expansions": "expansions",
    "keep": "keep",
}
"""Names of an edit's fields; ``relation`` makes the prompt where a record has none."""
FIELDS = {
    "case_id": "id",
    "id": "id",
    **EDIT_FIELDS,
    "rephrase_prompts": "rephrase",
    "rephrase_prompt": "rephrase",
    "rephrase": "rephrase",
    "locality_inputs": "locality",
    "locality": "locality",
    "portability_inputs": "portability",
    "portability": "portability",
    "generation_prompts": "generation",
    "references": "references",
    "also": "also",
    "tests": "tests",
    "probes": "probes",
    # Notes for the people who read the file; not used.
    "known": "known",
}
ARROW = "=>"
GAP = "{}"  # where a template's subject goes
NEAR, HOP = "neighborhood", "one_hop"  # what a probe without a name is called


class EditsDataset(CaseDataset):
    """Edits written by hand or by ``easyedit data convert``.

    A record has ``prompt``, ``target_new`` and, if it likes, ``case_id``, ``subject``,
    ``ground_truth``, ``rephrase_prompts`` (a text or a list), ``locality`` and ``portability``
    (below), ``generation_prompts``, ``references``, ``also`` (further edits of the same case),
    ``tests`` (questions with conditions, :mod:`easyeditor.data.conditional`), ``probes`` of other
    kinds (``{"kind", "prompt", "answers"}``), and the notes
    ``relation_id`` and ``known``, which are not used. A triple has ``subject``, ``relation``
    ("capital", "is located in the city of") and ``target_new`` instead of a prompt;
    beside a prompt its ``relation`` is a note, too. ``question`` (the same fact as a question),
    ``aliases`` (other names of the subject) and ``expansions`` (further prompts, each a text or
    ``{"prompt", "target_new", "subject"}``) are what the edit is made with beside its prompt;
    ``keep`` holds prompts whose answers are left alone while it is made (:attr:`Edit.keep`).

    Locality and portability are a list of ``{"prompt", "answer"}`` or ``"prompt => answer"``, or
    such lists by name, or ``{name: {"prompt": [...], "ground_truth": [...]}}`` as for
    ``editor.edit``. An ``answer`` that is a list holds all accepted answers, the scored one first,
    as does a ``ground_truth``. ROME's way to write an edit is read too: ``"{} plays the sport of"``
    and the field ``subject``, ``target_new`` and ``target_true`` as ``{"str": …}``. A prompt is a
    text, or an object with ``text``, ``images`` (paths, from the file's folder), ``system`` and
    ``chat``.

    Raises:
        DataError: as every dataset; also for a field nobody knows, and for a subject that the
            prompt does not write exactly so.
    """

    name = "edits"
    title = "edits with the names of editor.edit's arguments"
    probes = ("rephrase", "rephrase/*", "locality/*", "portability/*")
    _single = True

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It has a prompt and a target under one of their names."""
        fields = {FIELDS[name] for name in record if name in FIELDS}
        return {"prompt", "target"} <= fields or {"subject", "relation", "target"} <= fields

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        return case_of(Fields(with_prompts(record.raw, self.path.parent)), index)


def case_of(record: Fields, index: int) -> Case:
    """One record of :class:`EditsDataset` as a case; ``index`` is its id if it has none."""
    known = _known(record, FIELDS)
    edit = _edit(known)
    rephrases = _texts("rephrase", known.get("rephrase", []))
    probes = [_rephrase(edit, item) for item in rephrases]
    probes += _probes("locality", NEAR, known.get("locality"))
    probes += _probes("portability", HOP, known.get("portability"))
    probes += [
        Probe(as_prompt(item.get("prompt")[1]), item.answers("answers"), item.text("kind"))
        for item in record.objects("probes")
    ]
    return Case(
        case_id(record.raw, index) or str(index),
        edit,
        tuple(probes),
        also=tuple(_edit(_known(other, EDIT_FIELDS)) for other in record.objects("also")),
        generation=_texts("generation_prompts", known.get("generation", [])),
        references=tuple(record.texts("references")),
        tests=tests_of(record),
    )


def read_cases(path: str | os.PathLike[str]) -> list[Case]:
    """Read a file of edits into cases; :class:`EditsDataset` says what it may hold.

    Raises:
        DataError: names the file, the line and what is wrong.
    """
    return list(EditsDataset(path))


def _known(record: Fields, fields: Mapping[str, str]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for key, value in record.raw.items():
        if key not in fields:
            raise DataError(
                f"unknown field {record.path(key)!r}.{did_you_mean(str(key), fields)} "
                f"Known: {', '.join(fields)}. Other datasets: easyedit data ls"
            )
        if value is not None:
            if fields[key] in known:
                raise DataError(f"{key!r} names the {fields[key]} a second time.")
            known[fields[key]] = value
    if "prompt" not in known and {"subject", "relation"} <= set(known):
        known["prompt"] = sentence_of(known["subject"], known["relation"])
    missing = [name for name in ("prompt", "target") if name not in known]
    if missing:
        names = " and ".join({"target": "target_new"}.get(name, name) for name in missing)
        raise DataError(f"{names} missing.")
    return known


def _edit(known: Mapping[str, Any]) -> Edit:
    prompt, target, subject = known["prompt"], known["target"], known.get("subject")
    truth = known.get("ground_truth")
    texts = isinstance(prompt, str) and isinstance(subject, str) and subject.strip()
    if texts and as_written(subject, prompt) is None:
        prompt = prompt.replace(GAP, subject)  # ROME's records leave a gap for the subject
    elif isinstance(prompt, str) and not subject and GAP in prompt.split():
        log.warning(
            "The prompt %r has a gap %s and its record names no subject, so the model reads the "
            "braces as they are; give subject to fill the gap.",
            prompt,
            GAP,
        )
    if isinstance(target, Mapping):
        target = first_text("target_new", target)
    if isinstance(truth, (list, Mapping)):
        truth = first_text("ground_truth", truth)
    keep = _texts("keep", known.get("keep", []))
    edit = Edit(prompt, target, subject, truth or None, known.get("rejected"), keep=keep)
    return with_prompts_of(
        edit,
        _texts("aliases", known.get("aliases", [])),
        known.get("question"),
        [_expansion(edit, other) for other in _texts("expansions", known.get("expansions", []))],
    )


def with_prompts_of(
    edit: Edit,
    aliases: Sequence[str] = (),
    question: Prompt | str | None = None,
    more: Sequence[Edit] = (),
) -> Edit:
    """The edit with a user's further prompts: a question, the prompt with other names, and more.

    A question that is a text is about the edit's images.

    Raises:
        EditError: an alias of an edit without a subject, or one that is no text.
        SubjectNotFoundError: the question does not name the subject.
    """
    if aliases and edit.subject_words is None:
        raise EditError(
            f"The edit of {edit.prompt!r} has aliases and no subject in words; name the subject "
            "that they are other names of."
        )
    expansions = list(more)
    if question is not None:
        if isinstance(question, str):
            question = Prompt(question, edit.prompt.images)
        expansions.append(Edit(question, edit.target, edit.subject))
    for alias in aliases:
        text = with_name(edit.prompt.text, str(edit.subject), alias)
        expansions.append(Edit(edit.prompt.with_text(text), edit.target, alias.strip()))
    return replace(edit, expansions=(*edit.expansions, *expansions)) if expansions else edit


def _expansion(edit: Edit, given: Any) -> Edit:
    if isinstance(given, Mapping) and "prompt" in given:
        unknown = set(given) - {"prompt", "target_new", "subject"}
        if unknown:
            raise DataError(
                f"unknown field {sorted(unknown)[0]!r} of an expansion. Known: prompt, target_new, "
                "subject."
            )
        target = given.get("target_new", edit.target)
        return Edit(given["prompt"], target, given.get("subject", edit.subject))
    return Edit(given, edit.target, edit.subject)


def parse_arrow(text: str, kind: str) -> Probe:
    """``"prompt => answer"`` → a probe.

    Raises:
        DataError: there is no arrow, or one side is empty.
    """
    prompt, arrow, answer = (part.strip() for part in text.partition(ARROW))
    if not (prompt and arrow and answer):
        raise DataError(
            f"{text!r} must read 'prompt {ARROW} answer', e.g. 'The Louvre is in {ARROW} Paris'."
        )
    return Probe(prompt, (answer,), kind)


def _probes(group: str, name: str, given: Any) -> list[Probe]:
    if given is None:
        return []
    if isinstance(given, str):
        return [parse_arrow(given, f"{group}/{name}")]
    if isinstance(given, list):
        return [_one(group, name, item) for item in given]
    if isinstance(given, Mapping):
        return [probe for key, block in given.items() for probe in _block(group, str(key), block)]
    raise DataError(f"{group} must be a list or an object, not {kind_of(given)}.")


def _block(group: str, key: str, block: Any) -> list[Probe]:
    where = f"{group}[{key!r}]"
    if isinstance(block, list):
        return [_one(group, key, item, fixed=True) for item in block]
    if not isinstance(block, Mapping) or not {"prompt", "ground_truth"} <= set(block):
        raise DataError(
            f"{where} must hold 'prompt' and 'ground_truth', or a list of {{'prompt', 'answer'}}."
        )
    prompts, answers = _texts(where, block["prompt"]), _texts(where, block["ground_truth"])
    if len(prompts) != len(answers):
        raise DataError(f"{where}: {len(prompts)} prompts but {len(answers)} answers.")
    return [
        Probe(prompt, (answer,), f"{group}/{key}")
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _texts(name: str, given: Any) -> list[Any]:
    if isinstance(given, (str, Prompt)):
        return [given]
    if isinstance(given, list):
        return given
    raise DataError(f"{name} must be a text or a list of texts, not {kind_of(given)}.")


def _rephrase(edit: Edit, item: Any) -> Probe:
    """A rephrase: a prompt, or ``{"prompt", "name"}`` where it has a name."""
    if isinstance(item, Mapping) and isinstance(item.get("name"), str) and "prompt" in item:
        return Probe(item["prompt"], (edit.target,), f"rephrase/{item['name']}")
    return Probe(item, (edit.target,), "rephrase")


def _one(group: str, name: str, item: Any, *, fixed: bool = False) -> Probe:
    if isinstance(item, str):
        return parse_arrow(item, f"{group}/{name}")
    if isinstance(item, Mapping) and "prompt" in item:
        answer = item.get("answer", item.get("ground_truth"))
        if answer is not None:
            answers = tuple(answer) if isinstance(answer, list) else (answer,)
            kind = name if fixed else item.get("name", name)
            return Probe(item["prompt"], answers, f"{group}/{kind}")
    raise DataError(f"a {group} entry needs 'prompt' and 'answer'; got {item!r}.")
