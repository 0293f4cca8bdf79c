"""The tab with the applied edits: undo any one, save, export, download, load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from easyeditor.errors import PatchFormatError, PatchStateError
from easyeditor.web import recipes, views
from easyeditor.web.handling import guarded, key_of
from easyeditor.web.service import Service
from easyeditor.web.uploads import named_by_user, patch_file
from easyeditor.web.workspace import Workspace

FORMATS = {
    "adapter for peft, vLLM, SGLang (LoRA)": "lora",
    "adapter for llama.cpp (GGUF)": "gguf-lora",
}


def edits_tab(service: Service, changed: list[Any]) -> None:
    """Build the tab; its list is read anew after each event of ``changed``."""
    status = gr.HTML(elem_id="edits-status")
    table = gr.HTML(views.edit_list([]), elem_id="edits-table")
    chosen = gr.Dropdown([], label="Edit", elem_id="edits-chosen", allow_custom_value=False)
    with gr.Row():
        undo = gr.Button("Undo this edit", variant="primary", elem_id="edits-undo")
        save = gr.Button("Save this edit", elem_id="edits-save")
        save_all = gr.Button("Save all as one patch", elem_id="edits-save-all")
    with gr.Row():
        form = gr.Dropdown(
            list(FORMATS.items()), value="lora", label="Format", elem_id="edits-format"
        )
        export = gr.Button("Export this edit", elem_id="edits-export")
    with gr.Row():
        download = gr.File(
            label="Download", interactive=False, height=140, elem_id="edits-download"
        )
        upload = gr.File(
            label="Load a patch (.safetensors)",
            file_types=[".safetensors"],
            height=140,
            elem_id="edits-upload",
        )
    with gr.Accordion("The same in Python and on the command line", open=False):
        recipe = gr.Markdown(elem_id="edits-recipe")
    outputs = [status, table, chosen, download, recipe]

    def listed(workspace: Workspace) -> tuple[str, Any]:
        choices = [(applied.title, applied.number) for applied in workspace.edits]
        last = choices[-1][1] if choices else None
        return views.edit_list(workspace.edits), gr.Dropdown(choices, value=last)

    @guarded(3)
    def refresh(request: gr.Request) -> Iterator[Any]:
        workspace = service.window(key_of(request))
        yield ("", *listed(workspace))

    @guarded(5)
    def take_back(number: int | None, request: gr.Request) -> Iterator[Any]:
        workspace = service.window(key_of(request))
        with workspace.working():
            applied = workspace.undo(_number(number))
        left = [other.file_name for other in workspace.edits]
        yield (
            views.remark(f"Edit {applied.number} is undone, to the bit; {len(left)} left."),
            *listed(workspace),
            None,
            views.code(recipes.undo_recipe(applied.file_name, left, workspace.name)),
        )

    @guarded(5)
    def write(number: int | None, request: gr.Request) -> Iterator[Any]:
        workspace = service.window(key_of(request))
        yield _written(workspace.save(_number(number)))

    @guarded(5)
    def write_all(request: gr.Request) -> Iterator[Any]:
        workspace = service.window(key_of(request))
        yield _written(workspace.save(None))

    @guarded(5)
    def convert(number: int | None, form: str, request: gr.Request) -> Iterator[Any]:
        workspace = service.window(key_of(request))
        applied = workspace.applied(_number(number))
        file = workspace.export(applied.number, form)
        written = recipes.export_recipe(applied.file_name, form)
        message = f"{file.name} holds the adapter; press it to download."
        yield views.remark(message), gr.skip(), gr.skip(), str(file), views.code(written)

    @guarded(5)
    def load(file: str | None, request: gr.Request) -> Iterator[Any]:
        workspace = service.window(key_of(request))
        if file is None:
            raise PatchFormatError("No file was sent; choose a patch file.")
        with workspace.working():
            applied = named_by_user(str(patch_file(file)), workspace.load)
        written = recipes.load_recipe(Path(file).name, workspace.name)
        message = f"{Path(file).name} is applied, as edit {applied.number}."
        yield views.remark(message), *listed(workspace), None, views.code(written)

    undo.click(take_back, chosen, outputs)
    save.click(write, chosen, outputs)
    save_all.click(write_all, None, outputs)
    export.click(convert, [chosen, form], outputs)
    upload.upload(load, upload, outputs)
    for event in changed:
        event.then(refresh, None, [status, table, chosen], show_progress="hidden")


def _number(number: int | None) -> int:
    if number is None:
        raise PatchStateError("No edit is chosen; make one, or choose one of the list.")
    return int(number)


def _written(file: Path) -> tuple[Any, ...]:
    message = f"{file.name} has {file.stat().st_size / 1024:.0f} KB; press it to download."
    written = recipes.save_recipe(file.name)
    return views.remark(message), gr.skip(), gr.skip(), str(file), views.code(written)
