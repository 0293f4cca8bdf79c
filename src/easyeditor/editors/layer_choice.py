"""The layers and search settings that a sweep chose for a model, cached by its weights.

``easyedit layers --auto`` writes them (:mod:`easyeditor.bench.layer_choosing`); whoever builds a
method for a model reads them with :func:`automatic`. They only fill in what was left at its
default: a preset, a file of hyper-parameters or an argument that names layers is never overruled.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from easyeditor.errors import OutputError
from easyeditor.files import written_whole
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.fingerprint import Fingerprint, fingerprint
from easyeditor.lm.model import LM
from easyeditor.methods.sweep_plan import SweepPlan
from easyeditor.paths import cache_dir

log = logging.getLogger(__name__)
H = TypeVar("H", bound=HyperParams)
FORMAT = 1


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What a sweep chose for one model.

    Attributes:
        model: its name, for people.
        probe: the method that was swept.
        settings: hyper-parameters by name, ``layers`` among them.
        rows: what was measured last of each candidate, the chosen one at the end; see ``SweepRow``
            of :mod:`easyeditor.bench.sweep`.
        facts: ids of the facts that were edited.
        seconds: the sweep took.
        when: the day, as in 2026-11-28.
    """

    model: str
    probe: str
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    facts: Sequence[str]
    seconds: float
    when: str


def choices_folder() -> Path:
    """Where choices and unfinished sweeps lie."""
    return cache_dir() / "layers"


def plan_of(hparams: HyperParams | type[HyperParams]) -> SweepPlan | None:
    """How layers are swept for these settings; None where the method has no such plan."""
    plan: SweepPlan | None = getattr(hparams, "sweep", None)
    return plan


def write_choice(lm: LM, choice: LayerChoice) -> Path | None:
    """Write a choice where :func:`stored_choice` reads it; None where that is not possible."""
    print_of = fingerprint(lm.model)
    file = choices_folder() / f"{print_of.digest}-{choice.probe.lower()}.json"
    document = {"format": FORMAT, "fingerprint": print_of.to_dict(), **asdict(choice)}
    try:
        with written_whole(file, parents=True) as part:
            part.write_text(json.dumps(document, indent=1), encoding="utf-8")
    except OutputError as error:
        log.warning("the choice of layers is not kept: %s", error)
        return None
    return file


def stored_choice(lm: LM, probe: str) -> LayerChoice | None:
    """The choice for this model in any precision; None without one that can be read."""
    try:
        files = sorted(choices_folder().glob(f"*-{probe.lower()}.json"))
    except OSError:
        return None
    if not files:
        return None
    print_of = fingerprint(lm.model)
    files.sort(key=lambda file: file.name.partition("-")[0] != print_of.digest)
    for file in files:
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if document.pop("format") != FORMAT:
                continue
            other = Fingerprint.from_dict(document.pop("fingerprint"))
            choice = LayerChoice(**document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is ignored: it holds no choice of layers (%s)", file, error)
            continue
        if not other.differences(print_of):
            return choice
    return None


def automatic(lm: LM, hparams: H) -> H:
    """``hparams`` with what a sweep chose for this model, where nobody named the layers.

    Without a stored sweep, or where layers were given (by a preset, a file, an argument), it is
    ``hparams`` itself. Other fields that were given stay as they are.
    """
    plan = plan_of(hparams)
    if plan is None or "layers" in hparams.model_fields_set:
        return hparams
    choice = stored_choice(lm, plan.probe)
    if choice is None:
        return hparams
    fields = type(hparams).model_fields.keys() - hparams.model_fields_set
    settings = {name: value for name, value in choice.settings.items() if name in fields}
    text = Path(str(settings.get("mom2_dataset", "")))
    if text.is_absolute() and not text.is_file():
        log.warning("%s is gone; second moments come from the default text instead.", text)
        settings = {k: v for k, v in settings.items() if not k.startswith("mom2_")}
    log.info("%s: %s as a sweep over the layers of %s chose", plan.probe, settings, lm.name)
    return hparams.replace(**settings)
