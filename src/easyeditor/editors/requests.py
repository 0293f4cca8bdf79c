"""The arguments of ``editor.edit`` → cases, checked before any work starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from easyeditor.data.edits_file import case_of
from easyeditor.data.fields import Fields
from easyeditor.edits import Case, Edit, Probe, Prompt
from easyeditor.errors import DataError, EditError
from easyeditor.evaluate.query import Measures

Texts = str | Prompt | Sequence[str | Prompt]
Nested = str | Prompt | Sequence[str | Prompt | Sequence[str | Prompt]]


def _plain(value: Any) -> Any:
    """Columns of NumPy, pandas and torch as lists; missing entries of a column as None."""
    listed = getattr(value, "tolist", None) or getattr(value, "to_list", None)
    if listed is not None and not isinstance(value, (str, Prompt)):
        value = listed()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return None if _missing(value) else value


def _missing(value: Any) -> bool:
    """Whether a value is an empty cell of a column: NaN, ``pandas.NA``, ``NaT``."""
    try:
        return bool(value != value)
    except TypeError:  # pandas.NA is neither equal to itself nor not
        return True


def listed_texts(name: str, value: Any, n: int | None = None) -> list[Any]:
    """A column of a request as a list, one entry per edit; an inner column as a list, too.

    Raises:
        EditError: no text and no list, or not ``n`` entries.
    """
    value = _plain(value)
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


def _accepted(name: str, value: Any) -> tuple[Any, ...]:
    """Accepted answers: one text, or a list of them, the scored one first."""
    answers = tuple(_several(name, value))
    if not answers:
        raise EditError(f"{name}: an answer is missing; give a text, or a list of accepted ones.")
    return answers


def _truth(value: Any) -> str | None:
    """The old answer: of a list of accepted ones the first."""
    if isinstance(value, list):
        value = value[0] if value else None
    return value or None


def _probes(group: str, given: Mapping[str, Any] | None, n: int) -> list[list[Probe]]:
    result: list[list[Probe]] = [[] for _ in range(n)]
    if given is None:
        return result
    if not isinstance(given, Mapping):
        raise EditError(
            f"{group}_inputs must map a name to {{'prompt': [...], 'ground_truth': [...]}}, not "
            f"{type(given).__name__}."
        )
    for name, block in given.items():
        where = f"{group}_inputs[{name!r}]"
        if not isinstance(block, Mapping) or not {"prompt", "ground_truth"} <= set(block):
            raise EditError(f"{where} must hold 'prompt' and 'ground_truth'.")
        prompts = listed_texts(f"{where}['prompt']", block["prompt"], n)
        answers = listed_texts(f"{where}['ground_truth']", block["ground_truth"], n)
        for i, (prompt, reply) in enumerate(zip(prompts, answers, strict=True)):
            edit_prompts, truth = _several(where, prompt), _several(where, reply)
            if len(edit_prompts) != len(truth):
                raise EditError(
                    f"{where}, edit {i}: {len(edit_prompts)} prompts but {len(truth)} answers."
                )
            result[i] += [
                Probe(prompt, _accepted(where, answer), f"{group}/{name}")
                for prompt, answer in zip(edit_prompts, truth, strict=True)
            ]
    return result


def make_cases(
    prompts: Texts,
    target_new: Texts,
    ground_truth: Texts | None = None,
    subject: Texts | None = None,
    rephrase_prompts: Nested | None = None,
    locality_inputs: Mapping[str, Any] | None = None,
    portability_inputs: Mapping[str, Any] | None = None,
    rejected: Texts | None = None,
) -> list[Case]:
    """One case per prompt; every list must have one entry per prompt (an entry may be a list).

    Columns of NumPy arrays and pandas data frames count as lists. An entry of ``ground_truth``
    that is a list holds accepted answers; for a single prompt that is a text, so does the whole
    list.

    Raises:
        EditError: lengths that do not match, wrong types, an edit that cannot be carried out.
    """
    prompt_list = listed_texts("prompts", prompts)
    n = len(prompt_list)
    if not n:
        raise EditError("There is nothing to edit: prompts is empty.")
    targets = listed_texts("target_new", target_new, n)
    truths = _plain(ground_truth)
    if isinstance(prompts, (str, Prompt)) and isinstance(truths, list):
        truths = truths[:1]
    truths = listed_texts("ground_truth", truths, n)
    negatives = listed_texts("target_neg", rejected, n)
    subjects = listed_texts("subject", subject, n)
    rephrases = listed_texts("rephrase_prompts", rephrase_prompts, n)
    locality = _probes("locality", locality_inputs, n)
    portability = _probes("portability", portability_inputs, n)
    cases = []
    for i in range(n):
        missing = [
            k for k, v in (("prompts", prompt_list[i]), ("target_new", targets[i])) if v is None
        ]
        if missing:
            raise EditError(f"{missing[0]}, edit {i}: the entry is missing; give a text.")
        edit = Edit(
            prompt_list[i], targets[i], subjects[i] or None, _truth(truths[i]), negatives[i] or None
        )
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


def list_of_cases(cases: object) -> list[Case]:
    """A dataset, or any cases, as a list.

    Raises:
        EditError: something else, e.g. the path of a file, or records.
    """
    rows: list[Any] = [cases]
    if isinstance(cases, Iterable) and not isinstance(cases, str):
        rows = list(cases)
    wrong = next((row for row in rows if not isinstance(row, Case)), None)
    if wrong is not None:
        raise EditError(
            f"A dataset is edited by its Cases, not by {type(wrong).__name__} "
            f"({str(wrong)[:60]!r}): open_dataset(path) reads a file, edit(requests=[...]) takes "
            "records."
        )
    return rows


RENAMED = {
    "rephrased_prompts": "rephrase_prompts",
    "rephrase_prompt": "rephrase_prompts",
    "keep_original_weights": "keep_original_weight",
    "target": "target_new",
    "targets": "target_new",
    "subjects": "subject",
    "locality_prompts": "locality_inputs",
    "portability_prompts": "portability_inputs",
    "loc_prompts": "locality_inputs (what must not change; no method here trains on other prompts)",
    "eval_metric": "measures",
    "metric_kwargs": "measures",
    "pre_file": "nothing: the scores before an edit are always measured",
    "pre_edit": "nothing: the scores before an edit are always measured",
    "summary_metrics": "nothing: easyeditor.evaluate.aggregate.averages(metrics) sums results up",
}
"""Arguments of other versions that do not exist here, and what takes their place."""
RENAMED_CALLS = {
    "generate_edit": "edit(..., measures=Measures(answer_tokens=...)), which also scores free text",
    "normal_edit": "edit(...)",
    "edit_requests": "edit(requests=[...])",
    "batch_edit_requests": "batch_edit(requests=[...])",
    "edit_evaluation": "edit(...), whose metrics hold the evaluation",
    "tok": "tokenizer",
    "alg_name": "hparams.alg_name",
    "model_name": "hparams.model_name",
    "apply_algo": "method",
}
"""The same of methods and attributes of an editor."""


def translated(options: Mapping[str, Any], keep_original_weight: bool = False) -> dict[str, Any]:
    """Arguments of other versions of EasyEdit as those of this one.

    ``sequential_edit=True`` measures at the end of a sequence, ``False`` each edit alone;
    ``test_generation=True`` measures the fluency of continuations of 100 tokens; ``target_neg`` is
    what shall no longer be said.

    Raises:
        EditError: an argument that has another name now, or contradicts another one.
    """
    changed = dict(options)
    for name, now in RENAMED.items():
        if name in changed:
            raise EditError(f"There is no argument {name!r} any more: it is {now}.")
    changed["keep_original_weight"] = keep_original_weight
    sequential = changed.pop("sequential_edit", None)
    if sequential is not None:
        if sequential and keep_original_weight:
            raise EditError(
                "sequential_edit=True lets edits accumulate on the model, and "
                "keep_original_weight=True leaves the model as it is; give one of them."
            )
        if not sequential:
            changed["keep_original_weight"] = True
        elif changed.setdefault("evaluate_when", "end") != "end":
            raise EditError(
                f"sequential_edit=True is evaluate_when='end', and evaluate_when="
                f"{changed['evaluate_when']!r} was given, too; give one of them."
            )
    if changed.pop("test_generation", False):
        if changed.get("measures") is not None:
            raise EditError(
                "Give measures or test_generation, not both; test_generation is "
                "measures=Measures(continuation_tokens=100)."
            )
        changed["measures"] = Measures(continuation_tokens=100)
    return changed
