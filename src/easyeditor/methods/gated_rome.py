"""GatedROME: ROME's values in a codebook, each behind a gate on its subject's key.

ROME (arXiv 2202.05262) searches the vector δ that, added to an MLP's output at the subject's last
token, makes the model answer with the target, and then writes it into the down-projection, where it
also answers to every other key that is not orthogonal to the subject's, and to every later edit.
Here δ is kept beside the layer, as GRACE (arXiv 2211.11031) keeps its values, and is added at those
prompt tokens alone whose input of the down-projection is the subject's::

    y_t += Σ δ_i over the edits i of the subject whose key is nearest to h_t,
           if cos(h_t, key) >= threshold

No weight changes, an edit moves none of another subject, nothing is trained beforehand and no
second moments are needed. A key is read where ROME reads it: at the subject's *last* token in a low
layer, where what the model holds is hardly more than the words of the subject. So, other than
GRACE's (the last token of the prompt), it is the same in other words, and far from those of other
subjects.

A subject's first key is the mean direction of its keys behind sampled prefixes; a key that is far
from those it has already (an alias, the subject at the very beginning of a text) is one more. Where
a text begins with a subject of one token, its key is read at the *next* token, as ROME reads it. A
key that is also near to what the layer reads in unrelated texts (at a text's first tokens nearly
everything is alike) or behind other first tokens gets a higher threshold. A later edit
of the same subject is searched beside the earlier ones, whose vectors are added to its own, and
together with them, so that their answers hold; one of the same prompt takes the earlier one's
place. The trap: the gate knows the subject, not the question, so what δ does to other facts about
this subject is ROME's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch.nn.functional import normalize

from easyeditor.associative.contrast import contrast_rows
from easyeditor.associative.keys import expansion_rows, inputs_at, subject_rows
from easyeditor.associative.unrelated import unrelated_inputs, unrelated_rows
from easyeditor.associative.value_optimization import optimize_values
from easyeditor.edits import IMAGE, Edit, check_consistent
from easyeditor.errors import HyperParamsError, PatchMismatchError
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
from easyeditor.subjects import folded
from easyeditor.timing import Stopwatch

PLACES = ("entries", "owners")  # what numbers the edits of a codebook
SAME_SUBJECT = 0.98  # cosine from which two keys are of one subject
HIGHEST = 0.999  # of a threshold
N_UNRELATED_PROMPTS = 300  # by which thresholds are raised
TOKENS = 4096  # whose cosines are computed together


class GatedROMEHyperParams(LocateHyperParams):
    """Settings of GatedROME; those of the search are ROME's, ``mom2_…`` say nothing here.

    ``threshold`` is the least cosine between a token's input of the down-projection and a subject's
    key; a key that unrelated texts come near to gets a higher one. ``layers`` names one layer.
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
        own: dict[int, int] = {}
        last: dict[int, int] = {}
        for owner, prompt in zip(owners, prompts, strict=True):
            own.setdefault(owner, prompt)
            last[prompt] = max(owner, last.get(prompt, -1))
        return [entry for entry, prompt in sorted(own.items()) if last[prompt] == entry]

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
        with watch("keys"):
            drafts = self._drafts(column, site, edits, contexts)
        known = Known(column, site)
        made: dict[int, SubjectCodebook] = {}
        for some in one_per_subject([known.subject_of(draft) for draft in drafts]):
            tasks = [known.task(drafts[i]) for i in some]
            with watch("values"):
                vectors = self._vectors(column, site, tasks, contexts, known.beside(tasks), watch)
            for i, task, delta in zip(some, tasks, vectors, strict=True):
                made[i] = task.draft.codebook(delta)
                known.add(made[i], [task.draft.edit])
        codebook = SubjectCodebook.merge([made[i] for i in range(len(edits))])
        return Outcome(self._patch(lm, site, edits, codebook, watch))

    def edit_each(
        self, lm: LM, edits: Sequence[Edit], state: ContextState | None = None
    ) -> list[Outcome[ContextState]]:
        """The patches of edits that are made alone; their vectors are searched in one batch."""
        for edit in edits:
            check_consistent([edit])
        column, site = self._site(lm, edits)
        contexts, watch = (state or self.initial_state(lm)).contexts, Stopwatch()
        with watch("keys"):
            drafts = self._drafts(column, site, edits, contexts)
        known = Known(column, site)
        for draft in drafts:
            known.subject_of(draft)
        tasks = [known.task(draft) for draft in drafts]
        if any(task.held for task in tasks):
            return super().edit_each(lm, edits, state)
        with watch("values"):
            vectors = self._vectors(column, site, tasks, contexts, None, watch)
        return [
            Outcome(self._patch(lm, site, [task.draft.edit], task.draft.codebook(delta), watch))
            for task, delta in zip(tasks, vectors, strict=True)
        ]

    def _site(self, lm: LM, edits: Sequence[Edit]) -> tuple[LM, Site]:
        """The edited column of blocks, and the down-projection whose output is changed."""
        settings = self.hyperparams
        if settings.fact_token != "subject_last":
            raise HyperParamsError(
                f"fact_token={settings.fact_token!r}: {self.name} knows a fact by its subject's "
                "last token. Use 'subject_last'."
            )
        column = settings.column(lm)
        for edit in edits:
            subject_rows(column, edit, [""])  # fails before any work when there is no subject
        layer = int(settings.resolved(column.n_layers).layers[0])
        module = column.down_map(layer).module
        path = next(name for name, other in column.model.named_modules() if other is module)
        return column, Site(layer, "down", path)

    def drafts(
        self, lm: LM, edits: Sequence[Edit], state: ContextState | None = None
    ) -> list[Draft]:
        """The edits with their subjects' keys, before any vector is searched."""
        column, site = self._site(lm, edits)
        return self._drafts(column, site, edits, (state or self.initial_state(lm)).contexts)

    def _drafts(
        self, lm: LM, site: Site, edits: Sequence[Edit], contexts: Sequence[str]
    ) -> list[Draft]:
        """The edits with their subjects' keys, read on the model without adapters."""
        module, result = site.module(lm), []
        unrelated = Unrelated(lm, str(site.path), self.hyperparams.seed)
        with without_patches(lm.model, ModulePatch):
            for edit in edits:
                prefixes = contexts_for([edit], contexts)
                rows = subject_rows(lm, edit, prefixes)
                contrast = contrast_rows(lm, edit.rows)
                (read,) = inputs_at(lm, [module], [*rows, *expansion_rows(lm, edit), *contrast])
                end = len(read) - len(contrast)
                keys, thresholds = keys_and_thresholds(
                    read[: len(rows)].cpu(),
                    read[len(rows) : end].cpu(),
                    torch.cat([read[end:].cpu(), unrelated.inputs(edit)]),
                    self.hyperparams.threshold,
                )
                prompts = list(dict.fromkeys(prompt_number(lm, row) for row in edit.rows))
                result.append(Draft(edit, keys, thresholds, subject_number(edit), prompts))
        return result

    def _vectors(
        self,
        lm: LM,
        site: Site,
        tasks: Sequence[Task],
        contexts: Sequence[str],
        beside: SubjectCodebook | None,
        watch: Stopwatch,
    ) -> list[torch.Tensor]:
        """δ of each edit, ``(d_out,)``, searched ``beside`` the vectors of its subject.

        Edits with expansions, and edits that hold earlier ones, are searched by themselves: what
        an edit gets does not depend on its batch.
        """
        settings = self.hyperparams.resolved(lm.n_layers)
        where = Site(site.layer, "down")
        result = [torch.empty(0)] * len(tasks)
        groups: dict[tuple[bool, bool], list[int]] = {}
        for i, task in enumerate(tasks):
            groups.setdefault((bool(task.draft.edit.expansions), bool(task.held)), []).append(i)
        with without_patches(lm.model, ModulePatch), ExitStack() as stack:
            if beside is not None:
                stack.enter_context(applied(lm.model, self._patch(lm, site, (), beside, watch)))
            for (expanded, holds), some in groups.items():
                edits = [tasks[i].with_held for i in some]
                if holds and not expanded:  # what is held is no rewording: the plain settings
                    search, memory = settings.search(), settings.memory
                    found = optimize_values(
                        lm, where, edits, contexts, search, resume=settings.resume, memory=memory
                    )
                else:
                    found = values_of(lm, where, edits, contexts_for(edits, contexts), settings)
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


