"""The subjects of edits: their keys, which edits share one, and what is known about it already."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import normalize

from easyeditor.associative.unrelated import unrelated_inputs, unrelated_rows
from easyeditor.edits import IMAGE, Edit
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.model import LM
from easyeditor.methods.gated_rome.codebook import SubjectCodebook
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.stack import applied_patches
from easyeditor.subjects import folded

SAME_SUBJECT = 0.98  # cosine from which two keys are of one subject
HIGHEST = 0.999  # of a threshold
N_UNRELATED_PROMPTS = 300  # by which thresholds are raised


@dataclass(slots=True)
class Draft:
    """An edit before its vector is known.

    Attributes:
        edit: with its subject.
        keys: ``(m, d_in)``, of its subject.
        thresholds: ``(m,)``, of the keys.
        subject: the number of its subject.
        prompts: the numbers of the prompts it is made with, its own first.
    """

    edit: Edit
    keys: torch.Tensor
    thresholds: torch.Tensor
    subject: int
    prompts: list[int]

    def codebook(self, delta: torch.Tensor) -> SubjectCodebook:
        """The codebook of this edit with the vector ``delta`` ``(d_out,)``."""
        return SubjectCodebook(
            self.keys,
            self.thresholds,
            torch.zeros(len(self.keys), dtype=torch.long),
            delta[None],
            torch.tensor([self.subject]),
            torch.tensor(self.prompts),
            torch.zeros(len(self.prompts), dtype=torch.long),
        )


@dataclass(frozen=True, slots=True)
class Task:
    """What is searched: an edit, and the earlier edits of its subject that shall hold."""

    draft: Draft
    held: list[Edit]

    @property
    def with_held(self) -> Edit:
        """The edit, with the held ones as expansions."""
        edit = self.draft.edit
        return replace(edit, expansions=(*edit.expansions, *self.held), keep=())


class Unrelated:
    """What the layer reads in texts that no edit is about, on the unedited model."""

    def __init__(self, lm: LM, path: str, seed: int) -> None:
        rows = unrelated_rows(lm, N_UNRELATED_PROMPTS, seed)
        self._texts = [folded(lm.tokenizer.decode(row.ids)) for row in rows]
        self._inputs = unrelated_inputs(lm, path, N_UNRELATED_PROMPTS, seed)

    def inputs(self, edit: Edit) -> torch.Tensor:
        """``(tokens, d_in)``, of the texts that do not name the edit's subjects."""
        names = [folded(str(row.subject).strip()) for row in edit.rows]
        pairs = zip(self._texts, self._inputs, strict=True)
        return torch.cat(
            [read for text, read in pairs if not any(name in text for name in names)]
            or [self._inputs[0][:0]]
        ).cpu()


