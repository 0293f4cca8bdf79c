"""``BaseEditor``: edit a model, measure what changed, keep it or undo it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel
from typing_extensions import Unpack

from easyeditor.editors.apply_method import check_request
from easyeditor.editors.expanding import expanded_cases
from easyeditor.editors.layer_choice import automatic
from easyeditor.editors.metric_recorder import MetricDict as MetricDict
from easyeditor.editors.metric_recorder import MetricRecorder
from easyeditor.editors.options import (
    EditOptions,
    MeasuringOptions,
    RequestOptions,
    classic_options,
    how_to_edit,
    refuse_ledger_options,
    refuse_unknown,
    requested_cases,
)
from easyeditor.editors.recording import EditRecord, open_record
from easyeditor.editors.requests import RENAMED_CALLS, Nested, Texts, list_of_cases
from easyeditor.editors.result import EditResult as EditResult
from easyeditor.editors.session import EditSession
from easyeditor.editors.state_file import load_state, save_state
from easyeditor.edits import Case
from easyeditor.errors import EditError, HyperParamsError, RenamedCallError
from easyeditor.evaluate.query import Measures
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.loading import load
from easyeditor.lm.locking import lock_of
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.base import Method, State
from easyeditor.patches.copies import edited_copy
from easyeditor.patches.files import load_patch, save_patch
from easyeditor.patches.patch import Patch, merge
from easyeditor.patches.stack import applied_patches
from easyeditor.patches.weight import weight_patch
from easyeditor.progress import bar

log = logging.getLogger(__name__)


class BaseEditor:
    """A model with a method to edit it.

    Build one with :meth:`from_hparams` (loads ``hparams.model_name``) or :meth:`from_pretrained`
    (a model already in memory).

    Attributes:
        lm: the model with its tokenizer.
        hparams: the method's settings; layers that nobody named are those that a sweep chose for
            this model, where there is one (:func:`easyeditor.editors.layer_choice.automatic`).
        session: the sequence of edits, with the method's state.
        ledger: where every edit is written down, one entry per call, and checked against those
            that are active; None without one.

    Args:
        ledger: a ledger's folder, made if there is none; the model gets its active edits at once.

    Raises:
        LedgerError: the ledger is of another model.
    """

    def __init__(
        self, lm: LM, hparams: HyperParams, *, ledger: str | Path | EditRecord | None = None
    ) -> None:
        _check(hparams)
        lm.check_claims(hparams.family_claims)
        hparams = automatic(lm, hparams)
        self.lm = lm
        self.hparams = hparams
        self.session = EditSession(lm, METHODS.get(hparams.alg_name)(hparams))
        self._undo: list[_Undo] = []
        self.ledger = open_record(ledger, self.session, hparams.model)

    def __getattr__(self, name: str) -> Any:
        if name in RENAMED_CALLS:
            raise RenamedCallError(
                f"BaseEditor has no {name} any more: it is {RENAMED_CALLS[name]}."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def method(self) -> Method[Any]:
        """Computes the patches."""
        return self.session.method

    @classmethod
    def from_hparams(
        cls, hparams: HyperParams, *, ledger: str | Path | EditRecord | None = None
    ) -> BaseEditor:
        """Load the model the hyper-parameters name.

        Raises:
            ModelLoadError: it cannot be found or read.
        """
        _check(hparams)
        return cls(load(hparams.model), hparams, ledger=ledger)

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel,
        tokenizer: Any,
        hparams: HyperParams,
        *,
        ledger: str | Path | EditRecord | None = None,
    ) -> BaseEditor:
        """Edit a model that is in memory; it is used as it is, on its own device."""
        _check(hparams)
        lm = LM(model, tokenizer, chat_template=hparams.chat_template)
        return cls(lm, hparams, ledger=ledger)

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
        return [patch for patch in applied_patches(self.model) if isinstance(patch, Patch)]

    def undo(self, patch: Patch) -> None:
        """Take back an applied patch, whatever came after it; the other edits stay, bit for bit.

        What a method keeps per edit goes with the patch. A running state (a mean over all edits)
        is put back only if the patch was the latest edit. With a ledger it is undone there, too.

        Raises:
            PatchStateError: it is not applied.
        """
        if self.ledger is not None:
            self.ledger.undo(self.session, patch)
            return
        patch.revert(self.model)
        if self._undo and self._undo[-1].patch is patch:
            self.session.resume(self._undo[-1].state)
        self._undo = [entry for entry in self._undo if entry.patch is not patch]

    def save(self, patch: Patch, path: str | Path) -> Path:
        """Write ``patch``, and the method's state beside it where it has one; returns its path.

        :meth:`load` goes on from both. A patch without a state is a file like
        :func:`~easyeditor.patches.files.save_patch`'s.

        Raises:
            OSError: the place cannot be written.
        """
        save_state(self.session.state, patch, path)  # first: a patch in its place has its state
        return save_patch(patch, path)

    def load(self, path: str | Path) -> Patch:
        """Apply a saved patch, and go on from the state that lies beside it.

        Raises:
            PatchFormatError: one of the files is missing or damaged, or the state belongs to
                another patch.
            PatchMismatchError: the patch was made for another model.
            EditError: the editor has a ledger, which carries its own patches.
        """
        if self.ledger is not None:
            raise EditError(
                "This editor's model carries the edits of its ledger and no others; make the edit "
                "with it, or load the file with an editor without a ledger."
            )
        patch = load_patch(path)
        state = load_state(self.method.state_class, patch, path)
        before = self.session.state
        patch.apply(self.model)
        self._undo.append(_Undo(patch, before))
        if state is not None:
            self.session.resume(state)
        return patch

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
        **options: Unpack[RequestOptions],
    ) -> EditResult:
        """Make each prompt continue with its target, one edit after the other, and measure.

        What comes back always holds every requested edit. A target that the model gives already
        changes nothing, unless ``force=True``.

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
            options: ``subject`` or ``requests``, and how to measure; see :class:`RequestOptions`.

        Raises:
            EditError: what was asked cannot be carried out; nothing was changed.
        """
        options, keep = classic_options(options, keep_original_weight)
        lists = {
            "prompts": prompts,
            "target_new": target_new,
            "ground_truth": ground_truth,
            "rephrase_prompts": rephrase_prompts,
            "locality_inputs": locality_inputs,
            "portability_inputs": portability_inputs,
        }
        options.setdefault("force", False)
        how = how_to_edit(keep, verbose, options)
        return self.edit_cases(requested_cases(lists, options), **how)

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
        **options: Unpack[RequestOptions],
    ) -> EditResult:
        """:meth:`edit` for methods that take several edits: ``hparams.batch_size`` at a time.

        It is measured at the ``"end"`` unless ``evaluate_when`` says otherwise.

        Raises:
            EditError: the method makes one edit at a time, or see :meth:`edit`.
        """
        if self.method.max_batch == 1:
            raise EditError(f"{self.method.name} makes one edit at a time: use edit().")
        options, keep = classic_options(options, keep_original_weight)
        lists = {
            "prompts": prompts,
            "target_new": target_new,
            "ground_truth": ground_truth,
            "rephrase_prompts": rephrase_prompts,
            "locality_inputs": locality_inputs,
            "portability_inputs": portability_inputs,
        }
        options.setdefault("evaluate_when", "end")
        options.setdefault("force", False)
        how = how_to_edit(keep, verbose, options)
        return self.edit_cases(requested_cases(lists, options), batch=True, **how)

    def edit_dataset(
        self,
        ds: Iterable[Case],
        keep_original_weight: bool = False,
        verbose: bool = True,
        *,
        batch: bool = False,
        **options: Unpack[MeasuringOptions],
    ) -> EditResult:
        """:meth:`edit` for a dataset such as ``ZsreDataset(path, size=10)``; see there.

        What the model says already is edited, too, unless ``force=False``.

        Raises:
            DataError: a bad record, before anything is edited.
        """
        named, keep = classic_options(cast(RequestOptions, options), keep_original_weight)
        how = how_to_edit(keep, verbose, named)
        return self.edit_cases(list_of_cases(ds), batch=batch, **how)

    def edit_cases(
        self, cases: Sequence[Case], *, batch: bool = False, **options: Unpack[EditOptions]
    ) -> EditResult:
        """:meth:`edit_dataset` for ready-made cases; ``batch`` as in :meth:`batch_edit`.

        One thread at a time edits a model; another one waits here.
        """
        with lock_of(self.model):
            cases = expanded_cases(self.lm, list_of_cases(cases), options.get("expand"))
            if self.ledger is None:
                refuse_ledger_options(options)
                return self._edit_cases(cases, batch, options)
            if options.get("keep_original_weight"):
                raise EditError(
                    "keep_original_weight=True makes an edit that is not kept, and a ledger "
                    "records edits that are; use an editor without a ledger to try one."
                )
            check_request(self.method, cases)
            with self.ledger.recording(self.session, cases, options) as keep:
                result = self._edit_cases(cases, batch, options)
                keep(result.patch, result.metrics)
            return result

    def _edit_cases(self, cases: Sequence[Case], batch: bool, options: EditOptions) -> EditResult:
        refuse_unknown(options, EditOptions)
        when = options.get("evaluate_when", "each")
        if when not in {"each", "end", "both"}:
            raise EditError(f"evaluate_when={when!r}: use 'each', 'end' or 'both'.")
        check_request(self.method, cases)
        train_ds = options.get("train_ds")
        if train_ds is not None:
            self.method.use_corpus(train_ds)
        keep = not options.get("keep_original_weight", False)
        size = self.method.batch_size if batch else 1
        recorder = MetricRecorder(
            self.lm,
            cases,
            options.get("measures") or Measures(),
            together=size >= len(cases),
            free_answers=options.get("free_answers", True),
        )
        known = [] if options.get("force", True) else recorder.leave_unchanged()
        for case in known:
            log.warning("%s: %s", case.edit.prompt.text, recorder[case]["unchanged"])
        unknown = [case for case in cases if "unchanged" not in recorder[case]]
        if not unknown:
            return self._without_edits(recorder, when, keep)
        session, before = self.session, self.session.state
        journal = options.get("journal")
        try:
            if when != "end" and known:
                recorder.fill("post", self.lm, known)
            with bar(len(unknown), self.method.name, "edit") as progress:
                for start in range(0, len(unknown), size):
                    group = unknown[start : start + size]
                    attempt = journal.finished(start) if journal is not None else None
                    if attempt is None:
                        attempt = session.attempt([edit for case in group for edit in case.edits])
                        if journal is not None:
                            journal.add(start, attempt)
                    with session.measured(attempt, keep=keep):
                        if when != "end":
                            recorder.fill("post", self.lm, group)
                    progress.update(len(group))
                    for case in group:
                        recorder[case]["time"] = attempt.seconds / len(group)
                        if options.get("verbose", True) and when != "end":
                            log.info("%s", recorder[case])
            whole = merge(session.patches)
            edited = self.model if keep else edited_copy(self.model, whole)
            if when != "each":
                final = LM(edited, self.tokenizer, chat_template=self.lm.text.chat_template)
                recorder.fill("post" if when == "end" else "final", final, cases)
        except BaseException:
            session.put_back(before)
            raise
        session.finish(whole)
        if keep and self.ledger is None:
            self._undo.append(_Undo(whole, before))
        return EditResult(list(recorder.metrics), edited, whole)

    def _without_edits(self, recorder: MetricRecorder, when: str, keep: bool) -> EditResult:
        """The result of a request that holds already: a patch that changes nothing."""
        for key in ("post", "final") if when == "both" else ("post",):
            recorder.fill(key, self.lm, recorder.cases)
        nothing = weight_patch(self.lm, self.method.name, (), self.hparams, {}, {})
        if not keep:
            return EditResult(list(recorder.metrics), edited_copy(self.model, nothing), nothing)
        nothing.apply(self.model)
        return EditResult(list(recorder.metrics), self.model, nothing)


@dataclass(frozen=True, slots=True)
class _Undo:
    """A patch that was applied, and the method's state before it."""

    patch: Patch
    state: State | None


def _check(hparams: object) -> None:
    if not isinstance(hparams, HyperParams):
        raise HyperParamsError(
            f"hparams must be hyper-parameters, e.g. of ...HyperParams.from_hparams(path), not "
            f"{type(hparams).__name__} ({hparams!r})."
        )
