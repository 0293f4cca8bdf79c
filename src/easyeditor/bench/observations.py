"""The unedited model's replies as lines of JSON and back; floats survive exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from easyeditor.edits import Generate, Score, as_prompt
from easyeditor.evaluate.query import Replies
from easyeditor.lm.forward.batching import TokenScores


def to_json(replies: Replies) -> dict[str, Any]:
    """Replies as plain lists."""
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
    }


def joined(lines: Iterable[Mapping[str, Any]]) -> Replies:
    """Several sets of replies of one model as one; of equal queries the first stays."""
    scores: dict[Score, TokenScores] = {}
    texts: dict[Generate, str] = {}
    perplexity, chat = None, False
    for line in lines:
        for prompt, answer, target, logprobs, argmax in line["scores"]:
            scores.setdefault(
                Score(as_prompt(prompt), answer),
                TokenScores(tuple(target), tuple(logprobs), tuple(argmax)),
            )
        for prompt, max_new_tokens, seed, text in line["texts"]:
            texts.setdefault(Generate(as_prompt(prompt), max_new_tokens, seed), text)
        perplexity = line["perplexity"] if perplexity is None else perplexity
        chat = line["chat"]
    return Replies(scores, texts, perplexity, chat)
