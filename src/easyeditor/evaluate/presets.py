"""Evaluation presets: what is asked of every case, by a name.

``classic`` scores given answers token by token (teacher forcing). ``wild`` lets the model write, as
a user would see it: the bare question, and question and sentence in chat form, greedily, until the
model ends the text itself (Yang et al., arXiv 2502.11177). ``long`` compares whole texts with
targets that are paragraphs. A preset adds probes and changes no
other number. A new one is a class and one line of :data:`PRESETS`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import ClassVar

from easyeditor.edits import Case
from easyeditor.errors import MissingExtraError, UnknownPresetError
from easyeditor.evaluate.probes import ASKED, with_asked
from easyeditor.evaluate.replies import EvalOptions
from easyeditor.lm import embedded
from easyeditor.lm.model import LM
from easyeditor.registry import Registry

log = logging.getLogger(__name__)

ANSWER_TOKENS = 64
"""Tokens at most of an answer that shall end by itself."""
TEXT_TOKENS = 256
"""Tokens at most of an answer that is a text; the papers write 512."""


class Preset(ABC):
    """What is asked of every case.

    Attributes:
        summary: one line for lists and help texts.
    """

    summary: ClassVar[str]

    def options(self, options: EvalOptions) -> EvalOptions:
        """What is asked beside the scores, on top of what the user asks for."""
        return options

    @abstractmethod
    def cases(self, lm: LM, cases: Sequence[Case]) -> list[Case]:
        """The cases with the probes of this preset; the edits stay as they are."""


class Classic(Preset):
    """The cases as they are."""

    summary = "given answers scored token by token (teacher forcing)"

    def cases(self, lm: LM, cases: Sequence[Case]) -> list[Case]:
        """See the class."""
        return list(cases)


class Wild(Preset):
    """Also the questions of :func:`~easyeditor.evaluate.probes.with_asked`."""

    summary = "also free answers to the bare question and in chat form, to their natural end"

    def options(self, options: EvalOptions) -> EvalOptions:
        """Answers of at most :data:`ANSWER_TOKENS` tokens, unless the options have a limit."""
        return replace(options, asked_tokens=options.asked_tokens or ANSWER_TOKENS)

    def cases(self, lm: LM, cases: Sequence[Case]) -> list[Case]:
        """See the class; a warning where no question can be asked of a case."""
        result = [with_asked(lm, case) for case in cases]
        without = [c.id for c in result if not any(p.group == ASKED for p in c.probes)]
        if without:
            log.warning(
                "No question could be made for %d of %d cases (%s): the edit is made with it, or "
                "its prompt is raw.",
                len(without),
                len(result),
                ", ".join(without[:5]),
            )
        return result


class LongText(Preset):
    """Also the whole text that the model writes, against the target (arXiv 2405.15349)."""

    summary = "also whole texts: exact beginning, ROUGE-L, questions about their facts, cosine"

    def options(self, options: EvalOptions) -> EvalOptions:
        """Texts of at most :data:`TEXT_TOKENS` tokens, unless the options have a limit.

        The cosine needs sentence-transformers, and is left out without it.
        """
        encoder = options.text_encoder
        if not encoder and find_spec("sentence_transformers") is None:
            missing = MissingExtraError.of(
                "sentence-transformers", "retrieval", "The cosine of sentence embeddings"
            )
            log.warning("The cosine is left out. %s", missing)
        elif not encoder:
            encoder = embedded.ENCODER
        limit = options.text_tokens or TEXT_TOKENS
        return replace(options, text_tokens=limit, text_encoder=encoder)

    def cases(self, lm: LM, cases: Sequence[Case]) -> list[Case]:
        """The cases as they are."""
        return list(cases)


PRESETS: Registry[type[Preset]] = Registry(
    "evaluation preset",
    UnknownPresetError,
    {
        "classic": "easyeditor.evaluate.presets:Classic",
        "wild": "easyeditor.evaluate.presets:Wild",
        "long": "easyeditor.evaluate.presets:LongText",
    },
    group="easyeditor.presets",
)


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UnknownPresetError: there is none.
    """
    return PRESETS.get(name)()
