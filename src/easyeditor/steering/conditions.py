"""Which prompts are steered: a direction between two sets of prompts, and a threshold along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from easyeditor.data.contrast import HELD_OUT_EVERY
from easyeditor.edits import Prompt
from easyeditor.errors import DataError, EditError
from easyeditor.hyperparams import resolve_layers
from easyeditor.lm.model import LM
from easyeditor.steering.activations import read_activations


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """Prompts whose output at the last token has ``y · direction > threshold`` are steered.

    Attributes:
        direction: ``(width,)``, of length one.
        threshold: half-way between the means of the two sets.
        accuracy: share of held-out prompts on the right side, the mean of the two sets.
    """

    direction: torch.Tensor
    threshold: float
    accuracy: float


def conditions_between(
    lm: LM,
    when: Sequence[str | Prompt],
    unless: Sequence[str | Prompt],
    layers: Sequence[int | float],
    module: str = "block",
) -> dict[int, Condition]:
    """A condition per layer, from prompts that are to be steered and prompts that are not.

    Every third prompt is left out and only measures the accuracy; of fewer than three none is.

    Raises:
        DataError: one of the two sets is empty.
        EditError: both give the same activations.
        HyperParamsError, UnsupportedModelError: see
            :func:`~easyeditor.steering.activations.read_activations`.
    """
    for name, prompts in (("when", when), ("unless", unless)):
        if not prompts:
            raise DataError(
                f"A condition lies between prompts of two kinds; there are none of {name!r}."
            )
    chosen = resolve_layers(tuple(layers), lm.n_layers)
    rows = [lm.text.row(prompt) for prompt in (*when, *unless)]
    means = read_activations(lm, rows, chosen, module, "last").means
    kinds = means[: len(when)], means[len(when) :]
    result = {}
    for i, layer in enumerate(chosen):
        known, held_out = zip(*(_split(kind[:, i]) for kind in kinds), strict=True)
        difference = known[0].mean(0) - known[1].mean(0)
        if not bool(difference.norm()):
            raise EditError(
                "The prompts of the two kinds end alike for the model, so no condition tells them "
                "apart. Give prompts that differ."
            )
        direction = difference / difference.norm()
        middle = (known[0].mean(0) + known[1].mean(0)) @ direction / 2
        right = [(kind @ direction > middle).float().mean() for kind in held_out]
        accuracy = float(right[0] + 1 - right[1]) / 2
        result[layer] = Condition(direction, float(middle), accuracy)
    return result


def _split(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if len(states) < HELD_OUT_EVERY:
        return states, states
    held_out = torch.arange(len(states)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return states[~held_out], states[held_out]
