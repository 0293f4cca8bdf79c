"""Cache files of tensors: written whole or not at all, verified by digest when they are read.

Their content can always be computed again, so a file that cannot be written, read or verified
costs time and a warning, never an error.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from easyeditor.files import written_whole

log = logging.getLogger(__name__)

BYTES_PER_READ = 2**20
SETTLED_NS = 2 * 10**9
"""A file that was not written for so long has another time of change after the next writing."""
DIGEST_DIGITS = 16


def digest_of(tensor: torch.Tensor) -> str:
    """16 hexadecimal digits of the SHA-256 of the tensor's numbers."""
    data = tensor.detach().cpu().contiguous().view(-1).numpy().data
    return hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]


def write_cache_file(
    file: Path, tensors: Mapping[str, torch.Tensor], info: Mapping[str, str], what: str
) -> bool:
    """Write contiguous tensors with their digests; False (and a warning) if that failed.

    Args:
        file: its path.
        tensors: by name.
        info: metadata, written sorted by name: equal content gives equal bytes. An entry
            ``"digest"`` is the digest of the only tensor, already computed.
        what: names the content in warnings.
    """
    digests = {} if "digest" in info else {_key(name): digest_of(t) for name, t in tensors.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as part:
            save_file(dict(tensors), part, metadata=dict(sorted((*info.items(), *digests.items()))))
    except (OSError, SafetensorError) as error:  # its own error, also for a full disk
        log.warning("%s could not be kept in %s: %s", what, file, error)
        return False
    return True


def read_cache_file(file: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Tensors and metadata; None if there is no such file, or (with a warning) a damaged one.

    Every tensor is compared with the digest that the file states for it (files of former versions
    may state none). The tensors are memory-mapped copy-on-write: writing into them changes no file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            info = dict(opened.metadata() or {})
        damaged = [
            name
            for name, digest in _current_digests(file).items()
            if digest != info.get(_key(name), info.get("digest", digest))
        ]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        ignored(file, what, error)
        return None
    if damaged:
        ignored(file, what, f"the numbers of {', '.join(damaged)} do not match their digest")
        return None
    return tensors, info


def _key(name: str) -> str:
    return f"digest:{name}"


def _current_digests(file: Path) -> dict[str, str]:
    """Digest of each tensor, computed again only where the file is another than last time.

    A file written a moment ago could be written again within one tick of its clock: the digests of
    such a file are not kept.
    """
    state = file.stat()
    identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < SETTLED_NS:
        return _digests(file)
    return _digests_of_settled(file, identity)


@lru_cache(maxsize=1024)
def _digests_of_settled(file: Path, identity: tuple[int, ...]) -> dict[str, str]:
    return _digests(file)


def _digests(file: Path) -> dict[str, str]:
    """Digest of each tensor, read piecewise: mapped pages would stay in memory."""
    digests = {}
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        start = opened.tell()
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                opened.seek(start + first)
                digests[name] = _digest_of_next(opened, last - first)
    return digests


def _digest_of_next(opened: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (piece := opened.read(min(size, BYTES_PER_READ))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest()[:DIGEST_DIGITS]


def ignored(file: Path, what: str, why: object) -> None:
    """Warn that a file is not used and why."""
    log.warning("%s in %s cannot be used and are computed again: %s", what, file, why)
