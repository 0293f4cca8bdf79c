"""Settings of the methods that may cut a target into windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from easyeditor.associative.windows import Window, windows_of
from easyeditor.edits import Edit
from easyeditor.errors import HyperParamsError
from easyeditor.lm.model import LM
from easyeditor.methods.locate import LocateHyperParams


class WindowSettings(LocateHyperParams):
    """Settings of windows, for targets that are paragraphs.

    ``window`` cuts the targets into windows of so many tokens, each with a key and a value of its
    own (:mod:`easyeditor.associative.windows`): one vector cannot hold a paragraph. The first is
    read at the subject's last token or at the prompt's (``first_window_at``), the others at the
    token before them. ``protect_text`` leaves the outputs for the other tokens of such a text
    unchanged. A target of one window is made as without.
    """

    window: int | None = Field(None, ge=1)
    first_window_at: Literal["subject_last", "prompt_last"] = "subject_last"
    protect_text: bool = True

    @property
    def at_subject(self) -> bool:
        """Whether a fact is read at its subject's last token."""
        return self.first_window_at == "subject_last"

    def windows(self, lm: LM, edits: Sequence[Edit]) -> list[Window]:
        """The windows of the edits' targets.

        Raises:
            HyperParamsError: the model, the edits or other settings leave no room for windows.
        """
        size, eos, at_subject = self.window, self.append_eos, self.at_subject
        if size is None and at_subject:
            return windows_of(lm, edits, None, append_eos=eos)
        name = f"window={size}" if size is not None else "first_window_at='prompt_last'"
        if lm.encoder_decoder:
            raise HyperParamsError(
                f"{name} reads facts between the tokens of a text, and "
                f"{type(lm.model).__name__} reads them in its encoder. Leave it out, or take a "
                "model that continues text."
            )
        other = {
            "anchor_norm": bool(getattr(self, "anchor_norm", False)),
            "continuation_kl_factor": bool(self.continuation_kl_factor),
            "expansions of an edit": any(edit.expansions for edit in edits),
        }
        if refused := [what for what, given in other.items() if given]:
            raise HyperParamsError(
                f"{name} goes with the edit's own prompt and its target alone, not with "
                f"{' and '.join(refused)}. Leave out one or the other."
            )
        return windows_of(lm, edits, size, append_eos=eos, at_subject=at_subject)
