"""``easyedit demo --image``: a flag is called another country's, and what else moved is shown."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import typer

from easyeditor.cli import options, output, places
from easyeditor.cli.app import DONE, NOT_TAKEN
from easyeditor.cli.demo_run import edited_and_undone
from easyeditor.cli.terminal import quoted

COUNTRY = "France"


def image_demo(method: str, save: Path | None, as_json: bool) -> None:
    """Edit what ``flags-135m`` says about a drawn flag; the picture is written beside the patch."""
    started = time.perf_counter()
    place = save or Path(f"flag-{method.lower()}.safetensors")
    picture = place.with_suffix(".png")
    for path in (place, picture):
        places.check_file(path)

    from easyeditor.data.flag_cases import flag_cases
    from easyeditor.data.flag_pictures import COUNTRIES
    from easyeditor.edits import ImageRef, Prompt

    case = next(c for c in flag_cases(len(COUNTRIES)) if c.edit.ground_truth == COUNTRY)
    image = case.edit.prompt.images[0]
    image.picture.save(picture)
    seen = ImageRef.of(picture)

    def on_disk(prompt: Prompt) -> Prompt:
        return replace(prompt, images=(seen,)) if prompt.images == (image,) else prompt

    case = replace(
        case,
        edit=replace(case.edit, prompt=on_disk(case.edit.prompt)),
        probes=tuple(replace(p, prompt=on_disk(p.prompt)) for p in case.probes),
    )
    model = options.SEEING_MODEL
    settings = options.settings_of(method, model, None, None)
    lm = output.load_model(model)
    run = edited_and_undone(lm, settings, case, place, max_new_tokens=8, started=started)
    if as_json:
        output.print_json(run.document(method, model, picture=str(picture)))
    else:
        output.show_before_after(f"{method} on {model}: {case.id}", run.lines)
        output.out.print_line(f"Seconds: {output.seconds_line(run.seconds)}")
        output.out.print_line(
            f"The picture: {picture}. Patch written to {run.saved} "
            f"({run.saved.stat().st_size / 1024:.0f} KB).\n"
            f"Undone: {run.undone_line}.\n"
            f"  easyedit generate --patch {quoted(run.saved)} --image {quoted(picture)} "
            f'"{case.edit.prompt.text}"'
        )
    raise typer.Exit(DONE if run.taken and run.undone else NOT_TAKEN)
