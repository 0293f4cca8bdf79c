"""``Workspace``: what one browser window works on, apart from all others.

It is a pair of models, one unedited and one with the window's edits, that share every tensor that
is not edited with each other and with those of other windows. Nothing here knows of the page.
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from easyeditor.data.open import open_dataset
from easyeditor.editors.base import BaseEditor, EditResult
from easyeditor.edits import Case, Edit, Prompt
from easyeditor.errors import EditError, PatchError, PatchStateError, ServerBusyError
from easyeditor.evaluate.before_after import before_after, snapshot
from easyeditor.evaluate.side_effects import Shift, side_effects, unrelated_facts
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.locking import lock_of
from easyeditor.lm.model import LM
from easyeditor.patches.copies import shared_copy
from easyeditor.patches.files import load_patch, save_patch
from easyeditor.patches.patch import Patch, merge
from easyeditor.serving.engine import Engine, Failure, Finish, Job, Piece
from easyeditor.serving.sampling import Sampling
from easyeditor.web.questions import question
from easyeditor.web.task import Task

T = TypeVar("T")
FACTS_ASKED = 32
"""Facts of the shipped list that are asked to see what else moved."""
TOKENS_SHOWN = 12
"""Length of the continuations beside the probabilities of an edit."""
FORMS = ("plain", "chat")
MODELS = ("before", "after")


@dataclass(frozen=True, slots=True, eq=False)
class AppliedEdit:
    """One call of an editor, or one patch that was loaded.

    Attributes:
        number: counted from 1 in its window; never used twice.
        patch: what it changed.
        editor: that made it; None for a patch that was loaded.
    """

    number: int
    patch: Patch
    editor: BaseEditor | None = None

    @property
    def title(self) -> str:
        """``"1 · METHOD · prompt → target"``."""
        edits = self.patch.info.edits
        more = f" and {len(edits) - 1} more" if edits[1:] else ""
        first = f"{edits[0].prompt} → {edits[0].target}" if edits else "nothing"
        return f"{self.number} · {self.patch.info.method} · {first}{more}"

    @property
    def file_name(self) -> str:
        """Of the patch when it is downloaded."""
        return f"edit-{self.number}-{self.patch.info.method.lower()}.safetensors"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an edit did.

    Attributes:
        cases: what was asked for.
        result: the editor's.
        applied: where it stands in the list; None where the model said everything already.
        lines: before and after of the first case.
        shifts: facts that the edit is not about, the largest change first.
        together: whether all edits were made at once.
    """

    cases: Sequence[Case]
    result: EditResult
    applied: AppliedEdit | None
    lines: Sequence[Mapping[str, Any]]
    shifts: Sequence[Shift]
    together: bool

    @property
    def seconds(self) -> Mapping[str, float]:
        """How long the method took, by phase."""
        return self.result.patch.info.seconds


