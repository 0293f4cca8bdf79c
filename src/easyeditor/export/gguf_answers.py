"""Whether edits give their new answers with the weights that a GGUF file will hold."""

from __future__ import annotations

import torch

from easyeditor.edits import Case
from easyeditor.errors import PatchMismatchError
from easyeditor.evaluate.degeneration import answer_holds, free_answers
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.model import LM
from easyeditor.patches.stack import applied, without_patches
from easyeditor.patches.weight import WeightPatch

MAX_ASKED = 100
"""Edits that are asked; more would take minutes."""
LARGEST_MEDIAN = 0.5
"""Median relative difference of sampled weights between a model and itself in 4 bits (0.1 to 0.2
seen); between two models it is above 1."""


def check_same_model(patch: WeightPatch, lm: LM, force: bool) -> list[str]:
    """Make sure that a patch was made for a model, or for the one it was quantized from.

    Returns what has to be said of it.

    Raises:
        PatchMismatchError: it was made for another.
    """
    made_for, here = patch.info.model, fingerprint(lm.model)
    why = made_for.differences(here)
    if not why or force:
        return [f"The patch was made for another model: {why}."] if why else []
    alike = made_for.architecture == here.architecture and made_for.shapes == here.shapes
    if alike and len(made_for.samples) == len(here.samples):
        mine, its = torch.tensor(made_for.samples), torch.tensor(here.samples)
        median = float(((mine - its).abs() / mine.abs().clamp(min=1e-3)).median())
        if median < LARGEST_MEDIAN:
            return [
                "The patch was made for the same model in another precision; its weights differ "
                f"by {median:.0%} in the median."
            ]
    raise PatchMismatchError(
        f"This patch does not belong to the model of this GGUF file: {why}. It was made for "
        f"{patch.info.model_name or 'another model'}. Name its GGUF file, or force it (force=True, "
        "--force) if you know that the weights correspond."
    )


def answers_after(
    lm: LM, patch: WeightPatch, stored: WeightPatch
) -> tuple[tuple[bool, ...], tuple[bool, ...], list[str]]:
    """Per edit whether its new answer comes with the patch, and with what is stored of it."""
    edits = patch.info.edits[:MAX_ASKED]
    chat = bool(patch.info.hyperparams.get("chat_template"))
    if chat != lm.text.chat_template:
        lm = LM(lm.model, lm.tokenizer, chat_template=chat)
    cases = [Case(str(i), edit) for i, edit in enumerate(edits)]
    results = []
    with without_patches(lm.model):
        for change in (patch, stored):
            with applied(lm.model, change):
                texts = [answer.text for answer in free_answers(lm, cases)]
            results.append(
                tuple(answer_holds(t, e.target) for t, e in zip(texts, edits, strict=True))
            )
    notes = []
    if len(patch.info.edits) > MAX_ASKED:
        notes.append(f"The first {MAX_ASKED} of {len(patch.info.edits)} edits were asked.")
    return results[0], results[1], notes
