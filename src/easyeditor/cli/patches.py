"""``show`` and ``generate``: what one does with a patch file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from easyeditor.cli import options, output, places
from easyeditor.cli.app import add
from easyeditor.cli.output import Column
from easyeditor.cli.terminal import visible
from easyeditor.edits import ImageRef, Prompt, as_prompt
from easyeditor.errors import (
    EditError,
    PatchFormatError,
    PatchMismatchError,
    PatchStateError,
)

if TYPE_CHECKING:
    from easyeditor.patches.patch import Patch

Force = Annotated[
    bool, typer.Option("--force", help="Apply it even if it was made for another model.")
]


SHOW_EXAMPLES = "Example: easyedit show eiffel.safetensors"
GENERATE_EXAMPLES = r"""
Examples:

  easyedit generate "The Eiffel Tower is located in the city of"

  easyedit generate --patch eiffel.safetensors \
    "The Eiffel Tower is located in the city of"

  echo "The capital of France is" | easyedit generate -
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add(app, show, epilog=SHOW_EXAMPLES)
    add(app, generate, epilog=GENERATE_EXAMPLES)


def _check_there(paths: list[Path]) -> None:
    for path in paths:  # before torch is imported
        if path != places.STREAM and not os.path.isfile(path):
            raise PatchFormatError(f"No patch file {str(path)!r}.")


def load_patches(paths: list[Path], encoder: str | None = None) -> list[Patch]:
    """Read the patch files, each once.

    Raises:
        PatchFormatError: there is none, or it is damaged.
        PatchStateError: one is named twice.
    """
    _check_there(paths)
    for i, path in enumerate(paths):
        if any(path == other or _same_file(path, other) for other in paths[:i]):
            raise PatchStateError(f"{path} is named twice; an edit is applied once.")

    from easyeditor.patches.files import load_patch

    loaded = []
    for path in paths:
        with places.input_file(path, ".safetensors") as file:
            loaded.append(load_patch(file, encoder=encoder))
    return loaded


def _same_file(path: Path, other: Path) -> bool:
    return places.STREAM not in (path, other) and os.path.samefile(path, other)


def model_of(model: str | None, patches: list[Patch]) -> str:
    """The model to load: the one that is named, else the one the patches were made for.

    Raises:
        PatchMismatchError: they were made for several models.
    """
    if model is None and patches:
        names = list(dict.fromkeys(patch.info.model_name for patch in patches))
        if names[1:]:
            raise PatchMismatchError(
                f"The patches were made for different models ({', '.join(names)}); name one with "
                "--model."
            )
        model = _recorded(names[0])
    model = options.DEFAULT_MODEL if model is None else model
    options.check_model(model)
    return model


def _recorded(name: str) -> str:
    """The model that a patch names, where that name leads to one; files hold no local paths.

    Raises:
        PatchMismatchError: it leads nowhere.
    """
    from easyeditor.hyperparams import KNOWN_MODELS

    known = {options.DEFAULT_MODEL, options.SEEING_MODEL, *KNOWN_MODELS}
    if "/" in name or name in known or os.path.isdir(name):
        return name
    raise PatchMismatchError(
        f"The patch was made for a model called {name!r}, and does not say where that is. Name it: "
        "--model HUB_NAME_OR_FOLDER."
    )


