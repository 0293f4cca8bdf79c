"""The tables of what a patch file may name: kinds of patches, and adapters.

A file holds a name; only what is listed here is imported, so a file never names code. A method's
kind of patch lives with the method, and is one line here.
"""

from __future__ import annotations

from typing import Any

from easyeditor.errors import PatchFormatError
from easyeditor.registry import Registry

PATCHES: Registry[Any] = Registry(
    "kind of patch",
    PatchFormatError,
    {
        "weights": "easyeditor.patches.weight:WeightPatch",
        "modules": "easyeditor.patches.module:ModulePatch",
        "context": "easyeditor.methods.ike.patch:ContextPatch",
        "scope": "easyeditor.methods.serac.patch:ScopePatch",
    },
    group="easyeditor.patches",
)
"""``kind -> "module:class"`` of :class:`~easyeditor.patches.patch.Patch`."""

ADAPTERS: Registry[Any] = Registry(
    "adapter",
    PatchFormatError,
    {
        "Ablate": "easyeditor.patches.ablation:Ablate",
        "AddVector": "easyeditor.patches.adapter:AddVector",
        "BlockRouter": "easyeditor.methods.melo.router:BlockRouter",
        "ExtraNeurons": "easyeditor.methods.extra_neurons:ExtraNeurons",
        "ResidualMemory": "easyeditor.methods.memoir:ResidualMemory",
        "RoutedProduct": "easyeditor.methods.melo.router:RoutedProduct",
        "SideMemory": "easyeditor.methods.wise.memory:SideMemory",
        "SubjectCodebook": "easyeditor.methods.gated_rome.codebook:SubjectCodebook",
        "ValueCodebook": "easyeditor.methods.grace:ValueCodebook",
    },
    group="easyeditor.adapters",
)
"""``name -> "module:class"`` of :class:`~easyeditor.patches.adapter.Adapter`."""
