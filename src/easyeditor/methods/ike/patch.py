"""``ContextPatch``: an edit that is told to the model in front of every prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from easyeditor.edits import IMAGE, ImageRef, Prompt, as_prompt
from easyeditor.encoders.sentence_encoder import Sentences
from easyeditor.errors import ImageError, PatchMismatchError
from easyeditor.lm.image_features import image_vectors
from easyeditor.lm.model import LM
from easyeditor.lm.routing import Rerouted
from easyeditor.lm.stored_images import PREFIX, with_stored
from easyeditor.lm.unwrapping import public_name
from easyeditor.patches.patch import PatchInfo, merged_info
from easyeditor.patches.route import RoutePatch


def _seen(text: str, prompt: Prompt) -> str:
    """The text with a place for every image of the prompt, unless it has them already."""
    return text if IMAGE in text else IMAGE * len(prompt.images) + text


def _behind(front: Prompt, prompt: Prompt) -> Prompt | str:
    """The prompt behind what stands before it; both keep their images."""
    text = f"{front.text}Prompt: {_seen(prompt.text, prompt)}"
    images = (*front.images, *prompt.images)
    return Prompt(text, images) if images else text


@dataclass(frozen=True, slots=True)
class Context:
    """What is said in front of a prompt for one edit.

    Attributes:
        demonstrations: worked examples of how a new fact is to be read; may be empty.
        fact: the new fact itself.
        vector: of the fact, where a sentence encoder is used; empty otherwise.
        reach: of a fact about an image: the largest squared distance (0 to 4, see
            :func:`~easyeditor.lm.image_features.image_vectors`) of a prompt's image from the fact's
            at which it is told; None: it is told before every prompt.
    """

    demonstrations: str
    fact: str
    vector: tuple[float, ...] = ()
    reach: float | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ContextPatch(RoutePatch):
    """Facts in the context; no weight changes.

    One fact stands in front of every prompt, as the papers do it; the trap is that prompts which
    have nothing to do with it get it, too. Where a fact about an image has a ``reach``, prompts
    without an image and about images further off are answered as if there were no edit, to the
    last bit. Of several facts the nearest to the prompt is told, by
    the sentence encoder that the edit used, or, where it used none, all of them. Facts about the
    prompt's own images, if there are any, come before all others.

    Attributes:
        contexts: one per edit.
        info: see :class:`~easyeditor.patches.patch.PatchInfo`.
        sentences: the encoder, if the edit used one.
        extras: the bytes of the facts' images, by digest.
    """

    contexts: tuple[Context, ...]
    info: PatchInfo
    sentences: Sentences | None = None
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kind: ClassVar[str] = "context"

    @classmethod
    def merge(cls, patches: Sequence[ContextPatch], compact: bool = False) -> ContextPatch:
        """All the facts; of two about one prompt the later one stays.

        Only vectors of one encoder compare: facts of several, or of none, are all told.
        """
        latest: dict[Prompt, Context] = {}
        for patch in patches:
            for edit, context in zip(patch.info.edits, patch.contexts, strict=True):
                latest.pop(edit.prompt, None)
                latest[edit.prompt] = context
        info = merged_info(patches)
        by_prompt = {edit.prompt: edit for edit in info.edits}
        edits = tuple(by_prompt[prompt] for prompt in latest)
        names = {patch.sentences and patch.sentences.name for patch in patches}
        every = {name: value for patch in patches for name, value in patch.extras.items()}
        shown = {PREFIX + image.sha256 for edit in edits for image in edit.prompt.images}
        extras = {name: value for name, value in every.items() if name in shown}
        if len(names) == 1:
            sentences = patches[0].sentences
            return cls(tuple(latest.values()), info.with_edits(edits), sentences, extras)
        plain = tuple(replace(context, vector=()) for context in latest.values())
        return cls(plain, info.with_edits(edits), None, extras)

    def with_encoder(self, name: str) -> ContextPatch:
        """The same patch, with its sentence encoder named by the user.

        Raises:
            PatchMismatchError: the edits were made with another one, or with none.
        """
        made_with = None if self.sentences is None else self.sentences.name
        if made_with is None or made_with not in (name, public_name(name)):
            raise PatchMismatchError(
                f"This patch was made with the sentence encoder {made_with!r}, not {name!r}; "
                "vectors of two encoders do not compare."
            )
        return replace(self, sentences=Sentences(name))

    def apply(self, model: nn.Module, *, force: bool = False) -> None:
        """See :class:`~easyeditor.patches.patch.Patch`.

        Raises:
            PatchStateError: it needs a sentence encoder that only its file has named.
        """
        if len(self.contexts) > 1 and self.sentences is not None:
            self.sentences.check_trusted()
        super(ContextPatch, self).apply(model, force=force)

    def reroute(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[Rerouted | None]:
        """Every prompt with its context in front; None where no fact reaches it."""
        fronts = self._fronts(lm, prompts)
        return [
            None if front is None else Rerouted(_behind(front, as_prompt(prompt)))
            for front, prompt in zip(fronts, prompts, strict=True)
        ]

    def _fronts(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[Prompt | None]:
        every = range(len(self.contexts))
        if any(context.reach is not None for context in self.contexts):
            return self._fronts_within_reach(lm, prompts)
        if len(self.contexts) > 1 and self.sentences is not None:
            facts = torch.tensor([context.vector for context in self.contexts])
            scores = self.sentences.encode(prompts) @ facts.T
            pictures = [edit.prompt.images for edit in self.info.edits]
            for i, prompt in enumerate(prompts):
                others = [k for k in every if pictures[k] != as_prompt(prompt).images]
                if len(others) < len(self.contexts):
                    scores[i, others] = -torch.inf
            nearest = scores.argmax(1).tolist()
            return [self._front([i]) for i in nearest]
        return [self._front(every)] * len(prompts)

    def _fronts_within_reach(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[Prompt | None]:
        """What stands before each prompt, of the facts that reach it: the nearest, or all."""
        if not prompts:
            return []
        queries = [as_prompt(prompt).images for prompt in prompts]
        facts = image_vectors(lm, [edit.prompt.images for edit in self.info.edits])
        apart = torch.cdist(image_vectors(lm, queries), facts) ** 2
        reach = torch.tensor([math.inf if c.reach is None else c.reach for c in self.contexts])
        vectors = torch.tensor([context.vector for context in self.contexts])
        fronts: list[Prompt | None] = []
        for i, prompt in enumerate(prompts):
            inside = (apart[i] <= reach).nonzero()[:, 0].tolist()
            if len(inside) > 1 and self.sentences is not None:
                scores = (self.sentences.encode([prompt]) @ vectors[inside].T)[0]
                inside = [inside[int((scores - apart[i, inside]).argmax())]]
            fronts.append(self._front(inside) if inside else None)
        return fronts

    def _front(self, numbers: Sequence[int]) -> Prompt:
        """What stands before a prompt; the picture of a fact about one before its words."""
        text = self.contexts[numbers[-1]].demonstrations
        images: tuple[ImageRef, ...] = ()
        for i in numbers:
            text += f"New Fact: {_seen(self.contexts[i].fact, self.info.edits[i].prompt)}\n"
            images += self.info.edits[i].prompt.images
        return Prompt(text, images)

    def dump(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """See :class:`~easyeditor.patches.patch.Patch`."""
        texts = [
            [c.demonstrations, c.fact, *([] if c.reach is None else [c.reach])]
            for c in self.contexts
        ]
        vectors = torch.tensor([context.vector for context in self.contexts])
        name = self.sentences.name if self.sentences is not None else None
        return {"vectors": vectors}, {"contexts": texts, "encoder": name}

    @classmethod
    def load(
        cls,
        info: PatchInfo,
        tensors: Mapping[str, torch.Tensor],
        data: Mapping[str, Any],
        extras: Mapping[str, torch.Tensor],
    ) -> ContextPatch:
        """See :class:`~easyeditor.patches.patch.Patch`."""
        vectors = tensors["vectors"].tolist()
        contexts = tuple(
            Context(str(demonstrations), str(fact), tuple(vector), *map(float, reach))
            for (demonstrations, fact, *reach), vector in zip(
                data["contexts"], vectors, strict=True
            )
        )
        if not contexts or len(contexts) != len(info.edits):
            raise ValueError(f"{len(contexts)} contexts for {len(info.edits)} edits")
        name = data["encoder"]
        try:
            info = info.with_edits(with_stored(info.edits, extras))
        except ImageError as error:
            raise ValueError(str(error)) from None
        return cls(
            contexts, info, None if name is None else Sentences(str(name), trusted=False), extras
        )
