"""The codebook of GatedROME: vectors that are added at the tokens whose inputs are a subject's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from easyeditor.errors import PatchMismatchError
from easyeditor.lm.forward.context import ForwardContext
from easyeditor.patches.adapter import Adapter

PLACES = ("entries", "owners")  # what numbers the edits of a codebook
TOKENS = 4096  # whose cosines are computed together


class SubjectCodebook(Adapter):
    """Vectors that are added at the tokens whose inputs are a subject's.

    Args:
        keys: ``(m, d_in)``, of length one.
        thresholds: ``(m,)``, the least cosine of each key.
        entries: ``(m,)``, the edit that each key belongs to.
        values: ``(n, d_out)``, δ of each edit, oldest first.
        subjects: ``(n,)``, equal for equal subjects.
        prompts: ``(r,)``, equal for equal prompts: those that an edit is made with.
        owners: ``(r,)``, whose they are; the first of each edit is its own prompt.
    """

    name = "SubjectCodebook"
    joins = True

    def __init__(
        self,
        keys: torch.Tensor,
        thresholds: torch.Tensor,
        entries: torch.Tensor,
        values: torch.Tensor,
        subjects: torch.Tensor,
        prompts: torch.Tensor,
        owners: torch.Tensor,
    ) -> None:
        super().__init__()
        if keys.dim() != 2 or values.dim() != 2 or not len(values):
            raise ValueError(f"keys {tuple(keys.shape)}, values {tuple(values.shape)}")
        n, every = len(values), set(range(len(values)))
        lengths = {"thresholds": len(keys), "entries": len(keys), "subjects": n}
        lengths["prompts"] = lengths["owners"] = len(owners)
        given = {"thresholds": thresholds, "entries": entries, "subjects": subjects}
        for name, tensor in (given | {"prompts": prompts, "owners": owners}).items():
            if tensor.shape != (lengths[name],):
                raise ValueError(f"{name} of shape {tuple(tensor.shape)} for {n} values")
            if tensor.is_floating_point() != (name == "thresholds"):
                raise ValueError(f"{name} of {tensor.dtype}")
        if set(entries.tolist()) != every or set(owners.tolist()) != every:
            raise ValueError(f"keys or prompts of other edits than {n}")
        if not ((thresholds > 0) & (thresholds < 1)).all():
            raise ValueError("a threshold that is no cosine between 0 and 1")
        if not torch.allclose(keys.float().norm(dim=1), torch.ones(len(keys)), atol=1e-3):
            raise ValueError("a key that is not of length one")
        for name, tensor in (("keys", keys), ("thresholds", thresholds), ("values", values)):
            self.register_buffer(name, tensor.detach().float().clone())
        for name, tensor in (
            ("entries", entries),
            ("subjects", subjects),
            ("prompts", prompts),
            ("owners", owners),
        ):
            self.register_buffer(name, tensor.detach().long().clone())
        self._prepare()

    def _prepare(self) -> None:
        """Which keys count, and what each of them adds."""
        values, subjects = self.get_buffer("values"), self.get_buffer("subjects").tolist()
        alive = set(self.in_force())
        number = {subject: i for i, subject in enumerate(dict.fromkeys(subjects))}
        totals = torch.zeros(len(number), values.shape[1])
        for entry in sorted(alive):
            totals[number[subjects[entry]]] += values[entry]
        entries = self.get_buffer("entries").tolist()
        chosen = [i for i in reversed(range(len(entries))) if entries[i] in alive]  # newest first
        self._live = (
            self.get_buffer("keys")[chosen],
            self.get_buffer("thresholds")[chosen],
            torch.tensor([number[subjects[entries[i]]] for i in chosen], dtype=torch.long),
        )
        self._totals = totals
        self._there: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def in_force(self) -> list[int]:
        """The edits whose own prompt no later edit is made with."""
        owners, prompts = self.get_buffer("owners").tolist(), self.get_buffer("prompts").tolist()
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for owner, prompt in zip(owners, prompts, strict=True):
            first.setdefault(owner, prompt)
            last[prompt] = max(owner, last.get(prompt, -1))
        return [entry for entry, prompt in sorted(first.items()) if last[prompt] == entry]

    @property
    def output_width(self) -> int:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return int(self.get_buffer("values").shape[1])

    @property
    def input_width(self) -> int:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return int(self.get_buffer("keys").shape[1])

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`~easyeditor.patches.adapter.Adapter`; each prompt token decides by itself."""
        row, column = context.prompt_tokens().to(x.device).nonzero(as_tuple=True)
        subject = torch.cat([self.nearest(some) for some in torch.split(x[row, column], TOKENS)])
        near = subject >= 0
        if not near.any():
            return y
        at = row[near].to(y.device), column[near].to(y.device)
        total = self._totals[subject[near].cpu()].to(y.device)
        wide = torch.promote_types(y.dtype, torch.float32)
        return y.index_put(at, (y[at].to(wide) + total).to(y.dtype))

    def nearest(self, inputs: torch.Tensor) -> torch.Tensor:
        """The subject of the nearest key that is near enough to each input, ``(n,)``; −1: none.

        Of equally near keys the newest counts.
        """
        device = inputs.device
        if device not in self._there:
            self._there[device] = tuple(tensor.to(device) for tensor in self._live)
        keys, thresholds, subjects = self._there[device]
        with torch.autocast(device.type, enabled=False):
            cosines = normalize(inputs.float(), dim=1) @ keys.T
        best, key = cosines.masked_fill(cosines < thresholds, -torch.inf).max(1)
        return torch.where(best > -torch.inf, subjects[key], -1)

    def __deepcopy__(self, memo: dict[int, Any]) -> SubjectCodebook:
        """A copy shares no tensor that is on another device."""
        twin = SubjectCodebook(**{n: t.clone() for n, t in self.state_dict().items()}).eval()
        memo[id(self)] = twin
        return twin

    def part(self, edits: Sequence[int]) -> SubjectCodebook:
        """The codebook of some of the edits, by their places, in ascending order."""
        place = {edit: i for i, edit in enumerate(edits)}
        entries, owners = self.get_buffer("entries").tolist(), self.get_buffer("owners").tolist()
        keys = [i for i, entry in enumerate(entries) if entry in place]
        rows = [i for i, owner in enumerate(owners) if owner in place]
        return SubjectCodebook(
            self.get_buffer("keys")[keys],
            self.get_buffer("thresholds")[keys],
            torch.tensor([place[entries[i]] for i in keys]),
            self.get_buffer("values")[list(edits)],
            self.get_buffer("subjects")[list(edits)],
            self.get_buffer("prompts")[rows],
            torch.tensor([place[owners[i]] for i in rows]),
        )

    @classmethod
    def merge(cls, adapters: Sequence[SubjectCodebook]) -> SubjectCodebook:
        """One codebook with the edits of all, in their order."""
        if len(adapters) == 1:
            return adapters[0]
        widths = {adapter.input_width for adapter in adapters}
        if len(widths) > 1:
            raise PatchMismatchError(
                f"Codebooks for inputs of {' and '.join(map(str, sorted(widths)))} numbers cannot "
                "be at one layer; they were made for different models."
            )
        starts = [0]
        for adapter in adapters:
            starts.append(starts[-1] + len(adapter.get_buffer("values")))
        return cls(
            **{
                name: torch.cat(
                    [
                        a.get_buffer(name) + start if name in PLACES else a.get_buffer(name)
                        for a, start in zip(adapters, starts, strict=False)
                    ]
                )
                for name in adapters[0].state_dict()
            }
        )
