"""What an edit did to the rest of the model: perplexity, divergence, and the other active edits.

All of it is measured on text that ships with the package, so a ledger's numbers are comparable over
months, and through whatever the patches put in a prompt's way (routes, adapters).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import easyeditor.data
from easyeditor.data.edits_file import parse_arrow
from easyeditor.data.heldout import heldout_text
from easyeditor.edits import Prompt, Score
from easyeditor.evaluate.degeneration import answer_holds, free_answers
from easyeditor.evaluate.generation_metrics import perplexity
from easyeditor.ledger.conflicts import Problem
from easyeditor.ledger.entries import Entry
from easyeditor.ledger.limits import HealthLimits
from easyeditor.lm.inference import score
from easyeditor.lm.model import LM
from easyeditor.lm.routing import answer_via_routers
from easyeditor.patches.stack import without_patches

SENTENCES = Path(easyeditor.data.__file__).parent / "guard_prompts.txt"
ROWS_AT_ONCE = 8
"""Sentences per forward pass; of each the logits of about five tokens are read."""


@dataclass(frozen=True, slots=True)
class Health:
    """Measured on a model with all active edits.

    Attributes:
        perplexity: on the shipped page of prose; NaN for an encoder-decoder.
        perplexity_ratio: over that of the unedited model.
        kl: KL(unedited ‖ edited) in nats per token, mean over the shipped sentences.
        kl_max: the largest of one sentence.
        broken: numbers of active edits that held before this one and do not any more.
    """

    perplexity: float
    perplexity_ratio: float
    kl: float
    kl_max: float
    broken: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)

    def problems(self, limits: HealthLimits) -> dict[Problem, str]:
        """What is beyond the limits, as clauses; a model whose numbers are NaN is beyond them."""
        result: dict[Problem, str] = {}
        drift = []
        ratio = self.perplexity_ratio
        if not math.isnan(self.perplexity) and not ratio <= limits.perplexity_ratio:
            drift.append(
                f"the perplexity on other text is {ratio:.3f} times that of the unedited model "
                f"(limit {limits.perplexity_ratio:g})"
            )
        if not self.kl <= limits.kl:
            drift.append(
                f"its predictions differ from the unedited model's by {self.kl:.3f} nats per token "
                f"(limit {limits.kl:g})"
            )
        if drift:
            result[Problem.HEALTH] = ", and ".join(drift)
        if self.broken:
            numbers = ", ".join(map(str, self.broken))
            result[Problem.BROKEN] = (
                f"it breaks edit{'s' * (len(self.broken) > 1)} {numbers}, which held before"
            )
        return result


@dataclass(frozen=True, slots=True)
class FactScore:
    """How an edited fact stands in a model, under teacher forcing.

    Attributes:
        number: of its entry.
        prompt: of the edit, or a rewording.
        target: the answer.
        accuracy: share of the answer's tokens that are the most probable ones.
        probability: of the answer, geometric mean per token.
        rewording: whether the prompt is one.
    """

    number: int
    prompt: str
    target: str
    accuracy: float
    probability: float
    rewording: bool = False


@dataclass(slots=True)
class HealthGuard:
    """Measures a model against its unedited self, which is asked once.

    Attributes:
        lm: the model with its edits.
    """

    lm: LM
    _baseline: tuple[float, list[torch.Tensor]] | None = field(default=None, repr=False)

    def measure(self, broken: Sequence[int] = ()) -> Health:
        """The health of the model as it is now."""
        before, predictions = self._unedited()
        after = perplexity(self.lm, heldout_text())
        divergences = [
            _divergence(unedited, edited)
            for unedited, edited in zip(predictions, _predictions(self.lm), strict=True)
        ]
        mean = sum(divergences) / len(divergences)
        return Health(after, after / before, mean, max(divergences), tuple(broken))

    def _unedited(self) -> tuple[float, list[torch.Tensor]]:
        if self._baseline is None:
            with without_patches(self.lm.model):
                self._baseline = perplexity(self.lm, heldout_text()), _predictions(self.lm)
        return self._baseline


def fact_scores(lm: LM, entries: Sequence[Entry], *, rewordings: bool = False) -> list[FactScore]:
    """How the facts of ``entries`` stand in the model now; all are asked in one batch."""
    rows: list[tuple[int, Prompt, str, bool]] = []
    for entry in entries:
        for case in entry.cases:
            rows += [(entry.number, edit.prompt, edit.target, False) for edit in case.edits]
            if rewordings:
                rows += [
                    (entry.number, probe.prompt, probe.answers[0], True)
                    for probe in case.probes
                    if probe.group == "rephrase"
                ]
    replies = score(lm, [Score(prompt, target) for _, prompt, target, _ in rows])
    return [
        FactScore(
            number,
            str(prompt),
            target,
            reply.accuracy,
            math.exp(reply.mean_logprob),
            rewording,
        )
        for (number, prompt, target, rewording), reply in zip(rows, replies, strict=True)
    ]


def holding(scores: Sequence[FactScore]) -> set[int]:
    """Numbers of the entries all of whose facts hold: every token is the most probable one."""
    lost = {row.number for row in scores if row.accuracy < 1.0 and not row.rewording}
    return {row.number for row in scores} - lost


def says(lm: LM, entry: Entry) -> bool:
    """Whether the model says the answers of all facts of ``entry``, and ends them there.

    The rule is that of :func:`easyeditor.evaluate.degeneration.answered`.
    """
    if entry.number not in holding(fact_scores(lm, [entry])):
        return False
    cases = entry.cases
    answers = free_answers(lm, cases)
    return all(
        answer_holds(answer.text, case.edit.target)
        for case, answer in zip(cases, answers, strict=True)
    )


def _sentences() -> list[tuple[Prompt, str]]:
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    probes = [parse_arrow(line, "locality/guard") for line in lines if line.strip()]
    return [(probe.prompt, probe.answers[0]) for probe in probes]


def _predictions(lm: LM) -> list[torch.Tensor]:
    """Per shipped sentence the log-probabilities before each token of its end."""
    sentences = _sentences()

    def here(rows: Sequence[int]) -> list[torch.Tensor]:
        return _log_probabilities(lm, [sentences[i] for i in rows])

    def there(who: LM, rows: Sequence[int], prompts: list[Prompt]) -> list[torch.Tensor]:
        ends = [sentences[i][1] for i in rows]
        return _log_probabilities(who, list(zip(prompts, ends, strict=True)))

    return answer_via_routers(lm, [prompt for prompt, _ in sentences], here, there)


def _log_probabilities(lm: LM, sentences: Sequence[tuple[Prompt, str]]) -> list[torch.Tensor]:
    result: list[torch.Tensor] = []
    rows = [lm.text.row(prompt, end) for prompt, end in sentences]
    with lm.at_rest(), torch.inference_mode():
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            logits = lm.target_logits(part).float().log_softmax(-1).cpu()
            result += torch.split(logits, [len(row.target) for row in part])
    return result


def _divergence(unedited: torch.Tensor, edited: torch.Tensor) -> float:
    """KL in nats per token; infinite where another model, with other tokens, has answered."""
    if unedited.shape != edited.shape:
        return math.inf
    probabilities = unedited.exp()
    terms = torch.where(probabilities > 0, probabilities * (unedited - edited), 0.0)
    value = float(terms.sum(-1).mean())
    return math.inf if math.isnan(value) else max(value, 0.0)
