"""The tab with the tables and pictures of benchmark runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from easyeditor.bench.drawing import png
from easyeditor.bench.plots import figures
from easyeditor.bench.results import read_runs
from easyeditor.bench.table import table
from easyeditor.bench.writers import markdown
from easyeditor.web import views
from easyeditor.web.handling import guarded
from easyeditor.web.recipes import report_recipe
from easyeditor.web.service import Service


def runs_tab(service: Service) -> None:
    """Build the tab."""
    names = service.run_names()
    status = gr.HTML(
        views.hint(
            f"{len(names)} runs; choose one."
            if names
            else "No runs: start the page with --runs "
            "FOLDER, the folder in which easyedit bench writes its run folders."
        ),
        elem_id="runs-status",
    )
    with gr.Row():
        chosen = gr.Dropdown(
            names, value=None, label="Run", elem_id="runs-chosen", allow_custom_value=False
        )
        button = gr.Button("Show", variant="primary", elem_id="runs-button")
    scores = gr.Markdown(elem_id="runs-table")
    pictures = gr.HTML(elem_id="runs-pictures")
    with gr.Accordion("The same in Python and on the command line", open=False):
        recipe = gr.Markdown(elem_id="runs-recipe")

    @guarded(4)
    def show(name: str | None) -> Iterator[Any]:
        folder = service.run_folder(name or "")
        runs = read_runs([folder])
        rows = table(runs)
        shown = [views.picture(title, png(figure)) for title, figure in figures(runs, rows).items()]
        written = views.code(report_recipe(f"{folder.parent.name}/{name}"))
        yield views.remark(f"{len(shown)} pictures."), markdown(rows), "".join(shown), written

    button.click(show, chosen, [status, scores, pictures, recipe])
