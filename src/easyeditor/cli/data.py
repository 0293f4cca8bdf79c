"""``data``: which datasets there are, what a file holds, and any of them as a plain file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import options, output, places
from easyeditor.cli.app import Commands, add
from easyeditor.cli.output import Column
from easyeditor.cli.terminal import count
from easyeditor.edits import as_prompt

if TYPE_CHECKING:
    from easyeditor.data.dataset import CaseDataset

EXAMPLES = """
Examples:

  easyedit data describe worldfacts

  easyedit data describe facts.jsonl --json

  easyedit data convert counterfact.json facts.jsonl --size 100

  easyedit edit --method memit --edits facts.jsonl
"""
Name = Annotated[
    str, typer.Argument(metavar="PATH_OR_NAME", help="A file, or a name data ls lists.")
]
Size = Annotated[int | None, typer.Option(min=1, help="Only the first so many records.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        cls=Commands,
        help="Datasets: list, describe, convert to a plain file of edits.",
        epilog=EXAMPLES,
        no_args_is_help=True,
    )
    add(group, ls, epilog="Example: easyedit data ls --json")
    add(group, describe, epilog="Example: easyedit data describe worldfacts")
    add(group, convert, epilog="Example: easyedit data convert zsre.json edits.csv")
    app.add_typer(group, name="data")


def ls(as_json: options.Json = False) -> None:
    """List the datasets known by name, and the kinds of file that are recognised."""
    from easyeditor.data import DATASETS
    from easyeditor.data.fetch import SHIPPED, cached, sources

    kinds = {name: DATASETS.get(name) for name in DATASETS}
    named = [
        {"name": name, "kind": "edits", "state": "shipped", "path": str(path), "url": None}
        for name, path in SHIPPED.items()
    ]
    for name, source in sources().items():
        here = cached(name)
        state = "in the cache" if here.is_file() else "fetched when first used"
        result = {"state": state, "path": str(here), "url": source.url, "licence": source.licence}
        named.append({"name": name, "kind": source.kind, **result})
    if as_json:
        told_kinds = [
            {"kind": k, "class": c.__name__, "title": c.title, "probes": list(c.probes)}
            for k, c in kinds.items()
        ]
        output.print_json({"datasets": named, "kinds": told_kinds})
        return
    columns = [Column("name", head=True), Column("kind"), Column("state")]
    names = [[str(row[key]) for key in ("name", "kind", "state")] for row in named]
    output.show("By name", columns, names)
    columns = [Column("kind", head=True), Column("what it is", text=True)]
    output.show(
        "Kinds of file, told by their fields",
        [*columns, Column("class"), Column("probes")],
        [[name, kind.title, kind.__name__, ", ".join(kind.probes)] for name, kind in kinds.items()],
    )


def describe(name: Name, size: Size = None, as_json: options.Json = False) -> None:
    """Say what kind of dataset it is and what it holds; reads, and so checks, every record."""
    from easyeditor.data.open import describe as told_of

    with output.working(f"reading {name} …", long=False):
        description = told_of(_open(name, size))
    if as_json:
        output.print_json(description)
        return
    from rich.table import Table

    output.out.print(f"{description['path']}: {description['title']}", soft_wrap=True)
    table = Table()
    for column in ("", "cases", "probes"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    table.add_row("all", str(description["cases"]), "")
    for field, number in description["with"].items():
        table.add_row(f"with {field}", str(number), "")
    table.add_section()
    for kind, counts in description["probes"].items():
        table.add_row(kind, str(counts["cases"]), str(counts["probes"]))
    output.out.print(table)
    for example in description["examples"]:
        _show(example)


def _show(example: dict[str, Any]) -> None:
    def line(label: str, text: str) -> None:
        output.out.print(f"  {label}: {text}", soft_wrap=True)

    output.out.print(f"\nCase {example['case_id']}")
    for label in ("prompt", "target_new", "subject", "ground_truth"):
        if label in example:
            line(label, _readable(example[label]))
    for item in example.get("rephrase_prompts", []):
        named = isinstance(item, dict) and "name" in item
        label = f"rephrase/{item['name']}" if named else "rephrase"
        line(label, _readable(item["prompt"] if named else item))
    for group in ("locality", "portability"):
        for name, probes in example.get(group, {}).items():
            first, more = probes[0], len(probes) - 1
            answer = first["answer"]
            answer = answer if isinstance(answer, str) else " | ".join(answer)
            rest = f"  (and {more} more)" if more else ""
            line(f"{group}/{name}", f"{_readable(first['prompt'])} => {answer}{rest}")
    for label in ("also", "generation_prompts", "references"):
        if label in example:
            line(label, str(len(example[label])))


def _readable(value: Any) -> str:
    """A text, or a prompt with images as the names of these and its text."""
    return value if isinstance(value, str) else output.shown(as_prompt(value))


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file, or a name data ls lists.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .json, .jsonl or .csv file.")],
    size: Size = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write any dataset as a plain file of edits; OUT appears whole or not at all."""
    places.check_file(out)

    from easyeditor.data.write import write_cases

    with output.working(f"reading {source} …", long=False):
        dataset = _open(source, size)
        file = write_cases(dataset, out, force=force)
        cases = len(dataset)
        description = {"path": str(file), "kind": dataset.name, "cases": cases}
    if as_json:
        output.print_json(description)
    else:
        output.out.print_line(
            f"{count(cases, 'case')} of {source} ({description['kind']}) are in {file}."
        )


def _open(name: str, size: int | None) -> CaseDataset:
    from easyeditor.data.open import open_dataset

    return open_dataset(name, size=size)
