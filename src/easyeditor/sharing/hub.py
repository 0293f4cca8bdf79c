"""Repositories on a hub, through ``huggingface_hub``: upload a folder, fetch one, check it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi

from easyeditor.errors import HubError
from easyeditor.files import folder_written_whole
from easyeditor.sharing.manifest import read_manifest
from easyeditor.sharing.repository import Repository, read_repository

T = TypeVar("T")
MAX_SHOWN = 300
LIBRARIES = frozenset(("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2"))
"""Top names of the libraries that the client fails with."""


def push_repository(
    repository: Repository,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload a repository that :func:`~easyeditor.sharing.repository.write_repository` wrote.

    Args:
        repository: what is uploaded; files that a former version had and this lacks are deleted.
        name: ``owner/name`` on the hub; made if it is missing.
        private: whether a new repository is.
        revision: the branch; by default the main one.
        message: of the commit.
        api: of another hub than the one that the environment names, or with another token.

    Returns:
        The commit: what ``pull`` takes as ``revision`` to get exactly this version.

    Raises:
        HubError: the hub cannot be reached or refuses.
    """
    api = api or HfApi()
    subject = message or f"{repository.patch.info.method}: {len(repository.patch.info.edits)} edits"

    def upload() -> Any:
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        return api.upload_folder(
            repo_id=name,
            folder_path=repository.folder,
            revision=revision,
            commit_message=subject,
            delete_patterns=["adapter_*", "*.sig", "*.safetensors"],
        )

    commit = _asked(upload, f"{name} was not pushed")
    return str(commit.oid)


def pull_repository(
    name: str,
    folder: str | Path,
    *,
    revision: str | None = None,
    key: Path | None = None,
    api: HfApi | None = None,
) -> Repository:
    """Fetch a repository, check it, and leave it in ``folder``; nothing is left where it fails.

    Only what its manifest lists is fetched.

    Args:
        name: ``owner/name`` on the hub.
        folder: missing or empty.
        revision: a branch or a commit.
        key: file of the public SSH key that must have signed it.
        api: as in :func:`push_repository`.

    Raises:
        HubError: the hub cannot be reached, or has no such repository or revision.
        ManifestError: it holds no shared patch, or a file is missing or was changed.
        SignatureError: ``key`` did not sign it.
        OutputError: the folder is not empty, or cannot be written.
    """
    api = api or HfApi()
    place = Path(folder)
    with folder_written_whole(place) as part, tempfile.TemporaryDirectory() as scratch:
        commit = _asked(lambda: api.model_info(name, revision=revision).sha, f"{name} was not read")

        def fetch(patterns: list[str]) -> None:
            _asked(
                lambda: api.snapshot_download(
                    name, revision=commit, local_dir=scratch, allow_patterns=patterns
                ),
                f"{name} was not read",
            )

        fetch(["manifest.json*"])
        names = list(read_manifest(Path(scratch)).files)
        fetch([_escaped(file) for file in names])
        for file in (*names, "manifest.json", "manifest.json.sig"):
            if (Path(scratch) / file).is_file():
                (part / file).write_bytes((Path(scratch) / file).read_bytes())
        checked = read_repository(part, key=key)
    return Repository(place, checked.patch, checked.manifest)


def _escaped(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _asked(call: Callable[[], T], what: str) -> T:
    """What a call of the hub gives.

    Raises:
        HubError: it fails.
    """
    try:
        return call()
    except Exception as error:  # of any type: those of the client's libraries are not ours to name
        library = type(error).__module__.partition(".")[0]
        if not (isinstance(error, OSError) or library in LIBRARIES):
            raise
        reason = " ".join(str(error).split())[:MAX_SHOWN] or type(error).__name__
        raise HubError(
            f"{what}: {reason} Check the name (owner/name) and your token (hf auth login); "
            "HF_ENDPOINT names another hub."
        ) from None
