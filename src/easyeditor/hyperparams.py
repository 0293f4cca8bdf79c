"""Hyper-parameters: frozen, typed, read from the classic YAML files, refused when unknown.

Defaults are the published values. Layers may be written absolute (``17``), from the end (``-1``)
or as a share of the depth (``0.17``); :meth:`HyperParams.resolved` turns them into absolute
numbers, and those go into every result.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from easyeditor.errors import HyperParamsError, HyperParamsFileError, did_you_mean
from easyeditor.model_spec import ModelSpec

log = logging.getLogger(__name__)
H = TypeVar("H", bound="HyperParams")

# Preset name -> the name the model is loaded by. Matching is exact, never by substring.
KNOWN_MODELS = {
    "gpt2-xl": "openai-community/gpt2-xl",
    "gpt-j-6B": "EleutherAI/gpt-j-6b",
    "gpt-neo-2.7B": "EleutherAI/gpt-neo-2.7B",
    "llama-7b": "huggyllama/llama-7b",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "t5-3b": "google-t5/t5-3b",
    "smollm2-135m": "smollm2-135m",
}

# Classic keys that name a module; the family table answers them, so they are only checked.
FAMILY_KEYS = frozenset(
    {
        "rewrite_module_tmp",
        "layer_module_tmp",
        "mlp_module_tmp",
        "attn_module_tmp",
        "ln_f_module",
        "lm_head_module",
    }
)


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, (int, float)) else value


def _none_for_false(value: object) -> object:
    return None if value is False else value


NumberOrOff = Annotated[float | None, BeforeValidator(_none_for_false)]
"""A number, or None for none; classic files write ``false`` for that."""
OptionalLayers = Annotated[tuple[int | float, ...], BeforeValidator(_as_tuple)]
"""Layer numbers, or shares of the depth; one of them may stand alone."""
Layers = Annotated[OptionalLayers, Field(min_length=1)]
"""The same, at least one."""


def resolve_layers(layers: tuple[int | float, ...], n_layers: int) -> tuple[int, ...]:
    """Absolute layer numbers: ``-1`` is the last, ``0.5`` half-way down, ``3`` is itself.

    Raises:
        HyperParamsError: a layer lies outside the model.
    """
    result = []
    for layer in layers:
        if isinstance(layer, float) and not layer.is_integer():
            # A share always lies inside the model: 0.99 of three layers is the last.
            absolute = round(layer * n_layers)
            if 0 < layer < 1:
                absolute = min(absolute, n_layers - 1)
        else:
            absolute = int(layer) + (n_layers if layer < 0 else 0)
        if not 0 <= absolute < n_layers:
            raise HyperParamsError(
                f"layers={list(layers)}: the model has {n_layers} layers, so {layer} is outside "
                f"it. Use 0 to {n_layers - 1}, -1 for the last, or a share such as 0.2."
            )
        result.append(absolute)
    return tuple(sorted(set(result)))


TEXT_COLUMN_OF = {"flags-135m": "smollm2-135m"}
"""A model that sees -> the model whose text column it has, and so whose settings fit."""


def preset_name(model_name: str, presets: Iterable[str]) -> str | None:
    """The preset whose model is exactly ``model_name`` or its last part; None without one."""
    base = model_name.rstrip("/").rpartition("/")[2].lower()
    base = TEXT_COLUMN_OF.get(base, base)
    for known in presets:
        if base in {known.lower(), KNOWN_MODELS[known].rpartition("/")[2].lower()}:
            return known
    return None


MODEL_FIELDS = (
    "model_name",
    "device",
    "model_parallel",
    "fp16",
    "dtype",
    "chat_template",
    "quantization",
)
"""The fields of :class:`ModelSpec`, but for ``trust_remote_code``: no file of settings allows that
code of a model is run."""


class HyperParams(BaseModel):
    """What all methods share. Subclasses add fields, ``presets`` and ``ignored``.

    Raises (on construction):
        HyperParamsError: lists every unknown field, wrong type and impossible value at once.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Model -> only what differs from the defaults. A subclass with another ``alg_name`` does not
    inherit them: they were chosen for another method."""
    variants: ClassVar[dict[str, dict[str, Any]]] = {}
    """Published names of variants of the method -> the settings each name stands for."""
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Classic fields that no longer mean anything; named in one log line, then dropped."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Forget the presets of a class with another ``alg_name``."""
        super().__pydantic_init_subclass__(**options)
        inherited, name = cls.__mro__[1], cls.model_fields["alg_name"].default
        former = getattr(inherited, "model_fields", {}).get("alg_name")
        if "presets" not in vars(cls) and former is not None and former.default != name:
            cls.presets = {}

    alg_name: str = ""
    model_name: str = ""
    device: int | str | None = None
    model_parallel: bool = False
    fp16: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    chat_template: bool = False
    quantization: Literal["8bit", "4bit"] | None = None

    _family_claims: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, /, **data: Any) -> None:
        kind = type(self)
        if "model" in data:
            data = {**_flat(data.pop("model")), **data}
        if "alg" in data:
            data.setdefault("alg_name", data.pop("alg"))
        claims = {key: str(data.pop(key)) for key in FAMILY_KEYS & data.keys()}
        dropped = sorted(kind.ignored & data.keys())
        for key in dropped:
            del data[key]
        if dropped:
            log.info("%s: no longer used: %s", kind.__name__, ", ".join(dropped))
        expected = kind.model_fields["alg_name"].default
        if str(data.get("alg_name", expected)).lower() != expected.lower():
            raise HyperParamsError(
                f"{kind.__name__} was given alg_name={data['alg_name']!r}; it holds {expected!r}. "
                "Use the class of that method, or correct the file."
            )
        data["alg_name"] = expected
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise HyperParamsError(_explain(kind, error)) from None
        self._family_claims = claims

    @property
    def model(self) -> ModelSpec:
        """Which model is loaded, and how: what :func:`easyeditor.load` takes.

        The classic files have its fields side by side with the others, so they are stored flat;
        ``HyperParams(model=ModelSpec(...))`` takes them together.
        """
        return ModelSpec(**{name: getattr(self, name) for name in MODEL_FIELDS})

    @property
    def family_claims(self) -> dict[str, str]:
        """Classic module templates that were given, to be checked against the family table."""
        return dict(self._family_claims)

    @classmethod
    def from_hparams(cls: type[H], path: str | Path) -> H:
        """Read ``path``, or ``path`` + ``.yaml``, as in ``"./hparams/ROME/gpt2-xl"``.

        Raises:
            HyperParamsFileError: no such file, or not a YAML mapping.
            HyperParamsError: the file holds something that is not allowed.
        """
        given = Path(path)
        file = given if given.is_file() else Path(f"{path}.yaml")
        if not file.is_file():
            presets = ", ".join(cls.presets)
            raise HyperParamsFileError(
                f"No hyper-parameter file {str(given)!r} (nor with .yaml). Built-in presets of "
                f"{cls.__name__}: {presets}; use {cls.__name__}.preset(name), or write the files "
                "with: easyedit hparams write --out hparams"
            )
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise HyperParamsFileError(f"{file} is not YAML: {yaml_problem(error)}.") from None
        if not isinstance(data, Mapping):
            raise HyperParamsFileError(f"{file} must hold 'name: value' lines.")
        try:
            return cls(**{str(key): value for key, value in data.items()})
        except HyperParamsError as error:
            raise HyperParamsError(f"{file}: {error}") from None

    @classmethod
    def preset(cls: type[H], name: str, /, **changes: Any) -> H:
        """The published settings for one model, with ``changes`` on top.

        Raises:
            HyperParamsError: there is no such preset.
        """
        result = next((known for known in cls.presets if known.lower() == name.lower()), None)
        if result is None:
            raise HyperParamsError(
                f"{cls.__name__} has no preset {name!r}.{did_you_mean(name, cls.presets)} "
                f"Known: {', '.join(cls.presets)}."
            )
        return cls(**{"model_name": KNOWN_MODELS[result], **cls.presets[result], **changes})

    @classmethod
    def for_model(cls: type[H], model_name: str, /, **changes: Any) -> H:
        """The preset whose model is exactly ``model_name`` (or its last part), else the defaults.

        ``"openai-community/gpt2-xl"``, ``"gpt2-xl"`` and ``"/models/gpt2-xl"`` are one model;
        ``"my-gpt2-xl-tuned"`` is not.
        """
        preset = preset_name(model_name, cls.presets)
        if preset is not None:
            return cls.preset(preset, **{"model_name": model_name, **changes})
        return cls(**{"model_name": model_name, **changes})

    def replace(self: H, **changes: Any) -> H:
        """A checked copy with ``changes``; ``model`` may be one of them.

        What was left at its default still counts as not given (``model_fields_set``).
        """
        if "model" in changes:
            changes = {**_flat(changes.pop("model")), **changes}
        copy = type(self)(**{**self.model_dump(exclude_unset=True), **changes})
        copy._family_claims = {**self._family_claims, **copy._family_claims}
        return copy

    @classmethod
    def variant(cls, label: str) -> dict[str, Any]:
        """The settings ``label`` stands for where it names one of ``variants``, else {}."""
        by_name = {name.lower(): settings for name, settings in cls.variants.items()}
        return by_name.get(label.lower(), {})

    def resolved(self: H, n_layers: int) -> H:
        """The same settings with absolute layer numbers, for a model of ``n_layers``.

        Methods that edit no layer have no field ``layers``, and keep their settings as they are.
        """
        layers = dict(self).get("layers")
        return self if layers is None else self.replace(layers=resolve_layers(layers, n_layers))


