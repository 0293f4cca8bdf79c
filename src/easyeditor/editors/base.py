"""``BaseEditor``: edit a model, measure what changed, keep it or undo it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel

from easyeditor.associative.keys import subject_of
from easyeditor.editors.requests import Nested, Texts, make_cases
from easyeditor.edits import Case, check_consistent
from easyeditor.errors import EditError, HyperParamsError
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.observe import Observation, observe
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.base import Method
from easyeditor.patches.copies import edited_copy
from easyeditor.patches.stack import carrying, exchange, stack_of
from easyeditor.patches.weight import WeightPatch, merged
from easyeditor.progress import bar

log = logging.getLogger(__name__)
When = Literal["each", "end", "both"]


class MetricDict(dict[str, Any]):
    """A metric dict; the old spelling ``portablility`` reads ``portability``."""

    def __missing__(self, key: str) -> Any:
        if key == "portablility":
            return self["portability"]
        raise KeyError(key)


class EditResult(NamedTuple):
    """What an edit gives back; unpacks as ``metrics, edited_model, patch``.

    Attributes:
        metrics: one dict per edit: ``case_id, requested_rewrite, time, pre, post``.
        edited_model: always a model that holds every requested edit.
        patch: what was changed; save it, apply it elsewhere, or give it to ``editor.undo``.
    """

    metrics: list[dict[str, Any]]
    edited_model: PreTrainedModel
    patch: WeightPatch


class BaseEditor:
    """A model with a method to edit it.

    Build one with :meth:`from_hparams` (loads ``hparams.model_name``) or :meth:`from_pretrained`
    (a model already in memory).

    Attributes:
        lm: the model with its tokenizer.
        method: computes the patches; keeps statistics between edits.
    """

    def __init__(self, lm: LM, hparams: HyperParams) -> None:
        _check(hparams)
        lm.check_claims(hparams.family_claims)
        self.lm = lm
        self.hparams = hparams
        self.method: Method = METHODS.get(hparams.alg_name)(hparams)

    @classmethod
    def from_hparams(cls, hparams: HyperParams) -> BaseEditor:
        """Load the model the hyper-parameters name.

        Raises:
            ModelLoadError: it cannot be found or read.
        """
        _check(hparams)
        lm = load(
            hparams.model_name,
            device=hparams.device,
            dtype="float16" if hparams.fp16 else hparams.dtype,
            model_parallel=hparams.model_parallel,
            chat_template=hparams.chat_template,
        )
        return cls(lm, hparams)

    @classmethod
    def from_pretrained(
        cls, model: PreTrainedModel, tokenizer: Any, hparams: HyperParams
    ) -> BaseEditor:
        """Edit a model that is in memory; it is used as it is, on its own device."""
        _check(hparams)
        return cls(LM(model, tokenizer, chat_template=hparams.chat_template), hparams)

    @property
    def model(self) -> PreTrainedModel:
        """The model being edited: the caller's own object."""
        return self.lm.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.lm.tokenizer

    @property
    def applied(self) -> list[WeightPatch]:
        """The patches the model carries now, oldest first."""
        return [patch for patch in stack_of(self.model).patches if isinstance(patch, WeightPatch)]

    def undo(self, patch: WeightPatch) -> None:
        """Take back an applied patch, whatever came after it; the other edits stay, bit for bit.

        Raises:
            PatchStateError: it is not applied.
        """
        patch.revert(self.model)

    def edit(
        self,
        prompts: Texts,
        target_new: Texts,
        ground_truth: Texts | None = None,
        rephrase_prompts: Nested | None = None,
        locality_inputs: Mapping[str, Any] | None = None,
        portability_inputs: Mapping[str, Any] | None = None,
        keep_original_weight: bool = False,
        verbose: bool = True,
        *,
        subject: Texts | None = None,
        evaluate_when: When = "each",
    ) -> EditResult:
        """Make each prompt continue with its target, one edit after the other, and measure.

        What comes back always holds every requested edit.

        Args:
            prompts: one text or a list.
            target_new: the new answers, one per prompt.
            ground_truth: the old answers, where known; several measures compare with them.
            rephrase_prompts: other wordings; an entry may be a list.
            locality_inputs: ``{name: {"prompt": [...], "ground_truth": [...]}}``: what must not
                change.
            portability_inputs: the same for what should follow from the edit.
            keep_original_weight: True leaves the caller's model untouched, measures each edit
                alone, and returns a
                copy that shares all unedited tensors. False edits the caller's model; edits
                accumulate.
            verbose: log each edit's scores.
            subject: what each fact is about; needed by locate-and-edit methods.
            evaluate_when: when a sequence is measured: after ``"each"`` edit, at the ``"end"``, or
                ``"both"`` (then ``post`` is after each, ``final`` at the end).

        Raises:
            EditError: what was asked cannot be carried out; nothing was changed.
        """
        cases = make_cases(
            prompts,
            target_new,
            ground_truth,
            subject,
            rephrase_prompts,
            locality_inputs,
            portability_inputs,
        )
        return self._run(
            cases, [[case] for case in cases], keep_original_weight, verbose, evaluate_when
        )

    def batch_edit(
        self,
        prompts: Texts,
        target_new: Texts,
        ground_truth: Texts | None = None,
        rephrase_prompts: Nested | None = None,
        locality_inputs: Mapping[str, Any] | None = None,
        portability_inputs: Mapping[str, Any] | None = None,
        keep_original_weight: bool = False,
        verbose: bool = True,
        *,
        subject: Texts | None = None,
        evaluate_when: When = "end",
    ) -> EditResult:
        """:meth:`edit` for methods that take several edits: ``hparams.batch_size`` at a time.

        Raises:
            EditError: the method makes one edit at a time, or see :meth:`edit`.
        """
        if self.method.max_batch == 1:
            raise EditError(f"{self.method.name} makes one edit at a time: use edit().")
        cases = make_cases(
            prompts,
            target_new,
            ground_truth,
            subject,
            rephrase_prompts,
            locality_inputs,
            portability_inputs,
        )
        return self.edit_cases(
            cases,
            keep_original_weight=keep_original_weight,
            verbose=verbose,
            evaluate_when=evaluate_when,
            batch=True,
        )

    def edit_cases(
        self,
        cases: Sequence[Case],
        *,
        keep_original_weight: bool = False,
        verbose: bool = True,
        evaluate_when: When = "each",
        batch: bool = False,
    ) -> EditResult:
        """:meth:`edit` for ready-made cases; ``batch`` as in :meth:`batch_edit`."""
        size = int(getattr(self.hparams, "batch_size", 1)) if batch else 1
        groups = [list(cases[i : i + size]) for i in range(0, len(cases), size)]
        return self._run(cases, groups, keep_original_weight, verbose, evaluate_when)

    def _run(
        self,
        cases: Sequence[Case],
        groups: Sequence[Sequence[Case]],
        keep: bool,
        verbose: bool,
        when: When,
    ) -> EditResult:
        if when not in {"each", "end", "both"}:
            raise EditError(f"evaluate_when={when!r}: use 'each', 'end' or 'both'.")
        check_consistent(case.edit for case in cases)
        if self.method.needs_subject:
            for case in cases:
                subject_of(case.edit)
        before = observe(self.lm, cases)
        metrics = [
            MetricDict(
                case_id=case.id,
                requested_rewrite=_request(case),
                time=0.0,
                pre=MetricDict(summarise(case, before, before)),
            )
            for case in cases
        ]
        number = {id(case): i for i, case in enumerate(cases)}
        patches: list[WeightPatch] = []
        progress = bar(len(cases), self.method.name, "edit")
        try:
            for group in groups:
                started = time.perf_counter()
                patch = self.method.edit(self.lm, [case.edit for case in group])
                spent = time.perf_counter() - started
                if keep:
                    with carrying(self.model, patch):
                        self._measure("post", group, metrics, number, before, when != "end")
                else:
                    patch.apply(self.model, force=True)
                patches.append(patch)
                if not keep:
                    self._measure("post", group, metrics, number, before, when != "end")
                progress.update(len(group))
                for case in group:
                    metrics[number[id(case)]]["time"] = spent / len(group)
                    if verbose and "post" in metrics[number[id(case)]]:
                        log.info("%s", metrics[number[id(case)]])
            whole = merged(patches)
            if keep:
                edited = edited_copy(self.model, whole)
                final = LM(edited, self.tokenizer, chat_template=self.lm.text.chat_template)
            else:
                exchange(self.model, patches, whole)
                patches = [whole]
                edited, final = self.model, self.lm
            if when != "each":
                key = "post" if when == "end" else "final"
                after = observe(final, cases)
                for case in cases:
                    metrics[number[id(case)]][key] = MetricDict(summarise(case, before, after))
        except BaseException:
            if not keep:  # all or nothing: a half-made sequence is taken back
                for patch in patches:
                    if any(patch is applied for applied in self.applied):
                        patch.revert(self.model)
            raise
        finally:
            progress.close()
        return EditResult(list(metrics), edited, whole)

    def _measure(
        self,
        key: str,
        group: Sequence[Case],
        metrics: list[MetricDict],
        number: Mapping[int, int],
        before: Observation,
        wanted: bool,
    ) -> None:
        if not wanted:
            return
        after = observe(self.lm, group)
        for case in group:
            metrics[number[id(case)]][key] = MetricDict(summarise(case, before, after))


def _check(hparams: object) -> None:
    if not isinstance(hparams, HyperParams):
        raise HyperParamsError(
            f"hparams must be hyper-parameters, e.g. of ...HyperParams.from_hparams(path), not "
            f"{type(hparams).__name__} ({hparams!r})."
        )


def _request(case: Case) -> dict[str, Any]:
    edit = case.edit
    return {
        "prompt": edit.prompt,
        "target_new": edit.target,
        "ground_truth": edit.ground_truth,
        "subject": edit.subject,
        "probes": [
            {"kind": p.kind, "prompt": p.prompt, "answers": list(p.answers)} for p in case.probes
        ],
    }