@dataclass(slots=True)
class Draft:
    """An edit before its vector is known.

    Attributes:
        edit: with its subject.
        keys: ``(m, d_in)``, of its subject.
        thresholds: ``(m,)``, of the keys.
        subject: the number of its subject.
        prompts: the numbers of the prompts it is made with, its own first.
    """

    edit: Edit
    keys: torch.Tensor
    thresholds: torch.Tensor
    subject: int
    prompts: list[int]

    def codebook(self, delta: torch.Tensor) -> SubjectCodebook:
        """The codebook of this edit with the vector ``delta`` ``(d_out,)``."""
        return SubjectCodebook(
            self.keys,
            self.thresholds,
            torch.zeros(len(self.keys), dtype=torch.long),
            delta[None],
            torch.tensor([self.subject]),
            torch.tensor(self.prompts),
            torch.zeros(len(self.prompts), dtype=torch.long),
        )


@dataclass(frozen=True, slots=True)
class Task:
    """What is searched: an edit, and the earlier edits of its subject that shall hold."""

    draft: Draft
    held: list[Edit]

    @property
    def with_held(self) -> Edit:
        """The edit, with the held ones as expansions."""
        edit = self.draft.edit
        return replace(edit, expansions=(*edit.expansions, *self.held), keep=())


class Unrelated:
    """What the layer reads in texts that no edit is about, on the unedited model."""

    def __init__(self, lm: LM, path: str, seed: int) -> None:
        rows = unrelated_rows(lm, N_UNRELATED_PROMPTS, seed)
        self._texts = [folded(lm.tokenizer.decode(row.ids)) for row in rows]
        self._inputs = unrelated_inputs(lm, path, N_UNRELATED_PROMPTS, seed)

    def inputs(self, edit: Edit) -> torch.Tensor:
        """``(tokens, d_in)``, of the texts that do not name the edit's subjects."""
        names = [folded(str(row.subject).strip()) for row in edit.rows]
        pairs = zip(self._texts, self._inputs, strict=True)
        return torch.cat(
            [read for text, read in pairs if not any(name in text for name in names)]
            or [self._inputs[0][:0]]
        ).cpu()