class Known:
    """The codebooks that a model carries at a layer, and those made since."""

    def __init__(self, lm: LM, site: Site) -> None:
        self._lm = lm
        self._books: list[tuple[SubjectCodebook, Sequence[Edit]]] = []
        self._places: dict[int, list[tuple[int, int, int]]] = {}  # book, entry, its own prompt
        self._owner: dict[int, tuple[int, int]] = {}
        self._keys: list[torch.Tensor] = []
        self._subjects: list[int] = []
        for patch in applied_patches(lm.model):
            for codebook in codebooks_in(patch, site):
                self.add(codebook, patch.info.edits)

    def add(self, codebook: SubjectCodebook, edits: Sequence[Edit]) -> None:
        """One more, with the edits of its patch."""
        number = len(self._books)
        self._books.append((codebook, edits))
        owners = codebook.get_buffer("owners").tolist()
        first: dict[int, int] = {}
        for owner, prompt in zip(owners, codebook.get_buffer("prompts").tolist(), strict=True):
            self._owner[prompt] = number, owner
            first.setdefault(owner, prompt)
        for entry, subject in enumerate(codebook.get_buffer("subjects").tolist()):
            self._places.setdefault(subject, []).append((number, entry, first[entry]))
        entries, keys = codebook.get_buffer("entries"), codebook.get_buffer("keys")
        self._keys.append(keys.cpu())
        self._subjects += codebook.get_buffer("subjects")[entries].tolist()

    def subject_of(self, draft: Draft) -> int:
        """The number of the draft's subject: that of a subject with the same key, if there is one.

        "The Eiffel Tower" and "Eiffel Tower" end in one token and are one subject.
        """
        if draft.subject not in self._subjects and self._keys:
            best, key = (torch.cat(self._keys) @ draft.keys[0]).max(0)
            if float(best) >= SAME_SUBJECT:
                draft.subject = self._subjects[int(key)]
        self._keys.append(draft.keys)  # for the next draft of the same call
        self._subjects += [draft.subject] * len(draft.keys)
        return draft.subject

    def task(self, draft: Draft) -> Task:
        """The draft, with the edits of its subject whose prompts it is not made with."""
        held = []
        for number, _, prompt in self._in_force(draft):
            for edit in self._books[number][1]:
                if edit.subject is not None and prompt_number(self._lm, edit) == prompt:
                    held.append(Edit(edit.prompt, edit.target, edit.subject))
                    break
        return Task(draft, held)

    def beside(self, tasks: Sequence[Task]) -> SubjectCodebook | None:
        """The entries of the tasks' subjects that stay when these are made."""
        chosen: dict[int, set[int]] = {}
        for task in tasks:
            for number, entry, _ in self._in_force(task.draft):
                chosen.setdefault(number, set()).add(entry)
        parts = [self._books[n][0].part(sorted(some)) for n, some in sorted(chosen.items())]
        return SubjectCodebook.merge(parts) if parts else None

    def _in_force(self, draft: Draft) -> list[tuple[int, int, int]]:
        """The places of the entries of the draft's subject that it does not replace."""
        return [
            (number, entry, prompt)
            for number, entry, prompt in self._places.get(draft.subject, ())
            if prompt not in draft.prompts and self._owner[prompt] == (number, entry)
        ]


def codebooks_in(patch: Any, site: Site) -> list[SubjectCodebook]:
    """The codebooks that a patch puts at a layer."""
    adapters = patch.adapters.get(str(site.path), ()) if isinstance(patch, ModulePatch) else ()
    return [adapter for adapter in adapters if isinstance(adapter, SubjectCodebook)]


def keys_and_thresholds(
    behind_prefixes: torch.Tensor, others: torch.Tensor, contrast: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys of a subject, ``(m, d_in)`` of length one, and the least cosine of each.

    The first is the mean direction of those read behind prefixes; each of them, and of the
    ``others`` (of expansions), that is not near to one before it is one more. A threshold is at
    least half-way between 1 and the nearest of ``contrast``, which are no keys of the subject.
    """
    units = normalize(torch.cat([behind_prefixes, others]).float(), dim=1)
    result = [normalize(units[: len(behind_prefixes)].mean(0), dim=0)]
    near = (1 + threshold) / 2
    for unit in units:
        if max(float(unit @ other) for other in result) < near:
            result.append(unit)
    keys = torch.stack(result)
    thresholds = torch.full((len(keys),), threshold)
    if len(contrast):
        nearest = (keys @ normalize(contrast.float(), dim=1).T).amax(1)
        thresholds = thresholds.maximum(((1 + nearest) / 2).clamp(max=HIGHEST))
    return keys, thresholds


def one_per_subject(subjects: Sequence[int]) -> list[list[int]]:
    """The places of edits in rounds: in each at most one edit of a subject, in their order."""
    rounds: list[list[int]] = []
    seen: Counter[int] = Counter()
    for i, number in enumerate(subjects):
        if seen[number] == len(rounds):
            rounds.append([])
        rounds[seen[number]].append(i)
        seen[number] += 1
    return rounds


def subject_number(edit: Edit) -> int:
    """Equal for subjects that a prompt may write for one another; of an image for one file."""
    assert edit.subject is not None
    if edit.subject == IMAGE and edit.prompt.images:
        return _number([IMAGE, edit.prompt.images[-1].sha256])
    return _number([folded(edit.subject.strip())])


def prompt_number(lm: LM, edit: Edit) -> int:
    """Equal for prompts that are the same tokens and images."""
    images = [image.sha256 for image in edit.prompt.images]
    return _number([list(lm.text.row(edit.prompt).ids), images])


def _number(data: list[Any]) -> int:
    digest = hashlib.sha256(json.dumps(data).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
