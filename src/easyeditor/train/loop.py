"""transformers' ``Trainer`` for a :class:`Learner`: batches are lists of cases.

Gradient accumulation, clipping, mixed precision, checkpoints, resuming, distributed training and
trackers are those of the ``Trainer``. Needs ``accelerate`` (the extra ``train``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from easyeditor.edits import Case
from easyeditor.errors import DivergedError, TrainingError
from easyeditor.methods.learning import Learner, TrainingHyperParams
from easyeditor.progress import bar
from easyeditor.train.log import write_log

WATCHED = "edit_loss"


def arguments_of(
    config: TrainingHyperParams, checkpoints: Path, *, on_cpu: bool
) -> TrainingArguments:
    """``TrainingArguments`` of these settings; classic counts of batches become steps."""

    def steps(batches: int) -> int:
        return max(1, -(-batches // config.accumulate_bs))

    last = steps(config.max_iters)
    every = min(steps(config.val_interval), last)
    half = _half(on_cpu) if config.half else None
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        use_cpu=on_cpu,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate_bs,
        max_steps=last,
        max_grad_norm=config.grad_clip or 0.0,
        learning_rate=config.lr,
        lr_scheduler_type=config.lr_schedule,
        warmup_steps=0,
        logging_steps=steps(config.log_interval),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,  # and the best one
        load_best_model_at_end=True,
        metric_for_best_model=WATCHED,
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        bf16=half == "bf16",
        fp16=half == "fp16",
        seed=config.seed,
        data_seed=config.seed,
        report_to="none",  # see easyeditor.train.trackers
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    assert arguments.device is not None  # sets the devices up, so that the next line stays
    arguments._n_gpu = 1  # several without a launcher would mean nn.DataParallel, for tensors only
    return arguments


def _half(on_cpu: bool) -> str:
    if on_cpu or not torch.accelerator.is_available():
        return "bf16"
    module = torch.get_device_module(torch.accelerator.current_accelerator())
    known = getattr(module, "is_bf16_supported", None)
    return "bf16" if known is None or known() else "fp16"


class LearnerModule(nn.Module):
    """Wraps the learner's module as the model of a ``Trainer``.

    Every pass goes through ``forward``, as wrappers (DDP, FSDP, autocast) require.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.trained = learner.module
        self._learner = learner

    def forward(self, cases: Sequence[Case], judge: bool = False) -> dict[str, Any]:
        """The learner's ``loss``, or with ``judge`` its ``validate``."""
        return dict(self._learner.validate(cases) if judge else self._learner.loss(cases))


