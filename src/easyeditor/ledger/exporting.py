"""A ledger as files that leave the house: its history, its active edits, and one patch of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from easyeditor.errors import LedgerError
from easyeditor.files import folder_written_whole
from easyeditor.ledger.entries import Entry, now
from easyeditor.ledger.ledger import Ledger
from easyeditor.patches.files import load_patch, save_patch
from easyeditor.patches.patch import Patch, merge
from easyeditor.patches.public import public_value
from easyeditor.patches.stack import kind_of
from easyeditor.sharing.manifest import write_manifest
from easyeditor.sharing.signing import sign_manifest

KIND = "ledger"
HISTORY, EDITS, PATCH = "history.jsonl", "edits.jsonl", "active.safetensors"


@dataclass(frozen=True, slots=True)
class LedgerExport:
    """What was written: the folder, the patch files in it, and how many edits they hold.

    ``signed`` says whether its manifest is.
    """

    folder: Path
    patches: list[Path]
    edits: int
    signed: bool = False


def export_ledger(ledger: Ledger, folder: str | Path, *, key: Path | None = None) -> LedgerExport:
    """Write a ledger as plain files; the folder appears whole or not at all.

    - ``history.jsonl``: every entry with its events, one JSON object per line.
    - ``edits.jsonl``: the active edits as a file of edits, to make them again on another model.
    - ``active.safetensors``: one patch that does what the active ones do, bit for bit. Where they
      are of several kinds, one per kind: ``active-weights.safetensors`` ….

    Paths in settings and in the model's name are reduced to their last names, so that nothing says
    where it was written.

    Raises:
        LedgerError: a patch file is missing or was changed.
        OutputError: the folder is not empty, or cannot be written.
    """
    place = Path(folder)
    active = ledger.active()
    patches = _merged(ledger, active)
    names = (
        [PATCH] if len(patches) == 1 else [f"active-{patch.kind}.safetensors" for patch in patches]
    )
    with folder_written_whole(place) as part:
        history = [
            {
                **entry.to_json(),
                "settings": public_value(entry.settings),
                "events": [event.to_json() for event in ledger.history(entry.number)],
            }
            for entry in ledger.entries()
        ]
        _write_lines(part / HISTORY, history)
        _write_lines(part / EDITS, [record for entry in active for record in entry.request])
        for name, patch in zip(names, patches, strict=True):
            save_patch(patch, part / name, public=True)
        about = {
            "kind": KIND,
            "model": public_value(str(ledger.setting("model_name"))),
            "fingerprint": ledger.setting("fingerprint"),
            "active": [entry.number for entry in active],
            "created": now(),
        }
        write_manifest(part, about)
        if key is not None:
            sign_manifest(part, key)
    return LedgerExport(place, [place / name for name in names], len(active), key is not None)


def _merged(ledger: Ledger, entries: Sequence[Entry]) -> list[Patch]:
    """One patch per kind, of all entries in their order."""
    groups: dict[type, list[Patch]] = {}
    for entry in entries:
        if entry.patch is None:
            raise LedgerError(f"Edit {entry.number} is active and has no patch.")
        patch = load_patch(ledger.patches.check(entry.patch, entry.number))
        groups.setdefault(kind_of(type(patch)), []).append(patch)
    return [merge(group) for group in groups.values()]


def _write_lines(file: Path, records: Sequence[object]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write_text(text, encoding="utf-8")
