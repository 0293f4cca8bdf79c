"""Three cases to learn from, with a paraphrase and an unrelated question each."""

from __future__ import annotations

from easyeditor import Case, Probe
from support import EDITS

AGAIN = ("Anna Lind grew up speaking", "You can see it from the river in", "Therefore Berlin is in")
NEAR = (("She plays the", "piano"), ("Rome is the capital of", "Italy well"), ("It", "rained"))
CASES = [
    Case(
        str(i),
        edit,
        (Probe(again, (edit.target,), "rephrase"), Probe(near, (said,), "locality/near")),
    )
    for i, (edit, again, (near, said)) in enumerate(zip(EDITS, AGAIN, NEAR, strict=True))
]
