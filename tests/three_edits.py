"""One request with every kind of probe, for the tests of the editor."""

from __future__ import annotations

import outer
from outer import PROMPTS, SUBJECTS, TARGETS

METHODS = ["FT", "ROME", "MEMIT"]
LOCALITY = {
    "neighborhood": {
        "prompt": ["She plays the", "Rome is the capital of", "You can see the"],
        "ground_truth": ["piano well", "Italy", "river from here"],
    },
    "near": {
        "prompt": [["It rained, so I", "Anna Lind is"], ["Therefore we", "I stayed"], "Germany is"],
        "ground_truth": [["stayed inside", "Danish"], ["went home", "inside"], "Paris"],
    },
}
PORTABILITY = {
    "one_hop": {
        "prompt": ["Anna Lind speaks", "The river of its city is the", "Berlin is"],
        "ground_truth": ["French to her", "river", "the capital of Italy"],
    }
}
REPHRASES = [
    ["The mother tongue spoken by Anna Lind is", "Anna Lind speaks"],
    "The tower stands in",
    ["Berlin is"],
]


def all_three(method: str = "FT", keep: bool = False, **more: object) -> tuple:
    """An editor and the result of three edits with every kind of probe."""
    editor = outer.editor(method)
    return editor, editor.edit(
        prompts=PROMPTS,
        ground_truth=["Danish", "Paris", "Germany"],
        target_new=TARGETS,
        subject=SUBJECTS,
        rephrase_prompts=REPHRASES,
        locality_inputs=LOCALITY,
        portability_inputs=PORTABILITY,
        keep_original_weight=keep,
        **more,
    )
