"""``easyedit demo --image``: a flag is called another country's, and what else moved is shown."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import typer

from easyeditor.cli import options, output, places, verdict
from easyeditor.cli.app import DONE, NOT_TAKEN
from easyeditor.cli.terminal import quoted

COUNTRY = "France"


def run(method: str, save: Path | None, as_json: bool) -> None:
    """Edit what ``flags-135m`` says about a drawn flag; the picture is written beside the patch."""
    started = time.perf_counter()
    place = save or Path(f"flag-{method.lower()}.safetensors")
    picture = place.with_suffix(".png")
    for path in (place, picture):
        places.check_file(path)

    from easyeditor.data.flag_cases import flag_cases
    from easyeditor.data.flag_pictures import COUNTRIES
    from easyeditor.editors.base import BaseEditor
    from easyeditor.edits import ImageRef, Prompt
    from easyeditor.patches.files import save_patch

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
    editor = BaseEditor(lm, settings)
    before = output.snapshot(lm, case, max_new_tokens=8)
    result = editor.edit_cases([case], evaluate_when="end", verbose=False)
    after = output.snapshot(lm, case, max_new_tokens=8)
    lines = output.before_after(case, before, after)
    saved = save_patch(result.patch, place)
    editor.undo(result.patch)
    undone = output.snapshot(lm, case, max_new_tokens=8)[0] == before[0]
    seconds = {**result.patch.info.seconds, "whole demo": time.perf_counter() - started}
    taken = not verdict.failures([case], result.metrics, batch=True)
    if as_json:
        output.print_json(
            {
                "method": method,
                "model": model,
                "picture": str(picture),
                "before_after": lines,
                "metrics": result.metrics[0],
                "seconds": seconds,
                "patch": str(saved),
                "undone_exactly": undone,
            }
        )
    else:
        output.show_before_after(f"{method} on {model}: {case.id}", lines)
        output.out.print_line(f"Seconds: {output.seconds_line(seconds)}")
        output.out.print_line(
            f"The picture: {picture}. Patch written to {saved} "
            f"({saved.stat().st_size / 1024:.0f} KB).\n"
            f"Undone: {'every score is as before, to the bit' if undone else 'SCORES DIFFER'}.\n"
            f"  easyedit generate --patch {quoted(saved)} --image {quoted(picture)} "
            f'"{case.edit.prompt.text}"'
        )
    raise typer.Exit(DONE if taken and undone else NOT_TAKEN)
