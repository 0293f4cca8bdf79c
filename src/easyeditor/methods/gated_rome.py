"""GatedROME: ROME's values in a codebook, each behind a gate on its subject's key.

ROME (arXiv 2202.05262) searches the vector δ that, added to an MLP's output at the subject's last
token, makes the model answer with the target, and then writes it into the down-projection, where it
also answers to every other key that is not orthogonal to the subject's, and to every later edit.
Here δ is kept beside the layer, as GRACE (arXiv 2211.11031) keeps its values, and is added at those
prompt tokens alone whose input of the down-projection is the subject's::

    y_t += Σ δ_i over the edits i of the subject whose key is nearest to h_t,
           if cos(h_t, key) >= threshold

No weight changes, an edit cannot move another one, nothing is trained beforehand and no second
moments are needed. A key is read where ROME reads it: at the subject's *last* token in a low layer,
where what the model holds is hardly more than the words of the subject. So, other than GRACE's (the
last token of the prompt), it is the same in other words, and far from those of other subjects.

A subject's first key is the mean direction of its keys behind sampled prefixes; a key that is far
from those it has already (the subject at the very beginning of a text) is one more. A later edit of
the same subject is searched beside the earlier ones, whose vectors are added to its own, and
together with them, so that their answers hold; one of the same prompt takes the earlier one's
place. The trap: the gate knows the subject, not the question,
so what δ does to other facts about this subject is ROME's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch.nn.functional import normalize

from easyeditor.associative.keys import expansion_rows, inputs_at, subject_rows
from easyeditor.associative.value_optimization import optimize_values
from easyeditor.edits import IMAGE, Edit, check_consistent
from easyeditor.hyperparams import Layers
from easyeditor.lm.forward.context import ForwardContext
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.model import LM
from easyeditor.methods.base import Method, Need, Outcome
from easyeditor.methods.locate import ContextState, LocateHyperParams, contexts_for, values_of
from easyeditor.methods.sweep_plan import ONE_LAYER, ContextLengths, SweepPlan
from easyeditor.patches.adapter import Adapter
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import PatchInfo
from easyeditor.patches.stack import applied, applied_patches, without_patches
from easyeditor.timing import Stopwatch


class GatedROMEHyperParams(LocateHyperParams):
    """Settings of GatedROME; those of the search are ROME's, ``mom2_…`` say nothing here.

    ``threshold`` is the least cosine between a token's input of the down-projection and a subject's
    key. ``layers`` names one layer.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # On records 300 to 329 of CounterFact; docs/lifelong.md has what else was tried.
        "smollm2-135m": {
            "layers": [5],
            "threshold": 0.75,
            "v_weight_decay": 1e-3,
            "v_stop_nll": 0.05,
            "context_template_length_params": [[10, 8], [20, 4]],
        },
    }
    sweep: ClassVar[SweepPlan | None] = ONE_LAYER

    alg_name: str = "GatedROME"
    layers: Layers = Field((0.1,), max_length=1)
    threshold: float = Field(0.85, gt=0, lt=1)
    v_num_grad_steps: int = Field(25, ge=1)
    context_template_length_params: ContextLengths = ((5, 3), (10, 3))
    batch_size: int = Field(100, ge=1)


