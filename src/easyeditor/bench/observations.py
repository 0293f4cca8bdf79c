"""The unedited model's replies as lines of JSON and back; floats survive exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from easyeditor.edits import Generate, NextToken, Score, as_prompt
from easyeditor.evaluate.query import Replies
from easyeditor.evaluate.replies import Ending
from easyeditor.lm.forward.batching import TokenScores
from easyeditor.lm.next_token import Distribution


def to_json(replies: Replies) -> dict[str, Any]:
    """Replies as plain lists; of a distribution its most probable tokens."""
    return {
        "scores": [
            [query.prompt.to_json(), query.answer, s.target, s.logprobs, s.argmax]
            for query, s in replies.scores.items()
        ],
        "texts": [
            [query.prompt.to_json(), query.max_new_tokens, query.seed, text]
            for query, text in replies.texts.items()
        ],
        "perplexity": replies.perplexity,
        "chat": replies.chat,
        "endings": [
            [ending.tokens, ending.by_itself]
            for ending in (replies.endings[query] for query in replies.texts)
        ],
        "distributions": [
            [query.prompt.to_json(), *distribution.top().to_json(), query.written]
            for query, distribution in replies.distributions.items()
        ],
    }


def joined(lines: Iterable[Mapping[str, Any]]) -> Replies:
    """Several sets of replies of one model as one; of equal queries the first stays."""
    scores: dict[Score, TokenScores] = {}
    texts: dict[Generate, str] = {}
    endings: dict[Generate, Ending] = {}
    distributions: dict[NextToken, Distribution] = {}
    perplexity, chat = None, False
    for line in lines:
        for prompt, answer, target, logprobs, argmax in line["scores"]:
            scores.setdefault(
                Score(as_prompt(prompt), answer),
                TokenScores(tuple(target), tuple(logprobs), tuple(argmax)),
            )
        queries = [Generate(as_prompt(prompt), n, seed) for prompt, n, seed, _ in line["texts"]]
        for query, (*_, text) in zip(queries, line["texts"], strict=True):
            texts.setdefault(query, text)
        for query, (tokens, by_itself) in zip(queries, line.get("endings", ()), strict=False):
            endings.setdefault(query, Ending(tokens, by_itself))
        for prompt, ids, logprobs, *written in line.get("distributions", ()):
            distribution = Distribution.from_json(ids, logprobs)
            distributions.setdefault(NextToken(as_prompt(prompt), *written), distribution)
        perplexity = line["perplexity"] if perplexity is None else perplexity
        chat = line["chat"]
    return Replies(scores, texts, perplexity, chat, endings, distributions)
