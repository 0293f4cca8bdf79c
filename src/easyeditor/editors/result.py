"""What a call of ``BaseEditor`` gives back."""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import PreTrainedModel

from easyeditor.evaluate.degeneration import answered
from easyeditor.patches.patch import Patch


class EditResult(NamedTuple):
    """What an edit gives back; unpacks as ``metrics, edited_model, patch``.

    Attributes:
        metrics: one dict per edit: ``case_id, requested_rewrite, time, pre, post``.
        edited_model: always a model that holds every requested edit.
        patch: what was changed; save it, apply it elsewhere, or give it to ``editor.undo``.
    """

    metrics: list[dict[str, Any]]
    edited_model: PreTrainedModel
    patch: Patch

    def __repr__(self) -> str:
        measured = [metric.get("final") or metric.get("post") for metric in self.metrics]
        took = sum(scores is not None and answered(scores) for scores in measured)
        unchanged = sum("unchanged" in metric for metric in self.metrics)
        known = f", {unchanged} of them known before" if unchanged else ""
        return (
            f"<EditResult: {took} of {len(measured)} edits took{known}; "
            f"{type(self.edited_model).__name__}, {self.patch!r}>"
        )
