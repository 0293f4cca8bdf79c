"""``SteerEditor`` and the generator and applier of steering vectors, by their classic calls.

Configurations are mappings or YAML files with the classic names. What is underneath are
:mod:`easyeditor.steering` and patches: several layers each add their own vector, nothing is read of
other tokens than the named ones, and ``reset_all`` gives back every bit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from easyeditor.data.contrast import Contrast, Example
from easyeditor.edits import Prompt
from easyeditor.errors import EditError, HyperParamsError, HyperParamsFileError, did_you_mean
from easyeditor.lm.inference import generate
from easyeditor.lm.loading import load
from easyeditor.lm.locking import lock_of
from easyeditor.lm.model import LM
from easyeditor.model_spec import ModelSpec
from easyeditor.patches.patch import Patch, PatchInfo
from easyeditor.patches.stack import without_patches
from easyeditor.steering.activations import part_at, path_of
from easyeditor.steering.vectors import (
    SteeringSettings,
    SteeringVectors,
    contrast_vectors,
    prompt_vectors,
)

Config = Mapping[str, Any] | str | os.PathLike[str]
Vectors = Mapping[str, Mapping[str, torch.Tensor]]
"""``{method: {"layer_17": vector}}``."""

METHODS_HERE = {"caa": "caa", "vector_prompt": "prompt"}
"""Classic names of the ways to make a vector, and ours."""
ELSEWHERE = {
    "dola": "contrasts layers while decoding, which is no edit",
    "deco": "corrects layers while decoding, which is no edit",
    "sta": "needs a public sparse autoencoder; caa is the nearest",
    "lm_steer": "is trained at the output head; caa is the nearest",
    "reps_vector": "is trained; caa is the nearest",
    "prompt": "is a text in front: write it into the input",
}
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
        self.config = _mapping(cfg)
        self.hparams_dict = _settings(self.config, "steer_train_hparam_paths")
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
        if not datasets:
            raise EditError("There are no datasets: {name: [{'question', 'matching', …}, …]}.")
        self._lm = self._lm or _load(self.config)
        result: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
        for name, records in datasets.items():
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
        """Take every vector off; the model has the bits it had."""
        while self.patches:
            self.patches[-1].revert(self.lm.model)
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
        self.config = _mapping(cfg)
        self.hparams_dict = _settings(self.config, "apply_steer_hparam_paths")
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
        lm, patches = self.model.lm, []
        for method, settings in self.hparams_dict.items():
            given = (vectors or {}).get(method)
            layers = settings.get("layers") or [_number(key) for key in given or ()]
            strengths = list(settings.get("multipliers") or [1.0])
            strengths = strengths * len(layers) if len(strengths) == 1 else strengths
            if len(strengths) != len(layers):
                raise EditError(
                    f"{method} has {len(strengths)} multipliers for {len(layers)} layers; give one "
                    "for all, or one for each."
                )
            for layer, strength in zip(layers, strengths, strict=True):
                vector = (given or {}).get(f"layer_{layer}")
                if vector is None:
                    raise EditError(
                        f"There is no vector of {method} at layer {layer}; there are "
                        f"{', '.join(given or ()) or 'none'}. Give apply_vectors the vectors that "
                        "generate_vectors returned for one dataset."
                    )
                patches.append(_patch(lm, method, int(layer), vector, float(strength), positions))
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
        tokens = int(options.pop("max_new_tokens", TOKENS))
        records = [record for some in datasets.values() for record in some if record.get("input")]
        prompts = [self._prompt(str(record["input"])) for record in records]
        lm = self.model.lm
        texts = generate(lm, prompts, tokens, **options)
        originals: list[list[str]] = [[] for _ in records]
        if self.config.get("generate_orig_output"):
            with without_patches(lm.model):
                originals = [[text] for text in generate(lm, prompts, tokens, **options)]
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
        config = hparams if isinstance(hparams, Mapping) else dict(hparams)
        alg_name = str(config.get("alg_name") or "")
        if alg_name.lower() in ELSEWHERE:
            _check_method(alg_name)
        return cls(_load(config))

    def apply(self, patch: Patch) -> None:
        """Carry a patch: steering vectors (``vectors.patch(strength=…)``) or any other."""
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
        texts = [input_text] if isinstance(input_text, str) else list(input_text)
        if temperature:
            model_kwargs |= {"do_sample": True, "temperature": temperature}
        return generate(self.lm, texts, max_new_tokens, **model_kwargs)


def _vectors(
    lm: LM,
    method: str,
    settings: Mapping[str, Any],
    name: str,
    records: Sequence[Mapping[str, Any]],
) -> SteeringVectors:
    layers = tuple(settings.get("layers") or (0.5,))
    prompts = [
        Prompt(_text(name, i, record, "question", "prompt", "input"))
        for i, record in enumerate(records)
    ]
    if METHODS_HERE[method] == "prompt":
        instruction = str(settings.get("prompt") or settings.get("system_prompt") or "")
        return prompt_vectors(lm, prompts, instruction, layers=layers)
    kinds = [
        tuple(
            Example(prompt, _text(name, i, record, *fields))
            for i, (prompt, record) in enumerate(zip(prompts, records, strict=True))
        )
        for fields in (("matching", "positive"), ("not_matching", "negative"))
    ]
    return contrast_vectors(lm, Contrast(kinds[0], kinds[1], paired=True), layers=layers)


def _patch(
    lm: LM, method: str, layer: int, vector: torch.Tensor, strength: float, positions: str
) -> Patch:
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


def _mapping(cfg: Config) -> dict[str, Any]:
    if isinstance(cfg, (str, os.PathLike)):
        return _file(Path(cfg))
    try:
        return {str(key): cfg[key] for key in cfg}
    except (TypeError, KeyError):
        raise HyperParamsError(
            f"A configuration is a mapping or a YAML file, not {type(cfg).__name__} ({cfg!r:.80})."
        ) from None


def _file(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HyperParamsFileError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(data, Mapping):
        raise HyperParamsFileError(f"{path} must hold 'name: value' lines.")
    return {str(key): value for key, value in data.items()}


def _settings(config: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """Settings by method."""
    listed = config.get(name) or []
    if isinstance(listed, (str, os.PathLike, Mapping)):
        listed = [listed]
    result = {}
    for entry in listed:
        settings = _mapping(entry)
        result[_check_method(str(settings.get("alg_name", "")))] = settings
    return result


def _check_method(name: str) -> str:
    if name.lower() in METHODS_HERE:
        return name.lower()
    why = ELSEWHERE.get(name.lower(), "is not known")
    raise HyperParamsError(
        f"alg_name {name!r} {why}.{did_you_mean(name, METHODS_HERE)} Here are "
        f"{' and '.join(METHODS_HERE)}, and easyedit steer."
    )


def _load(config: Mapping[str, Any]) -> LM:
    name = config.get("model_name_or_path") or config.get("model_name")
    if not name:
        raise HyperParamsError("The configuration names no model: model_name_or_path.")
    return load(ModelSpec(str(name), device=config.get("device")))


def _text(dataset: str, number: int, record: Mapping[str, Any], *names: str) -> str:
    value = next((record[name] for name in names if record.get(name)), None)
    if not isinstance(value, str):
        raise EditError(
            f"Record {number} of {dataset!r} has no text under {' or '.join(map(repr, names))}; it "
            f"has {', '.join(map(str, record)) or 'nothing'}."
        )
    return value


def _number(key: str) -> int:
    return int(key.removeprefix("layer_"))
