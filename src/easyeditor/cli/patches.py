"""``apply``, ``export``, ``show`` and ``generate``: what one does with a patch file."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from easyeditor.cli import options, output, places
from easyeditor.cli.app import add
from easyeditor.cli.output import Column
from easyeditor.cli.peek import peek
from easyeditor.cli.terminal import count, visible
from easyeditor.errors import (
    EditError,
    PatchFormatError,
    PatchMismatchError,
    PatchStateError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from easyeditor.patches.patch import Patch
    from easyeditor.patches.weight import WeightPatch

Force = Annotated[
    bool, typer.Option("--force", help="Apply it even if it was made for another model.")
]


class Format(str, Enum):
    """What ``export`` can write."""

    lora = "lora"
    gguf_lora = "gguf-lora"
    merged = "merged"


APPLY_EXAMPLES = "Example: easyedit apply eiffel.safetensors --out edited"
EXPORT_EXAMPLES = r"""
Examples:

  easyedit export eiffel.safetensors --format lora --out adapter

  easyedit export eiffel.safetensors --format gguf-lora --out adapter
  llama-cli -m model.gguf --lora adapter/adapter.gguf

  easyedit export eiffel.safetensors --format merged --out edited
"""
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
    add(app, apply, epilog=APPLY_EXAMPLES)
    add(app, export, epilog=EXPORT_EXAMPLES)
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

    if "/" in name or name in {options.DEFAULT_MODEL, *KNOWN_MODELS} or os.path.isdir(name):
        return name
    raise PatchMismatchError(
        f"The patch was made for a model called {name!r}, and does not say where that is. Name it: "
        "--model HUB_NAME_OR_FOLDER."
    )


def _weights(paths: list[Path]) -> list[WeightPatch]:
    """Patches that can be written into a model."""
    from easyeditor.patches.weight import WeightPatch

    result: list[WeightPatch] = []
    for path, patch in zip(paths, load_patches(paths), strict=True):
        if not isinstance(patch, WeightPatch):
            raise PatchFormatError(
                f"{path} changes no weight ({patch.info.method}), so there is nothing to write "
                "into a model. Use it as it is: easyedit generate --patch, or "
                "load_patch(path).apply(model)."
            )
        result.append(patch)
    return result


def apply(
    patches: Annotated[list[Path], typer.Argument(help="Patch files, applied in this order.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    model: options.PatchModel = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Write an edited model that plain transformers loads."""
    places.check_folder(out)
    loaded = _weights(patches)
    model = model_of(model, [*loaded])
    lm = output.load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)

    from easyeditor.lm.loading import save
    from easyeditor.lm.quantized import quantized_layers

    if quantized_layers(lm.model):
        raise UnsupportedModelError(
            f"{model} is quantized, and a file cannot hold some of its layers whole. Apply the "
            "patches to the unquantized model (the same files fit it), and quantize what is "
            "written."
        )
    for patch in loaded:
        patch.apply(lm.model, force=force)

    from easyeditor.lm.memory import model_bytes

    places.check_folder(out, size=model_bytes(lm))
    with output.working(f"writing {out} …"):
        save(lm, out)
    edits = sum(len(patch.info.edits) for patch in loaded)
    if as_json:
        output.print_json({"out": str(out), "patches": [str(p) for p in patches], "edits": edits})
    else:
        output.out.print_line(
            f"{count(edits, 'edit')} of {count(len(loaded), 'patch')} in {out}. Load it with "
            f'AutoModelForCausalLM.from_pretrained("{out}").'
        )


def export(
    patch: Annotated[Path, typer.Argument(help="A patch file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    format: Annotated[
        Format,
        typer.Option(
            help="lora: for peft; gguf-lora: for llama.cpp; merged: a whole model, as apply writes."
        ),
    ] = Format.lora,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank kept of dense patches (64 by default).")
    ] = None,
    model: options.PatchModel = None,
    as_json: options.Json = False,
) -> None:
    """Write a patch as another program reads it."""
    if format is Format.merged:
        if rank is not None:
            raise typer.BadParameter("a merged model has no rank", param_hint="--rank")
        apply([patch], out, model, as_json=as_json)
        return
    if model is not None:
        raise typer.BadParameter("an adapter needs no model", param_hint="--model")
    places.check_folder(out)

    from easyeditor.export.gguf_lora import export_gguf_lora
    from easyeditor.patches.lora import export_lora

    (weights,) = _weights([patch])
    if format is Format.lora:
        peft = export_lora(weights, out, rank=rank)
        place, rank, errors = peft.folder, peft.rank, peft.errors
    else:
        adapter = export_gguf_lora(weights, out, rank=rank)
        place, rank, errors = adapter.file, adapter.rank, adapter.errors
    if as_json:
        result = {"out": str(out), "format": format.value, "rank": rank}
        output.print_json({**result, "relative_errors": errors})
        return
    output.out.print_line(f"LoRA adapter of rank {rank} in {place}.")
    for name, error in errors.items():
        accuracy = "exact" if error == 0 else f"relative error {error:.3g} (truncated SVD)"
        output.out.print_line(f"  {name}: {accuracy}")


def show(
    patch: Annotated[Path, typer.Argument(help="A patch file.")], as_json: options.Json = False
) -> None:
    """Say what a patch does, how it was made, and for which model."""
    _check_there([patch])
    with places.input_file(patch, ".safetensors") as file:
        known = peek(file)
        document = known if known is not None else _described(file)
    if as_json:
        output.print_json({"path": str(patch), **document})
        return
    header, matrices = document, document["matrices"]
    more = document.get("memory", [])
    output.out.print_line(f"{header['method']} patch for {header['model_name']}")
    columns = [Column(name, text=True) for name in ("prompt", "subject", "old", "new")]
    columns += [Column("id")] if more else []
    edits = []
    for i, edit in enumerate(header["edits"]):
        prompt = edit["prompt"] if isinstance(edit["prompt"], str) else edit["prompt"]["text"]
        cells = [prompt, edit.get("subject"), edit.get("ground_truth"), edit["target"]]
        cells += [more[i].get("id")] if more else []
        edits.append([str(cell) if cell is not None else "" for cell in cells])
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
    output.out.print_line(f"Settings: {settings}")
    versions = ", ".join(f"{k} {v}" for k, v in header["versions"].items())
    output.out.print_line(f"Made with {versions}; {output.seconds_line(header['seconds'])}")


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
    loaded = load_patches(patch or [], encoder)
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

    texts = {"before": continued(lm, [prompt], max_new_tokens)[0]}
    if loaded:
        for one in loaded:
            one.apply(lm.model, force=force)
        texts["after"] = continued(lm, [prompt], max_new_tokens)[0]
    if as_json:
        output.print_json({"prompt": prompt, "model": model, **texts})
    elif loaded:
        table = Table(title=Text(visible(prompt)), title_justify="left")
        for name in texts:
            table.add_column(name, overflow="fold", ratio=1)
        table.add_row(*(text.strip() for text in texts.values()))
        output.out.print(table)
    else:
        output.out.print(Text.assemble((visible(prompt), "dim"), visible(texts["before"])))
