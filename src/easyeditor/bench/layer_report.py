"""What causal tracing says of each layer beside what editing does there.

Tracing shows where information about the subject passes; over many facts it is unrelated to where
edits succeed (arXiv 2301.04213). Side by side the two answer what users ask, which layer to edit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from easyeditor.bench.sweep import Candidate, LayerSweep, SweepRow
from easyeditor.edits import Case
from easyeditor.errors import BenchError
from easyeditor.interpret.causal_trace import CausalTrace, Kind, TraceOptions, causal_trace
from easyeditor.json_log import JsonLog
from easyeditor.lm.model import LM
from easyeditor.progress import bar

log = logging.getLogger(__name__)

TRACED: tuple[Kind, ...] = ("state", "mlp")
TRACED_FACTS = 4
TRACE_SAMPLES = 4
TRACE_WINDOW = 0.2
"""Modules restored together, as a share of the depth: 10 of GPT-2 XL's 48 in ROME's Fig. 1."""
NEARLY = 0.02
"""Layers whose S is so near to the best are named as being as good."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Effects and scores by layer.

    Attributes:
        effects: by kind (``state``, ``mlp``) the mean indirect effect of every layer at the
            subject's last token: the answer's probability after restoring it, less the corrupted
            one.
        rows: the edited layers, lowest first.
    """

    effects: dict[str, list[float]]
    rows: list[SweepRow]

    @property
    def best(self) -> SweepRow:
        """The row with the best graded scores."""
        return max(self.rows, key=lambda row: row.graded)

    def advice(self) -> str:
        """One line: which layer to edit, which others are as good, where tracing points."""
        best = self.best
        others = [
            _name(row.layers) for row in self.rows if row is not best and best.S - row.S <= NEARLY
        ]
        also = f"; within 2 points of it: {', '.join(others)}" if others else ""
        peak = {kind: max(range(len(e)), key=e.__getitem__) for kind, e in self.effects.items()}
        trace = ", ".join(f"{layer} ({kind})" for kind, layer in peak.items())
        return (
            f"Edit layer {_name(best.layers)} (S {100 * best.S:.1f} on {best.facts} facts{also}). "
            f"Tracing is strongest at layer {trace}, which does not say where edits work."
        )


def _name(layers: Sequence[int]) -> str:
    return f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"


def layer_report(sweep: LayerSweep, layers: Sequence[int] | None = None) -> LayerReport:
    """Trace a few of the sweep's facts, and edit all of them at each layer. Resumable.

    Args:
        sweep: the model, method and facts.
        layers: the first layer of each range that is edited; by default up to ten, over the whole
            depth.

    Raises:
        BenchError: a layer that cannot be edited.
    """
    windows = {window[0]: window for window in sweep.windows(everywhere=True)}
    starts = list(windows)
    if layers is None:
        step = max(1, -(-len(starts) // 10))
        layers = starts[::step]
    wrong = [layer for layer in layers if layer not in windows]
    if wrong:
        raise BenchError(
            f"Layer {wrong[0]} cannot be edited with {sweep.plan.probe}: {starts[0]} to "
            f"{starts[-1]} can."
        )
    effects = traced_effects(sweep.lm, sweep.facts[:TRACED_FACTS], sweep)
    candidates = [Candidate(windows[layer]) for layer in sorted(set(layers))]
    total = len(candidates) * len(sweep.facts)
    with bar(total, f"editing at {len(candidates)} layers", "edit", at_once=True) as progress:
        sweep.collect_moments([candidate.layers for candidate in candidates])
        rows = [sweep.row(candidate, len(sweep.facts), progress) for candidate in candidates]
    return LayerReport(effects, rows)


def traced_effects(lm: LM, facts: Sequence[Case], sweep: LayerSweep) -> dict[str, list[float]]:
    """Mean indirect effects at the subject's last token, by kind and layer."""
    window = max(1, round(TRACE_WINDOW * lm.encoder_side().n_layers))
    options = TraceOptions(samples=TRACE_SAMPLES, window=window)
    stored = JsonLog(sweep.folder / "traced.jsonl", BenchError, "Delete the file.")
    effects = {(record["fact"], record["kind"]): record["effects"] for record in stored.records}
    with bar(len(facts), "tracing", "fact", at_once=True) as progress:
        for case in facts:
            if any((case.id, kind) not in effects for kind in TRACED):
                edit = case.edit
                traces = causal_trace(
                    lm,
                    str(edit.prompt),
                    str(edit.subject),
                    edit.ground_truth,
                    kinds=TRACED,
                    options=options,
                )
                records = [
                    {"fact": case.id, "kind": trace.kind, "effects": _at_subject(trace)}
                    for trace in traces
                ]
                effects |= {(r["fact"], r["kind"]): r["effects"] for r in records}
                try:
                    stored.append(records)
                except OSError as error:
                    log.warning("traces are not kept (%s)", error)
            progress.update()
    return {
        kind: torch.tensor([effects[case.id, kind] for case in facts]).mean(0).tolist()
        for kind in TRACED
    }


def _at_subject(trace: CausalTrace) -> list[float]:
    effects: list[float] = trace.effects[trace.subject[1]].tolist()
    return effects
