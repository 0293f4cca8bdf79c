"""``apply`` and ``export``: an edit in a model, or in the format of another program."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import options, output, places
from easyeditor.cli.app import add
from easyeditor.cli.patches import Force, load_patches, model_of
from easyeditor.cli.terminal import count, quoted
from easyeditor.errors import PatchError

if TYPE_CHECKING:
    from easyeditor.export.result import Export
    from easyeditor.patches.patch import Patch


class Format(str, Enum):
    """What ``export`` can write."""

    lora = "lora"
    gguf_lora = "gguf-lora"
    gguf = "gguf"
    merged = "merged"
    control_vector = "control-vector"


class GgufType(str, Enum):
    """How the edited matrices of a GGUF model are stored."""

    source = "source"
    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q5_1 = "Q5_1"
    Q5_0 = "Q5_0"
    Q4_1 = "Q4_1"
    Q4_0 = "Q4_0"


APPLY_EXAMPLES = "Example: easyedit apply eiffel.safetensors --out edited"
EXPORT_EXAMPLES = r"""
Examples:

  easyedit export eiffel.safetensors --format lora --out adapter

  easyedit export eiffel.safetensors --format gguf-lora --out adapter
  llama-cli -m model.gguf --lora adapter/adapter.gguf

  easyedit export eiffel.safetensors --format gguf --model model.gguf --out edited
  llama-cli -m edited/model.gguf
  ollama create NAME -f edited/Modelfile

  easyedit export eiffel.safetensors --format merged --out edited

  easyedit export polite.safetensors --format control-vector --out polite
  llama-cli -m model.gguf --control-vector polite/control-vector.gguf
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add(app, apply, epilog=APPLY_EXAMPLES)
    add(app, export, epilog=EXPORT_EXAMPLES)


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
    loaded = _loaded(patches, out)
    result = _merged(
        loaded,
        out,
        model,
        force,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    edits = sum(len(patch.info.edits) for patch in loaded)
    for note in result.notes:
        output.note(note)
    if as_json:
        output.print_json({"out": str(out), "patches": [str(p) for p in patches], "edits": edits})
    else:
        output.out.print_line(
            f"{count(edits, 'edit')} of {count(len(loaded), 'patch')} in {out}. Load it with "
            f'AutoModelForCausalLM.from_pretrained("{out}").'
        )


def _loaded(paths: list[Path], out: Path) -> list[Patch]:
    """The patches, refused before a model is loaded if they are in no weights."""
    places.check_folder(out)
    patches = load_patches(paths)

    from easyeditor.export.factors import weights_of

    result: list[Patch] = []
    for path, patch in zip(paths, patches, strict=True):
        try:
            result.append(weights_of(patch))
        except PatchError as error:
            raise PatchError(f"{path}: {error}") from None
    return result


def _merged(patches: list[Patch], out: Path, model: str | None, force: bool, **how: Any) -> Export:
    model = model_of(model, patches)
    lm = output.load_model(model, **how)

    from easyeditor.export.merged import export_merged

    with output.working(f"writing {out} …"):
        return export_merged(patches, out, lm=lm, force=force)


def export(
    patch: Annotated[Path, typer.Argument(help="A patch file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    format: Annotated[
        Format,
        typer.Option(
            help="lora: an adapter for peft, vLLM, SGLang; gguf-lora: an adapter for llama.cpp; "
            "gguf: a whole model for llama.cpp and Ollama; merged: a whole model for transformers, "
            "as apply writes; control-vector: a steering vector for llama.cpp."
        ),
    ] = Format.lora,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-M",
            help="lora: the base model's name that is written down; gguf: the unedited model's "
            ".gguf file; merged: the model to edit. By default what the patch was made for.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="lora, gguf-lora: rank kept of dense patches (64 by default)."),
    ] = None,
    quantization: Annotated[
        GgufType | None,
        typer.Option(
            case_sensitive=False,
            help="gguf: how edited matrices, and those that the file has unquantized, are stored; "
            "source: as they were. By default as they were, but in 8 bits at least.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            help="gguf: load the unedited model, and ask whether the new answers come from what is "
            "stored."
        ),
    ] = True,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="gguf, merged: write it even if the patch was made for another model; gguf: or if "
            "an answer is lost.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Write a patch as another program reads it."""
    adapter = format in (Format.lora, Format.gguf_lora, Format.control_vector)
    if rank is not None and (not adapter or format is Format.control_vector):
        raise typer.BadParameter(f"a {format.value} model has no rank", param_hint="--rank")
    if quantization is not None and format is not Format.gguf:
        raise typer.BadParameter("only --format gguf has one", param_hint="--quantization")
    if not check and format is not Format.gguf:
        raise typer.BadParameter("only --format gguf asks the model", param_hint="--no-check")
    if model is not None and format in (Format.gguf_lora, Format.control_vector):
        raise typer.BadParameter("an adapter in GGUF needs no model", param_hint="--model")
    if force and adapter:
        raise typer.BadParameter("an adapter is written without the model", param_hint="--force")
    if format is Format.control_vector:
        _control_vector(patch, out, as_json)
        return
    (loaded,) = _loaded([patch], out)
    if format is Format.lora:
        from easyeditor.export.lora import export_lora

        result = export_lora(loaded, out, rank=rank, base=model)
    elif format is Format.gguf_lora:
        from easyeditor.export.gguf_lora import export_gguf_lora

        result = export_gguf_lora(loaded, out, rank=rank)
    elif format is Format.gguf:
        result = _gguf(loaded, out, model, quantization, check, force)
    else:
        result = _merged([loaded], out, model, force)
    if as_json:
        output.print_json(result.to_json())
        return
    _report(result)


def _control_vector(path: Path, out: Path, as_json: bool) -> None:
    places.check_folder(out)
    (patch,) = load_patches([path])

    from easyeditor.export.control_vector import export_control_vector

    result = export_control_vector(patch, out)
    if as_json:
        output.print_json(result.to_json())
        return
    output.out.print_line(
        f"Control vector of {count(len(result.errors), 'layer')} in {result.file}, at the patch's "
        f"strength. Use it: llama-cli -m MODEL.gguf --control-vector {quoted(result.file)}"
    )


def _gguf(
    patch: Patch,
    out: Path,
    model: str | None,
    quantization: GgufType | None,
    check: bool,
    force: bool,
) -> Export:
    name = model_of(model, [patch])

    from easyeditor.export.gguf_file import read_gguf
    from easyeditor.export.gguf_model import export_gguf
    from easyeditor.lm import embedded

    is_embedded = name.lower() in embedded.NAMES
    source = embedded.gguf_file(name.lower()) if is_embedded else Path(name)
    readable = source.suffix.lower() == ".gguf"
    lm = None
    if check and readable:
        if not is_embedded:
            read_gguf(source)  # an adapter or a part of a model is told from one before unpacking
        lm = output.load_model(name)
    with output.working(f"writing {out} …"):
        return export_gguf(
            patch,
            out,
            source=source,
            quantization=None if quantization is None else quantization.value,
            lm=lm,
            force=force,
        )


def _report(result: Export) -> None:
    """What was written, per weight, and what has to be known of it."""
    if result.format == "merged":
        output.out.print_line(
            f"Edited model in {result.folder}. Load it with "
            f'AutoModelForCausalLM.from_pretrained("{result.folder}").'
        )
    elif result.rank:
        output.out.print_line(f"LoRA adapter of rank {result.rank} in {result.file}.")
        for name, error in result.errors.items():
            accuracy = "exact" if error == 0 else f"relative error {error:.3g} (truncated SVD)"
            output.out.print_line(f"  {name}: {accuracy}")
    else:
        output.out.print_line(
            f"GGUF model in {result.file}; for Ollama, {result.folder}/Modelfile."
        )
        for name, kind in result.types.items():
            output.out.print_line(f"  {name}: {kind}, {result.shares[name]:.1%} of the change kept")
        if result.answers is None:
            output.out.print_line("  The new answers were not asked.")
        else:
            total = len(result.answers)
            output.out.print_line(
                f"  {sum(result.answers)} of {count(total, 'new answer')} "
                f"{'comes' if total == 1 else 'come'} from the stored weights."
            )
    for note in result.notes:
        output.note(note)
