"""``SafetyEditor``: make a model decline what it should not do, and measure it SafeEdit's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from typing_extensions import Unpack

from easyeditor.data.safety import (
    DEFENSE,
    GENERALIZATION,
    SUFFIX,
    WITH_SUFFIX,
    safety_case,
    with_suffix,
)
from easyeditor.editors.base import BaseEditor
from easyeditor.editors.behaviour import measures_with, refuse_requests
from easyeditor.editors.options import RequestOptions, classic_options, how_to_edit
from easyeditor.editors.requests import (
    Nested,
    Texts,
    list_of_cases,
    listed_texts,
    make_cases,
)
from easyeditor.editors.result import EditResult
from easyeditor.edits import Case, Edit, Prompt, as_prompt
from easyeditor.errors import EditError
from easyeditor.evaluate.aggregate import averages
from easyeditor.evaluate.behaviour import BehaviourJudge

UNEDITED, SUFFIX_ONLY = "unedited", "suffix_only"
EDITED, WITHOUT_SUFFIX = "edited", "edited_without_suffix"
ROWS = (UNEDITED, SUFFIX_ONLY, EDITED, WITHOUT_SUFFIX)
"""Of a table of results; the second is what the suffix does without any edit."""
TOKENS = 600
"""Of an answer, as published; the judge reads it whole."""
HARMLESS_BLOCK = "general knowledge constraint"


class SafetyEditor(BaseEditor):
    """A model with a method, edited and measured on attack prompts (SafeEdit, arXiv 2403.14472).

    Every metric dict has, beside the usual keys, the texts under ``pre`` (unedited, bare prompt),
    ``suffix_only`` (unedited, with the suffix) and ``post`` (edited, with the suffix): ``DS``,
    ``DG_onlyQ``, ``DG_otherA``, ``DG_otherQ``, ``DG_otherAQ``; and the scores of all four rows
    under ``safety``. :meth:`table` averages them.

    The trap: without a judge an answer counts as safe where it declines in a usual English wording
    (:func:`~easyeditor.evaluate.behaviour.refuses`), and is unsafe otherwise.
    """

    @property
    def suffix(self) -> str:
        """What stands behind prompts: the method's own suffix, else the usual one."""
        return str(getattr(self.hparams, "suffix_system_prompt", SUFFIX))

    def edit(  # type: ignore[override]  # the classic order of arguments
        self,
        editing_method: str | None = None,
        prompts: Texts | None = None,
        prompts_with_systemPrompt: Texts | None = None,
        target_new: Texts | None = None,
        ground_truth: Texts | None = None,
        locality_inputs: Mapping[str, Any] | None = None,
        locality_inputs_with_systemPrompt: Mapping[str, Any] | None = None,
        general_prompt: Nested | None = None,
        general_prompt_with_systemPrompt: Nested | None = None,
        keep_original_weight: bool = False,
        verbose: bool = True,
        *,
        judge: BehaviourJudge | None = None,
        case_id: Sequence[Any] | Any = None,
        **options: Unpack[RequestOptions],
    ) -> EditResult:
        """Make each attack prompt continue with its safe response, and measure.

        Args:
            editing_method: the name of the settings' method, or None.
            prompts: attack prompts.
            prompts_with_systemPrompt: the same with the suffix behind them; only checked.
            target_new: safe responses.
            ground_truth: unsafe responses, which shall no longer be given.
            locality_inputs: ``{"general knowledge constraint": {"prompt", "ground_truth"}}``:
                questions that should be answered as before; any names.
            locality_inputs_with_systemPrompt: the same with the suffix; not needed.
            general_prompt: per edit four other prompts: only the question, another attack prompt,
                another question, both others.
            general_prompt_with_systemPrompt: the same with the suffix; not needed.
            keep_original_weight: as of :meth:`BaseEditor.edit`.
            verbose: log each edit's scores.
            judge: says what is safe (:mod:`easyeditor.evaluate.behaviour`).
            case_id: one per edit.
            options: as of :meth:`BaseEditor.edit`.

        Raises:
            EditError: what was asked cannot be carried out; nothing was changed.
            JudgeError: the judge is not there or gives no verdicts.
        """
        if editing_method is not None and editing_method != self.hparams.alg_name:
            raise EditError(
                f"editing_method={editing_method!r}, but this editor's settings are of "
                f"{self.hparams.alg_name}. Make the editor with the settings of {editing_method}."
            )
        missing = [n for n, v in (("prompts", prompts), ("target_new", target_new)) if v is None]
        if missing:
            raise EditError(f"There is nothing to edit: give {' and '.join(missing)}.")
        named, keep = classic_options(options, keep_original_weight)
        refuse_requests(named, "edit_dataset(SafetyDataset(path))")
        plain = make_cases(
            cast(Texts, prompts),
            cast(Texts, target_new),
            ground_truth,
            subject=named.pop("subject", None),
            rejected=named.pop("target_neg", None),
            locality_inputs=locality_inputs,
        )
        self._check_suffix(plain, prompts_with_systemPrompt)
        others = _four_each(general_prompt, len(plain))
        ids = _ids(case_id, len(plain))
        cases = [
            self._case(name, case, four)
            for name, case, four in zip(ids, plain, others, strict=True)
        ]
        return self._measured(cases, judge, **how_to_edit(keep, verbose, named))

    def edit_dataset(
        self,
        ds: Any,
        keep_original_weight: bool = False,
        verbose: bool = True,
        *,
        judge: BehaviourJudge | None = None,
        **options: Any,
    ) -> EditResult:
        """:meth:`edit` for a ``SafetyDataset``; give it ``config=hparams`` for its suffix."""
        named, keep = classic_options(cast(RequestOptions, options), keep_original_weight)
        return self._measured(list_of_cases(ds), judge, **how_to_edit(keep, verbose, named))

    def table(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """Mean scores by row: unedited, suffix only, edited, edited without the suffix."""
        return {row: averages([metric["safety"][row] for metric in metrics]) for row in ROWS}

    def _measured(
        self, cases: Sequence[Case], judge: BehaviourJudge | None, **options: Any
    ) -> EditResult:
        for case in cases:
            if not any(probe.kind == DEFENSE for probe in case.probes):
                raise EditError(
                    f"The case {case.id!r} has no attack prompt to score. Give a SafetyDataset, or "
                    "edit other cases with BaseEditor."
                )
        options.setdefault("force", True)
        options["measures"] = measures_with(options.get("measures"), judge, self._tokens(cases))
        result = self.edit_cases(cases, **options)
        for case, metric in zip(cases, result.metrics, strict=True):
            after = metric.get("post") or metric["final"]
            tried = any(probe.kind == f"{DEFENSE}{WITH_SUFFIX}" for probe in case.probes)
            behind = WITH_SUFFIX if tried else ""  # with a blank suffix both are the bare prompt
            halves = {UNEDITED: (metric["pre"], ""), SUFFIX_ONLY: (metric["pre"], behind)}
            halves |= {EDITED: (after, behind), WITHOUT_SUFFIX: (after, "")}
            texts = {row: _texts(half, end) for row, (half, end) in halves.items()}
            metric["safety"] = {row: _scores(half, end) for row, (half, end) in halves.items()}
            metric[SUFFIX_ONLY] = texts[SUFFIX_ONLY]
            metric["pre"] |= texts[UNEDITED]
            after |= texts[EDITED]
        return result

    def _tokens(self, cases: Sequence[Case]) -> int:
        """Of a free answer: as the settings say, and no more than the model has room for."""
        tokens = int(getattr(self.hparams, "max_output_length", TOKENS))
        room = self.lm.context_length
        probes = [probe for case in cases for probe in case.probes]
        if room is None or not probes:
            return tokens
        longest = max(len(self.lm.text.row(probe.prompt, "x").ids) for probe in probes)
        return max(1, min(tokens, room - longest))

    def _case(self, name: str, case: Case, others: Sequence[Prompt]) -> Case:
        local = [probe for probe in case.probes if probe.group == "locality"]
        chosen = next((p for p in local if p.name == HARMLESS_BLOCK), local[0] if local else None)
        harmless = None if chosen is None else (chosen.prompt, chosen.answers)
        edit: Edit = case.edit
        if edit.rejected is None:
            edit = replace(edit, rejected=edit.ground_truth)
        kinds = dict(zip(GENERALIZATION, others, strict=False))
        whole = safety_case(name, edit, kinds, harmless, self.suffix)
        more = [probe for probe in local if probe is not chosen]
        return Case(name, edit, (*whole.probes, *more))

    def _check_suffix(self, cases: Sequence[Case], given: Texts | None) -> None:
        if given is None:
            return
        texts = listed_texts("prompts_with_systemPrompt", given, len(cases))
        expected = [with_suffix(case.edit.prompt, self.suffix).text for case in cases]
        for text, wanted in zip(texts, expected, strict=True):
            if as_prompt(text).text.split() != wanted.split():
                raise EditError(
                    f"prompts_with_systemPrompt has {as_prompt(text).text!r:.200}, and with the "
                    f"suffix of these settings it is {wanted!r:.200}. Leave the argument out, or "
                    "set suffix_system_prompt to the suffix you want."
                )


def _texts(half: Mapping[str, Any], end: str) -> dict[str, str]:
    """The answers of one row by their classic names."""
    answers = half.get("answers", {})
    return {
        kind.partition("/")[2]: answers[kind + end]
        for kind in (DEFENSE, *GENERALIZATION)
        if kind + end in answers
    }


def _scores(half: Mapping[str, Any], end: str) -> dict[str, float]:
    """The scores of one row by their plain names."""
    scores = half.get("safety", {})
    return {
        name.removesuffix(end): value
        for name, value in scores.items()
        if (name.endswith(end) if end else "@" not in name)
    }


def _four_each(given: Nested | None, n: int) -> list[list[Prompt]]:
    """The other prompts of every edit; a single edit's may stand without an outer list."""
    if given is None:
        return [[] for _ in range(n)]
    listed = listed_texts("general_prompt", given)
    if n == 1 and all(isinstance(entry, (str, Prompt)) for entry in listed):
        listed = [listed]
    wrong = len(listed) != n or any(
        not isinstance(entry, list) or len(entry) != len(GENERALIZATION) for entry in listed
    )
    if wrong:
        raise EditError(
            f"general_prompt must hold four prompts for each of the {n} edits, as lists: only the "
            "question, another attack prompt, another question, another question and attack prompt."
        )
    return [[as_prompt(text) for text in entry] for entry in listed]


def _ids(given: Any, n: int) -> list[str]:
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if given is None or (n > 1 and len(listed) == 1):
        return [str(i) for i in range(n)]
    if len(listed) != n:
        raise EditError(f"case_id holds {len(listed)} entries for {n} edits; give one per prompt.")
    return [str(name) for name in listed]
