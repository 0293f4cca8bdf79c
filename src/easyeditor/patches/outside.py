"""What to do about edited weights that were changed outside the stack.

An optimiser's step or ``load_state_dict`` on a model that carries patches changes weights which the
stack would rebuild from the unedited ones. The stack notices and refuses
(:class:`~easyeditor.errors.PatchStateError`); one of these two functions says which weights count.
"""

from __future__ import annotations

from torch import nn

from easyeditor.lm.locking import lock_of
from easyeditor.lm.originals import Journal, originals_of, reset_originals
from easyeditor.lm.weights import weight_handle
from easyeditor.patches.stack import Carried, kind_of, stack_of
from easyeditor.patches.weight import WeightPatch


def adopt_weights(model: nn.Module) -> None:
    """Take the weights as they are now for the unedited ones.

    Applied weight patches become part of the model and can no longer be undone; patches of other
    kinds stay on the stack. The fingerprint of the model changes with its weights.
    """
    with lock_of(model):
        stack = stack_of(model)
        others = [p for p in stack.patches if kind_of(type(p)) is not WeightPatch]
        stack.carried = Carried.of(others)
        reset_originals(model)


def discard_changes(model: nn.Module) -> list[str]:
    """Write every edited weight again as the stack has it; returns the paths that were changed.

    Weights that no patch changes are left as they are.
    """
    with lock_of(model):
        stack_of(model)
        originals = originals_of(model)
        originals.journal = Journal(originals.carried)
        changed = []
        for path, edited in list(originals.edited.items()):
            handle = weight_handle(model, path)
            if originals.changed_outside(path, handle):
                weight = edited.change.weight(handle.read(edited.original)).to(handle.dtype)
                originals.write(path, handle, weight, edited.change)
                changed.append(path)
        return changed
