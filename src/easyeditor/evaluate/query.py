"""Ask a model everything a set of cases wants to know, in few batched forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

from easyeditor.edits import Case, Generate, Prompt
from easyeditor.evaluate.generation_metrics import perplexity
from easyeditor.lm.forward.batching import TokenScores
from easyeditor.lm.inference import generate, score
from easyeditor.lm.model import LM
from easyeditor.patches.batched import applied_per_row, can_apply_per_row
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied

Pair = tuple[Prompt, str]
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Measures:
    """What is asked beside the scores under teacher forcing; nothing by default.

    Attributes:
        answer_tokens: length of the greedy free answers to prompt, rephrases and portability
            prompts; 0: none.
        continuation_tokens: length of the sampled continuations that fluency and consistency are
            read from (the papers: 100); 0: none.
        continuations: how many of a case's generation prompts are continued.
        heldout: running text for the perplexity; empty: none.
        seed: of the sampling.
    """

    answer_tokens: int = 0
    continuation_tokens: int = 0
    continuations: int = 10
    heldout: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Replies:
    """What a model said, independent of who asks.

    Attributes:
        scores: under teacher forcing, for each ``(prompt, answer)``.
        answers: free greedy answers by prompt.
        continuations: long sampled continuations by prompt.
        perplexity: on the held-out text.
        chat: whether prompts were wrapped by a chat template.
    """

    scores: Mapping[Pair, TokenScores]
    answers: Mapping[Prompt, str] = field(default_factory=dict)
    continuations: Mapping[Prompt, str] = field(default_factory=dict)
    perplexity: float | None = None
    chat: bool = False

    def __getitem__(self, pair: Pair) -> TokenScores:
        return self.scores[pair]


def questions(case: Case) -> Iterator[Pair]:
    """Every ``(prompt, answer)`` whose scores the metrics of this case read."""
    edit = case.edit
    for own in case.edits:
        yield own.prompt, own.target
    if edit.ground_truth:
        yield edit.prompt, edit.ground_truth
    for probe in case.probes:
        yield probe.prompt, probe.answers[0]
        if probe.group != "portability":
            yield probe.prompt, edit.target
            if edit.ground_truth:
                yield probe.prompt, edit.ground_truth


def free_prompts(case: Case) -> Iterator[Prompt]:
    """The prompts that are answered freely: of the edit, its rephrases, its consequences."""
    yield case.edit.prompt
    yield from (probe.prompt for probe in case.probes if probe.group != "locality")


def open_prompts(case: Case, measures: Measures) -> tuple[Prompt, ...]:
    """The prompts that are continued at length."""
    return (case.generation or (case.edit.prompt,))[: measures.continuations]


def observe(lm: LM, cases: Sequence[Case], measures: Measures | None = None) -> Replies:
    """Ask every question of every case once."""
    return _ask(lm, [cases], measures or Measures())[0]


def observe_each(
    lm: LM,
    cases: Sequence[Case],
    patches: Sequence[Patch | None],
    measures: Measures | None = None,
) -> list[Replies]:
    """Ask about each case on the model that holds only its own patch; all cases together.

    Where that is not exact (see :mod:`easyeditor.patches.batched`) the patches are applied one
    after the other.
    """
    wanted = measures or Measures()
    if can_apply_per_row(lm, patches):
        with applied_per_row(lm, patches):
            return _ask(lm, [[case] for case in cases], wanted)
    seen = []
    for case, patch in zip(cases, patches, strict=True):
        with nullcontext() if patch is None else applied(lm.model, patch):
            seen.append(observe(lm, [case], wanted))
    return seen


def _ask(lm: LM, groups: Sequence[Sequence[Case]], wanted: Measures) -> list[Replies]:
    """One observation per group; the rows of group ``i`` are owned by ``i``."""

    def of_all(texts: Callable[[Case], Iterable[T]]) -> tuple[list[T], list[int]]:
        found = [
            (text, i)
            for i, cases in enumerate(groups)
            for text in dict.fromkeys(text for case in cases for text in texts(case))
        ]
        return [text for text, _ in found], [i for _, i in found]

    def by_group(texts: Sequence[T], owners: Sequence[int], told: Sequence[U]) -> list[dict[T, U]]:
        out: list[dict[T, U]] = [{} for _ in groups]
        for text, i, said in zip(texts, owners, told, strict=True):
            out[i][text] = said
        return out

    pairs, whose = of_all(questions)
    scores = by_group(pairs, whose, score(lm, pairs, whose))
    answers: list[dict[Prompt, str]] = [{} for _ in groups]
    if wanted.answer_tokens:
        prompts, whose = of_all(free_prompts)
        answers = by_group(prompts, whose, generate(lm, prompts, wanted.answer_tokens, whose))
    long: list[dict[Prompt, str]] = [{} for _ in groups]
    if wanted.continuation_tokens:
        prompts, whose = of_all(lambda case: open_prompts(case, wanted))
        told = generate(
            lm,
            [Generate(p, wanted.continuation_tokens, wanted.seed) for p in prompts],
            patch_of_query=whose,
        )
        long = by_group(prompts, whose, told)
    chat = lm.text.chat_template
    return [
        Replies(
            scores[i],
            answers[i],
            long[i],
            perplexity(lm, wanted.heldout, patch=i) if wanted.heldout else None,
            chat,
        )
        for i in range(len(groups))
    ]
