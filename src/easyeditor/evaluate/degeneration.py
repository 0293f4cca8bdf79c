"""A short free answer after every edit: is the new answer there, whole, and is what follows text?

Scores under teacher forcing do not see what a model writes behind the answer: an edit can have a
rewrite accuracy of 1 and continue with "Rome, Italy<start_of_image>" eleven times. The answers
before and after the edit are compared, so that what a small model does anyway is not a fault.

Some models write control tokens or loops behind certain answers without any edit: Gemma-3-270M
gives ``<start_of_image>`` .5 after "The Eiffel Tower is in the city of Rome, Italy", which is what
it writes of the Colosseum. So the unedited model is also asked what follows prompt and target: the
text is wrecked all the same, but the edit did not do it.

The thresholds are checked on text that a perfect edit would leave (``benchmarks/degeneration.py``):
what the unedited SmolLM2-135M writes after prompts that hold the new answer already. They flag 1 of
270 such texts (fact prompts, rephrases, descriptions, running text). Of 12 texts that noise in the
weights had wrecked they flag 4: loops and control tokens, not changing words without a sense.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from easyeditor.edits import Case, Edit, Generate, Prompt
from easyeditor.joining import BLANKS, separator, unspaced
from easyeditor.lm.inference import Continuation, continue_all
from easyeditor.lm.model import LM

FREE_TOKENS = 24
"""Length of a free answer; longer for a target that would not fit."""
TOKENS_AFTER_TARGET = 8
"""How much of the text behind a long target is looked at."""
LONGEST_PERIOD = 8
"""Tokens of the longest unit whose repetition is looked for."""
REPEATS = 3
"""A unit repeated less often, or covering less than half of the answer, is no fault. At 3 the one
false alarm in 270 is a loop that the unedited model does write behind the new answer."""
COLLAPSED_NATS = 0.02
"""Mean entropy of the next token below which a model has one continuation only.

Of 30 sound texts the least has 1.1 nats and the most 4.0, which is no less than word salad has
(1.4 to 3.5): a high entropy says nothing, so that there is no upper threshold."""
COLLAPSED_SHARE = 0.1
"""And below this share of the entropy before the edit."""
RESERVED = re.compile(
    r"^[<\[]\|?(?:unused|reserved|extra_id|(?:start|begin|end)_of_|mask|pad|image|audio)[\w ]*"
    r"\|?[>\]]$",
    re.IGNORECASE,
)
"""Added tokens that no text holds, also where the tokenizer does not call them special."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model writes, asked freely about one case.

    Attributes:
        answer: after the prompt, in the form that the prompt or the model has.
        forms: the texts after the prompt as ``plain`` text and in ``chat`` form; empty where the
            tokenizer has no chat template. A prompt with a system message has no plain form.
        behind: after prompt and target, of a plain prompt of a causal model: of the unedited model
            it is the text that a perfect edit would leave; None where it was not asked for.
    """

    answer: Continuation
    forms: dict[str, str]
    behind: Continuation | None = None


def free_answers(lm: LM, cases: Sequence[Case]) -> list[Continuation]:
    """Greedy answers to the prompts of the cases' edits, in one batch, with entropies."""
    return continue_all(lm, [_question(lm, case.edit) for case in cases], entropies=True)


def answer_in_all_forms(
    lm: LM, cases: Sequence[Case], *, behind_target: bool = False
) -> list[Answers]:
    """:func:`free_answers` with those in the other form and, if asked, those behind the target.

    An edit made in one form may not hold in the other. All are written in one batch, as a step of
    generation costs about the same for several rows.
    """
    edits = [case.edit for case in cases]
    templates = bool(getattr(lm.tokenizer, "chat_template", None))
    queries: list[Generate] = []
    plans = []
    for edit in edits:
        chat = lm.text.chat_template if edit.prompt.chat is None else edit.prompt.chat
        plan = {"answer": _question(lm, edit)}
        if templates and not (chat and edit.prompt.system is not None):
            prompt = replace(edit.prompt, chat=not chat)
            plan["other"] = _question(lm, replace(edit, prompt=prompt))
        if behind_target and not chat and not lm.encoder_decoder:
            plan["behind"] = Generate(_with_target(edit), FREE_TOKENS)
        queries += plan.values()
        plans.append((chat, plan))
    written = iter(continue_all(lm, queries, entropies=True))
    result = []
    for chat, plan in plans:
        replies = {what: next(written) for what in plan}
        this, that = ("chat", "plain") if chat else ("plain", "chat")
        forms = {this: replies["answer"].text} if templates else {}
        if "other" in replies:
            forms[that] = replies["other"].text
        in_order = {form: forms[form] for form in sorted(forms, reverse=True)}
        result.append(Answers(replies["answer"], in_order, replies.get("behind")))
    return result


def _question(lm: LM, edit: Edit) -> Generate:
    target = lm.text.row(edit.prompt, edit.target).target
    return Generate(edit.prompt, max(FREE_TOKENS, len(target) + TOKENS_AFTER_TARGET))


def _with_target(edit: Edit) -> Prompt:
    """The prompt with the target behind it, joined as they are scored."""
    prompt = edit.prompt
    if prompt.raw:
        return prompt.with_text(prompt.text + edit.target)
    text = prompt.text.rstrip(BLANKS) or prompt.text
    return prompt.with_text(text + separator(prompt.text, edit.target) + edit.target)


