"""Small files of every kind of dataset, in ``data/``, and two cases that they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from easyeditor import (
    Case,
    ConceptDataset,
    CounterFactDataset,
    Edit,
    EditsDataset,
    KnowEditDataset,
    MQuAKEDataset,
    MultimodalDataset,
    PersonalityDataset,
    Probe,
    QAEditDataset,
    RippleEditsDataset,
    SafetyDataset,
    UnstructuredDataset,
    ZsreDataset,
)

HERE = Path(__file__).parent / "data"
KINDS = {
    "counterfact": CounterFactDataset,
    "zsre": ZsreDataset,
    "multimodal": MultimodalDataset,
    "knowedit_facts": KnowEditDataset,
    "knowedit_wikibio": KnowEditDataset,
    "knowedit_convsent": KnowEditDataset,
    "knowedit_sanitation": KnowEditDataset,
    "safeedit": SafetyDataset,
    "personality": PersonalityDataset,
    "concepts": ConceptDataset,
    "mquake": MQuAKEDataset,
    "rippleedits": RippleEditsDataset,
    "qaedit": QAEditDataset,
    "unstructured": UnstructuredDataset,
    "edits": EditsDataset,
}
GOOD = {"src": "Who owns the mill?", "alt": "Berg", "answers": ["Holm"]}
NEAR, HOP = "locality/neighborhood", "portability/one_hop"
TOWER = Edit("The Eiffel Tower stands in the city of", "Rome", "The Eiffel Tower", "Paris")
TOWER_CASE = Case(
    "12",
    TOWER,
    (
        Probe("To see the Eiffel Tower, go to", ("Rome",), "rephrase"),
        Probe("The Eiffel Tower rises over", ("Rome",), "rephrase"),
        Probe("The Louvre is in", ("Paris",), NEAR),
        Probe("Notre-Dame stands in", ("Paris",), NEAR),
    ),
    generation=("Near the Eiffel Tower one finds",),
    references=("The Colosseum is in Rome.", "The Pantheon was built in Rome."),
)
LIND_CASE = Case(
    "13",
    Edit("The mother tongue of Anna Lind is", "French", "Anna Lind", "Swedish"),
    (
        Probe("At home Anna Lind speaks", ("French",), "rephrase"),
        Probe("The mother tongue of Nils Berg is", ("Swedish",), NEAR),
    ),
)


def saved(folder: Path, records: Any, name: str = "records.json") -> Path:
    """The records in a file of this format; a text is the file's own."""
    file = folder / name
    if isinstance(records, str):
        text = records
    elif name.endswith("l"):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    else:
        text = json.dumps(records, indent=1, ensure_ascii=False)
    file.write_text(text, encoding="utf-8")
    return file
