"""``ModulePatch``: an edit that puts adapters on modules of the model.

Adapters act through forward hooks: the model's class, modules, state dict and ``save_pretrained``
stay as they are, and so does every weight. Adapters of one class at one place are merged, in the
order of their patches, and several classes act one after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from easyeditor.errors import PatchMismatchError
from easyeditor.lm.forward.context import (
    ForwardContext,
    current_context,
    decoder_context,
    derive_contexts,
    encoder_context,
    patch_of_row,
)
from easyeditor.lm.hooks import hidden_of, with_hidden
from easyeditor.lm.originals import Originals
from easyeditor.patches.adapter import Adapter
from easyeditor.patches.kinds import ADAPTERS
from easyeditor.patches.patch import Patch, PatchInfo, merged_extras, merged_info

_SITES = "easyedit_adapter_sites"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ModulePatch(Patch):
    """Adapters at named modules.

    Attributes:
        adapters: ``{name of a module: its adapters}``, in the order in which they act.
    """

    adapters: Mapping[str, tuple[Adapter, ...]]
    info: PatchInfo
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kind: ClassVar[str] = "modules"

    @classmethod
    def install(
        cls, model: nn.Module, patches: Sequence[ModulePatch], originals: Originals
    ) -> None:
        """See :class:`~easyeditor.patches.patch.Patch`.

        Raises:
            PatchMismatchError: the model has no module of that name, or one of another width.
        """
        modules = {site: _module(model, site) for site in sites_of(patches)}
        for patch in patches:
            for site, adapters in patch.adapters.items():
                for adapter in adapters:
                    _check_width(modules[site], site, adapter)
        wanted = adapters_at(patches)
        # What is put on is noted first, so that it is found again whatever interrupts this.
        sites = {*vars(model).get(_SITES, ()), *wanted}
        vars(model)[_SITES] = sites
        for site in sites:
            _take_off(model.get_submodule(site))
        for site, module in modules.items():
            hook = SiteHook(model, site, wanted[site])
            module.register_forward_hook(hook, with_kwargs=True)
        derive_contexts(model, bool(wanted))
        if wanted:
            vars(model)[_SITES] = set(wanted)
        else:
            vars(model).pop(_SITES, None)

    @classmethod
    def merge(cls, patches: Sequence[ModulePatch], compact: bool = False) -> ModulePatch:
        """See :class:`~easyeditor.patches.patch.Patch`."""
        adapters: dict[str, tuple[Adapter, ...]] = {}
        for patch in patches:
            for site, some in patch.adapters.items():
                adapters[site] = adapters.get(site, ()) + some
        if compact:
            adapters = {site: _joined(some) for site, some in adapters.items()}
        return cls(adapters, merged_info(patches), merged_extras(patches))

    def dump(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """See :class:`~easyeditor.patches.patch.Patch`."""
        tensors = {
            f"{i}.{name}:{site}": tensor
            for site, adapters in self.adapters.items()
            for i, adapter in enumerate(adapters)
            for name, tensor in adapter.state_dict().items()
        }
        described = {
            site: [[adapter.name, adapter.settings()] for adapter in adapters]
            for site, adapters in self.adapters.items()
        }
        return tensors, {"adapters": described}

    @classmethod
    def load(
        cls,
        info: PatchInfo,
        tensors: Mapping[str, torch.Tensor],
        data: Mapping[str, Any],
        extras: Mapping[str, torch.Tensor],
    ) -> ModulePatch:
        """See :class:`~easyeditor.patches.patch.Patch`; no more is built than there are tensors."""
        if not data["adapters"] or len(tensors) != len(set(tensors)):
            raise ValueError("it changes nothing")
        if not all(t.isfinite().all() for t in tensors.values() if t.is_floating_point()):
            raise ValueError("a number is not finite")
        of_adapter: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            place, _, site = key.partition(":")
            index, _, name = place.partition(".")
            of_adapter.setdefault((site, int(index)), {})[name] = tensor
        adapters = {}
        for site, described in data["adapters"].items():
            if len(described) > len(tensors):
                raise ValueError(f"{len(described)} adapters in {len(tensors)} tensors")
            adapters[str(site)] = tuple(
                _built(str(name), settings, of_adapter.get((site, i), {}))
                for i, (name, settings) in enumerate(described)
            )
        return cls(adapters, info, extras)

    def rows(self) -> list[dict[str, Any]]:
        """See :class:`~easyeditor.patches.patch.Patch`."""
        return [
            {
                "module": site,
                "adapter": adapter.name,
                "numbers": sum(tensor.numel() for tensor in adapter.state_dict().values()),
            }
            for site, adapters in self.adapters.items()
            for adapter in adapters
        ]


def adapters_at(patches: Sequence[ModulePatch]) -> dict[str, tuple[Adapter, ...]]:
    """The adapters that some patches put at each module, merged by their class."""
    classes: dict[str, dict[type[Adapter], list[Adapter]]] = {}
    for patch in patches:
        for site, adapters in patch.adapters.items():
            for adapter in adapters:
                classes.setdefault(site, {}).setdefault(type(adapter), []).append(adapter)
    return {
        site: tuple(adapter_class.merge(alike) for adapter_class, alike in at_site.items())
        for site, at_site in classes.items()
    }


def _joined(adapters: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """The adapters of a place in their order, with those of a class that joins as one."""
    result: dict[type[Adapter] | int, list[Adapter]] = {}
    for i, adapter in enumerate(adapters):
        result.setdefault(type(adapter) if adapter.joins else i, []).append(adapter)
    return tuple(type(some[0]).merge(some).eval() for some in result.values())


def _module(model: nn.Module, site: str) -> nn.Module:
    try:
        return model.get_submodule(site)
    except AttributeError:
        raise PatchMismatchError(
            f"The patch puts an adapter on {site}; {type(model).__name__} has no such module."
        ) from None


def _check_width(module: nn.Module, site: str, adapter: Adapter) -> None:
    """Refuse an adapter for another width, where the module is one that says its own."""
    for what, wanted, names in (
        ("outputs", adapter.output_width, ("out_features", "nf", "embedding_dim")),
        ("inputs", adapter.input_width, ("in_features", "nx")),
    ):
        for name in names:
            width = getattr(module, name, None)
            if isinstance(width, int) and wanted not in (None, width):
                raise PatchMismatchError(
                    f"The patch's {adapter.name} at {site} is made for {what} of {wanted} numbers; "
                    f"this model's have {width}. Load the model it was made for."
                )


def _built(name: str, settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Adapter:
    adapter_class: type[Adapter] = ADAPTERS.get(name)
    if not tensors:
        raise ValueError(f"an adapter {name} without tensors")
    return adapter_class.build(tensors, settings).eval()


def _take_off(module: nn.Module) -> None:
    """Remove our hooks from a module."""
    ours = [key for key, hook in module._forward_hooks.items() if isinstance(hook, SiteHook)]
    for key in ours:
        del module._forward_hooks[key]
        module._forward_hooks_with_kwargs.pop(key, None)


class SiteHook:
    """A forward hook that lets adapters change a module's output."""

    def __init__(self, model: nn.Module, site: str, adapters: Sequence[Adapter]) -> None:
        self.model, self.site, self.adapters = model, site, tuple(adapters)

    def __deepcopy__(self, memo: dict[int, Any]) -> SiteHook:
        """A copy of the model shares the adapters, as it shares every untouched tensor."""
        twin = copy.copy(self)
        twin.model = memo.get(id(self.model), self.model)
        memo[id(self)] = twin
        return twin

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """The module's output as the adapters change it."""
        y = hidden_of(output)
        x = next(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        context = site_context(self.model, self.site, y)
        changed = self.change(context.by_row(x), context.by_row(y), context)
        return output if changed is None else with_hidden(output, changed.view(y.shape))

    def change(
        self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext
    ) -> torch.Tensor | None:
        """The new output ``(rows, length, d_out)``, or None where nothing is changed."""
        result = y
        for adapter in self.adapters:
            result = adapter(x, result, context)
        return None if result is y else result


class RowHook(SiteHook):
    """The same with adapters for each of several patches, by the row's patch."""

    def __init__(self, model: nn.Module, site: str, adapters: Sequence[Sequence[Adapter]]) -> None:
        super().__init__(model, site, ())
        self._of_patch = [tuple(some) for some in adapters]

    def change(
        self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext
    ) -> torch.Tensor | None:
        """See :class:`SiteHook`."""
        index = patch_of_row(self.model, len(y))
        if index is None:
            return None
        result = y.clone()
        for patch in sorted(set(index.tolist())):
            rows = (index == patch).nonzero()[:, 0]
            at = rows.to(y.device)
            for adapter in self._of_patch[patch]:
                result[at] = adapter(x[at], result[at], context.only(rows))
        return result


def site_context(model: nn.Module, site: str, y: torch.Tensor) -> ForwardContext:
    """The context of the pass that runs now, in the positions of the module at ``site``."""
    context = current_context(model)
    rows = y.shape[0] if y.dim() > 2 or context is None else context.rows
    length = y.numel() // (rows * y.shape[-1])
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        whole: Any = model
        encoder = next((n for n, m in model.named_modules() if m is whole.get_encoder()), "")
        inside = site == encoder or site.startswith(f"{encoder}.")
        context = encoder_context(model, rows) if inside else decoder_context(model, rows, length)
    if context is None:  # a part of the model was called by itself
        mask = torch.ones(rows, length, dtype=torch.long, device=y.device)
        context = ForwardContext(mask, mask.sum(1) - 1)
    return context


def sites_of(patches: Sequence[ModulePatch | None]) -> Iterator[str]:
    """The modules that any of some patches changes, each once."""
    yield from dict.fromkeys(site for p in patches if p is not None for site in p.adapters)
