"""The card of a repository: what a patch changes, for which model, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from huggingface_hub import ModelCardData

from easyeditor.export.result import Export
from easyeditor.lm.embedded import hub_name
from easyeditor.patches.patch import Patch
from easyeditor.patches.public import public_value
from easyeditor.sharing.scores import EditScore

MAX_ROWS = 50
ROUNDING = 1e-6
"""Share of a change's norm that an adapter may lack and still hold it."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def card_of(
    patch: Patch,
    patch_file: str,
    *,
    title: str,
    licence: str | None = None,
    scores: Sequence[EditScore] = (),
    adapter: Export | None = None,
) -> str:
    """The text of ``README.md``, with the hub's metadata on top.

    Args:
        patch: that is shared.
        patch_file: its name in the repository.
        title: of the card.
        licence: the hub's identifier of the patch's licence; None: the card says that none is
            given.
        scores: of its edits, if they were measured.
        adapter: the patch as a LoRA adapter, if the repository holds it as one, too.
    """
    info = patch.info
    base = hub_name(info.model_name)
    data = ModelCardData(
        license=licence,
        library_name="peft" if adapter else "easyeditor",
        base_model=base if HUB_NAME.fullmatch(base) else None,
        tags=["easyedit", "knowledge-editing", info.method.lower(), *(["lora"] * bool(adapter))],
        pipeline_tag="text-generation",
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_plain(title)}",
        f"{len(info.edits)} edit{'s' * (len(info.edits) != 1)} of `{base}` by {info.method}, made "
        f"with EasyEdit. Without the patch the model is as it was; taking it off gives back every "
        "bit.",
        "## What it changes",
        _table(patch, scores),
        "## Use",
        _use(patch_file, adapter),
        "## Made with",
        _origin(patch, licence),
    ]
    return "\n\n".join(parts) + "\n"


def _table(patch: Patch, scores: Sequence[EditScore]) -> str:
    if scores:
        lines = ["| prompt | new answer | P(new answer) | before | after | holds |"]
        lines.append("|---|---|---|---|---|---|")
        lines += [
            f"| {_cell(s.prompt)} | {_cell(s.target)} | {s.before:.3f} → {s.after:.3f} | "
            f"{_cell(s.answer_before)} | {_cell(s.answer_after)} | {'yes' if s.holds else 'no'} |"
            for s in scores[:MAX_ROWS]
        ]
        holding = sum(s.holds for s in scores)
        note = (
            f"{holding} of {len(scores)} hold: every token of the new answer is the most probable "
            "one. Before and after are greedy continuations, measured when this card was written, "
            "with all edits of the patch applied. Locality was not measured here."
        )
    else:
        lines = ["| prompt | subject | new answer |", "|---|---|---|"]
        lines += [
            f"| {_cell(str(edit.prompt))} | {_cell(edit.subject or '')} | {_cell(edit.target)} |"
            for edit in patch.info.edits[:MAX_ROWS]
        ]
        note = "Nothing was measured for this card."
    more = len(patch.info.edits) - MAX_ROWS
    if more > 0:
        note = f"… and {more} more, see `easyedit show`. {note}"
    return "\n".join(lines) + f"\n\n{note}"


def _use(patch_file: str, adapter: Export | None) -> str:
    text = (
        "```sh\neasyedit pull REPOSITORY --out patch\n"
        f'easyedit generate --patch patch/{patch_file} "PROMPT"\n'
        f"easyedit serve --patch patch/{patch_file}\n```\n\n"
        "In Python: `load_patch(file).apply(model)`, and `patch.revert(model)` to undo it."
    )
    if adapter:
        text += (
            "\n\nThe repository is a PEFT adapter, too: `PeftModel.from_pretrained(model, "
            "REPOSITORY)`, and vLLM and SGLang load it at run time.\n\n"
        )
        text += "\n".join(f"- {_plain(line)}" for line in (fidelity(adapter), *adapter.notes))
    return text


def fidelity(adapter: Export) -> str:
    """One sentence: the adapter's rank, and the share of the change that it leaves out."""
    worst = max(adapter.errors, key=lambda path: adapter.errors[path])
    error = adapter.errors[worst]
    if error < ROUNDING:
        return f"The adapter has rank {adapter.rank} and holds the whole change."
    return (
        f"The adapter has rank {adapter.rank} and is an approximation: up to {error:.2g} of a "
        f"weight's change, by norm, is left out ({worst}). The patch file holds the whole change."
    )


def _origin(patch: Patch, licence: str | None) -> str:
    info = patch.info
    base = hub_name(info.model_name)
    versions = ", ".join(f"{name} {number}" for name, number in info.versions.items())
    settings = ", ".join(
        f"`{_plain(f'{name}={value}')}`"
        for name, value in public_value(info.hyperparams).items()
        if value is not None
    )
    lines = [
        f"- Method: {info.method}",
        f"- Base model: `{base}` ({info.model.architecture})",
        f"- Licence of the patch: {licence or 'none given'}; the base model's applies, too",
        f"- Versions: {versions}",
        f"- Settings: {settings}",
    ]
    if base != info.model_name:
        remark = (
            f"- Made on EasyEdit's `{info.model_name}`, which is that model after 4-bit "
            "quantization. The patch file belongs to it; on the hub's weights the adapter works, "
            "or the patch with `--force`"
        )
        lines.insert(2, remark)
    return "\n".join(lines)


def _plain(text: str) -> str:
    """One line."""
    return " ".join(text.split())


def _cell(text: str) -> str:
    """A text that stays within its cell and is read as text, not as markup."""
    line = _plain(text)
    line = line if len(line) <= 160 else f"{line[:159]}…"
    return re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", line)