def show(
    patch: Annotated[Path, typer.Argument(help="A patch file.")], as_json: options.Json = False
) -> None:
    """Say what a patch does, how it was made, and for which model."""
    _check_there([patch])

    from easyeditor.cli.peek import peek

    with places.input_file(patch, ".safetensors") as file:
        known = peek(file)
        document = known if known is not None else _described(file)
    if as_json:
        output.print_json({"path": str(patch), **document})
        return
    header, matrices = document, document["matrices"]
    more = document.get("memory", [])
    output.out.print_line(f"{header['method']} patch for {header['model_name']}")
    columns = [Column(name, text=True) for name in ("prompt", "subject", "old")]
    columns += [Column("new", text=True, answer=True)]
    columns += [Column("id")] if more else []
    edits = []
    for i, edit in enumerate(header["edits"]):
        prompt = output.shown(as_prompt(edit["prompt"]))
        cells = [prompt, edit.get("subject"), edit.get("ground_truth"), edit["target"]]
        cells += [more[i].get("id")] if more else []
        edits.append([str(cell) if cell is not None else "" for cell in cells])
    if edits:  # a steering vector has none
        output.show("Edits", columns, edits)
    if matrices:
        names = ("weight", "shape", "rank", "‖Δ‖")
        cells = [
            [name, str(info["shape"]), str(info["rank"]), f"{info['norm']:.4g}"]
            for name, info in matrices.items()
        ]
        columns = [Column(name, text=name == "weight") for name in names]
        output.show("Matrices (d_in, d_out)", columns, cells)
    elif header.get("parts"):
        parts = header["parts"]
        cells = [[str(value) for value in row.values()] for row in parts]
        output.show("Parts", [Column(str(name), text=True) for name in parts[0]], cells)
    else:
        output.out.print("It changes no weight: it answers prompts in another way.")
    settings = ", ".join(f"{k}={v}" for k, v in header["hyperparams"].items())
    output.out.print(f"Settings: {settings}")
    versions = ", ".join(f"{k} {v}" for k, v in header["versions"].items())
    parts = [f"Made with {versions}", output.seconds_line(header["seconds"])]
    output.out.print("; ".join(part for part in parts if part))


def _described(file: Path) -> dict[str, Any]:
    """The same as :func:`~easyeditor.cli.peek.peek` for any patch, by the class of its kind."""
    from easyeditor.patches.files import header_of, load_patch

    patch = load_patch(file)
    rows = patch.rows()
    matrices = {
        row["weight"]: {k: v for k, v in row.items() if k != "weight"}
        for row in rows
        if "weight" in row
    }
    others = [row for row in rows if "weight" not in row]
    document = {**header_of(patch), "matrices": matrices, **({"parts": others} if others else {})}
    rows = patch.edit_rows()
    if rows:
        document["memory"] = [
            {**row, "prompt": str(edit.prompt), "target": edit.target}
            for row, edit in zip(rows, patch.info.edits, strict=True)
        ]
    return document


def generate(
    prompt: Annotated[
        str, typer.Argument(help="The text to continue; - reads it from standard input.")
    ],
    patch: Annotated[list[Path] | None, typer.Option(help="A patch file; repeatable.")] = None,
    image: options.Image = None,
    model: options.PatchModel = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How much to write.")] = 30,
    encoder: Annotated[
        str | None,
        typer.Option(help="A sentence encoder you trust, for patches made with one of your own."),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    trust_remote_code: options.TrustRemoteCode = False,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Continue a prompt; with patches, before and after side by side."""
    if prompt == str(places.STREAM):
        prompt = sys.stdin.read().rstrip("\n")
    if not prompt.strip():
        raise EditError("The prompt is empty; give a text to continue.")
    query = Prompt(prompt, tuple(ImageRef.of(path) for path in image or ()))
    loaded = load_patches(patch or [], encoder)
    if query.images and model is None and not loaded:
        model = options.SEEING_MODEL
    model = model_of(model, loaded)
    scheme = None if quantization is None else quantization.value
    lm = output.load_model(
        model,
        device=device,
        dtype=dtype,
        quantization=scheme,
        trust_remote_code=trust_remote_code,
    )

    from easyeditor.lm.inference import generate as continued

    texts = {"before": continued(lm, [query], max_new_tokens)[0]}
    if loaded:
        for one in loaded:
            one.apply(lm.model, force=force)
        texts["after"] = continued(lm, [query], max_new_tokens)[0]
    if as_json:
        output.print_json({"prompt": query.to_json(), "model": model, **texts})
    elif loaded:
        table = Table(title=Text(visible(output.shown(query))), title_justify="left")
        for name in texts:
            table.add_column(name, overflow="fold", ratio=1)
        table.add_row(*(text.strip() for text in texts.values()))
        output.out.print(table)
    else:
        output.out.print(
            Text.assemble((visible(output.shown(query)), "dim"), visible(texts["before"]))
        )
