"""``ScopePatch``: edits in a memory, a classifier of what they concern, a model that answers there.

A prompt is compared with the prompt of every remembered edit, ``exp(−‖e(query) − e(edit)‖²)``.
Over the threshold, the counterfactual model is asked, with the nearest edit told before the
prompt; else the edited model answers as if there were no edit, equal to the last bit
(arXiv 2206.06520, section 3).

The memory and the classifier are the patch's own. The counterfactual model is as large as a model
and the same for all edits of one training, so a patch only says in which file it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from easyeditor.edits import Edit, Prompt
from easyeditor.encoders.text_encoder import TextEncoder
from easyeditor.errors import PatchMismatchError, PatchStateError, did_you_mean
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.model import LM
from easyeditor.lm.routing import Rerouted, tokenizer_of
from easyeditor.methods.serac.image_scope import of_one_width, stacked, with_images
from easyeditor.methods.serac.model_reference import ModelReference
from easyeditor.patches.patch import PatchInfo, merged_info
from easyeditor.patches.route import RoutePatch

TEMPLATE = "{prompt} {target} {query}"
"""What the counterfactual model is asked, as published."""
THRESHOLD = 0.5
IMAGE_WEIGHT = 1.0
"""The squared distance of two images counts as much as that of two texts."""
CLASSIFIER = "classifier."
"""Prefix of the classifier's tensors in a file."""


def distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Squared distances of ``(n, width)`` and ``(m, width)``, ``(n, m)``; exactly 0 for equals."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist") ** 2


