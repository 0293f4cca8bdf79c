"""A scope classifier and a counterfactual model that are not trained, for tests of the memory.

The classifier's map is so steep that a prompt is in the scope of an edit only if it is its own;
of the tiny counterfactual model nothing is asked but to be another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedModel

import tiny
from easyeditor import LM, Edit
from easyeditor.encoders.network_config import config_of, tokenizer_json
from easyeditor.encoders.text_encoder import TextEncoder
from easyeditor.encoders.tokenizer_compat import signature
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.inference import generate, score
from easyeditor.methods.serac.model_reference import ModelReference, header_digest
from easyeditor.methods.serac.patch import Remembered, Scope, ScopePatch
from easyeditor.patches.patch import PatchInfo

STEEP = 50.0
PREFIX = "small."


@cache
def classifier(family: str = "gpt2", seed: int = 0) -> TextEncoder:
    """Of a tiny network; only equal texts are similar."""
    model = tiny.model(family, seed=seed)
    made = TextEncoder(model.base_model, tokenizer_json(tiny.tokenizer())).eval()
    made.head.weight.data.mul_(STEEP)
    return made


def small(family: str) -> PreTrainedModel:
    """The counterfactual model of the kind that goes with ``family``."""
    return tiny.model("t5" if family == "t5" else "gpt2", seed=7)


def written(file: Path, model: PreTrainedModel) -> ModelReference:
    """``model`` in a file, to be read from there."""
    tensors = {f"{PREFIX}{k}": v.clone() for k, v in model.state_dict().items()}
    save_file(tensors, file, metadata={"seed": str(float(next(iter(tensors.values())).sum()))})
    told = signature(tiny.tokenizer())
    return ModelReference(file, header_digest(file), config_of(model), told, PREFIX)


def scope(folder: Path, family: str = "gpt2") -> Scope:
    """A scope whose counterfactual model is ``folder/small.safetensors``."""
    return Scope(classifier(), written(folder / "small.safetensors", small(family)))


def remembering(lm: LM, edits: Sequence[Edit], shared: Scope) -> ScopePatch:
    """A patch that remembers ``edits``."""
    vectors = shared.vectors([edit.prompt for edit in edits], lm)
    info = PatchInfo.of(lm, "test", edits, HyperParams(), {})
    return ScopePatch(info, [Remembered.of(edit) for edit in edits], vectors, shared)


def answers(lm: LM, prompts: Sequence[str]) -> tuple[list[object], list[str]]:
    """Scores and continuations, each from one call."""
    return score(lm, [(prompt, "Italy well") for prompt in prompts]), generate(lm, prompts, 5)


def counterfactual(lm: LM, family: str) -> LM:
    """The counterfactual model by itself, in the tokens of ``lm``."""
    return LM(small(family), lm.tokenizer)
