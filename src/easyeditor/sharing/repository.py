"""A patch as a repository: the patch file, a PEFT adapter where it can be one, a card, a manifest.

The adapter is for other programs; the patch file is what EasyEdit applies, so that what was pulled
is undone to the bit like what was made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from easyeditor.errors import ManifestError, PatchError
from easyeditor.export.factors import lora_rank
from easyeditor.export.lora import export_lora
from easyeditor.files import folder_written_whole
from easyeditor.patches.files import load_patch, save_patch
from easyeditor.patches.patch import Patch
from easyeditor.patches.weight import WeightPatch
from easyeditor.sharing.card import card_of, fidelity
from easyeditor.sharing.manifest import Manifest, check_manifest, write_manifest
from easyeditor.sharing.scores import EditScore
from easyeditor.sharing.signing import check_signature, sign_manifest

PATCH, CARD = "patch.safetensors", "README.md"
KIND = "patch"


@dataclass(frozen=True, slots=True)
class Repository:
    """A folder that holds a shared patch, checked.

    Attributes:
        folder: where it lies.
        patch: read from it.
        manifest: of its files.
        notes: what the writer has to know of the adapter, one sentence each; empty if it was read.
    """

    folder: Path
    patch: Patch
    manifest: Manifest
    notes: tuple[str, ...] = ()

    @property
    def patch_file(self) -> Path:
        """The patch as EasyEdit reads it."""
        return self.folder / PATCH


def write_repository(
    patch: Patch,
    folder: str | Path,
    *,
    title: str = "",
    licence: str | None = None,
    scores: Sequence[EditScore] = (),
    rank: int | None = None,
    base: str | None = None,
    key: Path | None = None,
) -> Repository:
    """Write a patch as a repository; the folder appears whole or not at all.

    Its files name no place on this machine: paths among the settings, of images and of files that
    the patch refers to are reduced to their last names.

    Args:
        patch: any; the adapter is written for changes of linear layers' weights.
        folder: missing or empty.
        title: of the card; by default what is edited.
        licence: the hub's identifier of the patch's licence.
        scores: what the card says of the edits, see :func:`easyeditor.sharing.scores.edit_scores`.
        rank: of the adapter, for dense changes (64 by default); the card says what it leaves out.
        base: the hub name of the model, for the adapter; by default the one the patch was made by.
        key: of the private SSH key that signs the manifest.

    Raises:
        PatchError: ``rank`` is below one.
        OutputError: the folder is not empty, or cannot be written.
        SignatureError: the key cannot sign.
    """
    place = Path(folder)
    adapter = None
    with folder_written_whole(place) as part:
        if _has_adapter(patch):
            adapter = export_lora(patch, part / "adapter", rank=rank, base=base)
            for file in (part / "adapter").iterdir():
                file.rename(part / file.name)
            (part / "adapter").rmdir()
        save_patch(patch, part / PATCH, public=True)
        card = card_of(
            patch,
            PATCH,
            title=title or _title(patch),
            licence=licence,
            scores=scores,
            adapter=adapter,
        )
        (part / CARD).write_text(card, encoding="utf-8")
        about = {"kind": KIND, "method": patch.info.method, "base_model": patch.info.model_name}
        manifest = write_manifest(part, {**about, "edits": len(patch.info.edits)})
        if key is not None:
            sign_manifest(part, key)
    notes = (fidelity(adapter), *adapter.notes) if adapter else ()
    return Repository(place, patch, manifest, notes)


def read_repository(folder: str | Path, *, key: Path | None = None) -> Repository:
    """Read and check what :func:`write_repository` wrote.

    Args:
        folder: of the files.
        key: file of the public SSH key that must have signed it.

    Raises:
        ManifestError: a file is missing, was changed or was added, or it is no such folder.
        SignatureError: ``key`` did not sign it.
        PatchFormatError: the patch file is damaged.
    """
    place = Path(folder)
    manifest = check_manifest(place)
    if PATCH not in manifest.files:
        raise ManifestError(
            f"{place} holds no {PATCH}, so it is no shared patch (its manifest says "
            f"{manifest.about.get('kind')!r})."
        )
    if key is not None:
        check_signature(place, key)
    return Repository(place, load_patch(place / PATCH), manifest)


def _has_adapter(patch: Patch) -> bool:
    if not isinstance(patch, WeightPatch):
        return False
    try:
        lora_rank(patch)
    except PatchError:
        return False
    return True


def _title(patch: Patch) -> str:
    edits = patch.info.edits
    if not edits:
        return f"An edit by {patch.info.method}"
    more = f" and {len(edits) - 1} more" if len(edits) > 1 else ""
    return f"{str(edits[0].prompt).strip()} {edits[0].target.strip()}{more}"
