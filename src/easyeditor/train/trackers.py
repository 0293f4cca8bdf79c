"""Experiment trackers, as transformers has them, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from easyeditor.errors import HyperParamsError, MissingExtraError, did_you_mean


def trackers(names: Sequence[str], folder: Path) -> list[TrainerCallback]:
    """One callback per name; TensorBoard's files go to ``folder/tensorboard``.

    (Its own choice would be the folder of the checkpoints, which does not outlive the training.
    ``TENSORBOARD_LOGGING_DIR`` names another.)

    Raises:
        HyperParamsError: no tracker has this name.
        MissingExtraError: its package is not installed.
    """
    made = []
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise HyperParamsError(
                f"report_to: no tracker is called {name!r}.{did_you_mean(name, _KNOWN)} "
                f"There are {', '.join(_KNOWN)}."
            )
        try:
            tracker = INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            raise MissingExtraError(f"report_to: {error}") from None
        if isinstance(tracker, TensorBoardCallback) and tracker.logging_dir is None:
            tracker.logging_dir = str(folder / "tensorboard")
        made.append(tracker)
    return made


_KNOWN = sorted(INTEGRATION_TO_CALLBACK)
