"""Measures what editing a model at some layers does to facts that the model knows.

The criterion is S, the harmonic mean of efficacy, paraphrase and neighbourhood score
(docs/counterfact.md), and the same of graded scores (:mod:`easyeditor.bench.sweep_scores`). Second
moments come from one pass over a text and lie in a scratch folder, as do the measurements, so that
a sweep that was killed goes on; only the moments of chosen layers are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from easyeditor.bench.sweep_scores import FactScores, fact_scores, harmonic, mean_of
from easyeditor.editors.layer_choice import choices_folder, plan_of
from easyeditor.edits import Case, canonical_json
from easyeditor.errors import BenchError, DivergedError, EditFailed
from easyeditor.evaluate.query import EvalOptions, observe, observe_each
from easyeditor.evaluate.scorers.base import Scorer
from easyeditor.evaluate.scorers.locality import LocalityScorer
from easyeditor.evaluate.scorers.rewrite import RephraseScorer, RewriteScorer
from easyeditor.json_log import JsonLog
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.locate import LocateHyperParams
from easyeditor.methods.sweep_plan import SweepPlan
from easyeditor.methods.value_search import ValueSearchHyperParams
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied, is_patched
from easyeditor.second_moments import Moments, write_moments
from easyeditor.second_moments.corpus import SELF, SHIPPED, identity

log = logging.getLogger(__name__)

LOWER_PART = 0.5
"""Layers above this share of the depth are not tried, but in models of few layers."""
FEW_LAYERS = 8
"""Models with so many or fewer may be tried at any layer, not in the lower part alone."""
WHILE_COMPARING: dict[str, Any] = {"context_template_length_params": ((5, 1),), "kl_factor": 0.0}
"""Settings while layers are compared, for speed: one prefix, and no divergence term."""
TOKENS_PER_WIDTH = 4
"""Tokens of text for the second moments, in units of ``d_in``."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Layers that are edited together, and the number of the search settings in the plan."""

    layers: tuple[int, ...]
    search: int = 0

    @property
    def name(self) -> str:
        """For logs and files."""
        return f"{self.layers[0]}-{self.layers[-1]}/{self.search}"


@dataclass(frozen=True, slots=True)
class SweepRow:
    """The scores of one candidate over some facts, all between 0 and 1.

    Attributes:
        layers: edited together.
        search: settings of the value search.
        facts: how many were edited.
        ES: efficacy score.
        PS: paraphrase score.
        NS: neighbourhood score.
        S: the harmonic mean of those that were measured.
        graded: the harmonic mean of the graded scores, which the choice is made by.
    """

    layers: tuple[int, ...]
    search: dict[str, Any]
    facts: int
    ES: float
    PS: float | None
    NS: float | None
    S: float
    graded: float


