"""Ask a model everything a set of cases needs, in few batched forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from easyeditor.edits import Case, Generate, NextToken, Query, Score
from easyeditor.evaluate.before_after import shown_apart
from easyeditor.evaluate.generation_metrics import perplexity
from easyeditor.evaluate.replies import Ending
from easyeditor.evaluate.replies import EvalOptions as EvalOptions
from easyeditor.evaluate.replies import Replies as Replies
from easyeditor.evaluate.scorers import scorers
from easyeditor.evaluate.scorers.base import Scorer, scored
from easyeditor.lm.forward.batching import TokenScores
from easyeditor.lm.inference import continue_all, score
from easyeditor.lm.model import LM
from easyeditor.lm.next_token import Distribution, next_token
from easyeditor.patches.batched import applied_per_row, can_apply_per_row
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied

Measures = EvalOptions
"""The former name of :class:`EvalOptions`, which the editors' arguments keep."""


def queries_of(all_scorers: Sequence[Scorer], cases: Iterable[Case]) -> list[Query]:
    """Every query whose reply some scorer reads, once, in the order of the cases."""
    return list(
        dict.fromkeys(
            query
            for case in cases
            for scorer, probe in scored(all_scorers, case)
            for query in scorer.queries(probe, case)
        )
    )


def observe(
    lm: LM,
    cases: Sequence[Case],
    options: EvalOptions | None = None,
    all_scorers: Sequence[Scorer] | None = None,
) -> Replies:
    """The model's replies to every query of every case, each asked once.

    Args:
        lm: the model.
        cases: what the scorers are asked about.
        options: what is asked beside the scores.
        all_scorers: who asks; by default every registered scorer.
    """
    options = options or EvalOptions()
    asking = scorers(options) if all_scorers is None else all_scorers
    return _ask(lm, [queries_of(asking, cases)], options, per_patch=False)[0]


def observe_each(
    lm: LM,
    cases: Sequence[Case],
    patches: Sequence[Patch | None],
    options: EvalOptions | None = None,
    all_scorers: Sequence[Scorer] | None = None,
) -> list[Replies]:
    """The replies about each case of the model that carries that case's patch alone.

    All cases share forward passes. Where that is not exact (see :mod:`easyeditor.patches.batched`)
    the patches are applied one after the other.
    """
    options = options or EvalOptions()
    asking = scorers(options) if all_scorers is None else all_scorers
    if can_apply_per_row(lm, patches):
        with applied_per_row(lm, patches):
            groups = [queries_of(asking, [case]) for case in cases]
            return _ask(lm, groups, options, per_patch=True)
    replies = []
    for case, patch in zip(cases, patches, strict=True):
        with nullcontext() if patch is None else applied(lm.model, patch):
            replies.append(observe(lm, [case], options, asking))
    return replies


def observe_behind(
    lm: LM, front: str, case: Case, options: EvalOptions, all_scorers: Sequence[Scorer]
) -> Replies:
    """The model's replies to the case's queries with a text before every prompt.

    They stand under the queries as they were, so that scorers read them as those of an edit.
    """
    queries = queries_of(all_scorers, [case])
    behind: dict[Query, Query] = {
        query: replace(query, prompt=query.prompt.with_text(front + query.prompt.text))
        for query in queries
    }
    replies = _ask(lm, [list(behind.values())], options, per_patch=False)[0]
    scores = {q: replies.scores[b] for q, b in behind.items() if isinstance(q, Score)}  # type: ignore[index]
    texts = {q: replies.texts[b] for q, b in behind.items() if isinstance(q, Generate)}  # type: ignore[index]
    endings = {q: replies.endings[b] for q, b in behind.items() if isinstance(q, Generate)}  # type: ignore[index]
    nexts = {q: replies.distributions[b] for q, b in behind.items() if isinstance(q, NextToken)}  # type: ignore[index]
    return replace(replies, scores=scores, texts=texts, endings=endings, distributions=nexts)


