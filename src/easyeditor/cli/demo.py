"""``easyedit demo``: move the Eiffel Tower and look at what else moved."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from easyeditor.cli import options, output, places
from easyeditor.cli.app import DONE, NOT_TAKEN, add
from easyeditor.cli.demo_run import edited_and_undone
from easyeditor.cli.terminal import quoted

EXAMPLES = (
    "Examples:\n\n  easyedit demo\n  easyedit demo --method memit --json\n  easyedit demo --image"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, demo, epilog=EXAMPLES)


def demo(
    method: options.Method = "ROME",
    save: Annotated[
        Path | None, typer.Option(help="Where the patch is written: eiffel-METHOD.safetensors.")
    ] = None,
    image: Annotated[
        bool,
        typer.Option("--image", help="Edit what a model that sees says about a picture of a flag."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Edit a fact in a real 135M-parameter model and show before and after."""
    if image:
        from easyeditor.cli.image_demo import image_demo

        image_demo(method, save, as_json)
    started = time.perf_counter()
    place = save or Path(f"eiffel-{method.lower()}.safetensors")
    places.check_file(place)

    from easyeditor.edits import Case, Edit, Probe

    edit = Edit("The Eiffel Tower is located in the city of", "Rome", "The Eiffel Tower", "Paris")
    rephrases = ("To see the Eiffel Tower you must travel to", "The Eiffel Tower stands in")
    neighbours = (
        ("The Louvre is located in the city of", "Paris"),
        ("The Colosseum is located in the city of", "Rome"),
        ("The capital of France is", "Paris"),
    )
    case = Case(
        "eiffel",
        edit,
        (
            *(Probe(text, (edit.target,), "rephrase") for text in rephrases),
            *(Probe(text, (answer,), "locality/neighborhood") for text, answer in neighbours),
        ),
    )
    model = options.DEFAULT_MODEL
    settings = options.settings_of(method, model, None, None)
    lm = output.load_model(model)
    run = edited_and_undone(lm, settings, case, place, max_new_tokens=12, started=started)
    if as_json:
        output.print_json(run.document(method, model))
    else:
        output.show_before_after(f"{method} on {model}: the Eiffel Tower moves to Rome", run.lines)
        output.show_forms([case], run.result.metrics)
        output.out.print_line(f"Seconds: {output.seconds_line(run.seconds)}")
        output.out.print_line(
            f"Patch written to {run.saved} ({run.saved.stat().st_size / 1024:.0f} KB).\n"
            f"Undone in this process by editor.undo(patch): {run.undone_line}.\n"
            "On disk the model was never changed. Without the patch there is no edit; with it:\n"
            f'  easyedit generate --patch {quoted(run.saved)} "{edit.prompt}"\n'
            f"  easyedit show {quoted(run.saved)}\n"
            "The same in a browser, with your own facts:\n"
            "  easyedit ui"
        )
    raise typer.Exit(DONE if run.taken and run.undone else NOT_TAKEN)
