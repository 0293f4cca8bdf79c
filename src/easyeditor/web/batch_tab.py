"""The tab in which a table or a file of facts is edited."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from easyeditor.web import views
from easyeditor.web.edit_tab import method_choice
from easyeditor.web.handling import WORK, cancelling, guarded, key_of, shown
from easyeditor.web.recipes import batch_recipe
from easyeditor.web.service import Service
from easyeditor.web.settings import changes_of
from easyeditor.web.uploads import COLUMNS, cases_of_file, cases_of_table

ROWS = (
    ("The capital of France is", "France", "Lyon", "Paris"),
    ("The Colosseum is located in the city of", "The Colosseum", "Madrid", "Rome"),
)
TYPED = "facts.jsonl"
"""What the file of a typed table is called in the code that is shown."""


def batch_tab(service: Service) -> Any:
    """Build the tab; returns the event after which the window may carry other edits."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            file = gr.File(
                label="A file of edits: JSON, JSONL, CSV or TSV",
                file_types=[".json", ".jsonl", ".csv", ".tsv"],
                elem_id="batch-file",
                height=150,
            )
            typed = gr.Dataframe(
                [list(row) for row in ROWS],
                headers=list(COLUMNS),
                type="array",
                datatype="str",
                label="… or a table, used where there is no file",
                interactive=True,
                wrap=True,
                column_widths=["34%", "20%", "22%", "24%"],
                elem_id="batch-table",
            )
            choice = method_choice(service, "batch")
            together = gr.Checkbox(
                True,
                label="all at once, where the method can; else one after the other",
                elem_id="batch-together",
            )
            force = gr.Checkbox(
                label="edit also what the model says already", elem_id="batch-force"
            )
            with gr.Row():
                button = gr.Button("Edit all", variant="primary", elem_id="batch-button")
                cancel = gr.Button("Cancel", elem_id="batch-cancel")
        with gr.Column(scale=3, min_width=420):
            status = gr.HTML(
                views.hint("All of the edits are made, or none of them."), elem_id="batch-status"
            )
            table = gr.HTML(elem_id="batch-result")
            moved = gr.HTML(elem_id="batch-moved")
            with gr.Accordion("The same in Python and on the command line", open=False):
                recipe = gr.Markdown(elem_id="batch-recipe")

    @guarded(4)
    def make(
        file: str | None,
        typed: list[list[Any]],
        method: str,
        settings: str,
        together: bool,
        force: bool,
        request: gr.Request,
    ) -> Iterator[Any]:
        workspace = service.window(key_of(request))
        cases = cases_of_file(file) if file else cases_of_table(typed)
        changes = changes_of(method, settings)
        chosen = service.settings(method, workspace.name, changes)
        outcome = yield from shown(
            workspace,
            lambda: workspace.edit(cases, method, chosen, batch=together, force=force),
            4,
        )
        name = outcome.applied.file_name if outcome.applied else "edits.safetensors"
        written = batch_recipe(
            Path(file).name if file else TYPED,
            method,
            workspace.name,
            service.shown(method, workspace.name, changes),
            batch=outcome.together,
            force=force,
            file=name,
        )
        yield (
            views.verdict(outcome, batch=outcome.together),
            views.many_edits(cases, outcome.result.metrics),
            views.what_else_moved(outcome.shifts),
            views.code(written),
        )

    event = button.click(
        make,
        [file, typed, choice.method, choice.settings, together, force],
        [status, table, moved, recipe],
        concurrency_id=WORK,
        concurrency_limit=1,
        show_progress="hidden",
    )
    cancel.click(cancelling(service), queue=False)
    return event