class SubjectCodebook(Adapter):
    """Vectors that are added at the tokens whose inputs are a subject's.

    Args:
        keys: ``(m, d_in)``, of length one.
        entries: ``(m,)``, the edit that each key belongs to.
        values: ``(n, d_out)``, δ of each edit, oldest first.
        subjects: ``(n,)``, equal for equal subjects.
        prompts: ``(n,)``, equal for equal prompts.
        thresholds: ``(n,)``, the least cosine.
    """

    name = "SubjectCodebook"

    def __init__(
        self,
        keys: torch.Tensor,
        entries: torch.Tensor,
        values: torch.Tensor,
        subjects: torch.Tensor,
        prompts: torch.Tensor,
        thresholds: torch.Tensor,
    ) -> None:
        super().__init__()
        n = len(values)
        if keys.dim() != 2 or values.dim() != 2 or not n or len(keys) != len(entries):
            raise ValueError(f"keys {tuple(keys.shape)}, values {tuple(values.shape)}")
        if not len(subjects) == len(prompts) == len(thresholds) == n:
            raise ValueError(f"{n} values, {len(subjects)} subjects, {len(thresholds)} thresholds")
        if set(entries.tolist()) != set(range(n)):
            raise ValueError(f"keys of {len(set(entries.tolist()))} edits, {n} values")
        for name, tensor in (("keys", keys), ("values", values), ("thresholds", thresholds)):
            self.register_buffer(name, tensor.detach().float().clone())
        for name, tensor in (("entries", entries), ("subjects", subjects), ("prompts", prompts)):
            self.register_buffer(name, tensor.detach().long().clone())
        self.register_buffer("totals", self._totals(), persistent=False)

    def _totals(self) -> torch.Tensor:
        """What is added for each edit's subject, ``(n, d_out)``: the sum of its edits' vectors.

        Of several edits of one prompt the last counts.
        """
        values = self.get_buffer("values").cpu()
        of_subject: dict[int, dict[int, int]] = {}
        subjects = self.get_buffer("subjects").tolist()
        for i, (subject, prompt) in enumerate(
            zip(subjects, self.get_buffer("prompts").tolist(), strict=True)
        ):
            of_subject.setdefault(subject, {})[prompt] = i
        return torch.stack([values[list(of_subject[s].values())].sum(0) for s in subjects])

    @property
    def output_width(self) -> int:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return int(self.get_buffer("values").shape[1])

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`~easyeditor.patches.adapter.Adapter`; each prompt token decides by itself."""
        row, column = context.prompt_tokens().to(x.device).nonzero(as_tuple=True)
        if not len(row):
            return y
        cosines = normalize(x[row, column].float(), dim=1) @ self.get_buffer("keys").to(x.device).T
        best, key = cosines.max(1)
        entry = self.get_buffer("entries").to(x.device)[key]
        near = best >= self.get_buffer("thresholds").to(x.device)[entry]
        if not near.any():
            return y
        at = row[near].to(y.device), column[near].to(y.device)
        total = self.get_buffer("totals").to(y.device)[entry[near].to(y.device)]
        wide = torch.promote_types(y.dtype, torch.float32)
        return y.index_put(at, (y[at].to(wide) + total).to(y.dtype))

    def part(self, edits: Sequence[int]) -> SubjectCodebook:
        """The codebook of some of the edits, by their places, in ascending order."""
        place = {edit: i for i, edit in enumerate(edits)}
        entries = self.get_buffer("entries").tolist()
        keys = [i for i, entry in enumerate(entries) if entry in place]
        return SubjectCodebook(
            self.get_buffer("keys")[keys],
            torch.tensor([place[entries[i]] for i in keys]),
            *(
                self.get_buffer(name)[list(edits)]
                for name in ("values", "subjects", "prompts", "thresholds")
            ),
        )

    @classmethod
    def merge(cls, adapters: Sequence[SubjectCodebook]) -> SubjectCodebook:
        """One codebook with the edits of all, in their order."""
        if len(adapters) == 1:
            return adapters[0]
        parts: dict[str, list[torch.Tensor]] = {}
        n = 0
        for adapter in adapters:
            for name, tensor in adapter.state_dict().items():
                parts.setdefault(name, []).append(tensor.cpu() + n * (name == "entries"))
            n += len(adapter.get_buffer("values"))
        return cls(**{name: torch.cat(tensors) for name, tensors in parts.items()})


class GatedROME(Method[ContextState]):
    """Any number of facts, each a vector behind a gate on its subject. Needs the subject."""

    name = "GatedROME"
    title = "ROME's vectors behind gates on their subjects' keys, for a lifetime of edits"
    hyperparams_class = GatedROMEHyperParams
    state_class = ContextState
    needs = frozenset({Need.SUBJECT})
    searches_expansions = True

    hyperparams: GatedROMEHyperParams

    def initial_state(self, lm: LM) -> ContextState:
        """Sample the contexts."""
        return ContextState(self.hyperparams.contexts(self.hyperparams.column(lm)))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: ContextState | None = None
    ) -> Outcome[ContextState]:
        """The vectors of ``edits``, searched on the model with no adapters but their subjects'.

        Raises:
            SubjectRequiredError: an edit names no subject.
            ContradictingEditsError: one prompt, two targets.
            DivergedError: the search left the finite numbers.
            HyperParamsError: settings that do not fit the model.
        """
        check_consistent(edits)
        column, site = self._site(lm, edits)
        contexts, watch = (state or self.initial_state(lm)).contexts, Stopwatch()
        made: dict[int, SubjectCodebook] = {}
        known = [edit for patch in carrying(lm, site) for edit in patch.info.edits]
        for some in one_per_subject(edits):
            together = [edits[i] for i in some]
            beside = _of_subjects([*carried(lm, site), *made.values()], together)
            held = [earlier_of(edit, known) for edit in together]
            new = self._codebooks(column, site, together, contexts, beside, held, watch)
            made |= dict(zip(some, new, strict=True))
            known += together
        codebook = SubjectCodebook.merge([made[i] for i in range(len(edits))])
        return Outcome(self._patch(lm, site, edits, codebook, watch))

    def edit_each(
        self, lm: LM, edits: Sequence[Edit], state: ContextState | None = None
    ) -> list[Outcome[ContextState]]:
        """The patches of edits that are made alone; their vectors are searched in one batch."""
        column, site = self._site(lm, edits)
        if carried(lm, site) or len({bool(edit.expansions) for edit in edits}) > 1:
            return super().edit_each(lm, edits, state)
        contexts, watch = (state or self.initial_state(lm)).contexts, Stopwatch()
        held: list[list[Edit]] = [[] for _ in edits]
        codebooks = self._codebooks(column, site, edits, contexts, None, held, watch)
        return [
            Outcome(self._patch(lm, site, [edit], codebook, watch))
            for edit, codebook in zip(edits, codebooks, strict=True)
        ]

    def _site(self, lm: LM, edits: Sequence[Edit]) -> tuple[LM, Site]:
        """The edited column of blocks, and the down-projection whose output is changed."""
        column = self.hyperparams.column(lm)
        for edit in edits:
            subject_rows(column, edit, [""])  # fails before any work when there is no subject
        layer = int(self.hyperparams.resolved(column.n_layers).layers[0])
        module = column.down_map(layer).module
        path = next(name for name, other in column.model.named_modules() if other is module)
        return column, Site(layer, "down", path)

    def _codebooks(
        self,
        lm: LM,
        site: Site,
        edits: Sequence[Edit],
        contexts: Sequence[str],
        beside: SubjectCodebook | None,
        held: Sequence[Sequence[Edit]],
        watch: Stopwatch,
    ) -> list[SubjectCodebook]:
        """One for each of some edits of different subjects, searched ``beside`` earlier ones.

        ``held`` are for each the earlier edits of its subject, whose answers its vector keeps.
        """
        settings = self.hyperparams.resolved(lm.n_layers)
        contexts = contexts_for(edits, contexts)
        rows = [subject_rows(lm, edit, contexts) + expansion_rows(lm, edit) for edit in edits]
        with without_patches(lm.model, ModulePatch), ExitStack() as stack:
            with watch("keys"):
                (read,) = inputs_at(lm, [site.module(lm)], [row for some in rows for row in some])
            if beside is not None:
                stack.enter_context(applied(lm.model, self._patch(lm, site, (), beside, watch)))
            with watch("values"):
                found = self._vectors(lm, Site(site.layer, "down"), edits, contexts, held)
        keys = torch.split(read.cpu(), [len(some) for some in rows])
        return [
            codebook_of(edit, directions, delta, settings.threshold)
            for edit, directions, delta in zip(edits, keys, found, strict=True)
        ]

    def _vectors(
        self,
        lm: LM,
        site: Site,
        edits: Sequence[Edit],
        contexts: Sequence[str],
        held: Sequence[Sequence[Edit]],
    ) -> list[torch.Tensor]:
        """δ of each edit, ``(d_out,)``; one that holds earlier edits is searched with these."""
        settings = self.hyperparams.resolved(lm.n_layers)
        result = [torch.empty(0)] * len(edits)
        for holds in (False, True):
            some = [i for i, earlier in enumerate(held) if bool(earlier) is holds]
            if not some:
                continue
            if not holds:
                found = values_of(lm, site, [edits[i] for i in some], contexts, settings)
            else:
                found = optimize_values(
                    lm,
                    site,
                    [replace(edits[i], expansions=(*edits[i].expansions, *held[i])) for i in some],
                    contexts,
                    settings.search(),
                    resume=settings.resume,
                    memory=settings.memory,
                )
            for i, delta in zip(some, found.delta.cpu(), strict=True):
                result[i] = delta
        return result

    def _patch(
        self,
        lm: LM,
        site: Site,
        edits: Sequence[Edit],
        codebook: SubjectCodebook,
        watch: Stopwatch,
    ) -> ModulePatch:
        info = PatchInfo.of(lm, self.name, edits, self.hyperparams, watch.seconds)
        return ModulePatch({str(site.path): (codebook.eval(),)}, info)


def codebooks_in(patch: Any, site: Site) -> list[SubjectCodebook]:
    """The codebooks that a patch puts at a layer."""
    adapters = patch.adapters.get(str(site.path), ()) if isinstance(patch, ModulePatch) else ()
    return [adapter for adapter in adapters if isinstance(adapter, SubjectCodebook)]


def carrying(lm: LM, site: Site) -> list[ModulePatch]:
    """The patches of the model that put a codebook at a layer, oldest first."""
    return [patch for patch in applied_patches(lm.model) if codebooks_in(patch, site)]


def carried(lm: LM, site: Site) -> list[SubjectCodebook]:
    """The codebooks that the model carries at a layer, oldest first."""
    return [codebook for patch in carrying(lm, site) for codebook in codebooks_in(patch, site)]


def earlier_of(edit: Edit, known: Sequence[Edit]) -> list[Edit]:
    """Those of ``known`` that are about the edit's subject; of one prompt the last, its own none.

    They come without expansions, as they are to be expansions themselves.
    """
    number = subject_number(edit)
    of_prompt = {
        _number(_as_data(other)): Edit(other.prompt, other.target, other.subject)
        for other in known
        if other.subject is not None and subject_number(other) == number
    }
    of_prompt.pop(_number(_as_data(edit)), None)
    return list(of_prompt.values())


def codebook_of(
    edit: Edit, keys: torch.Tensor, delta: torch.Tensor, threshold: float
) -> SubjectCodebook:
    """The codebook of one edit, with its subject's keys ``(n, d_in)`` in several contexts."""
    directions = distinct_directions(keys, (1 + threshold) / 2)
    return SubjectCodebook(
        directions,
        torch.zeros(len(directions)),
        delta[None],
        torch.tensor([subject_number(edit)]),
        torch.tensor([_number(_as_data(edit))]),
        torch.tensor([threshold]),
    )


