"""The contract between a method that is trained and its trainer.

Such a method trains a small module beside the model it will edit; the model itself is only read.
The trainer knows nothing of any method: it asks
:func:`~easyeditor.methods.training.learner_of` for a :class:`Learner`, minimises ``loss``, watches
``validate``, and has the result written by ``save``. A method declares its settings while training
as :attr:`Method.training_class` and returns its learner from :meth:`Method.learner`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import nn

from easyeditor.edits import Case, Probe
from easyeditor.errors import DataError
from easyeditor.hyperparams import HyperParams, NumberOrOff


class Learner(Protocol):
    """What is trained, and what training it means.

    Attributes:
        module: exactly what is trained, saved and restored, buffers included; the base model is
            not in it. The trainer moves it between devices and switches its training mode; it
            sets ``sync_across_ranks`` (whether running statistics are all-gathered over ranks)
            on every submodule that has it.
    """

    module: nn.Module

    def prepare(self, cases: Sequence[Case]) -> None:
        """Compute once what never changes while these cases are trained on; may do nothing."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimiser: ``{"params": [...], "lr": ...}``; every parameter that learns once."""
        ...

    def loss(self, cases: Sequence[Case]) -> dict[str, torch.Tensor]:
        """``"loss"`` is minimised (a mean over the cases), scalar; other entries are logged.

        The first rephrase probe is the prompt of the outer loss, the first locality probe the one
        whose answer must not change: what is learnt from went through :func:`examples`.
        """
        ...

    def validate(self, cases: Sequence[Case]) -> dict[str, float]:
        """What held-out cases say, each edited alone; no gradients, nothing is changed.

        ``"edit_loss"`` is what early stopping watches: the training loss, here. ``"rewrite"``,
        ``"rephrase"`` and ``"locality"`` are shares of target tokens that are the argmax
        (locality: the argmax of the unedited model), as in the evaluation of an edit.
        """
        ...

    def untrained(self) -> Learner | None:
        """What is trained as it was before, but for running statistics: an ablation for the log.

        None where nothing can be edited with it.
        """
        ...

    def save(self, folder: Path) -> Path:
        """Write the archive, whole or not at all; returns the file to give as ``archive``."""
        ...

    def load(self, archive: Path) -> None:
        """Take over the trained numbers of an archive.

        Raises:
            ArchiveError: it is unreadable, or of another method or model.
        """
        ...


PUBLISHED_SCHEDULE: dict[str, Any] = {
    "batch_size": 1,
    "accumulate_bs": 10,
    "max_iters": 100_000,
    "log_interval": 500,
    "val_interval": 5000,
    "val_steps": 500,
    "early_stop_patience": 20_000,
}
"""How the published editors of real checkpoints are trained."""


class TrainingHyperParams(HyperParams):
    """What all trainings share; the classic files' names.

    ``max_iters``, ``val_interval``, ``log_interval`` and ``early_stop_patience`` count batches of
    ``batch_size`` cases, as the classic files do; a step of the optimiser takes ``accumulate_bs``
    of them. ``edit_loss_on`` says where the edit's loss is read: on its paraphrase (the paper's),
    on its own prompt, or on both. ``val_steps`` is the number of cases used by a validation on the
    way; the last one uses all. ``half`` trains in mixed precision: bfloat16, or float16 on an
    accelerator that has no bfloat16. ``report_to`` names trackers (``wandb``, ``tensorboard``, …)
    as ``transformers`` knows them; you install their packages.
    """

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "archive",
            "cbase",
            "debug",
            "dropout",
            "early_stop_key",
            "eval_log_interval",
            "eval_only",
            "final_eval",
            "lr_scale",
            "model_class",
            "model_save_pt",
            "no_grad_layers",
            "save",
            "silent",
            "tokenizer_class",
            "tokenizer_name",
            "train_base",
            "verbose",
        ]
    )

    lr: float = Field(1e-4, gt=0)
    opt: Literal["Adam", "AdamW", "SGD"] = "Adam"
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    batch_size: int = Field(8, ge=1)
    accumulate_bs: int = Field(1, ge=1)
    grad_clip: NumberOrOff = Field(100.0, gt=0)
    max_iters: int = Field(2000, ge=1)
    cedit: float = Field(0.1, ge=0)
    cloc: float = Field(1.0, ge=0)
    edit_loss_on: Literal["rephrase", "prompt", "both"] = "rephrase"
    log_interval: int = Field(50, ge=1)
    val_interval: int = Field(200, ge=1)
    val_steps: int = Field(200, ge=1)
    val_batch_size: int = Field(8, ge=1)
    early_stop_patience: int = Field(1000, ge=1)
    half: bool = False
    seed: int = Field(0, ge=0)
    report_to: tuple[str, ...] = ()
    results_dir: str = "results"


def examples(cases: Sequence[Case], *, rephrase: bool = True, once: bool = False) -> list[Case]:
    """Cases to learn from, each with one edit, one rephrase probe first and one locality probe.

    A case with ten neighbours and two paraphrases becomes ten, each paraphrase five times, so
    that every probe is seen, in a fixed order and without drawing lots.

    Args:
        cases: as a dataset gives them.
        rephrase: whether a paraphrase is needed.
        once: one example per case, of its first probes: for validation.

    Raises:
        DataError: no cases, or some without a probe that is needed; says how many.
    """
    if not cases:
        raise DataError("There are no cases to learn from.")
    result: list[Case] = []
    lacking = {"rephrase": 0, "locality": 0}
    for case in cases:
        groups = {name: [p for p in case.probes if p.group == name] for name in lacking}
        for name, probes in groups.items():
            lacking[name] += not probes
        again, near = groups["rephrase"], groups["locality"]
        for i in range(1 if once else max(len(again), len(near))):
            chosen = tuple(probes[i % len(probes)] for probes in (again, near) if probes)
            result.append(Case(f"{case.id}.{i}" if i else case.id, case.edit, chosen))
    if not rephrase:
        lacking.pop("rephrase")
    missing = [f"{n} of {len(cases)} have no {name} probe" for name, n in lacking.items() if n]
    if missing:
        raise DataError(
            f"These cases cannot be learnt from: {', '.join(missing)}. Training asks the fact in "
            "other words and an unrelated question: use data with both, such as ZsRE (rephrase, "
            "loc) or CounterFact, or leave such cases out."
        )
    return result


def probe_of(case: Case, group: str) -> Probe:
    """The first probe of a group; :func:`examples` made sure that there is one."""
    return next(probe for probe in case.probes if probe.group == group)