def similarities(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``exp(−distance²)``, ``(n, m)``."""
    return torch.exp(-distances(one, other))


def told(template: str, edit: Edit | Remembered, query: Prompt | str) -> str:
    """What the counterfactual model is asked; braces in the texts are left alone."""
    parts = {"{prompt}": str(edit.prompt), "{target}": edit.target.strip(), "{query}": str(query)}
    text, rest = "", template
    while rest:
        at, name = min(((rest.find(n), n) for n in parts if n in rest), default=(len(rest), ""))
        text += rest[:at] + parts.get(name, "")
        rest = rest[at + len(name) :]
    return text


@dataclass(frozen=True, slots=True)
class Remembered:
    """One edit of a memory.

    Attributes:
        id: follows from the two texts, so it is the same wherever the edit is.
        prompt: what queries are compared with.
        target: the answer.
        images: digests of the images that the prompt is about.
    """

    id: str
    prompt: str
    target: str
    images: str = ""

    @classmethod
    def of(cls, edit: Edit) -> Remembered:
        """The memory's line for an edit."""
        images = " ".join(image.sha256 for image in edit.prompt.images)
        text = f"{edit.prompt.text.strip()}\0{edit.target.strip()}{images and chr(0) + images}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return cls(digest, edit.prompt.text, edit.target, images)


class Scope:
    """What all edits of one training share: who decides, who answers, and how it is asked.

    Attributes:
        classifier: texts to the vectors that are compared.
        answers: the file of the counterfactual model.
        template: see :data:`TEMPLATE`.
        threshold: similarity over which a prompt is an edit's business.
        image_weight: what the squared distance of two images' features counts beside the texts'.
    """

    def __init__(
        self,
        classifier: TextEncoder,
        answers: ModelReference,
        template: str = TEMPLATE,
        threshold: float = THRESHOLD,
        image_weight: float = IMAGE_WEIGHT,
    ) -> None:
        self.classifier, self.answers = classifier, answers
        self.template, self.threshold = template, threshold
        self.image_weight = image_weight

    @torch.inference_mode()
    def vectors(self, prompts: Sequence[Prompt | str], lm: LM) -> torch.Tensor:
        """Of stripped texts and their images, ``(prompts, width)`` float32, on the CPU."""
        texts = [str(prompt).strip() for prompt in prompts]
        result: torch.Tensor = self.classifier.to(lm.device)(texts)
        return with_images(result.cpu(), lm, prompts, self.image_weight)

    def differences(self, other: Scope) -> str:
        """Why edits of ``other`` cannot share one memory with those of this, or an empty string."""
        if self is other:
            return ""
        parts = {
            "counterfactual models": (self.answers.digest, other.answers.digest),
            "classifiers": tuple(_digest(s.classifier) for s in (self, other)),
            "templates": (self.template, other.template),
            "thresholds": (self.threshold, other.threshold),
            "weights of images": (self.image_weight, other.image_weight),
        }
        return " and ".join(f"other {name}" for name, (a, b) in parts.items() if a != b)


class ScopePatch(RoutePatch):
    """A memory of edits; prompts in the scope of one are answered from it.

    Attributes:
        memory: the edits, oldest first; of two with one prompt the later counts.
        vectors: the classifier's, of their prompts, ``(edits, width)``.
        scope: what they share.
    """

    __slots__ = ("_counting", "extras", "info", "memory", "scope", "vectors")
    kind: ClassVar[str] = "scope"

    def __init__(
        self,
        info: PatchInfo,
        memory: Sequence[Remembered],
        vectors: torch.Tensor,
        scope: Scope,
        extras: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.info, self.scope, self.extras = info, scope, dict(extras or {})
        last = {edit.id: i for i, edit in enumerate(memory)}  # the same edit again is one edit
        stored = sorted(last.values())
        self.memory = tuple(memory[i] for i in stored)
        self.vectors = vectors[stored]
        newest = {(edit.prompt.strip(), edit.images): i for i, edit in enumerate(self.memory)}
        self._counting = sorted(newest.values())

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the remembered edits, oldest first."""
        return tuple(edit.id for edit in self.memory)

    def without(self, id: str) -> ScopePatch:
        """The same memory with one edit forgotten; what it had replaced counts again.

        Raises:
            PatchStateError: no such edit is remembered.
        """
        if id not in self.ids:
            raise PatchStateError(
                f"No edit {id!r} is remembered.{did_you_mean(id, self.ids)} The memory holds: "
                f"{', '.join(self.ids) or 'none'}."
            )
        stored = [i for i, edit in enumerate(self.memory) if edit.id != id]
        edits = tuple(edit for edit in self.info.edits if Remembered.of(edit).id != id)
        memory = [self.memory[i] for i in stored]
        return ScopePatch(replace(self.info, edits=edits), memory, self.vectors[stored], self.scope)

    @classmethod
    def merge(cls, patches: Sequence[ScopePatch], compact: bool = False) -> ScopePatch:
        """One memory of all; see :class:`~easyeditor.patches.patch.Patch`.

        Raises:
            PatchMismatchError: they come from different trainings.
        """
        scope = patches[0].scope
        why = next((w for p in patches if (w := scope.differences(p.scope))), "")
        if why:
            raise PatchMismatchError(
                f"These edits cannot share one memory: they were made with {why}. Make them with "
                "one archive, or undo those that are applied."
            )
        memory = [edit for patch in patches for edit in patch.memory]
        return cls(merged_info(patches), memory, stacked([p.vectors for p in patches]), scope)

    def apply(self, model: nn.Module, *, force: bool = False) -> None:
        """See :class:`~easyeditor.patches.patch.Patch`; the counterfactual model must be in place.

        Raises:
            PatchFormatError: its file is gone or unreadable.
            PatchMismatchError: the file is another, or the model has another tokenizer.
        """
        self.scope.answers.check()
        tokenizer = tokenizer_of(model)
        if tokenizer is not None:
            self.scope.answers.check_tokenizer(tokenizer)
        super().apply(model, force=force)

    def scores(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[tuple[str, float]]:
        """Per prompt the nearest edit's id and how similar it is, 0 to 1.

        Raises:
            PatchStateError: nothing is remembered.
        """
        if not self._counting:
            raise PatchStateError("The memory is empty; there is nothing to compare with.")
        return [(self.memory[i].id, value) for i, value in self._nearest(lm, prompts)]

    def reroute(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[Rerouted | None]:
        """The counterfactual model with the nearest edit, for prompts in its scope."""
        if not self._counting or not prompts:
            return [None] * len(prompts)
        result: list[Rerouted | None] = []
        for prompt, (i, similarity) in zip(prompts, self._nearest(lm, prompts), strict=True):
            if similarity <= self.scope.threshold:
                result.append(None)
                continue
            text = told(self.scope.template, self.memory[i], prompt)
            result.append(Rerouted(text, self.scope.answers.beside(lm)))
        return result

    def _nearest(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[tuple[int, float]]:
        queries = self.scope.vectors(prompts, lm)
        best = similarities(*of_one_width(queries, self.vectors[self._counting])).max(1)
        indices = [self._counting[i] for i in best.indices.tolist()]
        return list(zip(indices, best.values.tolist(), strict=True))

    def dump(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Memory and classifier; of the counterfactual model only where it is."""
        tensors = {
            f"{CLASSIFIER}{name}": tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.scope.classifier.state_dict().items()
        }
        data = {
            "memory": [_line(edit) for edit in self.memory],
            "classifier": self.scope.classifier.description,
            "answers": self.scope.answers.to_dict(),
            "template": self.scope.template,
            "threshold": self.scope.threshold,
            "image_weight": self.scope.image_weight,
        }
        return {"memory": self.vectors.contiguous().clone(), **tensors}, data

    def edit_rows(self) -> list[dict[str, Any]]:
        """The id of every edit, by which it can be forgotten."""
        known = set(self.ids)
        ids = [Remembered.of(edit).id for edit in self.info.edits]
        return [{"id": id if id in known else None} for id in ids]

    @classmethod
    def load(
        cls,
        info: PatchInfo,
        tensors: Mapping[str, torch.Tensor],
        data: Mapping[str, Any],
        extras: Mapping[str, torch.Tensor],
    ) -> ScopePatch:
        """The patch that :meth:`dump` wrote; the counterfactual model is not read yet."""
        weights = {
            name.removeprefix(CLASSIFIER): tensor
            for name, tensor in tensors.items()
            if name.startswith(CLASSIFIER)
        }
        classifier = TextEncoder.built(data["classifier"], weights)
        try:
            classifier.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"its classifier does not fit its description: {error}") from None
        memory = [Remembered(*map(str, line)) for line in data["memory"]]
        rows, width = tensors["memory"].shape
        if rows != len(memory) or width < classifier.width:
            raise ValueError(f"{len(memory)} edits, vectors {tuple(tensors['memory'].shape)}")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("a number is not finite")
        answers = ModelReference.from_dict(data["answers"])
        weight = float(data.get("image_weight", IMAGE_WEIGHT))
        scope = Scope(classifier, answers, data["template"], float(data["threshold"]), weight)
        return cls(info, memory, tensors["memory"], scope, extras)


def _line(edit: Remembered) -> list[str]:
    parts = [edit.id, edit.prompt, edit.target]
    return [*parts, edit.images] if edit.images else parts


def _digest(network: nn.Module) -> str:
    return fingerprint(network).digest
