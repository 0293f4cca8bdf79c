"""The patches a model carries, oldest first, and how that list is changed.

The stack hangs on the model itself, so it can be neither lost nor confused with another model's. It
knows no kind of patch: a class that defines ``install`` is a kind, and gets those of its patches
that the model carries from now on.

A change is made in one way, whether it lasts (:func:`push`, :func:`pop`, :func:`collapse`) or not
(:func:`applied`, :func:`without_patches`): a journal gets every weight's former content before the
weight is changed, and the model is put back from it after any exception, ``KeyboardInterrupt``
between any two lines included. If that is interrupted as well, it is done again, and at the latest
by the next use of the stack.

One thread at a time changes a model; others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from easyeditor.errors import PatchStateError
from easyeditor.lm.locking import lock_of
from easyeditor.lm.originals import Journal, Originals, Step, originals_of

_ATTRIBUTE = "easyedit_stack"


class Installable(Protocol):
    """What the stack needs to know of a patch."""

    @classmethod
    def install(cls, model: nn.Module, patches: Sequence[Any], originals: Originals) -> None:
        """Let ``model`` carry exactly these patches of this kind."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """What a model carries, oldest first: all patches, those of each kind, those from files.

    Patches are keyed by their identity, so that one of many is found at once.
    """

    all: dict[int, Any] = field(default_factory=dict)
    by_kind: dict[type, dict[int, Any]] = field(default_factory=dict)
    from_files: dict[int, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, patches: Iterable[Any]) -> Carried:
        """Of any patches."""
        result = cls()
        for patch in patches:
            result.all[id(patch)] = patch
            result.by_kind.setdefault(kind_of(type(patch)), {})[id(patch)] = patch
            if patch.info.digest:
                result.from_files[id(patch)] = patch
        return result

    def plus(self, patch: Any) -> Carried:
        """With one more on top."""
        kind, new = kind_of(type(patch)), {id(patch): patch}
        former = self.by_kind.get(kind, {})
        together = self.all | new
        alike = together if len(former) == len(self.all) else former | new
        from_files = self.from_files | new if patch.info.digest else self.from_files
        return Carried(together, {**self.by_kind, kind: alike}, from_files)

    def minus(self, patch: Any) -> Carried:
        """Without one, if it is there."""
        if id(patch) not in self.all:
            return self
        kind = kind_of(type(patch))
        rest, former = _without(self.all, patch), self.by_kind[kind]
        alike = rest if former is self.all else _without(former, patch)
        kinds = {name: some for name, some in {**self.by_kind, kind: alike}.items() if some}
        return Carried(rest, kinds, _without(self.from_files, patch))

    def of_kind(self, kind: type) -> tuple[Any, ...]:
        """The patches of one kind."""
        return tuple(self.by_kind.get(kind, {}).values())


@dataclass(slots=True, eq=False)
class Change:
    """One change of a stack, as long as it may be taken back."""

    former: Carried
    kinds: tuple[type, ...]
    journal: Journal = field(default_factory=Journal)
    done: bool = False


class PatchStack:
    """The patches applied to one model.

    Attributes:
        carried: what is applied now.
        unfinished: a change that was interrupted and has to be taken back; else None.
    """

    def __init__(self, carried: Carried | None = None) -> None:
        self.carried = carried or Carried()
        self.unfinished: Change | None = None

    @property
    def patches(self) -> tuple[Any, ...]:
        """What is applied now, oldest first."""
        return tuple(self.carried.all.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchStack:
        """Copies of a model share the patches, and each can undo them."""
        twin = PatchStack(self.carried)
        memo[id(self)] = twin
        return twin


def stack_of(model: nn.Module) -> PatchStack:
    """The model's stack, made on first use."""
    stack: PatchStack = vars(model).setdefault(_ATTRIBUTE, PatchStack())
    if stack.unfinished is not None:
        with lock_of(model):
            change = stack.unfinished
            if change is not None and not change.done:
                _take_back(model, stack, change)
    return stack


def applied_patches(model: nn.Module) -> tuple[Any, ...]:
    """The patches that the model carries, oldest first."""
    return stack_of(model).patches if _ATTRIBUTE in vars(model) else ()


def is_patched(model: nn.Module) -> bool:
    """Whether any patch is applied."""
    return bool(applied_patches(model))


def push(model: nn.Module, patch: Installable) -> None:
    """Apply ``patch`` on top.

    Raises:
        PatchStateError: it is applied already, or a weight was changed by somebody else.
        PatchMismatchError: the model lacks what it changes, or has it in another shape.
        UnsupportedModelError: a weight is stored in a way that cannot be read.
    """
    with lock_of(model):
        stack = stack_of(model)
        _refuse_applied(stack, patch)
        _change(model, stack, stack.carried.plus(patch), Step((), (patch,)))


def pop(model: nn.Module, patch: Installable) -> None:
    """Take ``patch`` off, wherever in the stack it is.

    Raises:
        PatchStateError: it is not applied to this model, or a weight was changed by somebody else.
    """
    with lock_of(model):
        stack = stack_of(model)
        if id(patch) not in stack.carried.all:
            raise PatchStateError(
                "This patch is not applied to this model, so there is nothing to undo. "
                f"Applied now: {len(stack.patches)} patches."
            )
        _change(model, stack, stack.carried.minus(patch), Step((patch,), ()))