def _flat(spec: object) -> dict[str, Any]:
    if not isinstance(spec, ModelSpec):
        raise HyperParamsError(
            f"model must be a ModelSpec, not {type(spec).__name__} ({spec!r}). Give "
            "ModelSpec(model_name=...), or the fields of one by themselves: model_name=..."
        )
    return {name: getattr(spec, name) for name in MODEL_FIELDS}


def yaml_problem(error: Exception) -> str:
    """What is wrong with a text that is not YAML and where, in one line."""
    place, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if place is None or not problem:
        return " ".join(str(error).split())
    return f"line {place.line + 1}, column {place.column + 1}: {problem}"


def _explain(kind: type[HyperParams], error: ValidationError) -> str:
    problems = []
    unknown = False
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else "?"
        if item["type"] == "extra_forbidden":
            hint = did_you_mean(name, [*kind.model_fields, *FAMILY_KEYS])
            problems.append(f"unknown field {name!r}.{hint}")
            unknown = True
        else:
            problems.append(f"{name}={item['input']!r}: {item['msg']}")
    problems = list(dict.fromkeys(problems))
    text = f"{kind.__name__}: " + "; ".join(problems)
    if unknown:
        return f"{text} Fields: {', '.join(kind.model_fields)}."
    return text if text.endswith((".", "?", "!")) else f"{text}."
