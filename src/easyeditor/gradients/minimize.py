"""One training loop: a parametrization, an objective and a schedule; Adam in epochs over edits.

Every method that trains weights on edits uses it: what is trained is a
:class:`~easyeditor.gradients.parametrizations.Parametrization`, what is minimized a function of
the edits' numbers, and in which order they come is the :class:`Schedule`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from easyeditor.errors import DivergedError
from easyeditor.gradients.parametrizations import Parametrization
from easyeditor.lm.model import LM
from easyeditor.progress import bar

ENOUGH = 1e-2
"""Usual loss (nats) under which a step is skipped, and an epoch ends the training."""

LARGEST_LOSS = 1e30
"""From here on a loss (nats) counts as infinite."""

Objective = Callable[[Sequence[int]], torch.Tensor]
"""Numbers of edits to their losses: one of each ``(edits,)``, or one of all ``(1,)``."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """In which order edits are trained on, and with which steps.

    Attributes:
        epochs: at most.
        batch_size: edits in one step.
        lr, weight_decay: Adam's.
        shuffle: draws a new order of all edits in each epoch; None: in their order.
        enough: a loss (nats) under which a step is skipped, and an epoch ends the training.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.0
    shuffle: torch.Generator | None = None
    enough: float = ENOUGH

    def batches(self, n: int) -> Iterator[list[int]]:
        """The edits' numbers in one epoch."""
        if self.shuffle is None:
            order = list(range(n))
        else:
            order = torch.randperm(n, generator=self.shuffle).tolist()
        for i in range(0, n, self.batch_size):
            yield order[i : i + self.batch_size]


def refuse_diverged(name: str, losses: Sequence[float], when: str, rate: str) -> None:
    """Check the losses of method ``name``; ``rate`` is its setting that makes smaller steps.

    Raises:
        DivergedError: one is not a number, or beyond all others.
    """
    wrong = [loss for loss in losses if loss != loss or abs(loss) > LARGEST_LOSS]
    if wrong:
        raise DivergedError(
            f"{name}'s loss became {wrong[0]} at {when}; the model is unchanged. Lower {rate}, or "
            "load the model in float32 or bfloat16."
        )


def minimize(
    lm: LM,
    parametrization: Parametrization,
    objective: Objective,
    n: int,
    schedule: Schedule,
    name: str,
) -> None:
    """Train ``parametrization`` on ``n`` edits; the model's own weights are only read.

    An edit (a batch, of an objective with one loss for all) whose loss is under ``schedule.enough``
    is left out of the step. Training stops after an epoch whose mean loss is, once the
    parametrization has settled. Call it inside ``lm.at_rest()``.

    Raises:
        DivergedError: a loss is not a number.
    """
    # One matrix after the other: foreach would make temporaries of the size of all.
    adam = torch.optim.Adam(
        parametrization.parameters,
        lr=schedule.lr,
        weight_decay=schedule.weight_decay,
        foreach=False,
    )
    with bar(schedule.epochs, "fine-tuning") as progress:
        for epoch in range(schedule.epochs):
            values: list[float] = []
            for batch in schedule.batches(n):
                with parametrization.applied(lm.model):
                    losses = objective(batch)
                values += losses.tolist()
                refuse_diverged(name, values, f"epoch {epoch}", "lr")
                learning = losses.detach() >= schedule.enough
                total = losses[learning].sum() / len(losses)
                step = bool(learning.any())
                if step:
                    penalty = parametrization.penalty()
                    if penalty is not None:
                        total = total + penalty.to(total.device)
                    total.backward()  # type: ignore[no-untyped-call]
                del losses, total  # each matrix is a hundredth of a large model
                if not step:
                    continue
                adam.step()
                parametrization.after_step()
                adam.zero_grad(set_to_none=True)
            parametrization.after_epoch((epoch + 1) / schedule.epochs)
            progress.update()
            if sum(values) / len(values) < schedule.enough and parametrization.settled:
                break
