"""``BaseEditor``: edit a model, measure what changed, keep it or undo it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel

from easyeditor.editors.apply_method import check_request, give_corpus, make_patch
from easyeditor.editors.metric_recorder import MetricDict as MetricDict
from easyeditor.editors.metric_recorder import MetricRecorder
from easyeditor.editors.requests import Nested, Texts, cases_of, make_cases
from easyeditor.edits import Case
from easyeditor.errors import EditError, HyperParamsError
from easyeditor.evaluate.query import Measures
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.base import Method
from easyeditor.patches.copies import edited_copy
from easyeditor.patches.patch import Patch, merge
from easyeditor.patches.stack import applied, collapse, stack_of
from easyeditor.progress import bar

log = logging.getLogger(__name__)
When = Literal["each", "end", "both"]


class EditResult(NamedTuple):
    """What an edit gives back; unpacks as ``metrics, edited_model, patch``.

    Attributes:
        metrics: one dict per edit: ``case_id, requested_rewrite, time, pre, post``.
        edited_model: always a model that holds every requested edit.
        patch: what was changed; save it, apply it elsewhere, or give it to ``editor.undo``.
    """

    metrics: list[dict[str, Any]]
    edited_model: PreTrainedModel
    patch: Patch


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
        return cls(load_for(hparams), hparams)

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
    def applied(self) -> list[Patch]:
        """The patches the model carries now, oldest first."""
        return [patch for patch in stack_of(self.model).patches if isinstance(patch, Patch)]

    def undo(self, patch: Patch) -> None:
        """Take back an applied patch, whatever came after it; the other edits stay, bit for bit.

        Raises:
            PatchStateError: it is not applied.
        """
        patch.revert(self.model)

    def edit(
        self,
        prompts: Texts | None = None,
        target_new: Texts | None = None,
        ground_truth: Texts | None = None,
        rephrase_prompts: Nested | None = None,
        locality_inputs: Mapping[str, Any] | None = None,
        portability_inputs: Mapping[str, Any] | None = None,
        keep_original_weight: bool = False,
        verbose: bool = True,
        *,
        subject: Texts | None = None,
        requests: Sequence[Mapping[str, Any]] | None = None,
        evaluate_when: When = "each",
        measures: Measures | None = None,
        train_ds: Iterable[Case] | None = None,
    ) -> EditResult:
        """Make each prompt continue with its target, one edit after the other, and measure.

        What comes back always holds every requested edit.

        Args:
            prompts: one text or a list.
            target_new: the new answers, one per prompt.
            ground_truth: the old answers, where known; several measures compare with them.
            rephrase_prompts: other wordings; an entry may be a list.
            locality_inputs: ``{name: {"prompt": [...], "ground_truth": [...]}}``: what must not
                change; any number of names; an entry may be a list.
            portability_inputs: the same for what should follow from the edit.
            keep_original_weight: True leaves the caller's model untouched, measures each edit
                alone, and returns a copy that shares all unedited tensors. False edits the
                caller's model; edits accumulate.
            verbose: log each edit's scores.
            subject: what each fact is about; needed by locate-and-edit methods.
            requests: instead of all the lists: one record per edit, with the fields of a file of
                edits (``prompt, target_new, subject, ground_truth, rephrase_prompts, locality,
                portability``).
            evaluate_when: when a sequence is measured: after ``"each"`` edit, at the ``"end"``, or
                ``"both"`` (then ``post`` is after each, ``final`` at the end:
                :func:`easyeditor.evaluate.aggregate.retention` compares them).
            measures: what is asked beside the teacher-forced scores: free answers, long
                continuations, perplexity.
            train_ds: other edits to take demonstrations from, for methods that show some.

        Raises:
            EditError: what was asked cannot be carried out; nothing was changed.
        """
        cases = _requested(
            requests,
            prompts=prompts,
            target_new=target_new,
            ground_truth=ground_truth,
            subject=subject,
            rephrase_prompts=rephrase_prompts,
            locality_inputs=locality_inputs,
            portability_inputs=portability_inputs,
        )
        return self.edit_cases(
            cases,
            keep_original_weight=keep_original_weight,
            verbose=verbose,
            evaluate_when=evaluate_when,
            measures=measures,
            train_ds=train_ds,
        )

    def batch_edit(
        self,
        prompts: Texts | None = None,
        target_new: Texts | None = None,
        ground_truth: Texts | None = None,
        rephrase_prompts: Nested | None = None,
        locality_inputs: Mapping[str, Any] | None = None,
        portability_inputs: Mapping[str, Any] | None = None,
        keep_original_weight: bool = False,
        verbose: bool = True,
        *,
        subject: Texts | None = None,
        requests: Sequence[Mapping[str, Any]] | None = None,
        evaluate_when: When = "end",
        measures: Measures | None = None,
        train_ds: Iterable[Case] | None = None,
    ) -> EditResult:
        """:meth:`edit` for methods that take several edits: ``hparams.batch_size`` at a time.

        Raises:
            EditError: the method makes one edit at a time, or see :meth:`edit`.
        """
        if self.method.max_batch == 1:
            raise EditError(f"{self.method.name} makes one edit at a time: use edit().")
        cases = _requested(
            requests,
            prompts=prompts,
            target_new=target_new,
            ground_truth=ground_truth,
            subject=subject,
            rephrase_prompts=rephrase_prompts,
            locality_inputs=locality_inputs,
            portability_inputs=portability_inputs,
        )
        return self.edit_cases(
            cases,
            keep_original_weight=keep_original_weight,
            verbose=verbose,
            evaluate_when=evaluate_when,
            measures=measures,
            train_ds=train_ds,
            batch=True,
        )

    def edit_dataset(
        self,
        ds: Iterable[Case],
        keep_original_weight: bool = False,
        verbose: bool = True,
        *,
        evaluate_when: When = "each",
        measures: Measures | None = None,
        train_ds: Iterable[Case] | None = None,
        batch: bool = False,
    ) -> EditResult:
        """:meth:`edit` for a dataset such as ``ZsreDataset(path, size=10)``; see there.

        Raises:
            DataError: a bad record, before anything is edited.
        """
        return self.edit_cases(
            list(ds),
            keep_original_weight=keep_original_weight,
            verbose=verbose,
            evaluate_when=evaluate_when,
            measures=measures,
            train_ds=train_ds,
            batch=batch,
        )

    def edit_cases(
        self,
        cases: Sequence[Case],
        *,
        keep_original_weight: bool = False,
        verbose: bool = True,
        evaluate_when: When = "each",
        measures: Measures | None = None,
        train_ds: Iterable[Case] | None = None,
        batch: bool = False,
    ) -> EditResult:
        """:meth:`edit` for ready-made cases; ``batch`` as in :meth:`batch_edit`."""
        if evaluate_when not in {"each", "end", "both"}:
            raise EditError(f"evaluate_when={evaluate_when!r}: use 'each', 'end' or 'both'.")
        check_request(self.method, cases)
        if train_ds is not None:
            give_corpus(self.method, train_ds)
        size = int(getattr(self.hparams, "batch_size", 1)) if batch else 1
        sheet = MetricRecorder(self.lm, cases, measures or Measures())
        patches: list[Patch] = []
        try:
            with bar(len(cases), self.method.name, "edit") as progress:
                for start in range(0, len(cases), size):
                    group = cases[start : start + size]
                    began = time.perf_counter()
                    patch = make_patch(self.method, self.lm, [e for c in group for e in c.edits])
                    spent = time.perf_counter() - began
                    with self._with(patch, patches, keep_original_weight):
                        if evaluate_when != "end":
                            sheet.fill("post", self.lm, group)
                    progress.update(len(group))
                    for case in group:
                        sheet[case]["time"] = spent / len(group)
                        if verbose and evaluate_when != "end":
                            log.info("%s", sheet[case])
            edited, whole = self._finish(patches, keep_original_weight)
            if evaluate_when != "each":
                final = LM(edited, self.tokenizer, chat_template=self.lm.text.chat_template)
                sheet.fill("post" if evaluate_when == "end" else "final", final, cases)
        except BaseException:
            for patch in patches:  # all or nothing: a half-made sequence is taken back
                if any(patch is applied for applied in self.applied):
                    patch.revert(self.model)
            raise
        return EditResult(list(sheet.metrics), edited, whole)

    @contextmanager
    def _with(self, patch: Patch, patches: list[Patch], keep: bool) -> Iterator[None]:
        """The model carries the patch inside; after, only if edits accumulate."""
        if keep:
            with applied(self.model, patch):
                yield
            patches.append(patch)
        else:
            patch.apply(self.model, force=True)
            patches.append(patch)
            yield

    def _finish(self, patches: list[Patch], keep: bool) -> tuple[PreTrainedModel, Patch]:
        """The model that holds every edit, and the one patch that stands for all of them."""
        whole = merge(patches)
        if keep:
            return edited_copy(self.model, whole), whole
        collapse(self.model, patches, whole)
        patches[:] = [whole]
        return self.model, whole


def load_for(hparams: HyperParams) -> LM:
    """The model that the hyper-parameters name, loaded as they say.

    Raises:
        ModelLoadError: it cannot be found or read.
    """
    return load(
        hparams.model_name,
        device=hparams.device,
        dtype="float16" if hparams.fp16 else hparams.dtype,
        model_parallel=hparams.model_parallel,
        chat_template=hparams.chat_template,
        quantization=hparams.quantization,
    )


def _requested(requests: Sequence[Mapping[str, Any]] | None, **lists: Any) -> list[Case]:
    if requests is None:
        for name in ("prompts", "target_new"):
            if lists[name] is None:
                raise EditError(f"There is nothing to edit: give {name} (or requests=[...]).")
        return make_cases(**lists)
    given = [name for name, value in lists.items() if value is not None]
    if given:
        raise EditError(f"Give requests, or lists, not both ({', '.join(given)} given, too).")
    return cases_of(requests)


def _check(hparams: object) -> None:
    if not isinstance(hparams, HyperParams):
        raise HyperParamsError(
            f"hparams must be hyper-parameters, e.g. of ...HyperParams.from_hparams(path), not "
            f"{type(hparams).__name__} ({hparams!r})."
        )
