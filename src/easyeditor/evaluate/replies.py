"""What is asked of a model besides scores, and what it replied; keyed by the queries themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import overload

from easyeditor.edits import Case, Generate, NextToken, Prompt, Query, Score
from easyeditor.evaluate.behaviour import BehaviourJudge
from easyeditor.lm.forward.batching import TokenScores
from easyeditor.lm.next_token import Distribution


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What is asked beside the scores under teacher forcing; nothing by default.

    Attributes:
        answer_tokens: length of the greedy free answers to prompt, rephrases and portability
            prompts; 0: none.
        continuation_tokens: length of the sampled continuations that fluency and consistency are
            read from (the papers: 100); 0: none.
        continuations: how many of a case's generation prompts are continued.
        heldout: running text for the perplexity; empty: none.
        seed: of the sampling.
        asked_tokens: length at most of the answers to ``asked`` probes, which end by themselves;
            0: none.
        divergence: whether the next-token distributions behind locality prompts are compared.
        judge: says whether answers are safe, show a trait or fit a definition; None: safe is what
            declines (:mod:`easyeditor.evaluate.behaviour`).
        text_tokens: length at most of the answers that are compared with a target that is a text;
            0: none.
        text_encoder: the sentence encoder of that comparison; empty: none.
    """

    answer_tokens: int = 0
    continuation_tokens: int = 0
    continuations: int = 10
    heldout: str = ""
    seed: int = 0
    asked_tokens: int = 0
    divergence: bool = False
    judge: BehaviourJudge | None = None
    text_tokens: int = 0
    text_encoder: str = ""

    def answer(self, prompt: Prompt) -> Generate:
        """The query for a free answer."""
        return Generate(prompt, self.answer_tokens)

    def long(self, case: Case) -> tuple[Generate, ...]:
        """The queries for a case's long continuations."""
        if not self.continuation_tokens:
            return ()
        prompts = (case.generation or (case.edit.prompt,))[: self.continuations]
        return tuple(Generate(p, self.continuation_tokens, self.seed) for p in prompts)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a text ended.

    Attributes:
        tokens: how many were written, the one that ends the text left out.
        by_itself: whether the model ended it; else it was cut off at its limit.
    """

    tokens: int
    by_itself: bool


@dataclass(frozen=True, slots=True)
class Replies:
    """What one model replied, independent of who asks.

    Attributes:
        scores: under teacher forcing.
        texts: answers and continuations.
        perplexity: on the held-out text, where it was asked.
        chat: whether prompts were wrapped by a chat template.
        endings: of the texts.
        distributions: of the next token.
    """

    scores: Mapping[Score, TokenScores]
    texts: Mapping[Generate, str] = field(default_factory=dict)
    perplexity: float | None = None
    chat: bool = False
    endings: Mapping[Generate, Ending] = field(default_factory=dict)
    distributions: Mapping[NextToken, Distribution] = field(default_factory=dict)

    def as_chat(self, prompt: Prompt) -> bool:
        """Whether this prompt was wrapped by a chat template."""
        return self.chat if prompt.chat is None else prompt.chat

    @overload
    def __getitem__(self, query: Score) -> TokenScores: ...
    @overload
    def __getitem__(self, query: Generate) -> str: ...
    @overload
    def __getitem__(self, query: NextToken) -> Distribution: ...
    def __getitem__(self, query: Query) -> TokenScores | str | Distribution:
        if isinstance(query, NextToken):
            return self.distributions[query]
        return self.scores[query] if isinstance(query, Score) else self.texts[query]