class LayerSweep:
    """Measures candidates on facts, each measurement once.

    Args:
        lm: the model, without patches.
        method: a method whose settings have a plan (``ValueSearchHyperParams.sweep``).
        facts: from :func:`easyeditor.bench.known_facts.facts_known_by`.
        text: what second moments are collected from, see :func:`easyeditor.second_moments.moments`.
        fast: with fewer prefixes and no divergence term, to compare; False measures the settings
            that are the result.
        folder: where measurements are kept; by default in the user's cache.

    Raises:
        BenchError: the method has no plan, the model carries patches, or there are no facts.
    """

    def __init__(
        self,
        lm: LM,
        method: str,
        facts: Sequence[Case],
        *,
        text: str = SHIPPED,
        fast: bool = True,
        folder: Path | None = None,
    ) -> None:
        self.method = METHODS.get(method)
        kind: Any = self.method.hyperparams_class
        self.kind: type[ValueSearchHyperParams] = kind
        plan = plan_of(kind)
        if plan is None:
            raise BenchError(f"{method} has no layers to sweep: {_those_with_a_plan()} have.")
        if is_patched(lm.model):
            raise BenchError(
                "The model carries patches; undo them, a sweep reads the unedited one."
            )
        if not facts:
            raise BenchError("A sweep needs facts to edit; the list is empty.")
        self.plan: SweepPlan = plan
        self.lm, self.facts, self.text = lm, list(facts), text
        self.column = self.kind.for_model(lm.name).column(lm)
        self.scorers: list[Scorer] = [
            kind(EvalOptions()) for kind in (RewriteScorer, RephraseScorer, LocalityScorer)
        ]
        self.changes: dict[str, Any] = (
            WHILE_COMPARING if fast else {"context_template_length_params": plan.contexts}
        )
        recipe = [
            fingerprint(lm.model).digest,
            method,
            repr(plan),
            identity(text),
            self.changes,
            [canonical_json(case) for case in self.facts],
        ]
        digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:24]
        self.folder = (folder or choices_folder()) / f"unfinished-{digest}"
        self.stats = self.folder
        self._log = JsonLog(self.folder / "measured.jsonl", BenchError, "Delete the file.")
        self._measured: dict[tuple[str, str], FactScores] = {
            (record["candidate"], record["facts"]): FactScores(**record["scores"])
            for record in self._log.records
        }
        self._counted: set[tuple[str, str]] = set()
        self._contexts: tuple[str, ...] | None = None
        self._moments: set[int] = set()

    def __len__(self) -> int:
        """How many edits were measured."""
        return len(self._measured)

    def as_used(self) -> LayerSweep:
        """The same sweep with the settings that are the result, and the moments of this one."""
        result = LayerSweep(
            self.lm,
            self.method.name,
            self.facts,
            text=self.text,
            fast=False,
            folder=self.folder.parent,
        )
        result.stats, result._moments = self.stats, self._moments
        return result

    # -- what can be edited ------------------------------------------------------------------

    def windows(self, *, everywhere: bool = False) -> list[tuple[int, ...]]:
        """Every range of layers that may be tried, lowest first; also high up if ``everywhere``."""
        editable = list(self.column.layers_with_down)
        width = max(1, round(self.plan.width * len(editable)))
        starts = len(editable) - width + 1
        if len(editable) > FEW_LAYERS and not everywhere:
            starts = min(starts, math.ceil(LOWER_PART * len(editable)))
        return [tuple(editable[i : i + width]) for i in range(starts)]

    def settings(self, candidate: Candidate, **changes: Any) -> ValueSearchHyperParams:
        """Hyper-parameters of a candidate."""
        d_in = max(self.column.projection(layer).d_in for layer in self.column.layers_with_down)
        per_width = {name: value * d_in for name, value in self.plan.per_width.items()}
        named = {
            **self.plan.settings,
            **per_width,
            **self.plan.searches[candidate.search],
            "layers": candidate.layers,
            **changes,
        }
        if issubclass(self.kind, LocateHyperParams):
            named.setdefault("mom2_dataset", _lasting(self.text))
            named.setdefault("mom2_n_tokens", TOKENS_PER_WIDTH * d_in)
        return self.kind(**named)

    def _solving(self, candidate: Candidate) -> LocateHyperParams | None:
        """The settings with the moments of this sweep; None where the method needs none."""
        settings = self.settings(candidate)
        if not isinstance(settings, LocateHyperParams):
            return None
        return settings.replace(stats_dir=str(self.stats))

    # -- measuring ---------------------------------------------------------------------------

    def collect_moments(self, windows: Iterable[tuple[int, ...]]) -> None:
        """Collect the second moments of these layers in one pass, if they are not there."""
        layers = sorted({layer for window in windows for layer in window} - self._moments)
        settings = self._solving(Candidate((layers[0],))) if layers else None
        if settings is not None:
            settings.second_moments(self.column, layers)
            self._moments |= set(layers)

    def row(self, candidate: Candidate, n: int, progress: Any = None) -> SweepRow:
        """The scores of a candidate over the first ``n`` facts."""
        facts = self.facts[:n]
        keys = self._keys(candidate, facts)
        missing = [i for i, key in enumerate(keys) if key not in self._measured]
        if missing:
            self.collect_moments([candidate.layers])
            scores = self._scores(candidate, [facts[i] for i in missing])
            records = [
                {"candidate": keys[i][0], "facts": keys[i][1], "scores": asdict(of_fact)}
                for i, of_fact in zip(missing, scores, strict=True)
            ]
            self._keep(records)
            self._measured |= {keys[i]: s for i, s in zip(missing, scores, strict=True)}
        if progress is not None:
            progress.update(len(set(keys) - self._counted))
            self._counted |= set(keys)
        return self._row(candidate, [self._measured[key] for key in keys])

    def _keep(self, records: Sequence[dict[str, Any]]) -> None:
        try:
            self._log.append(records)
        except OSError as error:
            log.warning("what is measured is not kept (%s)", error)

    def _keys(self, candidate: Candidate, facts: Sequence[Case]) -> list[tuple[str, str]]:
        """Where each fact's scores stand; of edits made together, which ones is part of it."""
        ids = [f"{i}" for i in range(len(facts))]
        together = f" of {len(facts)}" if self.plan.together else ""
        return [(candidate.name, name + together) for name in ids]

    def _scores(self, candidate: Candidate, cases: Sequence[Case]) -> list[FactScores]:
        settings = (self._solving(candidate) or self.settings(candidate)).replace(**self.changes)
        method = self.method(settings)
        if self._contexts is None:
            self._contexts = settings.contexts(self.column)
        assert method.state_class is not None
        state = method.state_class.load({}, {"contexts": self._contexts})
        edits = [case.edit for case in cases]
        try:
            if self.plan.together:
                patch = method.edit(self.lm, edits, state).patch
                with applied(self.lm.model, patch):
                    together = observe(self.lm, cases, all_scorers=self.scorers)
                replies = [together] * len(cases)
            else:
                patches: list[Patch | None] = [
                    outcome.patch for outcome in method.edit_each(self.lm, edits, state)
                ]
                replies = observe_each(self.lm, cases, patches, all_scorers=self.scorers)
        except (DivergedError, EditFailed) as error:
            log.info("layers %s: %s", candidate.layers, error)
            replies = [observe(self.lm, cases, all_scorers=self.scorers)] * len(cases)
        return [fact_scores(case, after) for case, after in zip(cases, replies, strict=True)]

    def _row(self, candidate: Candidate, scores: Sequence[FactScores]) -> SweepRow:
        es, ps, ns = (mean_of([getattr(s, name) for s in scores]) for name in ("es", "ps", "ns"))
        graded = [mean_of([getattr(s, f"graded_{k}") for s in scores]) for k in ("es", "ps", "ns")]
        assert es is not None
        return SweepRow(
            candidate.layers,
            dict(self.plan.searches[candidate.search]),
            len(scores),
            es,
            ps,
            ns,
            harmonic(es, ps, ns),
            harmonic(*graded),
        )

    # -- the end -----------------------------------------------------------------------------

    def keep_moments(self, layers: Sequence[int]) -> None:
        """Move the second moments of these layers to where edits look for them."""
        scratch = self._solving(Candidate(tuple(layers)))
        if scratch is None:
            return
        collected = scratch.second_moments(self.column, layers)
        copies = {
            layer: Moments(moment.matrix.clone(), moment.tokens, moment.source)
            for layer, moment in collected.items()
        }
        corpus = scratch.replace(stats_dir=None).corpus()
        directory = corpus.pop("directory") or choices_folder().parent / "moments"
        write_moments(self.column, copies, directory, **corpus)

    def finish(self) -> None:
        """Delete what is only needed to go on after an interrupt."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _those_with_a_plan() -> str:
    return ", ".join(
        name for name in METHODS if plan_of(METHODS.get(name).hyperparams_class) is not None
    )


def _lasting(text: str) -> str:
    """A file by its absolute path: the choice is used from other folders, too."""
    named = text not in {SHIPPED, SELF} and Path(text).is_file()
    return str(Path(text).resolve()) if named else text
