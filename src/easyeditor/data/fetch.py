"""Datasets known by name: what ships with the package, and what is fetched once from its source."""

from __future__ import annotations

import json
import os
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from easyeditor.errors import DataError
from easyeditor.files import written_whole
from easyeditor.redaction import Redactor, public_url, url_secrets

HERE = Path(__file__).parent
SHIPPED = {"worldfacts": HERE / "worldfacts.json", "paragraphs": HERE / "paragraphs.json"}
OFFLINE = ("EASYEDITOR_OFFLINE", "HF_HUB_OFFLINE")
HUB = "https://huggingface.co"
SECONDS = 30.0


class Source(NamedTuple):
    """Where a dataset comes from."""

    kind: str
    url: str
    licence: str


@cache
def sources() -> dict[str, Source]:
    """Name → source, of everything that can be fetched."""
    table = json.loads((HERE / "sources.json").read_text(encoding="utf-8"))
    return {name: Source(**entry) for name, entry in table.items()}


def names() -> list[str]:
    """Every name :func:`place_of` knows."""
    return [*SHIPPED, *sources()]


def cached(name: str) -> Path:
    """Where a fetched dataset lies, fetched or not."""
    from easyeditor.paths import cache_dir

    return cache_dir() / "datasets" / f"{name.replace('/', '-')}.json"


def place_of(name: str) -> Path:
    """The file of a dataset known by name; fetched once, into the user's cache.

    Raises:
        DataError: it is not there yet, and the network is forbidden or fails; the message says
            which file to fetch by hand, and what to do with it.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    file = cached(name)
    if not file.is_file():
        forbidden = [key for key in OFFLINE if _is_set(os.environ.get(key))]
        if forbidden:
            raise DataError(f"{name} is not here yet and {forbidden[0]} is set. {_by_hand(name)}")
        _download(name, file)
    return file


def _is_set(value: str | None) -> bool:
    return (value or "").strip().lower() not in {"", "0", "false", "no", "off"}


def _by_hand(name: str) -> str:
    url = public_url(_url(name))
    file = url.rpartition("/")[2]
    return (
        f"Fetch it by hand from {url} and give the file: open_dataset({file!r}), or easyedit data "
        f"describe {file}"
    )


def _url(name: str) -> str:
    mirror = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    return sources()[name].url.replace(HUB, mirror, 1)


def _copy(answer: Any, out: BinaryIO, name: str) -> None:
    from easyeditor.progress import bar

    with bar(int(answer.headers.get("Content-Length") or 0), f"fetching {name}", "B") as shown:
        while block := answer.read(1 << 20):
            out.write(block)
            shown.update(len(block))


def _download(name: str, file: Path) -> None:
    from urllib.request import Request, urlopen

    request = Request(_url(name), headers={"User-Agent": "easyeditor"})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(request, timeout=SECONDS) as answer, written_whole(file) as part:
            with part.open("wb") as out:
                _copy(answer, out, name)
            with part.open("rb") as head:
                if head.read(64).lstrip()[:1] not in (b"[", b"{"):
                    raise DataError(f"{public_url(_url(name))} gave no JSON. {_by_hand(name)}")
    except (OSError, HTTPException) as error:  # URLError and time-outs are OSErrors
        reason = Redactor(url_secrets(_url(name))).masked(str(error))
        raise DataError(f"{name} could not be fetched ({reason}). {_by_hand(name)}") from None
