"""Configuration of a benchmark run; stored in its directory and compared on resuming."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from easyeditor.edits import Case, to_json
from easyeditor.errors import BenchError
from easyeditor.evaluate.behaviour import judge_name
from easyeditor.evaluate.query import Measures
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.patches.patch import versions

Protocol = Literal["single", "batch", "sequential"]
FORMAT = 1
CLASSIC = "classic"
"""The preset that adds nothing to the cases."""
MAX_LABEL_BYTES = 200
CASES_PER_FORWARD = 8
"""Cases of the single protocol that are asked in shared forward passes; each is edited alone."""


@dataclass(frozen=True, slots=True)
class CaseRange:
    """Cases that are edited and recorded together: positions ``start`` to ``stop``."""

    label: str
    number: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class BenchmarkConfig:
    """Configuration of a benchmark run.

    Attributes:
        methods: hyper-parameters by label; a method may take part under several labels.
        cases: in the order they are edited.
        protocol: ``"single"``: each case is edited and measured alone (the questions of several
            share forward passes). ``"batch"``: ``batch_size`` cases are edited together and
            measured together, each batch from the unedited model. ``"sequential"``: edits
            accumulate, ``batch_size`` at a time; each case is measured after its own edit and
            again at the end.
        batch_size: cases per edit.
        measures: metrics in addition to the teacher-forced scores.
        seed: of the sampling in the measures and of the methods that sample.
        data: name of the cases in tables.
        downstream: tasks of lm-evaluation-harness, before and after.
        downstream_limit: only the first so many items of each task.
        downstream_path: a folder with further task definitions.
        preset: name of the evaluation preset whose probes the cases have, for captions.

    Raises:
        BenchError: something in it cannot be carried out.
    """

    methods: Mapping[str, HyperParams]
    cases: Sequence[Case]
    protocol: Protocol = "single"
    batch_size: int = 1
    measures: Measures = field(default_factory=Measures)
    seed: int = 0
    data: str = ""
    downstream: tuple[str, ...] = ()
    downstream_limit: int | None = None
    downstream_path: str | None = None
    preset: str = CLASSIC

    def __post_init__(self) -> None:
        if self.protocol not in {"single", "batch", "sequential"}:
            raise BenchError(f"protocol={self.protocol!r}: use 'single', 'batch' or 'sequential'.")
        if self.batch_size < 1 or (self.protocol == "single" and self.batch_size != 1):
            raise BenchError(
                f"batch_size={self.batch_size}: a whole number from 1 on, and 1 for 'single'."
            )
        if not self.methods or not self.cases:
            raise BenchError("A run needs at least one method and one case.")
        counts = Counter(case.id for case in self.cases)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise BenchError(f"Two cases have the same id: {', '.join(twice[:5])}.")
        for label in self.methods:
            signs = any(sign in label for sign in "/\\\0") or label in {"", ".", ".."}
            if signs or len(label.encode(errors="surrogatepass")) > MAX_LABEL_BYTES:
                raise BenchError(f"A label names a folder and a table row; {label!r} cannot.")
        for label, settings in self.methods.items():
            _check_variant(label, settings)
        if self.protocol == "batch" and self.batch_size > 1:
            for label, settings in self.methods.items():
                if METHODS.get(settings.alg_name).max_batch == 1:
                    raise BenchError(
                        f"{label} makes one edit at a time; use --protocol single or sequential "
                        "for it."
                    )
        one_model = self.sequential or self.batch_size >= len(self.cases)
        if self.downstream and not one_model:
            raise BenchError(
                "Downstream tasks are measured on one model that holds all edits: use --protocol "
                "sequential, or batch with a --batch-size of all cases."
            )

    @property
    def sequential(self) -> bool:
        """Whether edits accumulate."""
        return self.protocol == "sequential"

    def units(self, label: str) -> list[CaseRange]:
        """The case ranges of one method, in order."""
        n = len(self.cases)
        size = CASES_PER_FORWARD if self.protocol == "single" else self.batch_size
        return [
            CaseRange(label, i, i * size, min(n, (i + 1) * size))
            for i in range(math.ceil(n / size))
        ]

    def describe(self, lm: LM) -> dict[str, Any]:
        """Content of ``run.json``: everything that the numbers depend on."""
        described = [to_json(case) for case in self.cases]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        measures = asdict(replace(self.measures, judge=None))
        if self.measures.judge is not None:
            measures["judge"] = judge_name(self.measures.judge)
        # Runs from before these existed read alike.
        for name in ("asked_tokens", "divergence", "judge", "text_tokens", "text_encoder"):
            if not measures[name]:
                del measures[name]
        heldout = measures.pop("heldout")
        measures["heldout_sha256"] = (
            hashlib.sha256(heldout.encode()).hexdigest() if heldout else None
        )
        return {
            "format": FORMAT,
            "model": Path(lm.name).name if Path(lm.name).is_absolute() else lm.name,
            "fingerprint": fingerprint(lm.model).digest,
            "dtype": str(lm.model.dtype).removeprefix("torch."),
            "protocol": self.protocol,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "data": self.data,
            "data_sha256": digest,
            "n": len(self.cases),
            "case_ids": [case.id for case in self.cases],
            "measures": measures,
            "methods": {
                label: settings.resolved(lm.n_layers).model_dump(mode="json")
                for label, settings in self.methods.items()
            },
            "versions": versions(),
            "downstream": list(self.downstream),
            "downstream_limit": self.downstream_limit,
            **({"preset": self.preset} if self.preset != CLASSIC else {}),
        }


def _check_variant(label: str, settings: HyperParams) -> None:
    for name, value in settings.variant(label).items():
        given = getattr(settings, name)
        if given != value:
            raise BenchError(
                f"The label {label!r} is the name of {name}={value}, but these settings have "
                f"{name}={given}. Set {name}={value}, or choose another label."
            )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Differences of two descriptions, such as ``"seed: 0 → 1"``."""
    changed = []
    for key in dict.fromkeys((*old, *new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changed += differences(a, b, f"{path}{key}.")
        elif a != b:
            changed.append(f"{path}{key}: {_short(a)} → {_short(b)}")
    return changed


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else text[:57] + "…"
