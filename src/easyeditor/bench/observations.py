"""What the unedited model said, as lines of JSON and back; floats survive exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from easyeditor.edits import Prompt, as_prompt
from easyeditor.evaluate.query import Replies
from easyeditor.lm.forward.batching import TokenScores


def to_json(seen: Replies) -> dict[str, Any]:
    """An observation as plain lists."""
    return {
        "scores": [
            [pair[0].to_json(), pair[1], s.target, s.logprobs, s.argmax]
            for pair, s in seen.scores.items()
        ],
        "answers": {str(p): text for p, text in seen.answers.items()},
        "continuations": {str(p): text for p, text in seen.continuations.items()},
        "perplexity": seen.perplexity,
        "chat": seen.chat,
    }


def joined(lines: Iterable[Mapping[str, Any]]) -> Replies:
    """Several observations of one model as one."""
    scores: dict[tuple[Prompt, str], TokenScores] = {}
    answers: dict[Prompt, str] = {}
    continuations: dict[Prompt, str] = {}
    perplexity, chat = None, False
    for line in lines:
        for prompt, answer, target, logprobs, argmax in line["scores"]:
            scores.setdefault(
                (as_prompt(prompt), answer),
                TokenScores(tuple(target), tuple(logprobs), tuple(argmax)),
            )
        answers = {**{Prompt(p): text for p, text in line["answers"].items()}, **answers}
        continuations = {
            **{Prompt(p): text for p, text in line["continuations"].items()},
            **continuations,
        }
        perplexity = line["perplexity"] if perplexity is None else perplexity
        chat = line["chat"]
    return Replies(scores, answers, continuations, perplexity, chat)
