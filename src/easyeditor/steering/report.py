"""What a steering vector does: its effect on held-out texts, and what that costs other text.

The effect is a margin: the mean log-probability per token of the positive answers minus that of the
negative ones, in nats. Beside the vector stand the unsteered model, the prompt that asks for the
same, and random vectors of the same norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from easyeditor.data.contrast import Contrast, with_prefix
from easyeditor.data.heldout import heldout_text
from easyeditor.edits import Prompt, as_prompt
from easyeditor.errors import DataError
from easyeditor.evaluate.bootstrap import Estimate, bootstrap
from easyeditor.evaluate.generation_metrics import perplexity
from easyeditor.lm.inference import generate, score
from easyeditor.lm.model import LM
from easyeditor.patches.stack import applied
from easyeditor.progress import bar
from easyeditor.steering.conditions import Condition
from easyeditor.steering.vectors import SteeringVectors

UNSTEERED, PROMPT_ONLY, RANDOM, STEERED = "unsteered", "prompt only", "random vector", "steered"
MOST_PERPLEXITY = 1.2
"""Times the unsteered model's, up to which a strength is called harmless."""
RANDOM_VECTORS = 3


@dataclass(frozen=True, slots=True)
class SteeringRow:
    """What was measured of the model in one state.

    Attributes:
        name: ``unsteered``, ``prompt only``, ``random vector`` (a mean of several), ``steered``.
        strength: of the vector; 0 without one.
        effect: the margin, with its interval where the texts are pairs; ``n`` counts the pairs, or
            the texts of both kinds.
        preferred: the share of pairs whose positive answer is likelier; NaN of texts that are none.
        perplexity: on other text with every token steered, whatever the positions and the condition
            are; NaN of a prompt, which stands in front of no other text.
        texts: what is written after the prompts that were asked.
    """

    name: str
    strength: float
    effect: Estimate
    preferred: float
    perplexity: float
    texts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; what was not measured is None."""
        effect = {"value": self.effect.value, "low": self.effect.low, "high": self.effect.high}
        return {
            "name": self.name,
            "strength": self.strength,
            "effect": {name: _number(x) for name, x in effect.items()} | {"n": self.effect.n},
            "preferred": _number(self.preferred),
            "perplexity": _number(self.perplexity),
            "texts": list(self.texts),
        }


@dataclass(frozen=True, slots=True)
class SteeringReport:
    """The rows of a report: first the unsteered model, then the prompt, then by strength.

    Attributes:
        rows: see :class:`SteeringRow`.
        instruction: of the row ``prompt only``.
        prompts: that were asked.
        paired: whether the texts were scored as pairs.
    """

    rows: tuple[SteeringRow, ...]
    instruction: str
    prompts: tuple[Prompt, ...] = ()
    paired: bool = False

    def named(self, name: str) -> list[SteeringRow]:
        """The rows of one name, by strength."""
        return sorted((row for row in self.rows if row.name == name), key=lambda r: r.strength)

    @property
    def harmless(self) -> float | None:
        """The largest strength with at most 1.2 times the perplexity; None: not even the least."""
        most = MOST_PERPLEXITY * self.rows[0].perplexity
        fine = [r.strength for r in self.named(STEERED) if r.perplexity <= most]
        return max(fine, key=abs, default=None)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "instruction": self.instruction,
            "paired": self.paired,
            "prompts": [str(prompt) for prompt in self.prompts],
            "harmless_strength": self.harmless,
        }


def steering_report(
    lm: LM,
    vectors: SteeringVectors,
    held_out: Contrast,
    strengths: Sequence[float] = (1.0,),
    *,
    instruction: str,
    positions: str = "all",
    condition: Mapping[int, Condition] | None = None,
    prompts: Sequence[Prompt | str] = (),
    text: str | None = None,
    max_new_tokens: int = 24,
    random_vectors: int = RANDOM_VECTORS,
) -> SteeringReport:
    """Measure vectors at some strengths; the model is as before afterwards.

    The effect and the continuations are those of the patch as it is asked for. The perplexity is
    measured with every token steered and without the condition: a page of other text is no prompt,
    so most of its tokens would be left as they are, and the cost would look like none.

    Args:
        lm: the model, with the patches that it carries.
        vectors: of this model.
        held_out: texts that are not among those the vectors were made of; scored as pairs where
            they are ``paired``.
        strengths: see :meth:`~easyeditor.steering.vectors.SteeringVectors.patch`.
        instruction: what stands in front of every prompt in the row ``prompt only``.
        positions: see :meth:`~easyeditor.steering.vectors.SteeringVectors.patch`.
        condition: see :meth:`~easyeditor.steering.vectors.SteeringVectors.patch`.
        prompts: that are continued in every state.
        text: for the perplexity; by default the page of prose of the package.
        max_new_tokens: of the continuations.
        random_vectors: how many of the same norm are drawn; their mean is reported.

    Raises:
        DataError: no strengths, no instruction, or fewer than one random vector.
        PatchMismatchError: the vectors are of another model.
    """
    if not strengths or not instruction.strip() or random_vectors < 1:
        raise DataError(
            "A report needs a strength, an instruction for its prompt-only row and a random "
            f"vector; given were {list(strengths)}, {instruction!r} and {random_vectors}."
        )
    prose = heldout_text() if text is None else text
    led = replace(
        held_out,
        positive=tuple(with_prefix(e, instruction) for e in held_out.positive),
        negative=tuple(with_prefix(e, instruction) for e in held_out.negative),
    )
    queries = tuple(as_prompt(prompt) for prompt in prompts)

    def measured(
        name: str, strength: float, patched: SteeringVectors | None, writes: bool = True
    ) -> SteeringRow:
        def row(cost: float) -> SteeringRow:
            return SteeringRow(
                name,
                strength,
                *_effect(lm, led if name == PROMPT_ONLY else held_out),
                cost,
                _texts(
                    lm,
                    queries if writes else (),
                    instruction if name == PROMPT_ONLY else "",
                    max_new_tokens,
                ),
            )

        if patched is None:
            return row(math.nan if name == PROMPT_ONLY else perplexity(lm, prose))
        patch = patched.patch(strength, positions, condition)
        patch.check(lm.model)
        with applied(lm.model, patched.patch(strength)):
            cost = perplexity(lm, prose)
        with applied(lm.model, patch):
            return row(cost)

    rows = [measured(UNSTEERED, 0.0, None), measured(PROMPT_ONLY, 0.0, None)]
    others = [vectors.random(seed) for seed in range(random_vectors)]
    with bar(len(strengths), "measuring", "strength") as progress:
        for strength in strengths:
            drawn = [measured(RANDOM, strength, v, i == 0) for i, v in enumerate(others)]
            rows.append(_mean(drawn))
            rows.append(measured(STEERED, strength, vectors))
            progress.update(1)
    return SteeringReport(tuple(rows), instruction, queries, held_out.paired)


def _effect(lm: LM, contrast: Contrast) -> tuple[Estimate, float]:
    pairs = [(e.prompt, e.answer) for e in (*contrast.positive, *contrast.negative)]
    values = [scores.mean_logprob for scores in score(lm, pairs)]
    n = len(contrast.positive)
    positive, negative = values[:n], values[n:]
    if not contrast.paired:
        value = sum(positive) / n - sum(negative) / len(negative)
        return Estimate.plain(value, len(values)), math.nan
    margins = [one - other for one, other in zip(positive, negative, strict=True)]
    return bootstrap({"margin": margins})["margin"], sum(m > 0 for m in margins) / n


def _texts(lm: LM, prompts: Sequence[Prompt], prefix: str, tokens: int) -> tuple[str, ...]:
    if not prompts:
        return ()
    if prefix:
        prompts = [prompt.with_text(f"{prefix}\n{prompt.text}") for prompt in prompts]
    return tuple(generate(lm, prompts, tokens))


def _mean(rows: Sequence[SteeringRow]) -> SteeringRow:
    """The mean of several random vectors, with their range as interval; the first one's texts."""
    n = len(rows)
    effects = [row.effect.value for row in rows]
    return SteeringRow(
        rows[0].name,
        rows[0].strength,
        Estimate(sum(effects) / n, min(effects), max(effects), rows[0].effect.n),
        sum(row.preferred for row in rows) / n,
        sum(row.perplexity for row in rows) / n,
        rows[0].texts,
    )


def _number(x: float) -> float | str | None:
    return None if math.isnan(x) else x if math.isfinite(x) else str(x)