def examine(
    lm: LM,
    edit: Edit,
    before: Continuation,
    after: Continuation,
    behind: Continuation | None = None,
) -> dict[str, Any]:
    """The ``free_answer`` of a metric dict, from the free answers before an edit and after.

    ``text``; ``holds``: 1 where the answer begins with the whole target and ends it; ``sound``: 1
    without ``faults``, which are phrases for a sentence. ``unedited_too``: 1 where the unedited
    model has the same faults ``behind`` the target, where a perfect edit would leave them.
    """
    faults = _faults(lm, edit, before, after)
    result = {
        "text": after.text,
        "holds": float(answer_holds(after.text, edit.target)),
        "sound": float(not faults),
        "faults": faults,
    }
    if faults and behind is not None:
        result["unedited_too"] = float(not _faults(lm, edit, behind, after))
    return result


def _faults(lm: LM, edit: Edit, usual: Continuation, after: Continuation) -> list[str]:
    """What is wrong with a text, beyond what is wrong with the ``usual`` one."""
    return [
        *_special_tokens(lm, edit, usual, after),
        *_repetition(lm, usual, after),
        *_collapse(lm, edit, usual, after),
    ]


def answered(half: Mapping[str, Any]) -> bool:
    """Whether the target is the whole answer in a ``pre`` or ``post`` dict.

    Every token is the argmax under teacher forcing, and in the free answer, where there is one,
    the target ends where it should.
    """
    holds = half.get("free_answer", {}).get("holds", 1.0)
    return bool(half["rewrite_acc"] == 1.0 and holds == 1.0)


def unsound(half: Mapping[str, Any]) -> str | None:
    """Why the free answer in a ``post`` dict is no longer text; None where it is."""
    answer = half.get("free_answer", {})
    if not answer.get("faults"):
        return None
    cause = ", as the unedited model does behind this answer" if answer.get("unedited_too") else ""
    return "; ".join(answer["faults"]) + cause


def answer_holds(text: str, target: str) -> bool:
    """Whether a text begins with the whole target and the target ends there.

    "788" does not hold 7, nor "Romeo" Rome; "Rome, Italy" holds Rome.
    """
    written = " ".join(unicodedata.normalize("NFC", text).split())
    wanted = " ".join(unicodedata.normalize("NFC", target).split())
    if not written.startswith(wanted):
        return False
    rest = written[len(wanted) :]
    if not rest or not wanted[-1].isalnum() or unspaced(wanted[-1]):
        return True
    number = wanted[-1].isdigit() and re.match(r"[.,]\d", rest) is not None
    return not (rest[0].isalnum() or number)


def answer_mentions(text: str, target: str) -> bool:
    """Whether the whole target stands anywhere in a text: a chat model answers in sentences.

    A target that begins with a small letter may begin with a capital there, as a sentence does;
    "polish" does not mention Polish.
    """
    written = " ".join(unicodedata.normalize("NFC", text).split())
    wanted = " ".join(unicodedata.normalize("NFC", target).split())
    capital = wanted[:1].upper() + wanted[1:]
    if capital != wanted and answer_mentions(written, capital):
        return True
    starts = (match.start() for match in re.finditer(re.escape(wanted), written))
    return any(
        answer_holds(written[start:], wanted)
        for start in starts
        if not start or not written[start - 1].isalnum() or unspaced(wanted[0])
    )


def _special_tokens(lm: LM, edit: Edit, before: Continuation, after: Continuation) -> list[str]:
    """Control tokens in the middle of the text, that are neither asked for nor written before."""
    named = set(lm.tokenizer.all_special_ids)
    added = getattr(lm.tokenizer, "added_tokens_decoder", {})
    named |= {i for i, token in added.items() if token.special or RESERVED.match(token.content)}
    wanted = set(lm.text.row(edit.prompt, edit.target).target) | set(before.ids) | lm.end_tokens
    strange = dict.fromkeys(token for token in after.ids if token in named - wanted)
    return [f"writes the token {lm.tokenizer.decode([token])!r}" for token in strange]


def _repetition(lm: LM, before: Continuation, after: Continuation) -> list[str]:
    unit, times = _period(after.ids)
    covered = unit * times
    if times < REPEATS or covered * 2 < len(after.ids) or covered < LONGEST_PERIOD:
        return []
    usual, usually = _period(before.ids)
    if usually >= REPEATS and usual * usually * 2 >= covered:
        return []  # the unedited model repeats itself as much
    text = lm.tokenizer.decode(after.ids[len(after.ids) - unit :])
    return [f"repeats {text.strip()!r} {times} times"]


def _period(ids: Sequence[int]) -> tuple[int, int]:
    """``(length, times)`` of the unit whose repetitions at the end cover the most tokens."""
    best = (0, 0)
    for unit in range(1, min(LONGEST_PERIOD, len(ids)) + 1):
        last = tuple(ids[len(ids) - unit :])
        starts = range(len(ids) - 2 * unit, -1, -unit)  # a slice from before 0 would be empty
        differing = (tuple(ids[start : start + unit]) != last for start in starts)
        times = 1 + next((i for i, differs in enumerate(differing) if differs), len(starts))
        if times > 1 and unit * times > best[0] * best[1]:
            best = (unit, times)
    return best


def _collapse(lm: LM, edit: Edit, before: Continuation, after: Continuation) -> list[str]:
    if any(math.isnan(entropy) for entropy in after.entropies):
        return ["has predictions that are not numbers"]
    target = len(lm.text.row(edit.prompt, edit.target).target)
    later, usual = after.entropies[target:], before.entropies
    if len(later) < TOKENS_AFTER_TARGET or not usual:
        return []
    mean, usually = sum(later) / len(later), sum(usual) / len(usual)
    if mean < COLLAPSED_NATS and mean < COLLAPSED_SHARE * usually:
        return [f"knows one continuation only (entropy {mean:.3f} nats, {usually:.2f} before)"]
    return []
