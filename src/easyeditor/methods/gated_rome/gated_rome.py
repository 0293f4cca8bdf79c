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

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from pydantic import Field

from easyeditor.associative.contrast import contrast_rows
from easyeditor.associative.keys import expansion_rows, inputs_at, subject_rows
from easyeditor.associative.value_optimization import optimize_values
from easyeditor.edits import Edit, check_consistent
from easyeditor.errors import HyperParamsError
from easyeditor.hyperparams import Layers
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.model import LM
from easyeditor.methods.base import Method, Need, Outcome
from easyeditor.methods.gated_rome.codebook import SubjectCodebook
from easyeditor.methods.gated_rome.subjects import (
    Draft,
    Known,
    Task,
    Unrelated,
    keys_and_thresholds,
    one_per_subject,
    prompt_number,
    subject_number,
)
from easyeditor.methods.sweep_plan import ONE_LAYER, ContextLengths, SweepPlan
from easyeditor.methods.value_search import (
    ContextState,
    ValueSearchHyperParams,
    values_of,
)
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import PatchInfo
from easyeditor.patches.stack import applied, without_patches
from easyeditor.timing import Stopwatch


class GatedROMEHyperParams(ValueSearchHyperParams):
    """Settings of GatedROME; those of the search are ROME's.

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
            # No other subject is touched, so a search over many prompts may go as far as one.
            "expanded_stop_nll": 0.05,
            "expanded_clamp_norm_factor": 4.0,
            "expanded_kl_factor": 0.0625,
            "expanded_prefixes": 12,
        },
    }
    sweep: ClassVar[SweepPlan | None] = ONE_LAYER
    # What files of the other methods that search values name: it needs no second moments.
    ignored: ClassVar[frozenset[str]] = ValueSearchHyperParams.ignored | {
        "mom2_adjustment",
        "mom2_dataset",
        "mom2_dtype",
        "mom2_n_samples",
        "mom2_n_tokens",
        "stats_dir",
    }

    alg_name: str = "GatedROME"
    layers: Layers = Field((0.1,), max_length=1)
    threshold: float = Field(0.85, gt=0, lt=1)
    v_num_grad_steps: int = Field(25, ge=1)
    context_template_length_params: ContextLengths = ((5, 3), (10, 3))
    batch_size: int = Field(100, ge=1)


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
        codebooks: dict[int, SubjectCodebook] = {}
        for some in one_per_subject([known.subject_of(draft) for draft in drafts]):
            tasks = [known.task(drafts[i]) for i in some]
            with watch("values"):
                vectors = self._vectors(column, site, tasks, contexts, known.beside(tasks), watch)
            for i, task, delta in zip(some, tasks, vectors, strict=True):
                codebooks[i] = task.draft.codebook(delta)
                known.add(codebooks[i], [task.draft.edit])
        codebook = SubjectCodebook.merge([codebooks[i] for i in range(len(edits))])
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
                prefixes = self.hyperparams.contexts_of([edit], contexts)
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
                    optimized = optimize_values(
                        lm, where, edits, contexts, search, resume=settings.resume, memory=memory
                    )
                else:
                    optimized = values_of(
                        lm, where, edits, settings.contexts_of(edits, contexts), settings
                    )
                for i, delta in zip(some, optimized.delta.cpu(), strict=True):
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
