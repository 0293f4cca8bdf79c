"""``apply``, ``export``, ``show`` and ``generate``: what one does with a patch file."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import options
from easyeditor.errors import PatchFormatError, PatchStateError, UnsupportedModelError

if TYPE_CHECKING:
    from easyeditor.patches.patch import Patch
    from easyeditor.patches.weight import WeightPatch

Force = Annotated[
    bool, typer.Option("--force", help="Apply it even if it was made for another model.")
]


class Format(str, Enum):
    """What ``export`` can write."""

    lora = "lora"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: [bold]easyedit apply eiffel.safetensors --out edited[/]")(apply)
    app.command(
        epilog="Example: [bold]easyedit export eiffel.safetensors --format lora --out adapter[/]"
    )(export)
    app.command(epilog="Example: [bold]easyedit show eiffel.safetensors[/]")(show)
    app.command(
        epilog='Example: [bold]easyedit generate --patch a.safetensors "The Eiffel Tower is in"[/]'
    )(generate)


def _load(paths: list[Path]) -> list[Patch]:
    for path in paths:  # before torch is imported
        if not path.is_file():
            raise PatchFormatError(f"No patch file {str(path)!r}.")

    from easyeditor.patches.files import load_patch

    return [load_patch(path) for path in paths]


def _weights(paths: list[Path]) -> list[WeightPatch]:
    """Patches that can be written into a model."""
    from easyeditor.patches.weight import WeightPatch

    found: list[WeightPatch] = []
    for path, patch in zip(paths, _load(paths), strict=True):
        if not isinstance(patch, WeightPatch):
            raise PatchFormatError(
                f"{path} changes no weight ({patch.info.method}), so there is nothing to write "
                "into a model. Use it as it is: easyedit generate --patch, or "
                "load_patch(path).apply(model)."
            )
        found.append(patch)
    return found


def _need_empty(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise PatchStateError(f"{folder} exists and is not an empty folder; name a new one.")


def apply(
    patches: Annotated[list[Path], typer.Argument(help="Patch files, applied in this order.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    model: options.Model = options.DEFAULT_MODEL,
    device: options.Device = None,
    dtype: options.Dtype = None,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Write an edited model that plain transformers loads."""
    from easyeditor.cli import output

    _need_empty(out)
    twice = next((path for path in patches if patches.count(path) > 1), None)
    if twice is not None:
        raise PatchStateError(f"{twice} is named twice; one edit is applied once.")
    loaded = _weights(patches)
    lm = output.load_model(model, device=device, dtype=dtype)

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
    with output.working("writing …"):
        save(lm, out)
    edits = sum(len(patch.info.edits) for patch in loaded)
    if as_json:
        output.print_json({"out": str(out), "patches": [str(p) for p in patches], "edits": edits})
    else:
        output.out.print(
            f"{edits} edits of {len(loaded)} patches are in {out}. Load it with "
            f'AutoModelForCausalLM.from_pretrained("{out}").',
            markup=False,
            soft_wrap=True,
        )


def export(
    patch: Annotated[Path, typer.Argument(help="A patch file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.lora,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank kept of dense patches (64 by default).")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a LoRA adapter that peft loads with the same logits."""
    from easyeditor.cli import output

    _need_empty(out)

    from easyeditor.patches.lora import export_lora

    made = export_lora(_weights([patch])[0], out, rank=rank)
    if as_json:
        told = {"out": str(made.folder), "format": format.value, "rank": made.rank}
        output.print_json({**told, "relative_errors": made.errors})
        return
    output.out.print(f"LoRA adapter of rank {made.rank} in {made.folder}.", markup=False)
    for name, error in made.errors.items():
        said = "exact" if error == 0 else f"relative error {error:.3g} (truncated SVD)"
        output.out.print(f"  {name}: {said}", markup=False)


def show(
    patch: Annotated[Path, typer.Argument(help="A patch file.")], as_json: options.Json = False
) -> None:
    """Say what a patch does, how it was made, and for which model."""
    from rich.table import Table
    from rich.text import Text

    from easyeditor.cli import output

    loaded = _load([patch])[0]

    from easyeditor.patches.files import header_of
    from easyeditor.patches.scope import ScopePatch
    from easyeditor.patches.weight import LowRank, WeightPatch

    header = header_of(loaded)
    matrices: dict[str, Any] = {}
    if isinstance(loaded, WeightPatch):
        for name, parts in loaded.entries.items():
            rank = sum(p.u.shape[1] if isinstance(p, LowRank) else min(p.shape) for p in parts)
            norm = float(loaded.dense(name).norm())
            matrices[name] = {"shape": list(parts[0].shape), "rank": rank, "norm": round(norm, 5)}
    memory = loaded.memory if isinstance(loaded, ScopePatch) else ()
    if as_json:
        more = {"memory": [asdict(line) for line in memory]} if memory else {}
        output.print_json({"path": str(patch), **header, "matrices": matrices, **more})
        return
    output.out.print(f"{header['method']} patch for {header['model_name']}", markup=False)
    edits = Table(title="Edits", title_justify="left")
    ids = {(line.prompt, line.target): line.id for line in memory}
    for name in ("prompt", "subject", "old", "new", *(["id"] if ids else [])):
        edits.add_column(name, overflow="fold")
    for edit in loaded.info.edits:
        cells = [edit.prompt.text, edit.subject, edit.ground_truth, edit.target]
        cells += [ids.get((edit.prompt.text, edit.target))] if ids else []
        edits.add_row(*(Text(cell or "") for cell in cells))
    output.out.print(edits)
    changed = Table(title="Matrices (d_in, d_out)", title_justify="left")
    for name in ("weight", "shape", "rank", "‖Δ‖"):
        changed.add_column(name, overflow="fold")
    for name, info in matrices.items():
        changed.add_row(name, str(info["shape"]), str(info["rank"]), f"{info['norm']:.4g}")
    if matrices:
        output.out.print(changed)
    else:
        output.out.print("It changes no weight: it answers prompts in another way.")
    settings = ", ".join(f"{k}={v}" for k, v in header["hyperparams"].items())
    output.out.print(f"Settings: {settings}", markup=False, soft_wrap=True)
    made = ", ".join(f"{k} {v}" for k, v in header["versions"].items())
    output.out.print(f"Made with {made}; {output.seconds_line(header['seconds'])}", markup=False)


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    patch: Annotated[list[Path] | None, typer.Option(help="A patch file; repeatable.")] = None,
    model: options.Model = options.DEFAULT_MODEL,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How much to write.")] = 30,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Continue a prompt; with patches, before and after side by side."""
    from rich.table import Table
    from rich.text import Text

    from easyeditor.cli import output
    from easyeditor.errors import EditError
    from easyeditor.lm.inference import generate as continued

    if not prompt.strip():
        raise EditError("The prompt is empty; give a text to continue.")
    loaded = _load(patch or [])
    scheme = None if quantization is None else quantization.value
    lm = output.load_model(model, device=device, dtype=dtype, quantization=scheme)
    texts = {"before": continued(lm, [prompt], max_new_tokens)[0]}
    if loaded:
        for one in loaded:
            one.apply(lm.model, force=force)
        texts["after"] = continued(lm, [prompt], max_new_tokens)[0]
    if as_json:
        output.print_json({"prompt": prompt, "model": model, **texts})
        return
    if not loaded:
        output.out.print(Text(prompt, style="dim") + Text(texts["before"]))
        return
    table = Table(title=Text(prompt), title_justify="left")
    for name in texts:
        table.add_column(name, overflow="fold", ratio=1)
    table.add_row(*(Text(text.strip()) for text in texts.values()))
    output.out.print(table)