class Known:
    """The codebooks that a model carries at a layer, and those made since."""

    def __init__(self, lm: LM, site: Site) -> None:
        self._lm = lm
        self._books: list[tuple[SubjectCodebook, Sequence[Edit]]] = []
        self._places: dict[int, list[tuple[int, int]]] = {}
        self._owner: dict[int, tuple[int, int]] = {}
        self._first_keys: list[torch.Tensor] = []
        self._subjects: list[int] = []
        for patch in applied_patches(lm.model):
            for codebook in codebooks_in(patch, site):
                self.add(codebook, patch.info.edits)

    def add(self, codebook: SubjectCodebook, edits: Sequence[Edit]) -> None:
        """One more, with the edits of its patch."""
        number = len(self._books)
        self._books.append((codebook, edits))
        owners = codebook.get_buffer("owners").tolist()
        for owner, prompt in zip(owners, codebook.get_buffer("prompts").tolist(), strict=True):
            self._owner[prompt] = number, owner
        for entry, subject in enumerate(codebook.get_buffer("subjects").tolist()):
            self._places.setdefault(subject, []).append((number, entry))
        entries, keys = codebook.get_buffer("entries"), codebook.get_buffer("keys")
        self._first_keys.append(keys.cpu())
        self._subjects += codebook.get_buffer("subjects")[entries].tolist()

    def subject_of(self, draft: Draft) -> int:
        """The number of the draft's subject: that of a subject with the same key, if there is one.

        "The Eiffel Tower" and "Eiffel Tower" end in one token and are one subject.
        """
        if draft.subject not in self._places and self._first_keys:
            cosines = torch.cat(self._first_keys) @ draft.keys[0]
            best, key = cosines.max(0)
            if float(best) >= SAME_SUBJECT:
                draft.subject = self._subjects[int(key)]
        return draft.subject

    def task(self, draft: Draft) -> Task:
        """The draft, with the edits of its subject whose prompts it is not made with."""
        held = []
        for number, entry in self._in_force(draft):
            codebook, edits = self._books[number]
            rows = (codebook.get_buffer("owners") == entry).nonzero()[:, 0]
            own = int(codebook.get_buffer("prompts")[rows[0]])
            for edit in edits:
                if edit.subject is not None and prompt_number(self._lm, edit) == own:
                    held.append(Edit(edit.prompt, edit.target, edit.subject))
                    break
        return Task(draft, held)

    def beside(self, tasks: Sequence[Task]) -> SubjectCodebook | None:
        """The entries of the tasks' subjects that stay when these are made."""
        chosen: dict[int, set[int]] = {}
        for task in tasks:
            for number, entry in self._in_force(task.draft):
                chosen.setdefault(number, set()).add(entry)
        parts = [self._books[n][0].part(sorted(some)) for n, some in sorted(chosen.items())]
        return SubjectCodebook.merge(parts) if parts else None

    def _in_force(self, draft: Draft) -> list[tuple[int, int]]:
        """The places of the entries of the draft's subject that it does not replace."""
        result = []
        for number, entry in self._places.get(draft.subject, ()):
            codebook = self._books[number][0]
            rows = (codebook.get_buffer("owners") == entry).nonzero()[:, 0]
            own = int(codebook.get_buffer("prompts")[rows[0]])
            if own not in draft.prompts and self._owner[own] == (number, entry):
                result.append((number, entry))
        return result


