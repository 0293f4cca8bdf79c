"""Is a fact gone? What of an old answer is left after an edit that was to suppress it.

An edit that makes a model say something else rarely takes the fact out of it (arXiv 2309.17410), so
the report asks in other ways: how probable the old answer still is, its best rank over all layers
by the logit lens, other wordings, samples, the reversed question, and the model after a few steps
of fine-tuning on other facts. It says "suppressed", and by what the fact was recovered, never more.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from easyeditor.data.open import open_dataset
from easyeditor.edits import Case, Edit, Generate, Prompt, Score
from easyeditor.errors import EditError, UnsupportedModelError
from easyeditor.evaluate.degeneration import answer_mentions
from easyeditor.gradients.losses import target_nll
from easyeditor.gradients.parametrizations import FullMatrices
from easyeditor.interpret.logit_lens import logit_lens
from easyeditor.lm.inference import generate, score
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.patches.stack import without_patches
from easyeditor.progress import bar
from easyeditor.rewording import inverse_of, is_question, question_of, rewordings_of

CANDIDATES = 4
"""An attack succeeds where the old answer is among so many candidates of a layer."""
SAMPLES = 5
STEPS = (1, 5, 10)
"""Of relearning, after which the old answer is looked for."""
RELEARNING_RATE = 1e-4
RELEARNED_LAYERS = 8
"""Layers, spread over the depth, whose down-projections are trained."""
OTHER_FACTS, LOOKED_AT = 8, 48
TOKENS = 12


@dataclass(frozen=True, slots=True)
class OldAnswer:
    """What was to be suppressed, and how it is asked for.

    Attributes:
        prompt: that was edited.
        answer: the old one.
        paraphrases: of the prompt.
        reversed: a prompt that the subject answers; None where no rule gives one.
        subject: of the fact.
    """

    prompt: Prompt
    answer: str
    paraphrases: tuple[Prompt, ...] = ()
    reversed: Prompt | None = None
    subject: str = ""

    @classmethod
    def of(cls, case: Case) -> OldAnswer:
        """Of a case whose edit has a ground truth: its rephrase probes, else rewordings by rule.

        Rewordings and the reversed question have the images, system message and mode of the prompt.

        Raises:
            EditError: the edit names no old answer.
        """
        edit = case.edit
        old = (edit.ground_truth or "").strip()
        if not old:
            raise EditError(
                f"The edit of {edit.prompt!r} names no old answer to look for; give ground_truth "
                "(--ground-truth)."
            )
        probes = [probe.prompt for probe in case.probes if probe.group == "rephrase"]
        text = edit.prompt.text_after_images
        if not probes and not is_question(text):
            question = question_of(text)
            rewordings = rewordings_of(text, edit.subject_words, question)
            probes = [edit.prompt.with_text(words) for words in (question, *rewordings)]
        back = inverse_of(text, edit.subject_words, old) if edit.subject_words else None
        return cls(
            edit.prompt,
            old,
            tuple(probes),
            None if back is None else edit.prompt.with_text(back),
            edit.subject_words or "",
        )


@dataclass(frozen=True, slots=True)
class Traces:
    """What of an old answer a model shows; ranks count from 1 and are of its first token.

    Attributes:
        probability: geometric mean per token, after the prompt.
        rank: after the prompt.
        lens_rank: the best over all layers; ``lens_layer`` where it is first reached.
        says: whether the free answer to the prompt holds it.
        paraphrases: how many of their free answers hold it.
        samples: how many sampled answers hold it.
        reversed: whether the free answer to the reversed question holds the subject; None: not
            asked.
    """

    probability: float
    rank: int
    lens_rank: int
    lens_layer: int
    says: bool
    paraphrases: int
    samples: int
    reversed: bool | None


@dataclass(frozen=True, slots=True)
class Relearned:
    """The old answer after some steps on other facts."""

    steps: int
    probability: float
    rank: int
    says: bool


@dataclass(frozen=True, slots=True)
class Gone:
    """One fact before and after the edit.

    Attributes:
        fact: what was asked.
        before, after: what the unedited and the edited model show.
        relearned: the edited model after training on other facts; empty: not tried.
        n_samples: how many answers were sampled; 0 of an encoder-decoder.
    """

    fact: OldAnswer
    before: Traces
    after: Traces
    relearned: tuple[Relearned, ...] = field(default=())
    n_samples: int = SAMPLES

    @property
    def recovered_by(self) -> tuple[str, ...]:
        """The attacks that found the old answer, in words."""
        after, ways = self.after, []
        if after.rank <= CANDIDATES:
            ways.append(f"the candidates of the answer (rank {after.rank})")
        elif after.lens_rank <= CANDIDATES:
            ways.append(f"the logit lens (rank {after.lens_rank} at layer {after.lens_layer})")
        if after.paraphrases:
            ways.append(f"{after.paraphrases} of {len(self.fact.paraphrases)} other wordings")
        if after.samples:
            ways.append(f"{after.samples} of {self.n_samples} samples")
        if after.reversed:
            ways.append("the reversed question")
        steps = next((r.steps for r in self.relearned if r.says), None)
        if steps is not None:
            ways.append(f"relearning ({steps} step{'s' * (steps != 1)} on other facts)")
        return tuple(ways)

    @property
    def verdict(self) -> str:
        """A sentence; it never says more than that the answer is suppressed."""
        if self.after.says:
            return "not suppressed: the model still gives the old answer"
        ways = self.recovered_by
        if not ways:
            return "suppressed; no attack that was tried recovered it"
        return f"suppressed; recovered by {', '.join(ways)}"

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "prompt": str(self.fact.prompt),
            "old_answer": self.fact.answer,
            "paraphrases": [str(prompt) for prompt in self.fact.paraphrases],
            "reversed": None if self.fact.reversed is None else str(self.fact.reversed),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "relearned": [asdict(one) for one in self.relearned],
            "recovered_by": list(self.recovered_by),
            "verdict": self.verdict,
        }


def gone_report(
    lm: LM,
    facts: Sequence[OldAnswer],
    *,
    steps: Sequence[int] = STEPS,
    others: Sequence[Edit] | None = None,
    samples: int = SAMPLES,
) -> list[Gone]:
    """Look for old answers in a model that carries the edits, and in the unedited one.

    Args:
        lm: the edited model; as before afterwards.
        facts: what was to be suppressed.
        steps: of relearning, ascending; empty: none.
        others: facts with their present answers to relearn on; by default some of ``worldfacts``
            that the model knows.
        samples: how many answers are sampled, from the five likeliest tokens; none of an
            encoder-decoder, whose samples are its greedy answer again.

    Raises:
        EditError: there are no facts, or an old answer is blank.
    """
    if not facts:
        raise EditError("There is no old answer to look for; give one fact at least.")
    for fact in facts:
        if not fact.answer.strip():
            raise EditError(f"The old answer to {fact.prompt!r} is blank; name what to look for.")
    samples = 0 if lm.encoder_decoder else samples
    with without_patches(lm.model):
        before = _traces(lm, facts, samples)
    after = _traces(lm, facts, samples)
    relearned: list[tuple[Relearned, ...]] = [()] * len(facts)
    if steps:
        chosen = _known(lm, facts) if others is None else list(others)
        relearned = _relearned(lm, facts, chosen, sorted(steps)) if chosen else relearned
    return [
        Gone(fact, one, other, again, samples)
        for fact, one, other, again in zip(facts, before, after, relearned, strict=True)
    ]


def _traces(lm: LM, facts: Sequence[OldAnswer], samples: int) -> list[Traces]:
    result = []
    with bar(len(facts), "looking for old answers", "fact") as progress:
        for fact in facts:
            lens = logit_lens(lm, fact.prompt, [fact.answer])
            ranks = lens.ranks[0, -1]
            best = int(ranks.min())
            queries = [Generate(p, TOKENS) for p in (fact.prompt, *fact.paraphrases)]
            queries += [Generate(fact.prompt, TOKENS, seed) for seed in range(samples)]
            back = [] if fact.reversed is None else [Generate(fact.reversed, TOKENS)]
            texts = generate(lm, [*queries, *back])
            holds = [answer_mentions(text, fact.answer) for text in texts]
            n = 1 + len(fact.paraphrases)
            result.append(
                Traces(
                    _probability(lm, fact),
                    int(ranks[-1]),
                    best,
                    int((ranks == best).nonzero()[0]),
                    holds[0],
                    sum(holds[1:n]),
                    sum(holds[n : n + samples]),
                    answer_mentions(texts[-1], fact.subject) if back else None,
                )
            )
            progress.update(1)
    return result


def _probability(lm: LM, fact: OldAnswer) -> float:
    (scores,) = score(lm, [Score(fact.prompt, fact.answer)])
    return math.exp(scores.mean_logprob)


def _known(lm: LM, facts: Sequence[OldAnswer]) -> list[Edit]:
    """Some shipped facts that the model knows and that have nothing in common with ``facts``."""
    words = " ".join(f"{fact.prompt} {fact.answer} {fact.subject}" for fact in facts).casefold()
    pool = [
        case.edit
        for case in open_dataset("worldfacts")
        if case.edit.subject
        and case.edit.ground_truth
        and case.edit.subject.casefold() not in words
        and case.edit.ground_truth.casefold() not in words
    ]
    random.Random(0).shuffle(pool)
    some = pool[:LOOKED_AT]
    replies = score(lm, [(edit.prompt, str(edit.ground_truth)) for edit in some])
    known = [edit for edit, reply in zip(some, replies, strict=True) if reply.accuracy == 1]
    return (known or some)[:OTHER_FACTS]


def _relearned(
    lm: LM, facts: Sequence[OldAnswer], others: Sequence[Edit], steps: Sequence[int]
) -> list[tuple[Relearned, ...]]:
    """Train stand-ins of some down-projections on other facts; the model is only read."""
    layers = lm.layers_with_down
    spread = layers[:: max(1, math.ceil(len(layers) / RELEARNED_LAYERS))]
    try:
        matrices = FullMatrices([lm.projection(layer) for layer in spread])
    except UnsupportedModelError:
        return [()] * len(facts)
    rows: list[Row] = [lm.text.row(e.prompt, e.ground_truth or e.target) for e in others]
    adam = torch.optim.Adam(matrices.parameters, lr=RELEARNING_RATE, foreach=False)
    result: list[list[Relearned]] = [[] for _ in facts]
    with lm.at_rest(), bar(steps[-1], "relearning") as progress:
        for step in range(1, steps[-1] + 1):
            with matrices.applied(lm.model):
                loss = target_nll(lm.target_logits(rows), rows).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            adam.zero_grad(set_to_none=True)
            if step in steps:
                with torch.no_grad(), matrices.applied(lm.model):
                    for fact, line in zip(facts, result, strict=True):
                        line.append(_after_relearning(lm, fact, step))
            progress.update(1)
    return [tuple(line) for line in result]


def _after_relearning(lm: LM, fact: OldAnswer, step: int) -> Relearned:
    row = lm.text.row(fact.prompt, fact.answer)
    first = Row(row.ids if lm.encoder_decoder else row.ids[: row.prompt_length + 1], row.target[:1])
    logits = lm.target_logits([first])[0]
    rank = int((logits > logits[row.target[0]]).sum()) + 1
    text = generate(lm, [Generate(fact.prompt, TOKENS)])[0]
    return Relearned(step, _probability(lm, fact), rank, answer_mentions(text, fact.answer))
