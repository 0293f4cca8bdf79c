"""How far an edited model may drift from the unedited one before an edit is rolled back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from easyeditor.errors import LedgerError


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """The largest drift of the model with all active edits from the unedited one.

    Attributes:
        perplexity_ratio: perplexity on the shipped page of prose, edited / unedited.
        kl: Kullback–Leibler divergence of the predictions from the unedited ones, in nats per
            token, averaged over the shipped sentences.

    Raises:
        LedgerError: a limit is not a number above 1 (``perplexity_ratio``) or 0 (``kl``).
    """

    perplexity_ratio: float = 1.1
    kl: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("perplexity_ratio", 1.0), ("kl", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > least:
                raise LedgerError(
                    f"The limit {name} must be a number above {least:g}, not {value!r}."
                )

    def to_json(self) -> dict[str, float]:
        """Both limits by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HealthLimits:
        """From what :meth:`to_json` wrote."""
        return cls(**data)
