"""How a ledger's model is loaded: what of it edits depend on. Where the model lies is left out."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from easyeditor.errors import LedgerError
from easyeditor.ledger.ledger import Ledger
from easyeditor.model_spec import ModelSpec

DEFAULTS: dict[str, Any] = {"dtype": None, "quantization": None, "chat_template": False}
"""The fields of :class:`ModelSpec` that a ledger remembers."""


def loading_of(spec: ModelSpec) -> dict[str, Any]:
    """What a ledger remembers of ``spec``: the fields that are not the default."""
    values = {
        "dtype": spec.precision,
        "quantization": spec.quantization,
        "chat_template": spec.chat_template,
    }
    return {name: value for name, value in values.items() if value != DEFAULTS[name]}


def recorded_loading(ledger: Ledger) -> dict[str, Any]:
    """Every field of :data:`DEFAULTS`, as the ledger's model is loaded."""
    return {**DEFAULTS, **ledger.setting("loading")}


def check_loading(
    ledger: Ledger, loading: Mapping[str, Any], names: Collection[str] = tuple(DEFAULTS)
) -> None:
    """Make sure that the ledger's model is loaded in this way.

    Args:
        ledger: its settings say how.
        loading: of the model that is asked for, see :func:`loading_of`.
        names: the fields that count.

    Raises:
        LedgerError: it is loaded in another way.
    """
    recorded, wanted = recorded_loading(ledger), {**DEFAULTS, **loading}
    for name in names:
        if wanted[name] != recorded[name]:
            setting = f"--set {name}={json.dumps(recorded[name])}"
            raise LedgerError(
                f"The model of the ledger {ledger.folder} is loaded with "
                f"{name}={recorded[name]!r}, not {name}={wanted[name]!r}: all its edits are made "
                f"and scored in one way. Use {name}={recorded[name]!r} ({setting}), or make "
                "another ledger for the other way (easyedit ledger init has options for it; from "
                "Python, name a new folder)."
            )