class Loop(Trainer):
    """A ``Trainer`` with batches of cases.

    Args:
        learner: what is trained.
        config: its settings.
        arguments: see :func:`arguments_of`.
        train: examples to learn from.
        held_out: examples of the validation during training.
        folder: of the log.
        trackers: further callbacks that log the training.

    Raises:
        TrainingError: FSDP of another version than 2 is chosen.
    """

    def __init__(
        self,
        learner: Learner,
        config: TrainingHyperParams,
        arguments: TrainingArguments,
        train: Sequence[Case],
        held_out: Sequence[Case],
        folder: Path,
        trackers: Sequence[TrainerCallback] = (),
    ) -> None:
        self._learner, self._config = learner, config
        self._parts: dict[str, list[torch.Tensor]] = {}
        patience = max(1, round(config.early_stop_patience / config.val_interval))
        self.optimizer: Any  # the Trainer's; it has no types
        self.control: Any
        super().__init__(
            model=LearnerModule(learner),
            args=arguments,
            train_dataset=list(train),
            eval_dataset=list(held_out),
            data_collator=lambda cases: {"cases": cases},
            callbacks=[
                EarlyStoppingCallback(patience),
                LastStep(),
                TrainingProgressCallback(folder),
                *trackers,
            ],
        )
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        for module in learner.module.modules():
            if hasattr(module, "sync_across_ranks"):  # running statistics of all ranks
                module.sync_across_ranks = arguments.world_size > 1
        if self.is_fsdp_enabled:
            self._shard_as_one()

    def _shard_as_one(self) -> None:
        """Shard the module as one FSDP unit: processes call its parts in different numbers."""
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise TrainingError(
                "A training is sharded by FSDP 2 only, as version 1 may replace the parameters "
                "that the optimiser holds: accelerate launch --use_fsdp --fsdp_version 2 …"
            )
        plugin.auto_wrap_policy = None
        plugin.cpu_ram_efficient_loading = False  # takes every buffer for a sharded parameter
        plugin.mixed_precision_policy = None  # casts parameters only; compute_loss has autocast

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser ``config.opt`` over the parameter groups of the learner."""
        if self.optimizer is None:
            kind = getattr(torch.optim, self._config.opt)
            self.optimizer = kind(self._learner.parameter_groups(), lr=self._config.lr)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *_args: Any, **_more: Any
    ) -> torch.Tensor:
        """The learner's loss, a mean over the batch; logged parts are those of this process.

        Raises:
            DivergedError: it is not a finite number.
        """
        with self.accelerator.autocast():  # DDP has it already, FSDP has not
            parts = model(**inputs)
        loss: torch.Tensor = parts.pop("loss")
        if not loss.isfinite():
            raise DivergedError(
                f"The loss became {loss.item()} at step {self.state.global_step}; the base model "
                "is unchanged, and the last checkpoint stands. Lower lr, or train in float32."
            )
        for name, part in parts.items():
            self._parts.setdefault(name, []).append(part.detach())
        return loss

    def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
        """Log a record, with the means of the loss's parts since the last one."""
        if "loss" in logs:
            logs |= {name: float(torch.stack(parts).mean()) for name, parts in self._parts.items()}
            self._parts.clear()
        super().log(logs, *args, **more)

    def evaluate(self, *_args: Any, **_more: Any) -> dict[str, float]:
        """The learner's validation under ``eval_…``."""
        metrics = {f"eval_{k}": v for k, v in self.evaluate_cases(self.eval_dataset).items()}
        self.log(metrics)
        callback = self.callback_handler.on_evaluate
        self.control = callback(self.args, self.state, self.control, metrics)
        return metrics

    def evaluate_cases(self, cases: Sequence[Case]) -> dict[str, float]:
        """Validate on ``cases``, distributed over the processes."""
        rank, world = self.args.process_index, self.args.world_size
        share = cases[rank::world]
        # A rank without cases still runs one forward pass: the collectives of DDP and FSDP need
        # every rank. With gradients on, DDP would take it for the pass of its next backward.
        with torch.no_grad(), self.accelerator.autocast():
            metrics = dict(self.model_wrapped(share or cases[:1], judge=True))
        if world == 1:
            return metrics
        # As objects: a share of cases without a paraphrase has no "rephrase".
        shares = gather_object([(metrics, len(share))])
        means = {}
        for name in dict.fromkeys(name for share, n in shares if n for name in share):
            present = [(share[name], n) for share, n in shares if n and name in share]
            means[name] = sum(value * n for value, n in present) / sum(n for _, n in present)
        return means

    def whole_state(self) -> dict[str, torch.Tensor]:
        """The unsharded state of the learner's module, on the main process; a collective call."""
        state = self.accelerator.get_state_dict(self.model_wrapped)
        return {name.removeprefix("trained."): tensor for name, tensor in state.items()}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The ``Trainer``'s, in a folder that is there before.

        It asks right after this whether the best checkpoint's folder exists, but writes a sharded
        state later: some processes would find the folder and wait for the others for ever.
        """
        Path(output_dir or self.args.output_dir).mkdir(parents=True, exist_ok=True)
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Not the Trainer's method, which refuses tied weights, and pickles its arguments.
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.model.state_dict() if state_dict is None else state_dict
        tensors = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class LastStep(TrainerCallback):
    """Validates and saves after the last step, also between intervals."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_more: Any) -> None:
        """Request a validation and a checkpoint."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


class TrainingProgressCallback(TrainerCallback):
    """Shows a progress bar and writes every new log record to disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bar: Any = None

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_more: Any) -> None:
        """Open the bar at the current step."""
        if state.is_world_process_zero:
            self._bar = bar(state.max_steps, "training", done=state.global_step)

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_more: Any) -> None:
        """One step further."""
        if self._bar is not None:
            self._bar.update()

    def on_log(self, _args: Any, state: Any, _control: Any, **_more: Any) -> None:
        """Write the whole history; records after an interrupted run's checkpoint are dropped."""
        if state.is_world_process_zero:
            write_log(self._folder, state.log_history)

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_more: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def own_randomness() -> Iterator[None]:
    """A context that restores the global generators, which the ``Trainer`` seeds."""
    import random

    import numpy

    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
