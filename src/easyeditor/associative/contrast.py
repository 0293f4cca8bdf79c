"""Keys an edit must leave alone: of prompts it keeps, and where its subject is the first token.

The keys of the prompts that an edit keeps (:attr:`Edit.keep`) join the solve with a residual of
zero, as earlier edits do.

Where the subject is the prompt's first token, the fact is read one token later
(:func:`~easyeditor.associative.keys.fact_at`), at a token such as " is", whose key carries the
subject only as one component of many. Solved for alone, the edit would also fire after other
subjects. So the prompts that begin with the tokens nearest to the subject in the input embedding
join the solve in the same way, and so do the other tokens of the prompt itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.associative.keys import fact_at, subject_of, subject_rows
from easyeditor.edits import Edit, Prompt, kept_prompts
from easyeditor.errors import SubjectNotFoundError
from easyeditor.lm.image_tokens import ImageToken, through_unit
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.subjects import locate_subject

MAX_TOKENS_PER_EDIT = 32
"""The one number that was measured (docs/layers.md)."""
MAX_CONTRAST_KEYS = 1024
"""Keys in one solve, which is cubic in their number."""
EMBEDDINGS_PER_PRODUCT = 8192
"""Embeddings turned into float32 at once."""


def read_after_subject(lm: LM, edit: Edit) -> bool:
    """Whether the edit's subject is its bare prompt's first token, and the fact is read later."""
    row = lm.text.row(edit.prompt, subject=subject_of(edit))
    return not lm.encoder_decoder and row.subject_last == 0 and fact_at(lm, row) > 0


def contrast_rows(lm: LM, edits: Sequence[Edit]) -> list[Row]:
    """Rows whose keys get a residual of zero; none if no subject is its prompt's first token.

    Two kinds, each with its last token as ``subject_last``:

    - the beginning of an edit's prompt up to the token the fact is read at, with another first
      token; beginnings that an edit itself has are left out;
    - the other tokens of the edit's bare prompt: the search added δ at one token, and a change that
      is large because its key has little energy would also act at those that follow.
    """
    opening = [edit for edit in edits if read_after_subject(lm, edit)]
    beginnings = [subject_rows(lm, edit, [""])[0].ids for edit in opening]
    if not beginnings:
        return []
    count = max(1, min(MAX_TOKENS_PER_EDIT, MAX_CONTRAST_KEYS // len(beginnings)))
    nearest = {first: nearest_tokens(lm, first, count) for first in {ids[0] for ids in beginnings}}
    edited = set(beginnings)
    contrasts = dict.fromkeys((token, *ids[1:]) for ids in beginnings for token in nearest[ids[0]])
    rows = [Row(ids, (), len(ids) - 1) for ids in contrasts if ids not in edited]
    for edit in opening:
        ids = lm.text.row(edit.prompt, subject=subject_of(edit)).ids
        at = subject_rows(lm, edit, [""])[0].subject_last
        assert at is not None
        rows += [Row(ids[: through_unit(ids, i + 1)], (), i) for i in (0, *range(at + 1, len(ids)))]
    return rows


def kept_rows(lm: LM, edits: Sequence[Edit]) -> list[Row]:
    """Rows whose keys stand for the prompts that the edits keep, each read at ``subject_last``.

    Where a kept prompt names the subject of the edit that keeps it, that is the subject's place;
    else every token of its text after the first, :data:`MAX_TOKENS_PER_EDIT` at most, the last
    ones. Left out are places whose beginning an edit has, too: one key cannot have two values.
    """
    if not any(edit.keep for edit in edits):
        return []
    edited = {
        row.ids[: int(row.subject_last or 0) + 1]
        for edit in edits
        for one in edit.rows
        for row in subject_rows(lm, one, [""])
    }
    result: dict[tuple[tuple[int, ...], int], None] = {}
    for edit, prompts in zip(edits, kept_prompts(edits), strict=True):
        for prompt in prompts:
            for ids, at in _places(lm, prompt, subject_of(edit)):
                if ids[: at + 1] not in edited:
                    result[ids, at] = None
    return [Row(ids, (), at) for ids, at in list(result)[:MAX_CONTRAST_KEYS]]


def _places(lm: LM, prompt: Prompt, subject: str) -> list[tuple[tuple[int, ...], int]]:
    """Beginnings of a prompt and the place in each whose key is read."""
    try:
        locate_subject(prompt.text, subject)
    except SubjectNotFoundError:
        ids = lm.text.row(prompt).ids
        text = [i for i in range(1, len(ids)) if not isinstance(ids[i], ImageToken)]
        if lm.encoder_decoder:
            return [(ids, i) for i in text[-MAX_TOKENS_PER_EDIT:]]
        return [(ids[: i + 1], i) for i in text[-MAX_TOKENS_PER_EDIT:]]
    row = lm.text.row(prompt, subject=subject)
    at = fact_at(lm, row)
    return [(row.ids if lm.encoder_decoder else row.ids[: through_unit(row.ids, at + 1)], at)]


@torch.no_grad()
def nearest_tokens(lm: LM, token: int, count: int) -> list[int]:
    """The ``count`` tokens of largest cosine with ``token`` in the input embedding.

    Special and blank tokens are left out, and those that differ from it by case or spaces only.
    """
    embedding = lm.model.get_input_embeddings()  # called, not read: its weight may be offloaded
    rows = min(len(lm.tokenizer), int(embedding.weight.shape[0]))

    def directions(ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(embedding(ids.to(lm.device)).float(), dim=-1)

    with lm.at_rest():
        query = directions(torch.tensor([token]))[0]
        similarity = torch.cat(
            [
                directions(ids) @ query
                for ids in torch.split(torch.arange(rows), EMBEDDINGS_PER_PRODUCT)
            ]
        )
    special = set(lm.tokenizer.all_special_ids)
    word = _word(lm, token)
    result: list[int] = []
    for candidate in similarity.argsort(descending=True, stable=True).tolist():
        if len(result) == count:
            break
        if candidate not in special and _word(lm, candidate) not in ("", word):
            result.append(candidate)
    return result


def _word(lm: LM, token: int) -> str:
    return lm.tokenizer.decode([token]).strip().casefold()
