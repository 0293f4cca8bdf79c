"""The model being edited: how it is built, loaded, tokenised, hooked and resumed."""

from easyeditor.lm.families import FAMILIES, Family, Projection, Stack, discover, family_of
from easyeditor.lm.model import LM
from easyeditor.lm.forward.batching import TokenScores
from easyeditor.lm.tokens import Row

__all__ = [
    "FAMILIES",
    "LM",
    "Family",
    "Projection",
    "Row",
    "Stack",
    "TokenScores",
    "discover",
    "family_of",
]
