"""Which methods the page offers, and which of their settings a browser may change.

A browser must not reach the server's disk, so only settings that are numbers, switches or words of
a fixed list can be set; none that may hold the name of a file, a folder or a model.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from easyeditor.errors import HyperParamsError, did_you_mean
from easyeditor.hyperparams import MODEL_FIELDS, HyperParams
from easyeditor.methods import METHODS
from easyeditor.methods.base import Method, Need

PLAIN = (int, float, bool, type(None))
LONGEST = 2000
"""Characters of all settings together."""


def offered() -> list[str]:
    """The methods that edit at once: those without a training and without demonstrations."""
    kinds = ((name, METHODS.get(name)) for name in METHODS)
    return [name for name, kind in kinds if _edits_at_once(kind)]


def _edits_at_once(kind: type[Method[Any]]) -> bool:
    return kind.training_class is None and Need.DEMONSTRATIONS not in kind.needs


def untrained() -> list[str]:
    """The methods that edit with an archive, which a training has to make first."""
    kinds = ((name, METHODS.get(name)) for name in METHODS)
    return [name for name, kind in kinds if kind.training_class is not None]


def settable(method: str) -> dict[str, Any]:
    """The settings of a method that a browser may change, with their defaults."""
    kind: type[HyperParams] = METHODS.get(method).hyperparams_class
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in kind.model_fields.items()
        if name not in {*MODEL_FIELDS, "alg_name"} and _is_plain(field.annotation)
    }


def changes_of(method: str, text: str | None) -> dict[str, Any]:
    """The settings that a text of ``NAME=VALUE`` lines changes.

    Raises:
        HyperParamsError: a line of another form, an unknown name, a setting that is not a
            browser's to change.
    """
    text = text or ""
    if len(text) > LONGEST:
        raise HyperParamsError(f"The settings have {len(text)} characters; up to {LONGEST} go.")
    allowed = settable(method)
    changes: dict[str, Any] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name:
            raise HyperParamsError(f"A setting is NAME=VALUE, such as v_lr=0.4; got {line!r:.80}.")
        if name not in allowed:
            raise HyperParamsError(
                f"{name!r:.60} is no setting of {method} that this page changes."
                f"{did_you_mean(name, allowed)} It changes {', '.join(allowed)}."
            )
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise HyperParamsError(f"The value of {name} cannot be read: {value!r:.80}.") from None
    return changes


def settings_of(method: str, model: str, changes: dict[str, Any]) -> HyperParams:
    """The settings of ``method`` for ``model``: its preset or the defaults, with the changes.

    Raises:
        HyperParamsError: an impossible value.
    """
    kind: type[HyperParams] = METHODS.get(method).hyperparams_class
    return kind.for_model(model, **changes)


def _is_plain(annotation: Any) -> bool:
    """Whether a value of this type is a number, a switch, a word of a fixed list, or a list."""
    if annotation in PLAIN:
        return True
    origin = get_origin(annotation)
    if origin is Literal:
        return True
    if origin is Annotated:
        return _is_plain(get_args(annotation)[0])
    if origin in (Union, types.UnionType, tuple, list):
        return all(inner is Ellipsis or _is_plain(inner) for inner in get_args(annotation))
    return False
