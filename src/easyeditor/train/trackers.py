"""Experiment trackers, as transformers has them, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import strftime

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from easyeditor.errors import HyperParamsError, MissingExtraError, did_you_mean


def trackers(names: Sequence[str], folder: Path) -> list[TrainerCallback]:
    """One callback per name; ``"all"`` stands for those that are installed, ``"none"`` for none.

    TensorBoard's files go to ``folder/tensorboard``, a folder per run (``TENSORBOARD_LOGGING_DIR``
    names another place). The trap: what another tracker puts among the checkpoints goes with them
    when the training is done.

    Raises:
        HyperParamsError: no tracker has this name.
        MissingExtraError: it cannot start; mostly its package is not installed.
    """
    callbacks = []
    for name in _named(names):
        if name not in INTEGRATION_TO_CALLBACK:
            raise HyperParamsError(
                f"report_to: no tracker is called {name!r}.{did_you_mean(name, _KNOWN)} "
                f"There are {', '.join(_KNOWN)}."
            )
        try:
            tracker = INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            raise MissingExtraError(
                f"report_to: {name} cannot start: {error} If its package is missing: "
                f"pip install {name}"
            ) from None
        if isinstance(tracker, TensorBoardCallback) and tracker.logging_dir is None:
            tracker.logging_dir = str(folder / "tensorboard" / strftime("%Y-%m-%d_%H-%M-%S"))
        callbacks.append(tracker)
    return callbacks


def _named(names: Sequence[str]) -> list[str]:
    if list(names) == ["all"]:
        return list(get_available_reporting_integrations())
    return [name for name in names if name != "none"]


_KNOWN = sorted(INTEGRATION_TO_CALLBACK)
