"""What every export returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Export:
    """What was written, and how much of the change is in it.

    Attributes:
        format: ``lora``, ``gguf-lora``, ``gguf`` or ``merged``.
        folder: that was written.
        file: what the other program is given: a file in the folder, or the folder.
        errors: per weight ``‖Δ − stored‖ / ‖Δ‖``, 0 where the change is stored exactly.
        rank: of an adapter, else 0.
        shares: per weight of a quantized model the share of the change along its own direction,
            ``⟨stored, Δ⟩ / ⟨Δ, Δ⟩``: 1 is all of it, 0 none.
        types: per weight of a GGUF model the type it is stored in.
        answers: per edit whether its new answer comes from what is stored; None: not asked.
        notes: what the user has to know, one sentence each.
    """

    format: str
    folder: Path
    file: Path
    errors: Mapping[str, float]
    rank: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[bool, ...] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What is known, by name; what has no meaning for the format is left out."""
        document: dict[str, Any] = {
            "out": str(self.folder),
            "format": self.format,
            "file": str(self.file),
            "relative_errors": dict(self.errors),
            "notes": list(self.notes),
        }
        if self.rank:
            document["rank"] = self.rank
        if self.types:
            document |= {"shares": dict(self.shares), "types": dict(self.types)}
            document["answers"] = None if self.answers is None else list(self.answers)
        return document
