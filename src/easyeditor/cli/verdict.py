"""Whether edits took, and why not: the sentences and the exit code of ``edit`` and ``demo``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from easyeditor.cli import output
from easyeditor.cli.output import shortened

CONTINUATION_KL_FACTOR = 0.5
"""What is advised where the text is wrecked; chosen by benchmarks/continuation_kl.py."""
OTHER_WORDS = " Word the prompt in another way, give a longer target, or edit another layer."
"""What is advised where the unedited model writes such text behind the target, too."""

if TYPE_CHECKING:
    from easyeditor.edits import Case
    from easyeditor.hyperparams import HyperParams


ALL_AT_ONCE = "without --one-by-one"


def warn_repeated_subjects(cases: Sequence[Case], how: str = ALL_AT_ONCE) -> None:
    """Warn of several facts about one subject that are edited one after the other.

    ``how`` are the options by which a method that takes several makes them together.
    """
    from easyeditor.editors.advice import repeated_subjects

    later = repeated_subjects(cases)
    if later:
        numbers = sorted({*later, *later.values()})
        names = dict.fromkeys(repr(cases[i].edit.subject) for i in numbers)
        output.warn(
            f"{len(numbers)} edits are about the same subject "
            f"({shortened(', '.join(names), 80)}); made one after the other, a later "
            f"one may overwrite an earlier one. {_together(how)}"
        )


def _together(how: str = ALL_AT_ONCE) -> str:
    from easyeditor.editors.advice import solving_together

    return f"Made together they hold: {', '.join(solving_together())}, {how}."


def took(metric: Mapping[str, Any]) -> bool:
    """Whether the target is the whole answer after the edit."""
    from easyeditor.evaluate.degeneration import answered

    return answered(metric["post"])


def failures(
    cases: Sequence[Case],
    metrics: Sequence[Mapping[str, Any]],
    batch: bool,
    settings: HyperParams | None = None,
    chat: bool = False,
) -> list[str]:
    """A sentence for each edit that did not take, or took and left the text wrecked.

    ``settings``, of the method, say what may help where the text is wrecked. With ``chat`` an edit
    that does not hold in chat form did not take.
    """
    from easyeditor.editors.advice import repeated_subjects
    from easyeditor.evaluate.degeneration import answer_mentions

    sentences, advice = [], _keeping_text(settings)
    repeated = repeated_subjects(cases)
    for i, (case, metric) in enumerate(zip(cases, metrics, strict=True)):
        what = f"{shortened(str(case.edit.prompt), 60)!r} → {shortened(case.edit.target, 40)!r}"
        if not took(metric):
            later = None if batch else repeated.get(i)
            accuracy = metric["post"]["rewrite_acc"]
            why = f" ({accuracy:.0%} of its tokens)"
            if accuracy == 1.0:
                text = metric["post"]["free_answer"]["text"].strip()
                why = f" (the answer goes on beyond it: {shortened(text, 40)!r})"
            if later is not None:
                why = f": overwritten by edit {later + 1}, about the same subject. {_together()}"
            sentences.append(f"Edit {i + 1} did not take{why}: {what}.")
        elif chat and not answer_mentions(in_chat := _in_chat(metric), case.edit.target):
            sentences.append(
                f"Edit {i + 1} does not hold in the chat, where the model answers "
                f"{shortened(in_chat, 40)!r}: {what}."
            )
        elif (reason := wrecked(metric["post"])) is not None:
            unedited_too = metric["post"]["free_answer"].get("unedited_too")
            sentences.append(
                f"Edit {i + 1} took, but the text is wrecked ({reason}): {what}."
                f"{OTHER_WORDS if unedited_too else advice}"
            )
    return sentences


def _in_chat(metric: Mapping[str, Any]) -> str:
    """The free answer to the edited prompt in chat form."""
    forms: Mapping[str, str] = metric["post"]["free_answer"].get("forms", {})
    return forms.get("chat", "").strip()


def _keeping_text(settings: HyperParams | None) -> str:
    if settings is None or dict(settings).get("continuation_kl_factor") != 0:
        return ""
    return (
        f" --set continuation_kl_factor={CONTINUATION_KL_FACTOR} keeps what follows the target "
        "closer to the unedited model's text."
    )


def wrecked(post: Mapping[str, Any]) -> str | None:
    """Why the free answer after the edit is no text any more; None where it is."""
    from easyeditor.evaluate.degeneration import unsound

    return unsound(post)
