"""What both demos do: one edit, its scores before and after, the patch written, the edit undone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyeditor.cli import output, verdict

if TYPE_CHECKING:
    from easyeditor.editors.result import EditResult
    from easyeditor.edits import Case
    from easyeditor.hyperparams import HyperParams
    from easyeditor.lm.model import LM


@dataclass(frozen=True, slots=True)
class DemoRun:
    """What came of the edit.

    Attributes:
        result: the editor's.
        lines: before and after.
        saved: the patch's file.
        undone: whether every score was as before once the edit was undone, to the bit.
        seconds: by phase.
        taken: whether the edit took.
    """

    result: EditResult
    lines: list[dict[str, Any]]
    saved: Path
    undone: bool
    seconds: dict[str, float]
    taken: bool

    @property
    def undone_line(self) -> str:
        """For people."""
        return "every score is as before, to the bit" if self.undone else "SCORES DIFFER"

    def document(self, method: str, model: str, **more: str) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "method": method,
            "model": model,
            **more,
            "before_after": self.lines,
            "metrics": self.result.metrics[0],
            "seconds": self.seconds,
            "patch": str(self.saved),
            "undone_exactly": self.undone,
        }


def edited_and_undone(
    lm: LM, settings: HyperParams, case: Case, place: Path, *, max_new_tokens: int, started: float
) -> DemoRun:
    """Edit, ask, save and undo; ``started`` is when the command began (``time.perf_counter``)."""
    loaded = time.perf_counter() - started

    from easyeditor.editors.base import BaseEditor
    from easyeditor.patches.files import save_patch

    editor = BaseEditor(lm, settings)
    before = output.snapshot(lm, case, max_new_tokens=max_new_tokens)
    result = editor.edit_cases([case], evaluate_when="end", verbose=False)
    after = output.snapshot(lm, case, max_new_tokens=max_new_tokens)
    lines = output.before_after(case, before, after)
    saved = save_patch(result.patch, place)
    editor.undo(result.patch)
    undone = output.snapshot(lm, case, max_new_tokens=max_new_tokens)[0] == before[0]
    seconds = {"load": loaded, **result.patch.info.seconds}
    seconds["whole demo"] = time.perf_counter() - started
    taken = not verdict.failures([case], result.metrics, batch=True)
    return DemoRun(result, lines, saved, undone, seconds, taken)
