"""The two networks of SERAC, and the archive that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from easyeditor.encoders.network_config import config_of, language_model, text_column_of
from easyeditor.encoders.text_encoder import TextEncoder
from easyeditor.encoders.tokenizer_compat import differences, largest, signature
from easyeditor.errors import ArchiveError, HyperParamsError, UnsupportedModelError
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.lm.weights import whole_state
from easyeditor.methods.archive import Archive, fill, write_archive
from easyeditor.methods.serac.model_reference import ModelReference, header_digest
from easyeditor.methods.serac.patch import Scope
from easyeditor.methods.serac.settings import SERACHyperParams, SERACTrainingHparams

NAME = "SERAC"
SMALL = "counterfactual"


class Nets(nn.Module):
    """Scope classifier and counterfactual model.

    Both stay in evaluation mode while they learn: without dropout a training can be repeated.
    """

    def __init__(self, classifier: TextEncoder, counterfactual: PreTrainedModel) -> None:
        super().__init__()
        self.classifier, self.counterfactual = classifier, counterfactual
        self.train(False)

    def train(self, mode: bool = True) -> Nets:
        """Only this module's own flag changes."""
        super().train(False)
        self.training = mode
        return self

    @classmethod
    def named(cls, lm: LM, config: SERACTrainingHparams) -> Nets:
        """The pretrained networks that ``config`` names, on ``lm``'s device in float32.

        Raises:
            ModelLoadError: one cannot be read.
            HyperParamsError: the counterfactual model has another tokenizer than ``lm``.
            UnsupportedModelError: only one of the two is an encoder-decoder, or no model is named
                and the base model's text column is no language model by itself.
        """
        if config.small_name is None:
            small = _copy(lm)
        else:
            result = load(config.small_name, device=str(lm.device), dtype="float32")
            _check_pair(lm, result, config.small_name)
            small = result.model
        return cls(TextEncoder.load(config.cls_name), small).to(lm.device)

    def save(self, folder: Path, lm: LM, config: SERACTrainingHparams) -> Path:
        """Write ``folder/archive.safetensors``."""
        more = {
            "classifier": self.classifier.description,
            SMALL: config_of(self.counterfactual),
            "tokenizer": signature(lm.tokenizer),
            "digest": fingerprint(self).digest,  # so that other weights mean another header
        }
        return write_archive(folder, lm, NAME, config, self.state_dict(), more)


def _copy(lm: LM) -> PreTrainedModel:
    """A copy of the base model; of one that sees, of its text column: it is told, and not shown."""
    state = whole_state(lm.model)
    if getattr(lm.model.config, "vision_config", None) is None:
        small = language_model(config_of(lm.model))
        small.load_state_dict(state)
        return small
    try:
        return text_column_of(lm.model, state)
    except ValueError:
        raise UnsupportedModelError(
            f"The text column of {lm.name} ({type(lm.model).__name__}) is no language model by "
            "itself, so it cannot be the counterfactual model; give small_name, a language model "
            "with the same tokenizer."
        ) from None


def _check_pair(lm: LM, small: LM, name: str) -> None:
    if small.encoder_decoder != lm.encoder_decoder:
        raise UnsupportedModelError(
            f"small_name={name!r} is a {type(small.model).__name__} and cannot stand for a "
            f"{type(lm.model).__name__}: both must be encoder-decoders, or neither."
        )
    why = differences(lm.tokenizer, small.tokenizer)
    rows = small.model.get_input_embeddings().weight.shape[0]
    if not why and rows <= largest(lm.tokenizer):
        why = f"{rows} embeddings for tokens up to {largest(lm.tokenizer)}"
    if why:
        raise HyperParamsError(
            f"small_name={name!r} has another tokenizer than {lm.name}: {why}. The counterfactual "
            "model answers in the edited model's tokens, so take one of the same series (gpt2 for "
            "GPT-2, GPT-J and GPT-Neo, JackFram/llama-160m for LLaMA, google-t5/t5-small for T5), "
            "or the edited model's own checkpoint."
        )


def nets_of(archive: Archive, lm: LM) -> Nets:
    """The trained networks of an archive, on ``lm``'s device.

    Raises:
        ArchiveError: it is of another method, for another tokenizer, or holds no such networks.
    """
    archive.check_method(NAME)
    try:
        described: Mapping[str, Any] = archive.more
        tokenizer = str(described["tokenizer"])
        classifier = TextEncoder.built(described["classifier"], archive.tensors)
        counterfactual = language_model(described[SMALL], archive.tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveError(
            f"The archive {archive.file} does not describe its networks: {error!r}. Train again."
        ) from None
    if tokenizer != signature(lm.tokenizer) or (
        counterfactual.config.is_encoder_decoder != lm.encoder_decoder
    ):
        raise ArchiveError(
            f"The archive {archive.file} was trained beside {archive.model_name}, which has "
            f"another tokenizer than {lm.name}. Load a model of that series, or train one beside "
            "this."
        )
    nets = Nets(classifier, counterfactual)
    fill(nets, archive)
    return nets.to(lm.device)


def scope_of(
    archive: Archive, nets: Nets, config: SERACTrainingHparams, settings: SERACHyperParams
) -> Scope:
    """What the edits made with an archive share."""
    answers = ModelReference(
        archive.file.resolve(),
        header_digest(archive.file),
        archive.more[SMALL],
        str(archive.more["tokenizer"]),
        f"{SMALL}.",
        nets.counterfactual,
    )
    return Scope(
        nets.classifier, answers, config.template, settings.threshold, settings.image_weight
    )
