"""``easyedit push`` and ``pull``: a patch as a repository on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from easyeditor.cli import options, output, places
from easyeditor.cli.app import add
from easyeditor.cli.patches import load_patches, model_of
from easyeditor.cli.terminal import count, quoted

if TYPE_CHECKING:
    from easyeditor.patches.patch import Patch
    from easyeditor.sharing.scores import EditScore

PUSH_EXAMPLES = r"""
Examples:

  easyedit push eiffel.safetensors ada/eiffel --license apache-2.0
  easyedit push eiffel.safetensors ada/eiffel --dry-run repository

The repository holds the patch file, a PEFT adapter where the patch can be one, a
card that says what changes, and a manifest with the SHA-256 of every file. The
token is that of the hub's own tools: hf auth login, or HF_TOKEN.
"""
PULL_EXAMPLES = r"""
Examples:

  easyedit pull ada/eiffel --out eiffel
  easyedit pull ada/eiffel --out eiffel --key ada.pub

Every file is checked against the manifest. --key asks for a signature by this
key; --revision COMMIT gets exactly the version that push reported.
"""

Repo = Annotated[str, typer.Argument(help="owner/name on the hub.", metavar="REPO")]
Revision = Annotated[str | None, typer.Option(help="A branch or a commit.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add(app, push, epilog=PUSH_EXAMPLES)
    add(app, pull, epilog=PULL_EXAMPLES)


def push(
    patch: Annotated[Path, typer.Argument(help="A patch file.")],
    repo: Repo,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="The hub's name of the patch's licence, e.g. apache-2.0."),
    ] = None,
    title: Annotated[str, typer.Option(help="Of the card.")] = "",
    scores: Annotated[
        bool,
        typer.Option(help="Measure for the card what the edits do; loads the model."),
    ] = True,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank kept of dense patches in the adapter (64 by default)."),
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(help="The file of an SSH key that signs the manifest.")
    ] = None,
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", help="Write this folder and push nothing.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is private.")
    ] = False,
    revision: Revision = None,
    model: options.PatchModel = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Share a patch: repository, card and manifest, pushed to a hub."""
    if dry_run is not None:
        places.check_folder(dry_run)
    (loaded,) = load_patches([patch])
    rows = _scores(loaded, model, device, trust_remote_code) if scores else []

    import tempfile

    from easyeditor.sharing.card import HUB_NAME
    from easyeditor.sharing.repository import write_repository

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "repository" if dry_run is None else dry_run
        base = model if model and HUB_NAME.fullmatch(model) and not Path(model).exists() else None
        repository = write_repository(
            loaded,
            folder,
            title=title,
            licence=license_,
            scores=rows,
            rank=rank,
            base=base,
            key=sign,
        )
        commit = ""
        if dry_run is None:
            from easyeditor.sharing.hub import push_repository

            with output.working(f"pushing to {repo} …"):
                commit = push_repository(repository, repo, private=private, revision=revision)
    files = [*repository.manifest.files]
    if as_json:
        document = {"repo": repo, "commit": commit or None, "files": files}
        notes = list(repository.notes)
        output.print_json({**document, "folder": str(dry_run or ""), "notes": notes})
    elif dry_run is not None:
        output.out.print_line(f"{count(len(files), 'file')} in {dry_run}; nothing was pushed.")
    else:
        output.out.print_line(f"{count(len(files), 'file')} in {repo}, commit {commit}.")
        output.out.print_line(f"Fetch it: easyedit pull {quoted(repo)} --out FOLDER")
    if not as_json:
        for note in repository.notes:
            output.out.print_line(note)


def pull(
    repo: Repo,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    revision: Revision = None,
    key: Annotated[
        Path | None, typer.Option(help="The file of the public SSH key that must have signed it.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Fetch a shared patch and check every file of it."""
    places.check_folder(out)

    from easyeditor.sharing.hub import pull_repository

    with output.working(f"fetching {repo} …"):
        repository = pull_repository(repo, out, revision=revision, key=key)
    info, file = repository.patch.info, repository.patch_file
    if as_json:
        about = {"method": info.method, "model": info.model_name, "edits": len(info.edits)}
        document = {"repo": repo, "patch": str(file), **about, "signed": key is not None}
        output.print_json(document)
        return
    signed = f", signed by the key in {key}" if key is not None else ""
    output.out.print_line(
        f"{count(len(info.edits), 'edit')} of {info.model_name} by {info.method} in {out}, all "
        f"files as written{signed}."
    )
    output.out.print_line(f"Use it: easyedit generate --patch {quoted(file)} PROMPT")


def _scores(patch: Patch, model: str | None, device: str | None, trust: bool) -> list[EditScore]:
    lm = output.load_model(model_of(model, [patch]), device=device, trust_remote_code=trust)

    from easyeditor.sharing.scores import edit_scores

    with output.working("measuring what the edits do …"):
        return edit_scores(lm, patch)
