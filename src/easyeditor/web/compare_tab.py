"""The tab in which a prompt is continued before and after the edits, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from easyeditor.web import views
from easyeditor.web.edit_tab import EXAMPLE
from easyeditor.web.handling import guarded, key_of
from easyeditor.web.recipes import compare_recipe
from easyeditor.web.service import Service
from easyeditor.web.uploads import LONGEST_TEXT
from easyeditor.web.workspace import FORMS, MODELS

TITLES = {"plain": "as plain text", "chat": "asked in the chat"}
WINDOWS_AT_ONCE = 4
"""Windows that are answered at the same time; others wait."""


def compare_tab(service: Service) -> None:
    """Build the tab."""
    with gr.Row():
        prompt = gr.Textbox(
            EXAMPLE["prompt"],
            label="Prompt",
            scale=4,
            elem_id="compare-prompt",
            max_length=LONGEST_TEXT,
        )
        tokens = gr.Slider(8, 200, 40, step=1, label="Tokens", scale=1, elem_id="compare-tokens")
        button = gr.Button("Compare", variant="primary", scale=1, elem_id="compare-button")
    status = gr.HTML(
        views.hint("Both models write at the same time; they share every unedited weight."),
        elem_id="compare-status",
    )
    boxes: dict[tuple[str, str], Any] = {}
    for form in FORMS:
        with gr.Row():
            for model in MODELS:
                boxes[model, form] = gr.Textbox(
                    label=f"{model} the edits, {TITLES[form]}",
                    lines=5,
                    interactive=False,
                    elem_id=f"compare-{model}-{form}",
                )
    with gr.Accordion("The same in Python and on the command line", open=False):
        recipe = gr.Markdown(elem_id="compare-recipe")
    outputs = [status, *boxes.values(), recipe]

    @guarded(len(outputs))
    def compare(prompt: str | None, tokens: float, request: gr.Request) -> Iterator[Any]:
        workspace, prompt = service.window(key_of(request)), prompt or ""
        files = [applied.file_name for applied in workspace.edits]
        chat = bool(getattr(workspace.before.tokenizer, "chat_template", None))
        written = views.code(compare_recipe(prompt, workspace.name, files, int(tokens), chat=chat))
        texts: dict[tuple[str, str], str] = {}
        with workspace.working():
            for texts in workspace.compare(prompt, max_new_tokens=min(int(tokens), 200)):
                yield (views.working("writing …"), *_texts(texts, boxes), written)
        edits = len(files)
        done = views.remark(
            f"{edits} edit{'s' * (edits != 1)} applied in the right-hand column."
            if edits
            else "No edit is applied yet, so both columns are the unedited model."
        )
        yield (done, *_texts(texts, boxes), written)

    gr.on(
        [button.click, prompt.submit],
        compare,
        [prompt, tokens],
        outputs,
        concurrency_limit=WINDOWS_AT_ONCE,
        show_progress="hidden",
    )


def _texts(texts: dict[tuple[str, str], str], boxes: dict[tuple[str, str], Any]) -> list[str]:
    return [texts.get(key, "(this model has no chat template)") for key in boxes]