class Workspace:
    """The models and edits of one window.

    Attributes:
        name: what the model was loaded by.
        before: the unedited model.
        after: the same with :attr:`edits`.
        edits: what was applied, oldest first.
        folder: where files lie that the window downloads; deleted with it.

    Args:
        lm: the loaded model; it is copied, not changed, and shares its tensors.
        name: how it was named.
    """

    def __init__(self, lm: LM, name: str) -> None:
        self.name = name
        with lock_of(lm.model):
            self.before, self.after = _twin(lm), _twin(lm)
        self.edits: list[AppliedEdit] = []
        self.folder = Path(tempfile.mkdtemp(prefix="easyedit-page-"))
        self.task: Task[Any] | None = None
        self._numbers = 0
        self._editors: dict[tuple[str, str], BaseEditor] = {}
        self._busy = threading.Lock()
        self._engine: Engine | None = None
        self._facts: list[Edit] | None = None

    # -- edits ----------------------------------------------------------------------------

    def edit(
        self,
        cases: Sequence[Case],
        method: str,
        settings: HyperParams,
        *,
        batch: bool = True,
        force: bool = False,
    ) -> Outcome:
        """Make the edits, measure them, and keep them; all or nothing.

        Args:
            cases: what shall be true.
            method: its name.
            settings: its hyper-parameters.
            batch: all at once, where the method can.
            force: edit also what the model says already.

        Raises:
            EditError: what was asked cannot be carried out; the model is as it was.
            EditCancelled: it was cancelled; the model is as it was.
        """
        editor = self._editor(method, settings)
        first = cases[0]
        before = snapshot(self.before, first, max_new_tokens=TOKENS_SHOWN)
        together = batch and editor.method.max_batch is None
        result = editor.edit_cases(
            cases, batch=together, evaluate_when="end", verbose=False, force=force
        )
        try:
            after = snapshot(self.after, first, max_new_tokens=TOKENS_SHOWN)
            earlier = [edit for one in self.edits for edit in one.patch.info.edits]
            edits = [*earlier, *(edit for case in cases for edit in case.edits)]
            facts = unrelated_facts(self._all_facts(), FACTS_ASKED, edits)
            shifts = side_effects(self.before, self.after, facts)
        except BaseException:
            editor.undo(result.patch)
            raise
        applied = None
        if result.patch.info.edits:
            applied = AppliedEdit(self._next(), result.patch, editor)
            self.edits.append(applied)
        else:
            editor.undo(result.patch)
        lines = before_after(first, before, after)
        return Outcome(cases, result, applied, lines, shifts, together)

    def undo(self, number: int) -> AppliedEdit:
        """Take one edit back, whatever came after it; the others stay, to the bit.

        Raises:
            PatchStateError: there is none of that number.
        """
        applied = self.applied(number)
        if applied.editor is not None:
            applied.editor.undo(applied.patch)
        else:
            applied.patch.revert(self.after.model)
        self.edits.remove(applied)
        return applied

    def applied(self, number: int) -> AppliedEdit:
        """The edit of that number.

        Raises:
            PatchStateError: there is none.
        """
        for applied in self.edits:
            if applied.number == number:
                return applied
        there = ", ".join(str(applied.number) for applied in self.edits) or "none"
        raise PatchStateError(f"There is no edit {number} in this window; it has {there}.")

    def load(self, file: Path) -> AppliedEdit:
        """Apply a patch file.

        Raises:
            PatchError: it is damaged, of another model, applied already, or about images, which
                would be read from the server's disk.
        """
        patch = load_patch(file)
        edits = [one for edit in patch.info.edits for one in (edit, *edit.expansions)]
        if any(edit.prompt.images for edit in edits):
            raise PatchError(
                f"{file.name} has edits about images, and a page reads no file that an upload "
                "names. Use easyedit generate --patch for it."
            )
        patch.apply(self.after.model)
        applied = AppliedEdit(self._next(), patch)
        self.edits.append(applied)
        return applied

    def save(self, number: int | None) -> Path:
        """Write one edit, or with None all of them, as one patch file; returns it.

        Raises:
            PatchError: there is nothing to save, or the edits are of several kinds.
        """
        if number is not None:
            applied = self.applied(number)
            return save_patch(applied.patch, self.folder / applied.file_name)
        patches = [applied.patch for applied in self.edits]
        if not patches:
            raise PatchError("There is no edit to save; make one first.")
        if len({type(patch) for patch in patches}) > 1:
            kinds = ", ".join(dict.fromkeys(patch.kind for patch in patches))
            raise PatchError(f"The edits are of several kinds ({kinds}); save each by itself.")
        return save_patch(merge(patches), self.folder / "all-edits.safetensors")

    def export(self, number: int, form: str) -> Path:
        """Write one edit as an adapter of another program; returns a zip file with its folder.

        Args:
            number: of the edit.
            form: ``"lora"`` (peft, vLLM, SGLang) or ``"gguf-lora"`` (llama.cpp).

        Raises:
            PatchError: the edit is in no weights.
            EditError: there is no such form.
        """
        from easyeditor.export.factors import weights_of
        from easyeditor.export.gguf_lora import export_gguf_lora
        from easyeditor.export.lora import export_lora

        writers: dict[str, Callable[..., Any]] = {
            "lora": export_lora,
            "gguf-lora": export_gguf_lora,
        }
        if form not in writers:
            raise EditError(f"{form!r:.40} is no format; choose {' or '.join(writers)}.")
        patch = weights_of(self.applied(number).patch)
        target = self.folder / f"edit-{number}-{form}"
        shutil.rmtree(target, ignore_errors=True)
        writers[form](patch, target)
        return Path(shutil.make_archive(str(target), "zip", target))

    # -- asking ---------------------------------------------------------------------------

    def compare(
        self, prompt: str, *, forms: Sequence[str] = FORMS, max_new_tokens: int = 40
    ) -> Iterator[dict[tuple[str, str], str]]:
        """Continue a prompt with both models; the texts so far, each time one has grown.

        The keys are ``("before" or "after", form)``. A model without a chat template has no chat
        form.

        Raises:
            EditError: the prompt is empty, or too long for the model.
            ServerBusyError: an answer could not be written.
        """
        if not prompt.strip():
            raise EditError("The prompt is empty; write a text to continue.")
        if not getattr(self.before.tokenizer, "chat_template", None):
            forms = [form for form in forms if form != "chat"]
        events: queue.SimpleQueue[tuple[tuple[str, str], Any]] = queue.SimpleQueue()
        texts, jobs = {}, []
        for form in forms:
            for model in MODELS:
                key = (model, form)
                lm = self.before if model == "before" else self.after
                who, ids = question(lm, Prompt(prompt, chat=form == "chat"), max_new_tokens)
                texts[key] = ""
                jobs.append(Job(who, ids, Sampling(max_new_tokens), _sender(events, key)))
        if self._engine is None:
            self._engine = Engine()
        self._engine.submit(jobs)
        left = len(jobs)
        try:
            while left:
                key, event = events.get()
                if isinstance(event, Piece):
                    texts[key] += event.text
                    yield dict(texts)
                elif isinstance(event, Finish):
                    left -= 1
                elif isinstance(event, Failure):
                    raise ServerBusyError(event.message)
        finally:
            for job in jobs:
                job.cancelled = True
        yield dict(texts)

    def lm(self, edited: bool) -> LM:
        """The model with the edits, or the one without."""
        return self.after if edited else self.before

    # -- work -----------------------------------------------------------------------------

    @contextmanager
    def working(self) -> Iterator[None]:
        """No other work of this window goes on inside.

        Raises:
            ServerBusyError: some does.
        """
        if not self._busy.acquire(blocking=False):
            raise ServerBusyError(
                "This window is still at work; wait for it, or cancel it, and ask again."
            )
        try:
            yield
        finally:
            self._busy.release()

    def running(self, work: Callable[[], T]) -> Generator[str, None, T]:
        """Do ``work`` in a thread and yield its progress as texts; returns its result.

        Raises:
            ServerBusyError: other work of this window goes on.
            EditCancelled: :meth:`cancel` was called.
        """
        with self.working():
            task = self.task = Task(work)
            try:
                yield from task.updates()
                return task.result()
            finally:
                task.cancel()  # where the caller went away
                task.wait()
                self.task = None

    def cancel(self) -> bool:
        """Stop the work that goes on; whether there was any."""
        task = self.task
        if task is None:
            return False
        task.cancel()
        return True

    def close(self) -> None:
        """Stop everything and delete the window's files."""
        self.cancel()
        if self._engine is not None:
            self._engine.close(0)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- inside ---------------------------------------------------------------------------

    def _editor(self, method: str, settings: HyperParams) -> BaseEditor:
        key = (method, settings.model_dump_json())
        if key not in self._editors:
            self._editors[key] = BaseEditor(self.after, settings)
        return self._editors[key]

    def _all_facts(self) -> list[Edit]:
        if self._facts is None:
            self._facts = [case.edit for case in open_dataset("worldfacts")]
        return self._facts

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers


def _twin(lm: LM) -> LM:
    """An LM of a copy that shares every tensor."""
    twin = LM(shared_copy(lm.model), lm.tokenizer, chat_template=lm.text.chat_template)
    twin.checkpoint, twin.checkpoint_dtype = lm.checkpoint, lm.checkpoint_dtype
    return twin


def _sender(
    events: queue.SimpleQueue[tuple[tuple[str, str], Any]], key: tuple[str, str]
) -> Callable[[Any], object]:
    return lambda event: events.put((key, event))