def codebooks_in(patch: Any, site: Site) -> list[SubjectCodebook]:
    """The codebooks that a patch puts at a layer."""
    adapters = patch.adapters.get(str(site.path), ()) if isinstance(patch, ModulePatch) else ()
    return [adapter for adapter in adapters if isinstance(adapter, SubjectCodebook)]


def keys_and_thresholds(
    behind_prefixes: torch.Tensor, others: torch.Tensor, contrast: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys of a subject, ``(m, d_in)`` of length one, and the least cosine of each.

    The first is the mean direction of those read behind prefixes; each of them, and of the
    ``others`` (of expansions), that is not near to one before it is one more. A threshold is at
    least half-way between 1 and the nearest of ``contrast``, which are no keys of the subject.
    """
    units = normalize(torch.cat([behind_prefixes, others]).float(), dim=1)
    result = [normalize(units[: len(behind_prefixes)].mean(0), dim=0)]
    near = (1 + threshold) / 2
    for unit in units:
        if max(float(unit @ other) for other in result) < near:
            result.append(unit)
    keys = torch.stack(result)
    thresholds = torch.full((len(keys),), threshold)
    if len(contrast):
        nearest = (keys @ normalize(contrast.float(), dim=1).T).amax(1)
        thresholds = thresholds.maximum(((1 + nearest) / 2).clamp(max=HIGHEST))
    return keys, thresholds


def one_per_subject(subjects: Sequence[int]) -> list[list[int]]:
    """The places of edits in rounds: in each at most one edit of a subject, in their order."""
    rounds: list[list[int]] = []
    seen: Counter[int] = Counter()
    for i, number in enumerate(subjects):
        if seen[number] == len(rounds):
            rounds.append([])
        rounds[seen[number]].append(i)
        seen[number] += 1
    return rounds


def subject_number(edit: Edit) -> int:
    """Equal for subjects that a prompt may write for one another; of an image for one file."""
    assert edit.subject is not None
    if edit.subject == IMAGE and edit.prompt.images:
        return _number([IMAGE, edit.prompt.images[-1].sha256])
    return _number([folded(edit.subject.strip())])


def prompt_number(lm: LM, edit: Edit) -> int:
    """Equal for prompts that are the same tokens and images."""
    images = [image.sha256 for image in edit.prompt.images]
    return _number([list(lm.text.row(edit.prompt).ids), images])


def _number(data: list[Any]) -> int:
    digest = hashlib.sha256(json.dumps(data).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
