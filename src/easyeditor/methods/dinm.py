"""DINM: tune the down-projection where an unwanted and a wanted response differ most.

Of each edit's two responses alone the *toxic layer* is the block whose outputs differ most
(:func:`toxic_layer`); its down-projection is trained on ``kl_factor · NLL(target | [prompt;
suffix]) + KL(before ‖ after)`` of one harmless question and answer, 10 steps of Adam (arXiv
2403.14472). The unwanted response is :attr:`Edit.rejected`, else the ground truth. The loss here
is that one divided by ``kl_factor``, which Adam does not notice but for ``weight_decay``.

The trap: the suffix is a part of the method. A model edited so is meant to be asked with the
suffix, too, which alone does much of the work, so results need a row of the *unedited* model with
it. And what shall stay as it is, is one question: keep locality for questions that are not it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field

from easyeditor.data.safety import SUFFIX, with_suffix
from easyeditor.edits import Edit, check_consistent
from easyeditor.errors import EditError, HyperParamsError, UnsupportedModelError
from easyeditor.gradients.losses import kl_per_token, target_nll
from easyeditor.gradients.minimize import Objective, Schedule, minimize
from easyeditor.gradients.parametrizations import FullMatrices
from easyeditor.hyperparams import HyperParams, NumberOrOff, OptionalLayers
from easyeditor.lm.forward.lower_block_cache import logits_above
from easyeditor.lm.hooks import hidden_of, reading_outputs
from easyeditor.lm.model import LM
from easyeditor.lm.projection import NamedWeight
from easyeditor.lm.tokens import Row
from easyeditor.methods.base import Method, Outcome, State
from easyeditor.methods.tuning import grouped, target_rows
from easyeditor.patches.weight import weight_patch
from easyeditor.timing import Stopwatch

ENOUGH = 1e-4
"""A loss (nats, with ``kl_factor`` in it) under which training stops."""


class DINMHyperParams(HyperParams):
    """Settings of DINM; defaults as published."""

    ignored: ClassVar[frozenset[str]] = frozenset({"max_length", "model_class", "tokenizer_class"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {"max_output_length": 300},
        "llama-2-7b": {},
        "mistral-7b": {"lr": 1e-5},
        "smollm2-135m": {},
    }

    alg_name: str = "DINM"
    layers: OptionalLayers = ()
    """Empty: the toxic layer, found anew for every call."""
    num_steps: int = Field(10, ge=1)
    batch_size: int = Field(1, ge=1)
    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    kl_factor: float = Field(0.1, gt=0)
    """Weight of the wanted response beside the divergence, as the published files call it."""
    norm_constraint: NumberOrOff = Field(None, gt=0)
    suffix_system_prompt: str = SUFFIX
    """Behind every prompt that is trained on, and behind those that the edit is tested with."""
    constraint_prompt: str = "Why do leaves look green?"
    constraint_answer: str = (
        "Leaves hold chlorophyll, which takes in red and blue light and reflects most of the green."
    )
    """A harmless question and its answer, whose distributions shall stay."""
    max_output_length: int = Field(600, ge=1)
    """Tokens of the answers that are judged; see ``SafetyEditor``."""


class DINM(Method[State]):
    """Tunes one layer towards the wanted response; ``edit`` learns all it is given together.

    The trap: an editor hands over ``batch_size`` edits at a time, 1 by default, in sequence.
    """

    name = "DINM"
    title = "intraoperative neural monitoring of the layer that differs most, arXiv 2403.14472"
    hyperparams_class = DINMHyperParams
    searches_expansions = True

    hyperparams: DINMHyperParams

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """The dense patch of one down-projection.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            DivergedError: a loss is not a number.
            EditError: a layer is to be found, and an edit names no unwanted response.
            UnsupportedModelError: the same in an encoder-decoder.
        """
        check_consistent(edits)
        settings = self.hyperparams.resolved(lm.n_layers)
        watch = Stopwatch()
        with watch("locate"), lm.at_rest():
            layers = [int(layer) for layer in settings.layers] or [toxic_layer(lm, edits)]
        settings = settings.replace(layers=tuple(layers))
        weights = lm.weights(layers)
        every = [row for edit in edits for row in edit.rows]
        suffix = settings.suffix_system_prompt
        suffixed = [replace(row, prompt=with_suffix(row.prompt, suffix)) for row in every]
        rows = target_rows(lm, suffixed, append_eos=False)
        with watch("train"), lm.at_rest():
            matrices = FullMatrices(weights, settings.norm_constraint)
            objective = _objective(lm, weights, rows, settings)
            schedule = Schedule(
                settings.num_steps,
                settings.batch_size,
                settings.lr,
                settings.weight_decay,
                enough=ENOUGH / settings.kl_factor,
            )
            minimize(lm, matrices, grouped(objective, edits), len(edits), schedule, self.name)
        parts = matrices.parts()
        return Outcome(weight_patch(lm, self.name, edits, settings, parts, watch.seconds))


def _objective(
    lm: LM, weights: Sequence[NamedWeight], rows: Sequence[Row], settings: DINMHyperParams
) -> Objective:
    """Of each row ``NLL + KL / kl_factor``, the KL per token of the harmless answer."""
    harmless = lm.text.row(settings.constraint_prompt, settings.constraint_answer)
    logits = logits_above(lm, [weight.path for weight in weights], [*rows, harmless])
    with torch.no_grad():
        before = logits([harmless]).float().log_softmax(-1)

    def losses(batch: Sequence[int]) -> torch.Tensor:
        chosen = [rows[i] for i in batch]
        both = logits([*chosen, harmless])
        n = len(harmless.target)
        nll = target_nll(both[:-n], chosen)
        divergence = kl_per_token(before, both[-n:].float().log_softmax(-1)).mean()
        return nll + divergence / settings.kl_factor

    return losses


@torch.no_grad()
def toxic_layer(lm: LM, edits: Sequence[Edit]) -> int:
    """The block whose output differs most between wanted and unwanted responses.

    The responses are read alone, without their prompts. Compared are the positions that both have,
    so that no padding counts; of several edits the distances add up. Blocks without a
    down-projection are left out. The trap: residual streams grow with depth, so it is mostly one of
    the last blocks.

    Raises:
        EditError: an edit names no unwanted response, or one that begins as the target does.
        UnsupportedModelError: an encoder-decoder, whose responses no column reads alone.
    """
    if lm.encoder_decoder:
        raise UnsupportedModelError(
            "DINM finds its layer by reading a response alone, which an encoder-decoder does not "
            "do. Name the layer: layers=[-1]."
        )
    layers = lm.layers_with_down
    if not layers:
        raise UnsupportedModelError("This model has no down-projection that DINM could tune.")
    distances = torch.zeros(len(layers))
    for edit in edits:
        unwanted = edit.rejected or edit.ground_truth
        if not (unwanted or "").strip():
            raise EditError(
                f"The edit of {edit.prompt!r} names no unwanted response, by which DINM finds the "
                "layer to tune. Give it (target_neg=, else the ground truth), or name the layer: "
                "layers=[-2]."
            )
        pair = [lm.text.plain(edit.target), lm.text.plain(str(unwanted))]
        with reading_outputs([lm.blocks[layer] for layer in layers]) as outputs:
            lm.call(lm.pad(pair))
        n = min(map(len, pair))
        if pair[0][:n] == pair[1][:n]:
            raise EditError(
                f"The unwanted response {str(unwanted)!r:.80} and the target {edit.target!r:.80} "
                "do not differ in the tokens that both have, so no layer can be found by their "
                "difference. Give another one (target_neg=), or name the layer: layers=[-2]."
            )
        for i, output in enumerate(outputs):
            hidden = hidden_of(output).float()
            distances[i] += (hidden[0, :n] - hidden[1, :n]).norm().cpu()
    if not distances.isfinite().all():
        raise HyperParamsError(
            "The outputs of this model's blocks are not finite, so no layer can be found by their "
            "difference. Load it in float32 or bfloat16."
        )
    return layers[int(distances.argmax())]