def _ask(
    lm: LM, groups: Sequence[Sequence[Query]], options: EvalOptions, *, per_patch: bool
) -> list[Replies]:
    """One set of replies per group; with ``per_patch`` group ``i`` asks about patch ``i``."""
    scores = [
        (query, i) for i, group in enumerate(groups) for query in group if isinstance(query, Score)
    ]
    texts = [(q, i) for i, group in enumerate(groups) for q in group if isinstance(q, Generate)]
    nexts = [(q, i) for i, group in enumerate(groups) for q in group if isinstance(q, NextToken)]
    of_score = [i for _, i in scores] if per_patch else None
    of_text = [i for _, i in texts] if per_patch else None
    of_next = [i for _, i in nexts] if per_patch else None
    by_score: list[dict[Score, TokenScores]] = [{} for _ in groups]
    by_text: list[dict[Generate, str]] = [{} for _ in groups]
    endings: list[dict[Generate, Ending]] = [{} for _ in groups]
    by_next: list[dict[NextToken, Distribution]] = [{} for _ in groups]
    score_queries = [query for query, _ in scores]
    for (query, i), result in zip(scores, score(lm, score_queries, of_score), strict=True):
        by_score[i][query] = result
    written = continue_all(lm, [query for query, _ in texts], patch_of_query=of_text)
    for (text_query, i), reply in zip(texts, written, strict=True):
        by_text[i][text_query] = reply.text
        endings[i][text_query] = Ending(len(reply.ids), reply.ended)
    distributions = next_token(
        lm, [query.prompt for query, _ in nexts], of_next, [query.written for query, _ in nexts]
    )
    for (next_query, i), distribution in zip(nexts, distributions, strict=True):
        by_next[i][next_query] = distribution
    return [
        Replies(
            by_score[i],
            by_text[i],
            perplexity(lm, options.heldout, patch=i if per_patch else None)
            if options.heldout
            else None,
            lm.text.chat_template,
            endings[i],
            by_next[i],
        )
        for i in range(len(groups))
    ]


BEHAVIOUR = frozenset({"safety", "opinion", "instance"})
"""Groups of probes whose free answers are shown beside their scores."""


def answers_of(case: Case, replies: Replies, options: EvalOptions) -> dict[str, str]:
    """The free answers to probes of behaviour by their kind; ``rewrite`` is that to the prompt.

    Of several probes of a kind the first. Empty of other cases, and where none were asked for.
    """
    probes = [probe for probe in case.probes if probe.group in BEHAVIOUR]
    if not probes or not options.answer_tokens:
        return {}
    answers = {"rewrite": case.edit.prompt}
    for probe in probes:
        answers.setdefault(probe.kind, probe.prompt)
    queries = {kind: options.answer(prompt) for kind, prompt in answers.items()}
    return {kind: replies[q] for kind, q in queries.items() if q in replies.texts}


def texts_of(case: Case, replies: Replies, options: EvalOptions) -> dict[str, Any]:
    """What the model wrote about one case: ``answers`` and ``continuations`` by prompt.

    ``asked``, where the case has such probes, lists them with their answers, as one text in chat
    form and in plain form has two.
    """
    texts: dict[str, Any] = {}
    shown = shown_apart([case.edit.prompt, *(probe.prompt for probe in case.probes)])
    if options.answer_tokens:
        prompts = [case.edit.prompt]
        prompts += [probe.prompt for probe in case.probes if probe.group != "locality"]
        texts["answers"] = {shown[p]: replies[options.answer(p)] for p in prompts}
    if options.continuation_tokens:
        longer = options.long(case)
        names = shown_apart(query.prompt for query in longer)
        texts["continuations"] = {names[query.prompt]: replies[query] for query in longer}
    questions = [
        (probe, Generate(probe.prompt, options.asked_tokens))
        for probe in case.probes
        if probe.group == "asked" and options.asked_tokens
    ]
    answers = [
        {
            "name": probe.name,
            "prompt": probe.prompt.to_json(),
            "text": replies[query],
            "tokens": replies.endings[query].tokens,
            "ended": replies.endings[query].by_itself,
        }
        for probe, query in questions
        if query in replies.texts
    ]
    if answers:
        texts["asked"] = answers
    return texts
