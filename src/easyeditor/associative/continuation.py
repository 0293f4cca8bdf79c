"""The text after a target: next-token distributions there that a value search shall keep.

The published loss reads the target's own tokens, so it does not see what a model writes behind
them. A large δ at the subject goes on acting there, and an edit whose every target token is right
may continue with one word for ever or with tokens that the model never writes. So the search may
take another term: KL(unedited ‖ edited) of the next token after the prompt and the target, and
after each token that the unedited model goes on with.
"""

from __future__ import annotations

from collections.abc import Sequence

from easyeditor.associative.keys import fact_at, subject_of
from easyeditor.associative.microbatches import ContextRow
from easyeditor.edits import Edit
from easyeditor.lm.forward.partial import EditRow
from easyeditor.lm.model import LM
from easyeditor.lm.sampling import greedy_tokens


def continuation_rows(
    lm: LM, edits: Sequence[Edit], kl_factor: float, n_distributions: int
) -> list[ContextRow]:
    """One row per edit: its bare prompt, its target and what the model goes on with.

    The first of ``n_distributions`` is read at the target's last token, the others at the greedy
    continuation's; they are fewer where the text or the context ends, and one in an
    encoder-decoder. Their mean KL counts ``kl_factor`` times.

    Args:
        lm: the model, as it is before the edits.
        edits: each must name a subject.
        kl_factor: the weight of a row, shared by its reads.
        n_distributions: at least 1.
    """
    rows = [lm.text.row(edit.prompt, edit.target, subject=subject_of(edit)) for edit in edits]
    if lm.encoder_decoder:
        return [
            ContextRow(
                i,
                # The decoder reads its tokens shifted by one, so the last one only makes room.
                EditRow(row.ids, fact_at(lm, row), (len(row.target),), (*row.target, 0)),
                (),
                kl_factor,
            )
            for i, row in enumerate(rows)
        ]
    written = greedy_tokens(lm, [row.ids for row in rows], n_distributions - 1)
    result = []
    for i, (row, following) in enumerate(zip(rows, written, strict=True)):
        last = len(row.ids) - 1
        reads = tuple(range(last, last + 1 + len(following)))
        run = EditRow(row.ids + following, fact_at(lm, row), reads)
        result.append(ContextRow(i, run, (), kl_factor / len(reads)))
    return result
