"""``RoutePatch``: an edit that changes no weight, but who is asked and what.

A model that carries one answers through it wherever it is given text: ``LM.score``, ``LM.generate``
and its own ``model.generate``. A bare forward pass has no prompt and stays the unedited model's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn

from easyeditor.edits import Prompt
from easyeditor.lm.forward.context import restore_generate
from easyeditor.lm.model import LM
from easyeditor.lm.originals import Originals
from easyeditor.lm.routing import Rerouted, set_routers
from easyeditor.patches.patch import Patch, merge
from easyeditor.patches.routed_generate import RoutedGenerate


class RoutePatch(Patch):
    """Sends prompts elsewhere: with more text around them, or to another model."""

    __slots__ = ()

    @abstractmethod
    def reroute(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[Rerouted | None]:
        """What each prompt becomes, or None where the edit does not concern it."""

    @classmethod
    def install(cls, model: nn.Module, patches: Sequence[RoutePatch], originals: Originals) -> None:
        """See :class:`~easyeditor.patches.patch.Patch`; the latest class of patches is asked first.

        Patches of one class act as one: several facts are one context, one memory.
        """
        classes: dict[type, list[RoutePatch]] = {}
        for patch in patches:
            classes.setdefault(type(patch), []).append(patch)
        routers = [merge(alike) for alike in reversed(classes.values())]
        set_routers(model, routers)
        if routers:
            vars(model)["generate"] = RoutedGenerate(model)
        elif isinstance(vars(model).get("generate"), RoutedGenerate):
            del vars(model)["generate"]
            restore_generate(model)

    def rows(self) -> list[dict[str, Any]]:
        """No weight is changed."""
        return []
