"""The tab that shows where a fact passes through the model: causal trace and logit lens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from easyeditor.errors import TraceError
from easyeditor.web import views
from easyeditor.web.edit_tab import EXAMPLE
from easyeditor.web.handling import WORK, cancelling, guarded, key_of, shown
from easyeditor.web.recipes import trace_recipe
from easyeditor.web.service import Service
from easyeditor.web.uploads import LONGEST_TEXT
from easyeditor.web.workspace import Workspace

KINDS = {
    "hidden states": "state",
    "MLP layers": "mlp",
    "attention layers": "attention",
    "logit lens": "lens",
}


def inside_tab(service: Service) -> None:
    """Build the tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(
                EXAMPLE["prompt"],
                label="Prompt",
                elem_id="inside-prompt",
                max_length=LONGEST_TEXT,
            )
            subject = gr.Textbox(
                EXAMPLE["subject"],
                label="Subject",
                info="What is corrupted; not needed for the lens",
                elem_id="inside-subject",
                max_length=LONGEST_TEXT,
            )
            answers = gr.Textbox(
                "Paris",
                label="Answers",
                info="One to a line; a trace looks for the first",
                lines=2,
                elem_id="inside-answers",
            )
            kind = gr.Radio(
                list(KINDS.items()), value="lens", label="What is shown", elem_id="inside-kind"
            )
            edited = gr.Checkbox(label="with the edits of this window", elem_id="inside-edited")
            samples = gr.Slider(
                1, 10, 4, step=1, label="Corrupted copies, of a trace", elem_id="inside-samples"
            )
            with gr.Row():
                button = gr.Button("Show", variant="primary", elem_id="inside-button")
                cancel = gr.Button("Cancel", elem_id="inside-cancel")
        with gr.Column(scale=3, min_width=420):
            status = gr.HTML(
                views.hint(
                    "A trace says where information about the subject passes through, not which "
                    "layer to edit."
                ),
                elem_id="inside-status",
            )
            picture = gr.Plot(label="Heat map", elem_id="inside-picture")
            with gr.Accordion("The same in Python and on the command line", open=False):
                recipe = gr.Markdown(elem_id="inside-recipe")

    @guarded(3)
    def show(
        prompt: str,
        subject: str,
        answers: str,
        kind: str,
        edited: bool,
        samples: float,
        request: gr.Request,
    ) -> Iterator[Any]:
        workspace = service.window(key_of(request))
        prompt, subject, answers = prompt or "", subject or "", answers or ""
        named = [line.strip() for line in answers.splitlines() if line.strip()][:5]
        figure = yield from shown(
            workspace,
            lambda: heat_map(workspace, prompt, subject, named, kind, edited, int(samples)),
            3,
        )
        files = [applied.file_name for applied in workspace.edits] if edited else []
        written = trace_recipe(prompt, subject, named, kind, workspace.name, files)
        yield views.remark("Rows are tokens, columns layers."), figure, views.code(written)

    button.click(
        show,
        [prompt, subject, answers, kind, edited, samples],
        [status, picture, recipe],
        concurrency_id=WORK,
        concurrency_limit=1,
        show_progress="hidden",
    )
    cancel.click(cancelling(service), queue=False)


def heat_map(
    workspace: Workspace,
    prompt: str,
    subject: str,
    answers: list[str],
    kind: str,
    edited: bool,
    samples: int,
) -> Any:
    """The figure of a trace or a lens.

    Raises:
        TraceError: no prompt, answer or subject, or no such kind.
        SubjectNotFoundError: the prompt does not write the subject.
    """
    from easyeditor.interpret.causal_trace import TraceOptions, causal_trace
    from easyeditor.interpret.logit_lens import logit_lens
    from easyeditor.interpret.pictures import lens_figure, trace_figure

    if kind not in KINDS.values():
        raise TraceError(f"{kind!r:.40} cannot be shown; choose of {', '.join(KINDS.values())}.")
    if not prompt.strip() or len(prompt) > LONGEST_TEXT:
        raise TraceError(f"Write a prompt of 1 to {LONGEST_TEXT} characters.")
    lm = workspace.lm(edited)
    if kind == "lens":
        if not edited:
            return lens_figure(logit_lens(lm, prompt, answers))
        return lens_figure(
            logit_lens(workspace.before, prompt, answers), logit_lens(lm, prompt, answers)
        )
    if not subject.strip():
        raise TraceError("Name the subject, as the prompt writes it: it is what is corrupted.")
    options = TraceOptions(samples=max(1, min(samples, 10)))
    answer = answers[0] if answers else None
    (trace,) = causal_trace(lm, prompt, subject, answer, kinds=[kind], options=options)  # type: ignore[list-item]
    return trace_figure(trace, workspace.name)
