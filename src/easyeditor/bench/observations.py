"""What the unedited model said, as lines of JSON and back; floats survive exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from easyeditor.evaluate.query import Replies
from easyeditor.lm.forward.batching import TokenScores


def to_json(seen: Replies) -> dict[str, Any]:
    """An observation as plain lists."""
    return {
        "scores": [[*pair, s.target, s.logprobs, s.argmax] for pair, s in seen.scores.items()],
        "answers": dict(seen.answers),
        "continuations": dict(seen.continuations),
        "perplexity": seen.perplexity,
        "chat": seen.chat,
    }


def joined(lines: Iterable[Mapping[str, Any]]) -> Replies:
    """Several observations of one model as one."""
    scores: dict[tuple[str, str], TokenScores] = {}
    answers: dict[str, str] = {}
    continuations: dict[str, str] = {}
    perplexity, chat = None, False
    for line in lines:
        for prompt, answer, target, logprobs, argmax in line["scores"]:
            scores.setdefault(
                (prompt, answer), TokenScores(tuple(target), tuple(logprobs), tuple(argmax))
            )
        answers = {**line["answers"], **answers}
        continuations = {**line["continuations"], **continuations}
        perplexity = line["perplexity"] if perplexity is None else perplexity
        chat = line["chat"]
    return Replies(scores, answers, continuations, perplexity, chat)
