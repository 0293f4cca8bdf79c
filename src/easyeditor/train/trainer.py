"""``EditTrainer``: trains a method's networks and writes the archive that ``archive=`` names."""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyeditor.edits import Case, canonical_json
from easyeditor.errors import (
    EasyEditError,
    HyperParamsError,
    MissingExtraError,
    OutputError,
    TrainingBusyError,
    TrainingError,
)
from easyeditor.files import check_writable_place, disk_error, written_whole
from easyeditor.folder_lock import FolderLock
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods.archive import NAME
from easyeditor.methods.learning import Learner, TrainingHyperParams, examples
from easyeditor.methods.training import learner_of, training_class_of
from easyeditor.train.log import LOG, draw_curve, write_log

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from easyeditor.train.loop import Loop

log = logging.getLogger(__name__)

SETTINGS, CHECKPOINTS, LOCK = "training.json", "checkpoints", "training"
CHECKPOINT_COPIES = 4
"""Bytes a training needs, in sizes of what is trained: a checkpoint with Adam's two moments, and
the archive."""
FREE = frozenset({"device", "results_dir", "report_to", "log_interval", "model_name"})
"""Settings that do not change what is learnt, so a training may be taken up with others."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Result of a training.

    Attributes:
        path: the archive, for ``archive=`` in the editing hyper-parameters.
        metrics: of the archive on all held-out cases.
        history: every record of ``train_log.jsonl``.
        steps: number of optimiser steps.
        seconds: duration of this run.
        log: the file of ``history``.
        curve: the file of the learning curve, if it could be drawn.
    """

    path: Path
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, Any]] = field(repr=False)
    steps: int
    seconds: float
    log: Path
    curve: Path | None = None


