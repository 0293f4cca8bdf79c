"""The model being edited: how it is built, loaded, tokenised, hooked and resumed."""

from easyeditor.lm.discovery import discover, family_of
from easyeditor.lm.families import FAMILIES, BlockStack, Family
from easyeditor.lm.forward.batching import TokenScores
from easyeditor.lm.model import LM
from easyeditor.lm.projection import NamedWeight, Projection
from easyeditor.lm.tokens import Row

__all__ = [
    "FAMILIES",
    "LM",
    "BlockStack",
    "Family",
    "NamedWeight",
    "Projection",
    "Row",
    "TokenScores",
    "discover",
    "family_of",
]
