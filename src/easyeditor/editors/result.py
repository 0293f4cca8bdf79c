"""What a call of ``BaseEditor`` gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from easyeditor.display import bar_pair, data_frame, table_html
from easyeditor.evaluate.aggregate import flatten
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

    def to_frame(self) -> Any:
        """One row per edit as a pandas ``DataFrame``: the request, and every score by its path.

        Columns such as ``pre/rewrite_acc`` and ``post/locality/neighborhood_acc``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = []
        for metric in self.metrics:
            request = metric["requested_rewrite"]
            row = {"case_id": metric["case_id"], "prompt": _text(request["prompt"])}
            row |= {key: request[key] for key in ("subject", "ground_truth", "target_new")}
            row |= {"time": metric["time"], "unchanged": "unchanged" in metric}
            for half in ("pre", "post", "final"):
                if half in metric:
                    row |= {f"{half}/{name}": x for name, x in flatten(metric[half]).items()}
                    answer = metric[half].get("free_answer", {})
                    row[f"{half}/free_answer/text"] = answer.get("text", "")
            rows.append(row)
        return data_frame(rows)

    def _repr_html_(self) -> str:
        rows = []
        for metric in self.metrics:
            request, before = metric["requested_rewrite"], metric["pre"]
            after = metric.get("final") or metric.get("post") or before
            new, old = "target_new", "ground_truth"
            was, now = before["rewrite_prob"], after["rewrite_prob"]
            rows.append(
                [
                    _text(request["prompt"]),
                    request["target_new"],
                    bar_pair(was[new], now[new], rises=True),
                    request["ground_truth"],
                    bar_pair(was.get(old), now.get(old), rises=False),
                    _mean(after, "rephrase_acc"),
                    _mean(after, "locality"),
                    after.get("free_answer", {}).get("text", "").strip(),
                ]
            )
        head = ["prompt", "new", "P(new) before, after", "old", "P(old) before, after", "rephrase"]
        return table_html(repr(self)[1:-1], [*head, "locality", "the model writes"], rows)

    def __repr__(self) -> str:
        measured = [metric.get("final") or metric.get("post") for metric in self.metrics]
        took = sum(scores is not None and answered(scores) for scores in measured)
        unchanged = sum("unchanged" in metric for metric in self.metrics)
        known = f", {unchanged} of them known before" if unchanged else ""
        return (
            f"<EditResult: {took} of {len(measured)} edits took{known}; "
            f"{type(self.edited_model).__name__}, {self.patch!r}>"
        )


def _text(prompt: str | Mapping[str, Any]) -> str:
    """The text of a prompt as a metric dict holds it."""
    return prompt if isinstance(prompt, str) else str(prompt["text"])


def _mean(half: Mapping[str, Any], name: str) -> str:
    """A score, or the mean of the accuracies of a group, as text; empty where there is none."""
    value = half.get(name)
    if isinstance(value, Mapping):
        values = [x for key, x in value.items() if key.endswith("_acc") and x is not None]
        value = sum(values) / len(values) if values else None
    return "" if value is None else f"{value:.2f}"
