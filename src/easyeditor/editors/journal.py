"""``EditJournal``: finished edits of a long request on disk, so that a second call goes on.

A folder with one patch (and state) per group of edits and a description of the request. A patch
appears whole or not at all, so an interrupt at any moment loses at most the group it hit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easyeditor.editors.session import Attempt
from easyeditor.editors.state_file import load_state, save_state, state_file
from easyeditor.edits import Case, canonical_json
from easyeditor.errors import OutputError
from easyeditor.files import written_whole
from easyeditor.methods.base import State
from easyeditor.patches.files import load_patch, save_patch

REQUEST = "request.json"


class EditJournal:
    """The finished edits of one request, in a folder.

    Args:
        folder: it is made when the first edit is finished.
        request: a text that two calls have in common only if they ask for the same edits of the
            same model in the same way: see :func:`digest`.
        state_class: of the method's state.

    Raises:
        OutputError: the folder holds the edits of another request.
    """

    def __init__(self, folder: Path, request: str, state_class: type[State] | None) -> None:
        self.folder = folder
        self._request = request
        self._state_class = state_class
        if not folder.exists():
            return
        file = folder / REQUEST
        try:
            same = json.loads(file.read_text(encoding="utf-8")) == {"request": request}
        except (OSError, ValueError):
            same = False
        if not same:
            raise OutputError(
                f"{folder} holds finished edits of another request. Repeat that one to go on with "
                "it, or delete the folder."
            )

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.seconds.json"))

    def finished(self, number: int) -> Attempt | None:
        """The attempt that was added under ``number``, or None.

        Raises:
            PatchFormatError: a file is damaged.
        """
        file, seconds = self._files(number)
        if not seconds.is_file():
            return None
        patch = load_patch(file)
        spent = float(json.loads(seconds.read_text(encoding="utf-8")))
        return Attempt(patch, load_state(self._state_class, patch, file), spent)

    def add(self, number: int, attempt: Attempt) -> None:
        """Write an attempt.

        Raises:
            OutputError: the folder cannot be written.
        """
        if attempt.patch is None:
            return
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            self._write(self.folder / REQUEST, {"request": self._request})
        file, seconds = self._files(number)
        if attempt.state is not None:
            save_state(attempt.state, attempt.patch, file)
        else:
            state_file(file).unlink(missing_ok=True)
        save_patch(attempt.patch, file)
        self._write(seconds, attempt.seconds)  # last: with it the attempt counts

    def delete(self) -> None:
        """Delete the folder: the request is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self, number: int) -> tuple[Path, Path]:
        name = f"{number:06d}"
        return self.folder / f"{name}.safetensors", self.folder / f"{name}.seconds.json"

    @staticmethod
    def _write(file: Path, content: Any) -> None:
        with written_whole(file) as part:
            part.write_text(json.dumps(content), encoding="utf-8")


def digest(cases: Sequence[Case], **how: Any) -> str:
    """A digest of the edits of ``cases`` and of everything that decides how they are made."""
    edits = canonical_json([edit for case in cases for edit in case.edits])
    text = f"[{edits}, {json.dumps(how, sort_keys=True, default=str)}]"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
