"""How many tokens second moments need: their spectrum, and the scores of edits, as tokens grow.

One row per number of tokens. The matrices of all sizes come from one pass over the first part of
the text, those of the last row are the ones the cache holds. Edits are made again at every size
with the moments of that size, each from the unedited model; only the moments differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch

from easyeditor.data.open import open_dataset
from easyeditor.editors.base import BaseEditor
from easyeditor.edits import Case
from easyeditor.errors import HyperParamsError
from easyeditor.evaluate.aggregate import averages
from easyeditor.lm.inference import score
from easyeditor.lm.model import LM
from easyeditor.methods.locate import LocateHyperParams
from easyeditor.second_moments import (
    Moments,
    condition_number,
    moments_by_size,
    write_moments,
)

WIDTHS = (0.5, 1.0, 2.0, 4.0, 10.0)
"""Sizes that are looked at, in units of ``d_in``."""
RANKS = (1, 10, 100)
"""Ranks of the eigenvalues that are reported, from the largest."""
STRIDE = 6
"""The shipped facts are listed relation by relation; every sixth gives a mixture."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """One layer's ``C`` at one size.

    Attributes:
        layer: absolute number.
        eigenvalues: by rank, 1 the largest; ranks beyond ``d_in`` lack.
        condition_number: infinite with fewer tokens than ``d_in``.
        distance: ``‖C − C_final‖ / ‖C_final‖`` (Frobenius).
    """

    layer: int
    eigenvalues: Mapping[int, float]
    condition_number: float
    distance: float


@dataclass(frozen=True, slots=True)
class Row:
    """One number of tokens.

    Attributes:
        tokens: read so far.
        widths: the same in units of ``d_in``.
        layers: what the matrices look like.
        scores: mean over the edits that use them: ``rewrite``, ``rephrase`` and ``locality`` are
            accuracies, ``…_diff`` the means of P(new) − P(old) (locality: P(old) − P(new)); empty
            without edits.
    """

    tokens: int
    widths: float
    layers: tuple[Spectrum, ...]
    scores: Mapping[str, float]

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None stands for it."""
        data = asdict(self)
        for layer in data["layers"]:
            if math.isinf(layer["condition_number"]):
                layer["condition_number"] = None
        return data


def known_facts(lm: LM, n: int) -> list[Case]:
    """Up to ``n`` of the facts that ship with the package, of many kinds, that the model says.

    Only what a model says can be changed in it.
    """
    cases = list(open_dataset("worldfacts"))[::STRIDE]
    replies = score(lm, [(case.edit.prompt.text, str(case.edit.ground_truth)) for case in cases])
    correct = [case for case, score in zip(cases, replies, strict=True) if score.accuracy == 1]
    step = max(1, len(correct) // max(1, n))
    return correct[::step][:n]


def convergence(
    lm: LM,
    settings: LocateHyperParams,
    cases: Sequence[Case] = (),
    *,
    layers: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
) -> Iterator[Row]:
    """Rows for growing numbers of tokens, the last one for the whole text.

    Args:
        lm: the model, without patches.
        settings: of the method that edits; also what the moments are collected from.
        cases: edits to apply at every size; none: only the spectrum is reported.
        layers: of the moments; by default those the settings edit, which edits add anyway.
        sizes: in tokens; 0.5, 1, 2, 4 and 10 × ``d_in`` by default. The largest one is collected
            as usual and cached; where the text is shorter, its end is the last size.

    Raises:
        HyperParamsError: a size below 1, or edits with settings that use no second moments.
        MomentsError: the model carries patches, or there is no text.
    """
    column = settings.column(lm)
    edited = [int(layer) for layer in settings.resolved(column.n_layers).layers]
    shown = sorted(set(edited if layers is None else [*layers, *(edited if cases else [])]))
    d_in = column.projection(shown[0]).d_in
    wanted_sizes = sorted(set(sizes or [round(width * d_in) for width in WIDTHS]))
    _check(settings, cases, wanted_sizes)
    settings = settings.replace(mom2_n_tokens=wanted_sizes[-1])
    final = settings.second_moments(column, shown)
    reached = next(iter(final.values())).tokens
    before = [size for size in wanted_sizes if size < reached]
    if before:
        for moments in moments_by_size(column, shown, before, **settings.corpus()):
            with TemporaryDirectory() as folder:
                here = _cached(column, moments, settings, folder) if cases else settings
                scores = _scores(lm, here, cases)
            yield _row(moments, final, d_in, scores)
    yield _row(final, final, d_in, _scores(lm, settings, cases))


def _check(settings: LocateHyperParams, cases: Sequence[Case], sizes: Sequence[int]) -> None:
    problems = []
    if sizes[0] < 1:
        problems.append(f"sizes={list(sizes)}: a size is a number of tokens, from 1 on.")
    if cases and not settings.mom2_adjustment:
        problems.append(
            "mom2_adjustment=False: the edits use no second moments. Leave it on, or give no cases."
        )
    if problems:
        raise HyperParamsError(" ".join(problems))


def _cached(
    column: LM, moments: Mapping[int, Moments], settings: LocateHyperParams, folder: str
) -> LocateHyperParams:
    """Settings that read these moments, and no others, from a cache folder."""
    tokens = next(iter(moments.values())).tokens
    here = settings.replace(mom2_n_tokens=tokens, stats_dir=folder)
    write_moments(column, moments, **here.corpus())
    return here


def _scores(lm: LM, settings: LocateHyperParams, cases: Sequence[Case]) -> dict[str, float]:
    if not cases:
        return {}
    editor = BaseEditor(lm, settings)
    batch = editor.method.max_batch != 1 and len(cases) > 1
    result = editor.edit_cases(
        cases,
        keep_original_weight=True,
        evaluate_when="end" if batch else "each",
        batch=batch,
        verbose=False,
    )
    post = averages(result.metrics)["post"]
    scores = {
        "rewrite": post.get("rewrite_acc"),
        "rephrase": post.get("rephrase_acc"),
        "locality": _mean(post["locality"], "_acc"),
        "rewrite_diff": post.get("rewrite_diff"),
        "rephrase_diff": post.get("rephrase_diff"),
        "locality_diff": _mean(post["locality"], "_diff"),
    }
    return {name: value for name, value in scores.items() if value is not None}


def _mean(by_name: Mapping[str, Any], ending: str) -> float | None:
    values = [value for name, value in by_name.items() if name.endswith(ending)]
    return sum(values) / len(values) if values else None


def _row(
    collected: Mapping[int, Moments],
    final: Mapping[int, Moments],
    d_in: int,
    scores: Mapping[str, float],
) -> Row:
    tokens = next(iter(collected.values())).tokens
    layers = tuple(_spectrum(layer, moment, final[layer]) for layer, moment in collected.items())
    return Row(tokens, tokens / d_in, layers, scores)


def _spectrum(layer: int, moment: Moments, final: Moments) -> Spectrum:
    values = moment.eigenvalues()
    largest = {rank: float(values[rank - 1]) for rank in RANKS if rank <= len(values)}
    distance = torch.linalg.norm(moment.matrix - final.matrix) / torch.linalg.norm(final.matrix)
    return Spectrum(layer, largest, condition_number(values), float(distance))
