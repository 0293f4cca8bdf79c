"""Methods, presets and families as plain data, read from ``catalog.json`` without importing torch.

``python -m easyeditor.cli.catalog`` writes the file from the classes, and a test compares the two.
A method that is not in the file (it was registered later) is read from its class.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyeditor.methods import METHODS

if TYPE_CHECKING:
    from easyeditor.hyperparams import HyperParams

FILE = Path(__file__).with_name("catalog.json")
TRAINING = "TRAINING"
"""The folder of settings for training, as the classic files have it."""


@cache
def _stored() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return document


def method(name: str) -> dict[str, Any]:
    """Facts about one method.

    ``name``, ``title``, ``batch`` (whether it takes several edits at once), ``needs_subject``,
    ``expands`` (whether an edit may have further prompts), ``learns``, ``second_moments`` and
    ``presets`` (names of models).

    Raises:
        UnknownMethodError: no such method.
    """
    name = METHODS.canonical(name)
    stored: dict[str, Any] | None = _stored()["methods"].get(name)
    return stored or _describe(name)


def methods() -> list[dict[str, Any]]:
    """:func:`method` of every registered method, in their order."""
    return [method(name) for name in METHODS]


def learning() -> list[str]:
    """The methods that are trained before they edit."""
    return [name for name in METHODS if method(name)["learns"]]


def hparams() -> dict[str, list[str]]:
    """The presets of every folder of settings: ``METHOD`` and ``TRAINING/METHOD``."""
    listed = {name: method(name)["presets"] for name in METHODS}
    for name in learning():
        listed[f"{TRAINING}/{name}"] = list(_settings(f"{TRAINING}/{name}")["presets"])
    return listed


def settings(folder: str, model: str) -> tuple[dict[str, Any], bool]:
    """The hyper-parameters for ``model`` as plain data, and whether there is a preset for it.

    ``folder`` is ``METHOD`` or ``TRAINING/METHOD``. Without a preset they are the defaults.
    """
    from easyeditor.hyperparams import preset_name

    known = _settings(folder)
    name = preset_name(model, known["presets"])
    changes = known["presets"][name] if name is not None else {}
    return {**known["defaults"], **changes, "model_name": model}, name is not None


def preset(folder: str, name: str) -> dict[str, Any]:
    """One preset of a folder of settings, with the model's name on the hub."""
    known = _settings(folder)
    return {**known["defaults"], **known["presets"][name]}


def presets(folder: str) -> list[str]:
    """The names of the presets of one folder of settings."""
    return list(_settings(folder)["presets"])


def families() -> dict[str, dict[str, str]]:
    """Where the blocks, the down-projections and the head of each known architecture are."""
    rows: dict[str, dict[str, str]] = _stored()["families"]
    return rows


def _settings(folder: str) -> dict[str, Any]:
    stored: dict[str, Any] | None = _stored()["hparams"].get(folder)
    return stored or _describe_settings(_class_of(folder))


def _class_of(folder: str) -> type[HyperParams]:
    kind, _, name = folder.rpartition("/")
    if kind == TRAINING:
        from easyeditor.methods.training import training_class_of

        return training_class_of(name)
    hyperparams: type[HyperParams] = METHODS.get(name).hyperparams_class
    return hyperparams


# -- from the classes -------------------------------------------------------------------------


def _describe(name: str) -> dict[str, Any]:
    from easyeditor.methods.base import Need
    from easyeditor.methods.locate import LocateHyperParams

    kind = METHODS.get(name)
    return {
        "name": kind.name,
        "title": kind.title,
        "batch": kind.max_batch is None,
        "needs_subject": Need.SUBJECT in kind.needs,
        "expands": kind.max_batch != 1 or kind.searches_expansions,
        "learns": kind.training_class is not None,
        "second_moments": issubclass(kind.hyperparams_class, LocateHyperParams),
        "sweeps": getattr(kind.hyperparams_class, "sweep", None) is not None,
        "presets": list(kind.hyperparams_class.presets),
    }


def plain(settings: HyperParams) -> dict[str, Any]:
    """Hyper-parameters as a classic file writes them."""
    document: dict[str, Any] = settings.model_dump(mode="json")
    return document


def _describe_settings(kind: type[HyperParams]) -> dict[str, Any]:
    defaults = plain(kind())
    values = {name: plain(kind.preset(name)) for name in kind.presets}
    return {
        "defaults": defaults,
        "presets": {
            name: {k: v for k, v in preset.items() if k not in defaults or defaults[k] != v}
            for name, preset in values.items()
        },
    }


def describe() -> dict[str, Any]:
    """What the file must hold, from the classes; imports every method."""
    from easyeditor.lm.families import FAMILIES

    described = {name: _describe(name) for name in METHODS}
    folders = [*METHODS, *(f"{TRAINING}/{n}" for n, m in described.items() if m["learns"])]
    return {
        "methods": described,
        "hparams": {folder: _describe_settings(_class_of(folder)) for folder in folders},
        "families": {
            name: {"blocks": row.decoder.blocks, "down": row.decoder.down, "head": row.head}
            for name, row in FAMILIES.items()
        },
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(describe(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