def collapse(model: nn.Module, old: Sequence[Installable], new: Installable) -> None:
    """Let ``new`` stand for ``old``, the topmost patches; it must hold the same parts in order."""
    with lock_of(model):
        stack = stack_of(model)
        below = stack.patches[: len(stack.patches) - len(old)]
        if stack.patches[len(below) :] != tuple(old):
            raise PatchStateError(
                f"The {len(old)} patches that one shall stand for are not the topmost of the "
                f"{len(stack.patches)} that are applied."
            )
        _change(model, stack, Carried.of((*below, new)))


@contextmanager
def applied(model: nn.Module, patch: Installable) -> Iterator[None]:
    """The model carries ``patch`` inside, and what it carried before after, whatever happens."""
    with lock_of(model):
        stack = stack_of(model)
        _refuse_applied(stack, patch)
        wanted = stack.carried.plus(patch)
        step = Step((), (patch,))
        with _temporarily(model, stack, wanted, lambda now: now.minus(patch), step):
            yield


@contextmanager
def without_patches(model: nn.Module, kind: type | None = None) -> Iterator[None]:
    """The unedited model inside, and the patches it carried on it again after.

    With ``kind`` only the patches of that kind are taken off. Patches that are pushed inside stay,
    on top of the others.
    """
    with lock_of(model):
        stack = stack_of(model)
        former = stack.carried
        left = () if kind is None else (p for p in stack.patches if kind_of(type(p)) is not kind)

        def together(now: Carried) -> Carried:
            return Carried.of((former.all | now.all).values())

        with _temporarily(model, stack, Carried.of(left), together):
            yield


@contextmanager
def _temporarily(
    model: nn.Module,
    stack: PatchStack,
    wanted: Carried,
    after: Callable[[Carried], Carried],
    step: Step | None = None,
) -> Iterator[None]:
    """``wanted`` inside; if the stack is changed inside, what ``after`` makes of that is left."""
    change = _planned(model, stack, wanted, step, lasting=False)
    try:
        try:
            _carry(model, stack, wanted, change)
            yield
        finally:
            _leave(model, stack, wanted, change, after)
    finally:  # once more, in case that was interrupted
        _leave(model, stack, wanted, change, after)


def _leave(
    model: nn.Module,
    stack: PatchStack,
    wanted: Carried,
    change: Change,
    after: Callable[[Carried], Carried],
) -> None:
    if change.done:
        return
    if stack.carried is wanted or stack.carried is change.former:
        _take_back(model, stack, change)
    else:
        _change(model, stack, after(stack.carried))
        change.done = True


def _planned(
    model: nn.Module,
    stack: PatchStack,
    wanted: Carried,
    step: Step | None = None,
    *,
    lasting: bool = True,
) -> Change:
    one, other = stack.carried.by_kind, wanted.by_kind
    kinds = tuple(k for k in {**one, **other} if one.get(k) is not other.get(k))
    journal = Journal(originals_of(model).carried, lasting=lasting, step=step)
    return Change(stack.carried, kinds, journal)


def _change(model: nn.Module, stack: PatchStack, wanted: Carried, step: Step | None = None) -> None:
    """Let the model carry ``wanted`` for good, or change nothing."""
    change = _planned(model, stack, wanted, step)
    try:
        try:
            _carry(model, stack, wanted, change)
        except BaseException:
            _take_back(model, stack, change)
            raise
    except BaseException:  # once more, in case that was interrupted
        _take_back(model, stack, change)
        raise


def _carry(model: nn.Module, stack: PatchStack, wanted: Carried, change: Change) -> None:
    originals = originals_of(model)
    stack.unfinished = change
    originals.journal = change.journal
    for kind in change.kinds:
        kind.install(model, wanted.of_kind(kind), originals)  # type: ignore[attr-defined]
    stack.carried = wanted
    stack.unfinished = None
    if change.journal.lasting:  # what it would take to undo this change is not kept
        originals.journal = Journal(originals.carried)


def _take_back(model: nn.Module, stack: PatchStack, change: Change) -> None:
    """Put the model back to before ``change``; may be called again after an interrupt."""
    if change.done:
        return
    originals = originals_of(model)
    originals.put_back(change.journal)
    originals.journal = Journal(originals.carried)
    for kind in change.kinds:
        kind.install(model, change.former.of_kind(kind), originals)  # type: ignore[attr-defined]
    stack.carried = change.former
    stack.unfinished = None
    change.done = True


def _refuse_applied(stack: PatchStack, patch: Any) -> None:
    carried = stack.carried
    if id(patch) in carried.all:
        raise PatchStateError("This patch is applied to the model already; undo it first.")
    others = carried.all if patch.info.digest else carried.from_files
    if any(patch.is_same_edit(other) for other in others.values()):
        raise PatchStateError(
            "This patch is applied to the model already, from the same file or as it was before it "
            "was saved; undo that one first."
        )


def kind_of(patch_class: Any) -> type:
    """The class that installs a patch of this class."""
    kind: type = next(base for base in patch_class.__mro__ if "install" in vars(base))
    return kind


def _without(patches: dict[int, Any], patch: Any) -> dict[int, Any]:
    if id(patch) not in patches:
        return patches
    rest = patches.copy()
    del rest[id(patch)]
    return rest
