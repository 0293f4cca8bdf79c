"""The page: its tabs, its look, and what happens when a window opens, changes model or closes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from easyeditor.web import views
from easyeditor.web.batch_tab import batch_tab
from easyeditor.web.compare_tab import compare_tab
from easyeditor.web.edit_tab import edit_tab
from easyeditor.web.edits_tab import edits_tab
from easyeditor.web.handling import guarded, key_of
from easyeditor.web.inside_tab import inside_tab
from easyeditor.web.runs_tab import runs_tab
from easyeditor.web.service import Service

TITLE = "EasyEdit"
LEAD = (
    "## EasyEdit\nChange what a language model knows, see what else changed, and undo it to the "
    "bit. Edits are made in this window alone; the model on the disk is never changed."
)
CSS = """
.ee-message {padding: 8px 12px; border-radius: 6px; border-left: 4px solid; margin: 4px 0}
.ee-problem {border-color: #db6d28; background: #db6d2822}
.ee-done {border-color: #2ea043; background: #2ea04322}
.ee-working {border-color: #5878c8; background: #5878c822}
#runs-table {overflow-x: auto}
#runs-table td, #runs-table th {overflow-wrap: normal; word-break: normal; padding: 6px 8px}
"""
FONTS = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")
KEPT_SECONDS = 6 * 3600
"""How long files that were sent and downloaded are kept."""


def look() -> Any:
    """The theme; its fonts are the reader's, so nothing is fetched from elsewhere."""
    return gr.themes.Default(font=list(FONTS), font_mono=list(MONO))


def build_page(service: Service) -> gr.Blocks:
    """The page of a service."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.Markdown(LEAD)
        with gr.Row():
            model = gr.Dropdown(
                list(service.names), value=service.names[0], label="Model", elem_id="model"
            )
            status = gr.HTML(elem_id="model-status")
        with gr.Tab("Edit a fact", id="edit"):
            edited = edit_tab(service)
        with gr.Tab("Edit many", id="batch"):
            edited_many = batch_tab(service)
        with gr.Tab("Compare", id="compare"):
            compare_tab(service)
        with gr.Tab("Edits", id="edits"):
            changed = [edited, edited_many]
            chosen_model = model.input(
                _chooser(service), model, [status, model], show_progress="hidden"
            )
            edits_tab(service, [*changed, chosen_model])
        with gr.Tab("Look inside", id="inside"):
            inside_tab(service)
        with gr.Tab("Benchmarks", id="runs"):
            runs_tab(service)
        page.unload(_closer(service))
    page.queue(max_size=64, default_concurrency_limit=4)
    return page


def _chooser(service: Service) -> Any:
    @guarded(2)
    def choose(name: str, request: gr.Request) -> Iterator[Any]:
        key = key_of(request)
        present = service.present(key)
        former = service.names[0] if present is None else present.name
        yield views.working(f"loading {name} …"), gr.skip()
        try:
            service.choose(key, name)
        except BaseException:  # the window goes on with the model that it had
            yield gr.skip(), former
            raise
        yield views.remark(f"{name} is chosen; this window has no edits of it yet."), gr.skip()

    return choose


def _closer(service: Service) -> Any:
    def close(request: gr.Request) -> None:
        service.forget(key_of(request))

    return close
