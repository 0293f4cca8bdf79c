"""Repositories on a hub, through ``huggingface_hub``: upload a folder, fetch one, check it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from easyeditor.errors import HubError, ManifestError
from easyeditor.files import folder_written_whole
from easyeditor.sharing.manifest import MANIFEST, SIGNATURE, read_manifest
from easyeditor.sharing.repository import CARD, KIND, Repository, read_repository

T = TypeVar("T")
MAX_SHOWN = 300
LIBRARIES = frozenset(("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2"))
"""Top names of the libraries that the client fails with."""
FRESH = frozenset((".gitattributes", CARD))
"""Files that a repository may have before a patch is pushed to it."""


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
        repository: what is uploaded; files that the manifest of the version on the hub lists and
            this one lacks are deleted, other files stay.
        name: ``owner/name`` on the hub; made if it is missing.
        private: whether a new repository is.
        revision: the branch; by default the main one.
        message: of the commit.
        api: of another hub than the one that the environment names, or with another token.

    Returns:
        The commit: what ``pull`` takes as ``revision`` to get exactly this version.

    Raises:
        HubError: the hub cannot be reached or refuses, or the repository holds other things than a
            shared patch; nothing is written then.
    """
    api = api or HfApi()
    stale = _stale(api, name, revision, repository)
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
            delete_patterns=[_escaped(file) for file in stale] or None,
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

        fetch([MANIFEST, SIGNATURE])
        names = list(read_manifest(Path(scratch)).files)
        fetch([_escaped(file) for file in names])
        for file in (*names, MANIFEST, SIGNATURE):
            if (Path(scratch) / file).is_file():
                shutil.copyfile(Path(scratch) / file, part / file)
        checked = read_repository(part, key=key)
    return Repository(place, checked.patch, checked.manifest)


def _stale(api: HfApi, name: str, revision: str | None, repository: Repository) -> list[str]:
    """Files of the patch on the hub that ``repository`` lacks.

    Raises:
        HubError: the repository on the hub holds other things than a shared patch.
    """
    problem = f"{name} was not pushed"
    branch, present = _asked(lambda: _files(api, name, revision), problem)
    if present <= FRESH:
        return []
    listed: set[str] = set()
    why = f"has no {MANIFEST}"
    if MANIFEST in present:
        with tempfile.TemporaryDirectory() as scratch:
            _asked(
                lambda: api.hf_hub_download(name, MANIFEST, revision=branch, local_dir=scratch),
                problem,
            )
            try:
                manifest = read_manifest(Path(scratch))
            except ManifestError:
                why = f"has a {MANIFEST} that is not EasyEdit's"
            else:
                listed = set(manifest.files)
                kind = manifest.about.get("kind")
                why = "" if kind == KIND else f"holds a {kind!r}, not a patch"
    if why:
        raise HubError(
            f"{problem}: it {why}, and {len(present)} files that a patch would overwrite or stand "
            f"beside ({', '.join(sorted(present)[:3])}). Give the name of a new repository, such "
            f"as {name}-patch."
        )
    return sorted(
        ((listed | {SIGNATURE}) & present) - {f.name for f in repository.folder.iterdir()}
    )


def _files(api: HfApi, name: str, revision: str | None) -> tuple[str | None, set[str]]:
    """The branch that a push to ``revision`` starts from, and its files; none of a new one."""

    def files(branch: str | None) -> set[str]:
        return {file.rfilename for file in api.model_info(name, revision=branch).siblings or ()}

    try:
        return revision, files(revision)
    except RevisionNotFoundError:
        return None, files(None)
    except RepositoryNotFoundError:
        return None, set()


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
