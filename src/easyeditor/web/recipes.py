"""The Python and the command that do what was just done on the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easyeditor.edits import Case
from easyeditor.methods import METHODS

WIDTH = 88
"""Columns that a command's line should not exceed; options go to lines of their own."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The same action without the page.

    Attributes:
        python: statements.
        command: lines for a shell.
    """

    python: str
    command: str


def edit_recipe(
    case: Case, method: str, model: str, changes: Mapping[str, Any], *, file: str, force: bool
) -> Recipe:
    """One fact."""
    edit = case.edit
    named: dict[str, Any] = {"prompts": str(edit.prompt), "target_new": edit.target}
    words = ["easyedit edit", f"--method {method.lower()}", f"--prompt {_quoted(str(edit.prompt))}"]
    words.append(f"--target {_quoted(edit.target)}")
    for name, option, value in (
        ("subject", "--subject", edit.subject),
        ("ground_truth", "--ground-truth", edit.ground_truth),
    ):
        if value:
            named[name] = value
            words.append(f"{option} {_quoted(value)}")
    rephrases = [str(probe.prompt) for probe in case.probes if probe.group == "rephrase"]
    if rephrases:
        named["rephrase_prompts"] = [rephrases]
        words += [f"--rephrase {_quoted(text)}" for text in rephrases]
    near = [probe for probe in case.probes if probe.group == "locality"]
    if near:
        named["locality_inputs"] = {
            near[0].name: {
                "prompt": [[str(probe.prompt) for probe in near]],
                "ground_truth": [[probe.answers[0] for probe in near]],
            }
        }
        words += [f"--locality {_quoted(f'{p.prompt} => {p.answers[0]}')}" for p in near]
    if force:
        named["force"] = True
        words.append("--force")
    words += [*_settings(changes), f"--model {_quoted(model)}", f"--save {_quoted(file)}"]
    arguments = "".join(f"    {name}={value!r},\n" for name, value in named.items())
    python = (
        f"{_editor(method, model, changes)}"
        f"metrics, edited_model, patch = editor.edit(\n{arguments})\n"
        f"editor.save(patch, {file!r})\n"
    )
    return Recipe(python, _wrapped(words))


def batch_recipe(
    source: str,
    method: str,
    model: str,
    changes: Mapping[str, Any],
    *,
    batch: bool,
    force: bool,
    file: str,
) -> Recipe:
    """Many facts, from a file of edits."""
    options = ", batch=True" if batch else ""
    options += "" if force else ", force=False"
    python = (
        "from easyeditor import open_dataset\n"
        f"{_editor(method, model, changes)}"
        f"metrics, edited_model, patch = editor.edit_dataset(\n"
        f'    open_dataset({source!r}), evaluate_when="end"{options}\n)\n'
        f"editor.save(patch, {file!r})\n"
    )
    words = ["easyedit edit", f"--method {method.lower()}", f"--edits {_quoted(source)}"]
    words += ["--one-by-one"] * (not batch) + ["--force"] * force
    words += [*_settings(changes), f"--model {_quoted(model)}", f"--save {_quoted(file)}"]
    return Recipe(python, _wrapped(words))


def compare_recipe(
    prompt: str, model: str, files: Sequence[str], max_new_tokens: int, *, chat: bool = True
) -> Recipe:
    """One prompt before and after, in plain and, where the model has one, in chat form."""
    prompts = [f"Prompt({prompt!r}, chat={form})" for form in ((False, True) if chat else (None,))]
    apply = "".join(f"load_patch({file!r}).apply(lm.model)\n" for file in files)
    python = (
        "from easyeditor import Prompt, load, load_patch\n"
        "from easyeditor.lm.inference import generate\n\n"
        f"lm = load({model!r})\n"
        f"forms = [{', '.join(prompts)}]\n"
        f"before = generate(lm, forms, {max_new_tokens})\n"
        f"{apply}after = generate(lm, forms, {max_new_tokens})\n"
    )
    words = ["easyedit generate", _quoted(prompt), f"--model {_quoted(model)}"]
    words += [f"--patch {_quoted(file)}" for file in files]
    words.append(f"--max-new-tokens {max_new_tokens}")
    return Recipe(python, _wrapped(words))


def undo_recipe(file: str, left: Sequence[str], model: str) -> Recipe:
    """One edit taken back."""
    words = ["easyedit generate", f"--model {_quoted(model)}"]
    words += [f"--patch {_quoted(other)}" for other in left] + ['"…"']
    return Recipe(
        "editor.undo(patch)                 # the editor that made it\n"
        "patch.revert(edited_model)         # or a patch that was loaded\n",
        f"# A patch is a file: the edit is gone where {shlex.quote(file)} is not named.\n"
        f"{_wrapped(words)}",
    )


def save_recipe(file: str) -> Recipe:
    """A patch as a file."""
    return Recipe(
        f"from easyeditor import save_patch\n\nsave_patch(patch, {file!r})\n",
        f"easyedit show {_quoted(file)}\n",
    )


def load_recipe(file: str, model: str) -> Recipe:
    """A file as a patch."""
    return Recipe(
        "from easyeditor import load, load_patch\n\n"
        f"lm = load({model!r})\n"
        f"patch = load_patch({file!r})\n"
        "patch.apply(lm.model)\n",
        f'easyedit generate --model {_quoted(model)} --patch {_quoted(file)} "…"\n',
    )


def export_recipe(file: str, form: str) -> Recipe:
    """An adapter of another program."""
    module, name = {"lora": ("lora", "export_lora")}.get(form, ("gguf_lora", "export_gguf_lora"))
    return Recipe(
        f"from easyeditor import load_patch\nfrom easyeditor.export.{module} import {name}\n\n"
        f'{name}(load_patch({file!r}), "adapter")\n',
        f"easyedit export {_quoted(file)} --format {form} --out adapter\n",
    )


def trace_recipe(
    prompt: str, subject: str, answers: Sequence[str], kind: str, model: str, files: Sequence[str]
) -> Recipe:
    """A causal trace, or a logit lens."""
    apply = "".join(f"load_patch({file!r}).apply(lm.model)\n" for file in files)
    imported = "load, load_patch" if files else "load"
    words = [f"easyedit trace {_quoted(prompt)}", f"--kind {kind}", f"--model {_quoted(model)}"]
    if kind == "lens":
        python = (
            f"from easyeditor import {imported}, logit_lens\n"
            "from easyeditor.interpret.pictures import lens_figure\n\n"
            f"lm = load({model!r})\n{apply}"
            f"lens = logit_lens(lm, {prompt!r}, {list(answers)!r})\n"
            'lens_figure(lens).savefig("lens.png")\n'
        )
    else:
        answer = f", {answers[0]!r}" if answers else ""
        python = (
            f"from easyeditor import causal_trace, {imported}\n"
            "from easyeditor.interpret.pictures import trace_figure\n\n"
            f"lm = load({model!r})\n{apply}"
            f"(trace,) = causal_trace(lm, {prompt!r}, {subject!r}{answer}, kinds=[{kind!r}])\n"
            'trace_figure(trace).savefig("trace.png")\n'
        )
        words.append(f"--subject {_quoted(subject)}")
    words += [f"--answer {_quoted(answer)}" for answer in answers]
    words += [f"--patch {_quoted(file)}" for file in files]
    words.append(f"--out {'lens' if kind == 'lens' else 'trace'}.png")
    return Recipe(python, _wrapped(words))


def report_recipe(run: str) -> Recipe:
    """Tables and pictures of a run."""
    return Recipe(
        f"from easyeditor.bench.report import report\n\nreport({run!r})\n",
        f"easyedit bench report {_quoted(run)}\n",
    )


def _editor(method: str, model: str, changes: Mapping[str, Any]) -> str:
    name = METHODS.get(method).hyperparams_class.__name__
    settings = "".join(f", {key}={value!r}" for key, value in changes.items())
    return (
        f"from easyeditor import BaseEditor, {name}\n\n"
        f"editor = BaseEditor.from_hparams({name}.for_model({model!r}{settings}))\n"
    )


def _settings(changes: Mapping[str, Any]) -> list[str]:
    return [f"--set {_quoted(f'{name}={_yaml(value)}')}" for name, value in changes.items()]


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _wrapped(words: Sequence[str]) -> str:
    """The words as one command, on several lines where one would be too long."""
    lines, line = [], words[0]
    for word in words[1:]:
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = f"  {word}"
        else:
            line = f"{line} {word}"
    return " \\\n".join([*lines, line]) + "\n"
