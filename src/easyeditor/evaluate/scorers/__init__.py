"""Metrics, one file each: which queries a metric needs, and its values before and after an edit.

A new metric is a subclass of :class:`~easyeditor.evaluate.scorers.base.Scorer` in a file of its
own and one line here.
"""

from __future__ import annotations

from collections.abc import Sequence

from easyeditor.edits import Case
from easyeditor.errors import UnknownScorerError
from easyeditor.evaluate.replies import EvalOptions
from easyeditor.evaluate.scorers.base import Scorer
from easyeditor.registry import Registry

SCORERS: Registry[type[Scorer]] = Registry(
    "scorer",
    UnknownScorerError,
    {
        "rewrite": "easyeditor.evaluate.scorers.rewrite:RewriteScorer",
        "rephrase": "easyeditor.evaluate.scorers.rewrite:RephraseScorer",
        "locality": "easyeditor.evaluate.scorers.locality:LocalityScorer",
        "portability": "easyeditor.evaluate.scorers.portability:PortabilityScorer",
        "generation": "easyeditor.evaluate.scorers.generation:GenerationScorer",
        "fluency": "easyeditor.evaluate.scorers.fluency:FluencyScorer",
        "asked": "easyeditor.evaluate.scorers.asked:AskedScorer",
        "multi_hop": "easyeditor.evaluate.scorers.multi_hop:MultiHopScorer",
        "conditions": "easyeditor.evaluate.scorers.conditions:ConditionsScorer",
        "divergence": "easyeditor.evaluate.scorers.divergence:DivergenceScorer",
        "safety": "easyeditor.evaluate.scorers.safety:SafetyScorer",
        "opinions": "easyeditor.evaluate.scorers.opinions:OpinionScorer",
        "instances": "easyeditor.evaluate.scorers.concepts:InstanceScorer",
        "concepts": "easyeditor.evaluate.scorers.concepts:ConceptScorer",
        "sanitation": "easyeditor.evaluate.scorers.sanitation:SanitationScorer",
        "text": "easyeditor.evaluate.scorers.text:TextScorer",
        "perplexity": "easyeditor.evaluate.scorers.perplexity:PerplexityScorer",
    },
    group="easyeditor.scorers",
)


def scorers(options: EvalOptions | None = None, cases: Sequence[Case] = ()) -> list[Scorer]:
    """One of every registered kind, in the order of the registry.

    Raises:
        MissingExtraError: one needs a package that is not installed.
    """
    return [SCORERS.get(name)(options or EvalOptions(), cases) for name in SCORERS]