class EditTrainer:
    """Trains the networks of a method; the base model is only read.

    Its directory ``results_dir/<METHOD>/<model>/`` gets the archive, ``train_log.jsonl``, a
    learning curve, TensorBoard's files where ``report_to`` names it, and during the training
    checkpoints, from which ``run(resume=True)`` resumes after a crash, with the bits of an
    uninterrupted run. Run it under ``accelerate launch`` to distribute the batches over devices,
    with ``--use_fsdp --fsdp_version 2`` also what is trained; the base model is whole on each.

    Args:
        config: settings of the training, e.g. of ``….from_hparams("./hparams/TRAINING/…")``.
        train_set: cases with a rephrase and a locality probe, e.g. a ``ZsreDataset``.
        val_set: held-out cases; early stopping watches them, and the best state is saved.
        lm: a model in memory; by default ``config.model_name`` is loaded when it is needed.

    Raises:
        HyperParamsError: these are not settings of a training.
        TrainingError: the method does not learn.
        DataError: no cases, or some lack a probe; says how many.
    """

    def __init__(
        self,
        config: TrainingHyperParams,
        train_set: Iterable[Case],
        val_set: Iterable[Case],
        *,
        lm: LM | None = None,
    ) -> None:
        if not isinstance(config, TrainingHyperParams):
            raise HyperParamsError(
                f"config must be settings of a training (a class …TrainingHparams), not "
                f"{type(config).__name__}; those are for editing."
            )
        training_class_of(config.alg_name)
        again = config.edit_loss_on != "prompt"
        self.config = config
        self.train_set = examples(list(train_set), rephrase=again)
        self.val_set = examples(list(val_set), rephrase=again, once=True)
        self._lm = lm
        self._trackers: list[TrainerCallback] = []

    @property
    def folder(self) -> Path:
        """The directory of this training's files."""
        name = self.config.model_name or (self._lm.name if self._lm else "")
        model = name.rstrip("/").rpartition("/")[2] or "model"
        return Path(self.config.results_dir).expanduser() / self.config.alg_name / model

    def run(self, *, resume: bool = False) -> TrainingResult:
        """Train to the end; the base model is bit-identical before and after.

        Args:
            resume: go on from the last checkpoint of a run that broke off. Without it, a run that
                broke off is never overwritten.

        Raises:
            MissingExtraError: accelerate, or a tracker's package, is not installed.
            HyperParamsError: there is no such tracker.
            TrainingBusyError: another process trains in the folder; says which.
            TrainingError: there is an unfinished run and ``resume`` is not set, or the reverse,
                or it was started with other settings, data or model; FSDP of version 1.
            OutputError: the folder cannot be written, or the disk is full; the last checkpoint
                stands, and ``resume`` goes on from it.
            DivergedError: the loss left the finite numbers; the last checkpoint stands.
            ModelLoadError: the model cannot be read.
        """
        self.check(resume=resume)
        if not self.is_main:
            return self._run(resume)
        with self._writing(), self._lock():
            self._check_unlocked(resume)  # what another process left between check and lock
            return self._run(resume)

    def _run(self, resume: bool) -> TrainingResult:
        with _process_group_left_at_exit():
            return self._train(resume)

    def _train(self, resume: bool) -> TrainingResult:
        from easyeditor.train.loop import Loop, arguments_of, own_randomness

        began = time.perf_counter()
        last = self._last_checkpoint()
        with own_randomness():
            lm = self.load()
            self._check_same(lm, resume)
            learner = learner_of(lm, self.config)
            learner.prepare([*self.train_set, *self.val_set])
            arguments = arguments_of(
                self.config, self.folder / CHECKPOINTS, on_cpu=lm.device.type == "cpu"
            )
            held_out = self.val_set[: self.config.val_steps]
            loop = Loop(
                learner,
                self.config,
                arguments,
                self.train_set,
                held_out,
                self.folder,
                self._trackers,
            )
            if self.is_main:
                size = sum(p.numel() * p.element_size() for p in learner.module.parameters())
                check_writable_place(self.folder / NAME, size=CHECKPOINT_COPIES * size)
                self._note(lm)
            loop.train(resume_from_checkpoint=str(last) if resume else None)
            return self._finish(loop, learner, time.perf_counter() - began)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and logs, of those launched together."""
        return int(os.environ.get("RANK", "0")) == 0

    def load(self) -> LM:
        """The base model, loaded once.

        Raises:
            MissingExtraError: accelerate is not installed.
            ModelLoadError: it cannot be read.
        """
        _need_accelerate()
        if self._lm is None:
            from accelerate import PartialState

            state, config = PartialState(), self.config
            if state.num_processes > 1:  # each process has a copy of the model
                config = config.replace(device=str(state.device))
            self._lm = load(config.model)
        return self._lm

    def _finish(self, loop: Loop, learner: Learner, seconds: float) -> TrainingResult:
        metrics = loop.evaluate_cases(self.val_set)
        history = list(loop.state.log_history)
        untrained = learner.untrained() if self.is_main else None
        if untrained is not None:
            values = untrained.validate(self.val_set)
            history.append(
                {"step": 0, **{f"untrained_{name}": value for name, value in values.items()}}
            )
            write_log(self.folder, history)
        path, curve = self.folder / NAME, None
        if loop.is_fsdp_enabled:  # every process has a share of it
            whole = loop.whole_state()
            if self.is_main:
                learner = learner_of(self.load(), self.config)
                learner.module.load_state_dict(whole)
        if self.is_main:
            path = learner.save(self.folder)
            curve = draw_curve(self.folder, history)
            shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
            log.info("The archive is %s", path)
        loop.accelerator.wait_for_everyone()
        steps = loop.state.global_step
        return TrainingResult(path, metrics, history, steps, seconds, self.folder / LOG, curve)

    # -- runs that broke off --------------------------------------------------------------

    def _last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; the trainer's state is its last-written file."""
        checkpoints = []
        for state in (self.folder / CHECKPOINTS).glob("checkpoint-*/trainer_state.json"):
            try:
                step = int(json.loads(state.read_text("utf-8"))["global_step"])
                checkpoints.append((step, state))
            except (ValueError, KeyError, OSError):
                continue  # it broke off while it was written
        return max(checkpoints)[1].parent if checkpoints else None

    def check(self, *, resume: bool = False) -> None:
        """Whether :meth:`run` may start in the folder as it is; loads no model.

        Raises:
            MissingExtraError: accelerate, or a tracker's package, is not installed.
            HyperParamsError: there is no such tracker.
            TrainingBusyError: another process trains in the folder; says which.
            TrainingError: there is an unfinished run and ``resume`` is not set, or the reverse.
            OutputError: the folder cannot be written.
        """
        if self.is_main:
            check_writable_place(self.folder / NAME)
            self._lock().check_free()
        self._check_unlocked(resume)

    def _lock(self) -> FolderLock:
        advice = "Wait for it, or choose another results_dir (--out)."
        return FolderLock(self.folder, LOCK, TrainingBusyError, advice)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns a full disk into an error that names the last checkpoint and how to resume."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except Exception as error:
            failure = None if isinstance(error, EasyEditError) else disk_error(error)
            if failure is None:
                raise
            last = self._last_checkpoint()
            stands = f"{last.name} is whole" if last else "There is no checkpoint yet"
            how = "go on with run(resume=True) (--resume)" if last else "start again"
            raise OutputError(
                f"The training cannot write to {self.folder}: {failure.strerror or failure}. "
                f"{stands}; make room and {how}."
            ) from error

    def _check_unlocked(self, resume: bool) -> None:
        _need_accelerate()
        from easyeditor.train.trackers import trackers

        last = self._last_checkpoint()
        if last is None and resume:
            raise TrainingError(
                f"There is no unfinished training in {self.folder} to go on with. Start one "
                "without resume (--resume)."
            )
        if last is not None and not resume:
            raise TrainingError(
                f"{self.folder} holds a training that broke off at {last.name}. Go on with "
                "run(resume=True) (--resume), or delete the folder, or choose another results_dir "
                "(--out)."
            )
        self._trackers = trackers(self.config.report_to, self.folder)

    def _about(self, lm: LM) -> dict[str, Any]:
        cases = canonical_json([self.train_set, self.val_set])
        data = hashlib.sha256(cases.encode()).hexdigest()[:16]
        settings = self.config.model_dump(mode="json", exclude=set(FREE))
        return {**settings, "data": data, "model": fingerprint(lm.model).digest}

    def _note(self, lm: LM) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_whole(self.folder / SETTINGS) as part:
            part.write_text(json.dumps(self._about(lm), indent=1) + "\n", "utf-8")

    def _check_same(self, lm: LM, resume: bool) -> None:
        if not resume:
            return
        file = self.folder / SETTINGS
        try:
            before = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{file}, the settings of the run, is unreadable: {error}"
            ) from None
        now = json.loads(json.dumps(self._about(lm)))
        other = [
            f"{name}: {before.get(name)!r}, now {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if other:
            raise TrainingError(
                f"The training in {self.folder} was started with other settings ({'; '.join(other)}"
                "). Go on with the same, or start anew in another results_dir (--out)."
            )


@contextmanager
def _process_group_left_at_exit() -> Iterator[None]:
    """Leave the process group that a training joins when the interpreter exits, not after it.

    A group that still lives when the process is torn down may abort it: the training's archive is
    written and the exit code is that of a crash. It cannot be left earlier, as accelerate's state
    and a second training in the same process go on with it. A caller's group stays the caller's.
    """
    from torch import distributed

    def leave() -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()

    joined = distributed.is_available() and distributed.is_initialized()
    try:
        yield
    finally:
        if not joined and distributed.is_available() and distributed.is_initialized():
            atexit.register(leave)


def _need_accelerate() -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtraError.of("accelerate", "train", "Training")
