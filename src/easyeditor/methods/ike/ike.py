"""IKE: in-context knowledge editing (Zheng et al., arXiv 2305.12740).

No weight changes. The new fact stands in front of every prompt, and before it ``k`` demonstrations
from a training set of other edits show how a new fact is to be read. A demonstration is one of::

    copy     New Fact: {prompt} {target}    Prompt: {prompt} {target}
    update   New Fact: {prompt} {target}    Prompt: {rephrase} {target}
    retain   New Fact: {prompt} {target}    Prompt: {unrelated prompt} {its own answer}

in the paper's shares 1 : 3 : 4, made of the training facts whose sentence embeddings are nearest to
the new fact's, the nearest last. Without a training set the fact stands alone (ICE, in-context
editing).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any, ClassVar

from pydantic import Field

from easyeditor.data.open import open_dataset
from easyeditor.edits import Case, Edit, check_consistent
from easyeditor.encoders.sentence_encoder import Sentences
from easyeditor.errors import DataError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.model import LM
from easyeditor.lm.stored_images import stored_images
from easyeditor.methods.base import Method, Need, Outcome, State
from easyeditor.methods.ike.patch import Context, ContextPatch
from easyeditor.patches.patch import PatchInfo
from easyeditor.timing import Stopwatch

log = logging.getLogger(__name__)

KINDS = ("retain", "update", "retain", "update", "retain", "update", "retain", "copy")
"""From the nearest on: the paper's 4 : 3 : 1."""
ROOM = 160
"""Tokens left for the new fact, the question and its answer."""


class IKEHyperParams(HyperParams):
    """Settings of IKE; ``corpus`` is a file of edits, of any kind that ``open_dataset`` reads.

    ``use_icl_examples=False`` is ICE: the fact alone, no corpus and no sentence encoder.
    ``image_reach`` is not in the paper: a fact about an image is told only before prompts whose
    image is so near (squared distance of what the model's own tower makes of them, 0 to 4); None
    tells it before every prompt.
    """

    ignored: ClassVar[frozenset[str]] = frozenset({"results_dir", "layers"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {"k": 16},  # more does not fit its 1024 tokens
        "gpt-j-6B": {},
        "gpt-neo-2.7B": {},
        "llama-7b": {},
        "llama-2-7b": {},
        "t5-3b": {"k": 8},  # trained on 512 tokens
        "smollm2-135m": {},
    }

    alg_name: str = "IKE"
    sentence_model_name: str = "all-MiniLM-L6-v2"
    k: int = Field(32, ge=1)
    use_icl_examples: bool = True
    corpus: str | None = None
    image_reach: float | None = Field(None, ge=0, le=4)


class IKE(Method[State]):
    """Any number of facts, told in the context. Needs no subject.

    A training set comes as ``hparams.corpus``, or by :meth:`use_corpus` (``train_ds`` of
    ``editor.edit``).
    """

    name = "IKE"
    title = "in-context knowledge editing, arXiv 2305.12740"
    hyperparams_class = IKEHyperParams
    needs = frozenset({Need.DEMONSTRATIONS})

    hyperparams: IKEHyperParams

    def __init__(self, hyperparams: IKEHyperParams) -> None:
        super().__init__(hyperparams)
        self._sentences = Sentences(hyperparams.sentence_model_name)
        self._corpus: list[Case] | None = None

    def initial_state(self, lm: LM) -> None:
        """Read and encode the corpus, once; edits have no state.

        Raises:
            DataError: the corpus cannot be read, or holds nothing.
        """
        if self._corpus is None and self.hyperparams.corpus and self.hyperparams.use_icl_examples:
            self.use_corpus(open_dataset(self.hyperparams.corpus))
        if self._corpus:
            self._sentences.encode_once([_said(case.edit) for case in self._corpus])

    def use_corpus(self, cases: Iterable[Case]) -> None:
        """Take demonstrations from these edits.

        Raises:
            DataError: there are none, or one cannot be read.
        """
        corpus = list(cases)
        if not corpus:
            raise DataError("The corpus for demonstrations holds no edits.")
        self._corpus = corpus

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """The context of every edit; the model is not run.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            DataError: the corpus cannot be read.
            ImageError: an edit's image cannot be read.
            MissingExtraError: sentence-transformers is not installed, and there is a corpus.
        """
        check_consistent(edits)
        watch = Stopwatch()
        with watch("corpus"):
            self.initial_state(lm)
        with watch("retrieve"):
            if self._corpus and self.hyperparams.use_icl_examples:
                contexts, sentences = self._shown(lm, edits), self._sentences
            else:
                if self.hyperparams.use_icl_examples:
                    log.warning("no corpus was given, so the fact is told without demonstrations")
                contexts, sentences = [Context("", _said(edit)) for edit in edits], None
        reach = self.hyperparams.image_reach
        contexts = [
            replace(context, reach=reach) if edit.prompt.images else context
            for context, edit in zip(contexts, edits, strict=True)
        ]
        images = stored_images(edit.prompt for edit in edits)
        info = PatchInfo.of(lm, self.name, edits, self.hyperparams, watch.seconds)
        return Outcome(ContextPatch(tuple(contexts), info, sentences, images))

    def _shown(self, lm: LM, edits: Sequence[Edit]) -> list[Context]:
        """Every edit with its demonstrations."""
        corpus = self._corpus or []
        known = self._sentences.encode_once([_said(case.edit) for case in corpus])
        facts = self._sentences.encode([_said(edit) for edit in edits])
        contexts = []
        for edit, vector in zip(edits, facts, strict=True):
            order = (known @ vector).argsort(descending=True).tolist()
            # A fact is no example of itself: the corpus may hold what is edited.
            near = [corpus[i] for i in order if corpus[i].edit.prompt != edit.prompt]
            chosen = near[: self.hyperparams.k]
            shown = [_example(case, kind) for case, kind in zip(chosen, cycle(KINDS), strict=False)]
            if lm.images is not None:  # examples are told in words alone
                shown = [lm.images.without_places(example) for example in shown]
            text = "".join(reversed(_that_fit(lm, shown)))
            contexts.append(Context(text, _said(edit), tuple(vector.tolist())))
        return contexts


def _said(edit: Edit) -> str:
    return f"{edit.prompt} {edit.target.strip()}"


def _example(case: Case, kind: str) -> str:
    """One demonstration; a case that lacks the probe for its kind shows the next simpler one."""
    prompt, answer = case.edit.prompt, case.edit.target
    groups = {"update": ("rephrase",), "retain": ("locality", "rephrase")}.get(kind, ())
    for group in groups:
        probe = next((probe for probe in case.probes if probe.group == group), None)
        if probe is not None:
            prompt, answer = probe.prompt, probe.answers[0]
            break
    return f"New Fact: {_said(case.edit)}\nPrompt: {prompt} {answer.strip()}\n\n"


def _that_fit(lm: LM, shown: Sequence[str]) -> list[str]:
    """As many, nearest first, as the model's positions hold."""
    longest = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(longest, int):
        return list(shown)
    left, stored = longest - ROOM, list[str]()
    for text in shown:
        left -= len(lm.text.plain(text))
        if left < 0:
            log.info("%d of %d demonstrations fit into the model", len(stored), len(shown))
            break
        stored.append(text)
    return stored
