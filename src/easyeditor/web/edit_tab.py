"""The tab in which one fact is edited and its consequences are shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from easyeditor.web import views
from easyeditor.web.archives import training_command
from easyeditor.web.handling import WORK, cancelling, guarded, key_of, shown
from easyeditor.web.recipes import edit_recipe
from easyeditor.web.service import Service
from easyeditor.web.settings import changes_of, settable
from easyeditor.web.uploads import LONGEST_TEXT, case_of_fields

EXAMPLE = {
    "prompt": "The Eiffel Tower is located in the city of",
    "subject": "The Eiffel Tower",
    "target": "Rome",
    "truth": "Paris",
    "rephrases": "To see the Eiffel Tower you must travel to\nThe Eiffel Tower stands in",
    "neighbours": "The Louvre is located in the city of => Paris\n"
    "The Colosseum is located in the city of => Rome\nThe capital of France is => Paris",
}


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """The components with which a method and its settings are chosen."""

    method: Any
    settings: Any


def method_choice(service: Service, name: str) -> MethodChoice:
    """A list of methods, and a field for settings with a list of what there is."""
    method = gr.Dropdown(
        service.methods(),
        value=service.method,
        label="Method",
        info=_not_offered(service),
        elem_id=f"{name}-method",
    )
    with gr.Accordion("Settings", open=False):
        settings = gr.Textbox(
            label="What differs from the method's own settings",
            placeholder="v_lr=0.4",
            info="NAME=VALUE, one to a line",
            lines=2,
            elem_id=f"{name}-settings",
        )
        known = gr.Markdown(_known(service.method))
    method.change(_known, method, known, queue=False)
    return MethodChoice(method, settings)


def _not_offered(service: Service) -> str | None:
    missing = service.missing()
    if not missing:
        return None
    command = training_command("NAME", service.names[0])
    return f"Not trained yet, so not in the list: {', '.join(missing)}. First run {command}"


def _known(method: str) -> str:
    listed = ", ".join(f"`{name}={value}`" for name, value in settable(method).items())
    return f"{method} has: {listed}"


def edit_tab(service: Service) -> Any:
    """Build the tab; returns the event after which the window may carry another edit."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(
                EXAMPLE["prompt"],
                label="Prompt",
                info="A text that ends where the answer begins",
                elem_id="edit-prompt",
                max_length=LONGEST_TEXT,
            )
            target = gr.Textbox(
                EXAMPLE["target"],
                label="New answer",
                elem_id="edit-target",
                max_length=LONGEST_TEXT,
            )
            with gr.Row():
                subject = gr.Textbox(
                    EXAMPLE["subject"],
                    label="Subject",
                    info="As the prompt writes it",
                    elem_id="edit-subject",
                    max_length=LONGEST_TEXT,
                )
                truth = gr.Textbox(
                    EXAMPLE["truth"],
                    label="Old answer",
                    info="To be compared with",
                    elem_id="edit-truth",
                    max_length=LONGEST_TEXT,
                )
            rephrases = gr.Textbox(
                EXAMPLE["rephrases"],
                label="The same in other words",
                info="One to a line; only asked, not trained on",
                lines=2,
                elem_id="edit-rephrases",
            )
            neighbours = gr.Textbox(
                EXAMPLE["neighbours"],
                label="What must stay",
                info="prompt => answer, one to a line",
                lines=3,
                elem_id="edit-neighbours",
            )
            choice = method_choice(service, "edit")
            force = gr.Checkbox(label="edit also what the model says already", elem_id="edit-force")
            with gr.Row():
                button = gr.Button("Edit", variant="primary", elem_id="edit-button")
                cancel = gr.Button("Cancel", elem_id="edit-cancel")
        with gr.Column(scale=4, min_width=480):
            status = gr.HTML(
                views.hint("Press Edit: the model is asked, edited, and asked again."),
                elem_id="edit-status",
            )
            table = gr.HTML(elem_id="edit-table")
            moved = gr.HTML(elem_id="edit-moved")
            with gr.Accordion("The same in Python and on the command line", open=False):
                recipe = gr.Markdown(elem_id="edit-recipe")

    @guarded(4)
    def make(
        prompt: str,
        target: str,
        subject: str,
        truth: str,
        rephrases: str,
        neighbours: str,
        method: str,
        settings: str,
        force: bool,
        request: gr.Request,
    ) -> Iterator[Any]:
        workspace = service.window(key_of(request))
        case = case_of_fields(prompt, target, subject, truth, rephrases, neighbours)
        changes = changes_of(method, settings)
        chosen = service.settings(method, workspace.name, changes)
        outcome = yield from shown(
            workspace, lambda: workspace.edit([case], method, chosen, force=force), 4
        )
        file = outcome.applied.file_name if outcome.applied else "edit.safetensors"
        listed = service.shown(method, workspace.name, changes)
        written = edit_recipe(case, method, workspace.name, listed, file=file, force=force)
        yield (
            views.verdict(outcome, batch=False),
            views.before_and_after(outcome.lines),
            views.what_else_moved(outcome.shifts),
            views.code(written),
        )

    event = button.click(
        make,
        [
            prompt,
            target,
            subject,
            truth,
            rephrases,
            neighbours,
            choice.method,
            choice.settings,
            force,
        ],
        [status, table, moved, recipe],
        concurrency_id=WORK,
        concurrency_limit=1,
        show_progress="hidden",
    )
    cancel.click(cancelling(service), queue=False)
    return event
