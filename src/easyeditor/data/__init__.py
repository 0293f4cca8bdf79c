"""Files of edits → cases: one file per kind of dataset, imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from easyeditor.errors import DataError
from easyeditor.registry import Registry

if TYPE_CHECKING:
    from easyeditor.data.dataset import CaseDataset

# The order is the one in which a file is asked what it is; the most general comes last.
DATASETS: Registry[type[CaseDataset]] = Registry(
    "kind of dataset",
    DataError,
    {
        "unstructured": "easyeditor.data.unstructured:UnstructuredDataset",
        "mquake": "easyeditor.data.mquake:MQuAKEDataset",
        "counterfact": "easyeditor.data.counterfact:CounterFactDataset",
        "multimodal": "easyeditor.data.multimodal:MultimodalDataset",
        "zsre": "easyeditor.data.zsre:ZsreDataset",
        "rippleedits": "easyeditor.data.rippleedits:RippleEditsDataset",
        "safeedit": "easyeditor.data.safety:SafetyDataset",
        "personality": "easyeditor.data.personality:PersonalityDataset",
        "concepts": "easyeditor.data.concepts:ConceptDataset",
        "knowedit": "easyeditor.data.knowedit:KnowEditDataset",
        "qaedit": "easyeditor.data.qaedit:QAEditDataset",
        "edits": "easyeditor.data.edits_file:EditsDataset",
    },
)
