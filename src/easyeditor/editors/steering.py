"""``SteerEditor`` and the generator and applier of steering vectors, by their classic calls.

Configurations are mappings or YAML files with the classic names. What is underneath are
:mod:`easyeditor.steering` and patches: several layers each add their own vector, nothing is read of
other tokens than the named ones, and ``reset_all`` gives back every bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from easyeditor.data.contrast import Contrast, Example
from easyeditor.editors.steering_config import (
    ELSEWHERE,
    METHODS_HERE,
    Config,
    check_method,
    mapping_of,
    records_of,
    settings_by_method,
    text_of,
)
from easyeditor.edits import Prompt
from easyeditor.errors import EditError, HyperParamsError
from easyeditor.lm.inference import generate
from easyeditor.lm.loading import load
from easyeditor.lm.locking import lock_of
from easyeditor.lm.model import LM
from easyeditor.model_spec import ModelSpec
from easyeditor.patches.patch import Patch, PatchInfo
from easyeditor.patches.stack import applied_patches, without_patches
from easyeditor.steering.activations import part_at, path_of
from easyeditor.steering.vectors import (
    SteeringSettings,
    SteeringVectors,
    contrast_vectors,
    prompt_vectors,
)

Vectors = Mapping[str, Mapping[str, torch.Tensor]]
"""``{method: {"layer_17": vector}}``."""

TOKENS = 50


class BaseVectorGenerator:
    """Makes steering vectors of contrast pairs.

    Args:
        cfg: ``model_name_or_path`` and ``steer_train_hparam_paths``: settings, or files of them,
            with ``alg_name`` (``caa``, ``vector_prompt``), ``layers`` and, of a prompt vector,
            ``prompt``.
        lm: a model in memory; by default the one that is named is loaded when it is needed.

    Raises:
        HyperParamsError: the configuration names no method, or one that is not here.
    """

    def __init__(self, cfg: Config, *, lm: LM | None = None) -> None:
        self.config = mapping_of(cfg)
        self.hparams_dict = settings_by_method(self.config, "steer_train_hparam_paths")
        if not self.hparams_dict:
            raise HyperParamsError(
                "steer_train_hparam_paths names no settings; give a list of files or of mappings "
                "such as {'alg_name': 'caa', 'layers': [15]}."
            )
        self._lm = lm

    def generate_vectors(
        self, datasets: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
    ) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
        """``{name: {method: {"layer_17": vector}}}`` of ``{name: [{"question", "matching", …}]}``.

        Args:
            datasets: records with ``question`` (or ``prompt``), ``matching`` and ``not_matching``;
                for a prompt vector the questions alone.

        Raises:
            EditError: no records, or one lacks a field.
        """
        named = records_of(datasets)
        self._lm = self._lm or _load(self.config)
        result: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
        for name, records in named.items():
            result[name] = {}
            for method, settings in self.hparams_dict.items():
                computed = _vectors(self._lm, method, settings, name, records)
                result[name][method] = {f"layer_{i}": v for i, v in computed.vectors.items()}
        return result


class SteeredModel:
    """The model that an applier steers.

    Attributes:
        lm, model, tokenizer: the caller's own.
        patches: what it carries of this applier, oldest first.
    """

    def __init__(self, lm: LM) -> None:
        self.lm, self.model, self.tokenizer = lm, lm.model, lm.tokenizer
        self.patches: list[Patch] = []

    def reset_all(self) -> None:
        """Take every vector off that is still on; the model has the bits it had."""
        with lock_of(self.lm.model):
            while self.patches:
                patch = self.patches[-1]
                if any(patch is other for other in applied_patches(self.lm.model)):
                    patch.revert(self.lm.model)
                self.patches.pop()


class BaseVectorApplier:
    """Steers a model by vectors and lets it write.

    Args:
        cfg: ``model_name_or_path``, ``apply_steer_hparam_paths`` (``alg_name``, ``layers``,
            ``multipliers``), ``generation_params``, ``steer_from_end_position`` (True: only answers
            are steered), ``generate_orig_output``.
        lm: a model in memory.

    Raises:
        HyperParamsError: a method that is not here, or a folder of vectors that are pickles.
    """

    def __init__(self, cfg: Config, *, lm: LM | None = None) -> None:
        self.config = mapping_of(cfg)
        self.hparams_dict = settings_by_method(self.config, "apply_steer_hparam_paths")
        if self.config.get("steer_vector_load_dir"):
            raise HyperParamsError(
                "steer_vector_load_dir: files of vectors are pickles, which can run code when they "
                "are read. Give the vectors (apply_vectors(vectors[name])), or load a patch that "
                "easyedit steer saved."
            )
        self._lm, self._model = lm, None if lm is None else SteeredModel(lm)

    @property
    def model(self) -> SteeredModel:
        """The model with what it carries."""
        if self._model is None:
            self._model = SteeredModel(_load(self.config))
        return self._model

    def apply_vectors(self, vectors: Vectors | None = None) -> None:
        """Put the vectors on the model, each at its own layer.

        Raises:
            EditError: no vectors of a method or a layer that the configuration names; nothing was
                changed.
        """
        positions = "answer" if self.config.get("steer_from_end_position") else "all"
        if not self.hparams_dict:
            raise EditError(
                "apply_steer_hparam_paths names no settings, so no vector would be applied; give a "
                "list of files or of mappings such as {'alg_name': 'caa', 'multipliers': [2]}."
            )
        lm, patches = self.model.lm, []
        for method, settings in self.hparams_dict.items():
            given = _by_layer(vectors, method)
            layers = settings["layers"] or list(given)
            strengths = settings["multipliers"] or [1.0]
            strengths = strengths * len(layers) if len(strengths) == 1 else strengths
            if len(strengths) != len(layers):
                raise EditError(
                    f"{method} has {len(strengths)} multipliers for {len(layers)} layers; give one "
                    "for all, or one for each."
                )
            for layer, strength in zip(layers, strengths, strict=True):
                vector = given.get(layer)
                if vector is None:
                    known = ", ".join(f"layer_{i}" for i in given) or "none"
                    raise EditError(
                        f"There is no vector of {method} at layer {layer}; there are {known}. Give "
                        "apply_vectors the vectors that generate_vectors returned for one dataset."
                    )
                patches.append(_patch(lm, method, layer, vector, strength, positions))
        with lock_of(lm.model):
            for patch in patches:
                patch.apply(lm.model)
                self.model.patches.append(patch)

    def generate(
        self, datasets: Mapping[str, Sequence[Mapping[str, Any]]], **params: Any
    ) -> list[dict[str, Any]]:
        """What the steered model writes after every ``input``.

        Args:
            datasets: ``{name: [{"input": …}]}``.
            params: of ``model.generate``, in the place of ``generation_params``.

        Returns:
            ``{input, orig_pred, pred, reference_response, complete_output}`` per record.
        """
        options = dict(params or self.config.get("generation_params") or {})
        options.pop("pad_token_id", None)
        tokens = options.pop("max_new_tokens", TOKENS)
        every = [record for some in records_of(datasets).values() for record in some]
        records = [record for record in every if record.get("input")]
        if not records:
            raise EditError("No record has an 'input' to write after.")
        prompts = [self._prompt(str(record["input"])) for record in records]
        lm = self.model.lm
        texts = _written(lm, prompts, tokens, options)
        originals: list[list[str]] = [[] for _ in records]
        if self.config.get("generate_orig_output"):
            with without_patches(lm.model):
                originals = [[text] for text in _written(lm, prompts, tokens, options)]
        return [
            {
                "input": record["input"],
                "orig_pred": original,
                "pred": [text],
                "reference_response": record.get("reference_response"),
                "complete_output": [f"{prompt.text}{text}"],
            }
            for record, prompt, text, original in zip(
                records, prompts, texts, originals, strict=True
            )
        ]

    def _prompt(self, text: str) -> Prompt:
        chat = self.config.get("use_chat_template")
        return Prompt(
            text,
            system=self.config.get("system_prompt") or None,
            chat=None if chat is None else bool(chat),
        )


class SteerEditor:
    """Writes with a steered model.

    The classic class changed how a model decodes (DoLa, DeCo), for the whole process; that is not
    here. This one carries steering vectors or any other patch, on its own model alone.

    Attributes:
        lm: the model.
    """

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        self._steered = SteeredModel(lm)

    @classmethod
    def from_hparams(cls, hparams: Any) -> SteerEditor:
        """Load ``model_name`` (or ``model_name_or_path``) of settings or of a mapping.

        Raises:
            HyperParamsError: settings of a way to decode, which is not here, or without a model.
        """
        config = mapping_of(hparams)
        alg_name = str(config.get("alg_name") or "")
        if alg_name.lower() in ELSEWHERE:
            check_method(alg_name)
        return cls(_load(config))

    def apply(self, patch: Patch) -> None:
        """Carry a patch: steering vectors (``vectors.patch(strength=…)``) or any other.

        Raises:
            EditError: it is no patch.
        """
        if not isinstance(patch, Patch):
            raise EditError(
                f"apply takes a patch, e.g. vectors.patch(strength=2), not {type(patch).__name__}."
            )
        with lock_of(self.lm.model):
            patch.apply(self.lm.model)
            self._steered.patches.append(patch)

    def reset(self) -> None:
        """Take every patch of this editor off; the model has the bits it had."""
        self._steered.reset_all()

    def generate(
        self,
        input_text: str | Sequence[str] | None = None,
        input_image: Any = None,
        temperature: float | None = None,
        max_new_tokens: int = TOKENS,
        **model_kwargs: Any,
    ) -> list[str]:
        """What the model writes after each text; greedy without a temperature.

        Raises:
            EditError: no text, or an image.
        """
        if input_text is None or input_image is not None:
            raise EditError(
                "generate writes after texts: give input_text, and ask about images with "
                "MultimodalEditor."
            )
        texts = [input_text] if isinstance(input_text, str) else input_text
        if not isinstance(texts, Sequence) or not all(isinstance(t, str) and t for t in texts):
            raise EditError(
                f"input_text must be a text or a list of texts, not {input_text!r:.80}."
            )
        if temperature:
            model_kwargs |= {"do_sample": True, "temperature": temperature}
        prompts = [Prompt(text) for text in texts]
        return _written(self.lm, prompts, max_new_tokens, model_kwargs)


def _vectors(
    lm: LM,
    method: str,
    settings: Mapping[str, Any],
    name: str,
    records: Sequence[Mapping[str, Any]],
) -> SteeringVectors:
    layers = tuple(settings["layers"] or (0.5,))
    prompts = [
        Prompt(text_of(name, i, record, "question", "prompt", "input"))
        for i, record in enumerate(records)
    ]
    if METHODS_HERE[method] == "prompt":
        instruction = str(settings.get("prompt") or settings.get("system_prompt") or "")
        return prompt_vectors(lm, prompts, instruction, layers=layers)
    kinds = [
        tuple(
            Example(prompt, text_of(name, i, record, *fields))
            for i, (prompt, record) in enumerate(zip(prompts, records, strict=True))
        )
        for fields in (("matching", "positive"), ("not_matching", "negative"))
    ]
    return contrast_vectors(lm, Contrast(kinds[0], kinds[1], paired=True), layers=layers)


def _patch(
    lm: LM, method: str, layer: int, vector: torch.Tensor, strength: float, positions: str
) -> Patch:
    if not isinstance(vector, torch.Tensor) or not vector.isfinite().all():
        raise EditError(
            f"The vector of {method} at layer {layer} must be a tensor of finite numbers, and is "
            f"{vector!r:.60}."
        )
    width = lm.model.config.get_text_config().hidden_size
    if tuple(vector.shape) != (width,):
        raise EditError(
            f"The vector of {method} at layer {layer} has the shape {tuple(vector.shape)}, and "
            f"this model's states have {width} numbers. Make it of this model."
        )
    settings = SteeringSettings(method=METHODS_HERE[method], layers=(layer,))  # type: ignore[arg-type]
    settings = settings.resolved(lm.n_layers)
    (at,) = (int(i) for i in settings.layers)
    info = PatchInfo.of(lm, method, (), settings, {})
    sites = {at: path_of(lm, part_at(lm, at, "block"))}
    vectors = SteeringVectors({at: vector.detach().float().cpu()}, sites, settings, info)
    return vectors.patch(strength, positions)


def _load(config: Mapping[str, Any]) -> LM:
    name = config.get("model_name_or_path") or config.get("model_name")
    if not name:
        raise HyperParamsError("The configuration names no model: model_name_or_path.")
    return load(ModelSpec(str(name), device=config.get("device")))


def _by_layer(vectors: object, method: str) -> dict[int, torch.Tensor]:
    """The vectors of a method by their layers."""
    given = vectors.get(method) if isinstance(vectors, Mapping) else None
    try:
        return {int(key.removeprefix("layer_")): v for key, v in dict(given or {}).items()}
    except (TypeError, ValueError, AttributeError):
        raise EditError(
            f"The vectors of {method} must be {{'layer_17': tensor}}, as generate_vectors returns "
            f"them for one dataset, not {given!r:.80}."
        ) from None


def _written(
    lm: LM, prompts: Sequence[Prompt], tokens: Any, options: Mapping[str, Any]
) -> list[str]:
    """What the model writes; the parameters are of ``model.generate``."""
    if not isinstance(tokens, int) or tokens < 1:
        raise EditError(f"max_new_tokens={tokens!r} must be a whole number from 1 on.")
    try:
        return generate(lm, prompts, tokens, **options)
    except ValueError as error:
        raise EditError(
            f"The model's generate refuses these parameters ({', '.join(options) or 'none'}): "
            f"{error}"
        ) from error
