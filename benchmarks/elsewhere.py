"""What a patch does to a model where nothing was edited, for ``benchmarks/lifelong.py``.

- ``kl``: mean KL of the next-token distributions behind texts, in nats, to the unedited model's;
- ``fires``: of patches that are in no weight, the share of unrelated prompts behind which any logit
  differs from the unedited model's;
- ``known``: of facts that nobody edited, the share whose right answer is more probable than three
  others of its relation, by the log-probability of all its tokens;
- ``last_word``: the share of beginnings of WikiText sentences whose last word is the model's greedy
  continuation, as LAMBADA asks it;
- ``wikitext``: perplexity of WikiText-2, in windows of 256 tokens.

The last three need files: :func:`from_folder`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from easyeditor.edits import Prompt, Score
from easyeditor.evaluate.generation_metrics import perplexity
from easyeditor.lm.inference import score
from easyeditor.lm.model import LM
from easyeditor.lm.next_token import Distribution, kl_divergence, next_token
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied
from easyeditor.patches.weight import WeightPatch

FACTS, SENTENCES, WIKITEXT_WORDS = 300, 200, 4000
SENTENCE_WORDS = range(12, 31)


@dataclass(frozen=True, slots=True)
class Choice:
    """A fact with answers to choose from, the right one first."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Elsewhere:
    """Questions that have nothing to do with any edit.

    Attributes:
        lm: the unedited model.
        texts: behind which next tokens are compared.
        unrelated: prompts that a router should leave alone.
        facts: nobody edited.
        sentences: beginnings with their last word.
        wikitext: a text.
    """

    lm: LM
    texts: Sequence[Prompt]
    unrelated: Sequence[Prompt] = ()
    facts: Sequence[Choice] = ()
    sentences: Sequence[Score] = field(default=())
    wikitext: str = ""

    @cached_property
    def before(self) -> list[Distribution]:
        """The next-token distributions behind :attr:`texts` before any edit."""
        return [one.top() for one in next_token(self.lm, self.texts)]

    @cached_property
    def before_unrelated(self) -> list[torch.Tensor]:
        """The next-token log-probabilities behind :attr:`unrelated` before any edit."""
        return [one.logprobs for one in next_token(self.lm, self.unrelated)]

    @cached_property
    def unedited(self) -> dict[str, float]:
        """What the unedited model knows and can."""
        return self._able(briefly=False)

    def of(self, patch: Patch | None, *, briefly: bool = False) -> dict[str, float]:
        """What the model does elsewhere with a patch; briefly: without ``fires`` and WikiText."""
        before = self.before
        unrelated = self.before_unrelated if self.routed(patch) and not briefly else []
        if patch is None:
            return self.unedited
        with applied(self.lm.model, patch):
            after = next_token(self.lm, self.texts)
            divergences = [kl_divergence(*pair) for pair in zip(before, after, strict=True)]
            result = {"kl": sum(divergences) / len(divergences)} | self._able(briefly)
            if unrelated:
                prompts = next_token(self.lm, self.unrelated)
                pairs = zip(unrelated, prompts, strict=True)
                differ = [not torch.equal(old, new.logprobs) for old, new in pairs]
                result["fires"] = sum(differ) / len(differ)
        return result

    @staticmethod
    def routed(patch: Patch | None) -> bool:
        """Whether a patch is in no weight."""
        return patch is not None and not isinstance(patch, WeightPatch)

    def _able(self, briefly: bool) -> dict[str, float]:
        result: dict[str, float] = {}
        if self.facts:
            result["known"] = known(self.lm, self.facts)
        if self.sentences and not briefly:
            replies = score(self.lm, self.sentences)
            result["last_word"] = sum(reply.accuracy == 1 for reply in replies) / len(replies)
        if self.wikitext and not briefly:
            result["wikitext"] = perplexity(self.lm, self.wikitext)
        return result


def known(lm: LM, facts: Sequence[Choice]) -> float:
    """The share of facts whose right answer is the most probable of its choices."""
    queries = [Score(fact.prompt, answer) for fact in facts for answer in fact.answers]
    sums = [sum(reply.logprobs) for reply in score(lm, queries)]
    right, done = 0, 0
    for fact in facts:
        own = sums[done : done + len(fact.answers)]
        right += own[0] == max(own)
        done += len(fact.answers)
    return right / len(facts)


def from_folder(folder: Path, edited: set[str]) -> tuple[list[Choice], list[Score], str]:
    """Facts, sentences and text from ``known_1000.json`` and ``wikitext2_test.txt``.

    Args:
        folder: where the two files are.
        edited: subjects that are edited; facts about them are left out.
    """
    text = (folder / "wikitext2_test.txt").read_text(encoding="utf-8")
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    sentences = list(_sentences(text))
    random.Random(0).shuffle(sentences)
    facts = list(_facts(json.loads((folder / "known_1000.json").read_text("utf-8")), edited))
    return facts[:FACTS], sentences[:SENTENCES], " ".join(text.split()[:WIKITEXT_WORDS])


def _facts(records: Sequence[dict[str, str]], edited: set[str]) -> Iterator[Choice]:
    draw = random.Random(0)
    others: dict[str, list[str]] = {}
    for record in records:
        others.setdefault(record["relation_id"], []).append(record["attribute"])
    records = list(records)
    draw.shuffle(records)
    for record in records:
        right = record["attribute"]
        wrong = sorted(set(others[record["relation_id"]]) - {right})
        if record["subject"] not in edited and len(wrong) >= 3:
            yield Choice(record["prompt"], (right, *draw.sample(wrong, 3)))


def _sentences(text: str) -> Iterator[Score]:
    for paragraph in text.splitlines():
        for sentence in paragraph.split(" . ")[:-1]:
            words = sentence.split()
            plain = words and words[-1].isalpha() and "<unk>" not in words
            if plain and len(words) in SENTENCE_WORDS:
                yield Score(Prompt(" ".join(words[:-1]), chat=False), words[-1])
