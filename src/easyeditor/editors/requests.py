"""The arguments of ``editor.edit`` → cases, checked before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easyeditor.data.edits_file import case_of
from easyeditor.data.fields import Fields
from easyeditor.edits import Case, Edit, Probe, Prompt
from easyeditor.errors import DataError, EditError

Texts = str | Prompt | Sequence[str | Prompt]
Nested = str | Prompt | Sequence[str | Prompt | Sequence[str | Prompt]]


def _list(name: str, value: Any, n: int | None = None) -> list[Any]:
    if value is None:
        return [None] * (n or 0)
    if not isinstance(value, (str, Prompt, Sequence)) or isinstance(value, bytes):
        raise EditError(f"{name} must be a text or a list, not {type(value).__name__}.")
    items = [value] if isinstance(value, (str, Prompt)) else list(value)
    if n is not None and len(items) != n:
        raise EditError(
            f"{name} holds {len(items)} entries for {n} edits; give one per prompt, in their order."
        )
    return items


def _several(name: str, value: Any) -> list[Any]:
    """One entry of a nested list: a text, a list of texts, or nothing."""
    if value is None:
        return []
    if not isinstance(value, (str, Prompt, Sequence)):
        raise EditError(f"{name}: {value!r} must be a text or a list, not {type(value).__name__}.")
    return [value] if isinstance(value, (str, Prompt)) else list(value)


def _probes(group: str, given: Mapping[str, Any] | None, n: int) -> list[list[Probe]]:
    found: list[list[Probe]] = [[] for _ in range(n)]
    if given is None:
        return found
    if not isinstance(given, Mapping):
        raise EditError(
            f"{group}_inputs must map a name to {{'prompt': [...], 'ground_truth': [...]}}, not "
            f"{type(given).__name__}."
        )
    for name, block in given.items():
        where = f"{group}_inputs[{name!r}]"
        if not isinstance(block, Mapping) or not {"prompt", "ground_truth"} <= set(block):
            raise EditError(f"{where} must hold 'prompt' and 'ground_truth'.")
        prompts = _list(f"{where}['prompt']", block["prompt"], n)
        answers = _list(f"{where}['ground_truth']", block["ground_truth"], n)
        for i, (asked, told) in enumerate(zip(prompts, answers, strict=True)):
            own, truth = _several(where, asked), _several(where, told)
            if len(own) != len(truth):
                raise EditError(f"{where}, edit {i}: {len(own)} prompts but {len(truth)} answers.")
            found[i] += [
                Probe(prompt, (answer,), f"{group}/{name}")
                for prompt, answer in zip(own, truth, strict=True)
            ]
    return found


def make_cases(
    prompts: Texts,
    target_new: Texts,
    ground_truth: Texts | None = None,
    subject: Texts | None = None,
    rephrase_prompts: Nested | None = None,
    locality_inputs: Mapping[str, Any] | None = None,
    portability_inputs: Mapping[str, Any] | None = None,
) -> list[Case]:
    """One case per prompt; every list must have one entry per prompt (an entry may be a list).

    Raises:
        EditError: lengths that do not match, wrong types, an edit that cannot be carried out.
    """
    asked = _list("prompts", prompts)
    n = len(asked)
    if not n:
        raise EditError("There is nothing to edit: prompts is empty.")
    targets = _list("target_new", target_new, n)
    truths = _list("ground_truth", ground_truth, n)
    subjects = _list("subject", subject, n)
    rephrases = _list("rephrase_prompts", rephrase_prompts, n)
    locality = _probes("locality", locality_inputs, n)
    portability = _probes("portability", portability_inputs, n)
    cases = []
    for i in range(n):
        edit = Edit(asked[i], targets[i], subjects[i] or None, truths[i] or None)
        probes = [
            Probe(text, (edit.target,), "rephrase")
            for text in _several("rephrase_prompts", rephrases[i])
        ]
        cases.append(Case(str(i), edit, (*probes, *locality[i], *portability[i])))
    return cases


def cases_of(requests: Sequence[Mapping[str, Any]]) -> list[Case]:
    """One case per record, with the fields of a file of edits.

    Raises:
        EditError: no records, or one that cannot be carried out; says which.
    """
    if isinstance(requests, (str, Mapping)) or not isinstance(requests, Sequence) or not requests:
        raise EditError("requests must be a list of records, one per edit, and not empty.")
    cases = []
    for i, record in enumerate(requests):
        try:
            cases.append(case_of(Fields(record), i))
        except DataError as error:
            raise EditError(f"requests[{i}]: {error}") from None
    return cases