def distinct_directions(keys: torch.Tensor, near: float) -> torch.Tensor:
    """The mean direction of ``keys`` ``(n, d_in)``, and each that is not near to one before it.

    Near is a cosine of at least ``near``. Returns ``(m, d_in)``, of length one.
    """
    units = normalize(keys.float(), dim=1)
    result = [normalize(units.mean(0), dim=0)]
    for unit in units:
        if max(float(unit @ other) for other in result) < near:
            result.append(unit)
    return torch.stack(result)


def one_per_subject(edits: Sequence[Edit]) -> list[list[int]]:
    """The places of ``edits`` in rounds: in each at most one edit of a subject, in their order."""
    rounds: list[list[int]] = []
    seen: Counter[int] = Counter()
    for i, edit in enumerate(edits):
        number = subject_number(edit)
        if seen[number] == len(rounds):
            rounds.append([])
        rounds[seen[number]].append(i)
        seen[number] += 1
    return rounds


def subject_number(edit: Edit) -> int:
    """Equal for equal subjects, whatever their capitals; of images for equal pixels."""
    assert edit.subject is not None
    images = [image.sha256 for image in edit.prompt.images] if edit.subject == IMAGE else []
    return _number([edit.subject.strip().casefold(), images])


def _of_subjects(
    codebooks: Sequence[SubjectCodebook], edits: Sequence[Edit]
) -> SubjectCodebook | None:
    """The entries of the edits' subjects, but those of the edits' own prompts."""
    subjects = {subject_number(edit) for edit in edits}
    prompts = {_number(_as_data(edit)) for edit in edits}
    parts = []
    for codebook in codebooks:
        numbers = codebook.get_buffer("subjects").tolist(), codebook.get_buffer("prompts").tolist()
        chosen = [
            i
            for i, (subject, prompt) in enumerate(zip(*numbers, strict=True))
            if subject in subjects and prompt not in prompts
        ]
        if chosen:
            parts.append(codebook.part(chosen))
    return SubjectCodebook.merge(parts) if parts else None


def _as_data(edit: Edit) -> list[Any]:
    prompt = edit.prompt
    images = [image.sha256 for image in prompt.images]
    return [prompt.text.strip(), images, prompt.system, prompt.chat]


def _number(data: list[Any]) -> int:
    digest = hashlib.sha256(json.dumps(data).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
