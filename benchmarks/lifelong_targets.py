"""What ``benchmarks/lifelong.py`` edits: a model with cases, and the settings of every row."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from easyeditor.data.corpus import own_paragraphs
from easyeditor.data.heldout import heldout_text
from easyeditor.data.open import open_dataset
from easyeditor.edits import Case, Prompt
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.base import Need
from elsewhere import Elsewhere, from_folder
from lifelong_rows import ROOT, RUNS

MODEL = "smollm2-135m"
KL_TEXTS, KL_WORDS = 200, 40
HELDOUT_STATEMENTS = 30
UNRELATED_PROMPTS, UNRELATED_WORDS = 1000, 12
EOS = ", EOS"
"""Ends the titles of rows whose edits teach the model to end its text behind the answer."""
REWORDED = ", rewordings"
"""Ends the titles of rows whose edits are made with rewordings by templates (docs/expand.md)."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "MEMIT, earlier keys held": ("MEMIT", {"protect_edits": True}),
    "MEMIT, RECT": ("MEMIT", {"post_step": "rect"}),
    "MEMIT, PRUNE": ("MEMIT", {"post_step": "prune"}),
    "MEMIT, SPHERE": ("MEMIT", {"post_step": "sphere"}),
    "AlphaEdit, SPHERE": ("AlphaEdit", {"post_step": "sphere"}),
    "AlphaEdit, NAS": ("AlphaEdit", {"anchor_norm": True}),
    "WISE, merged": ("WISE", {"retrieve": False}),
}
"""Further rows of the small models: another row with changed settings."""


@dataclass(frozen=True)
class Target:
    """A model with cases to edit, settings of methods, and texts about other things.

    Attributes:
        data: name of the cases.
        titles: of the rows, each with the name of its method.
        settings: the settings of a row, for a seed of the order.
        preset: which questions are asked.
        elsewhere: questions that have nothing to do with the edits.
    """

    data: str
    lm: LM
    cases: Sequence[Case]
    titles: Mapping[str, str]
    settings: Callable[[str, int], HyperParams]
    preset: str
    heldout: str
    elsewhere: Elsewhere


def eos(method: str) -> str | None:
    """The title of a method's row with an end-of-sequence token behind every answer.

    None where the method has no such setting, or always does.
    """
    field = METHODS.get(method).hyperparams_class.model_fields.get("append_eos")
    return None if field is None or field.default else method + EOS


def always_ends(title: str) -> bool:
    """Whether a row's method teaches the end of the text without being told to."""
    if title not in METHODS:
        return False
    field = METHODS.get(title).hyperparams_class.model_fields.get("append_eos")
    return field is not None and bool(field.default)


def mixed(data: str, among: str, count: int) -> list[Case]:
    """``count`` cases, every second one of ``among``, of another subject and without probes."""
    asked = list(open_dataset(data, size=count // 2))
    subjects = {case.edit.subject for case in asked}
    others: list[Case] = []
    for case in open_dataset(among):
        if case.edit.subject not in subjects and len(others) < count - len(asked):
            subjects.add(case.edit.subject)
            others.append(Case(f"among-{case.id}", case.edit))
    pairs = zip_longest(asked, others)
    return [case for pair in pairs for case in pair if case is not None]


def embedded(data: str, count: int, among: str | None = None, able: Path | None = None) -> Target:
    """The model that comes with the package; methods that need nothing but edits."""
    lm = load(MODEL)
    cases = mixed(data, among, count) if among else list(open_dataset(data, size=count))
    edited = {str(case.edit.subject) for case in cases}
    texts = pieces(KL_TEXTS, KL_WORDS, 0), pieces(UNRELATED_PROMPTS, UNRELATED_WORDS, KL_WORDS)
    more = from_folder(able, edited) if able else ()
    lacking = (Need.ARCHIVE, Need.REJECTED, Need.IMAGES)

    names = [n for n in METHODS if not any(need in METHODS.get(n).needs for need in lacking)]
    titles = {title: name for name in names for title in (name, eos(name)) if title}
    titles |= {n + REWORDED: n for n in names if METHODS.get(n).searches_expansions}

    def settings(name: str, seed: int) -> HyperParams:
        result = METHODS.get(titles[name]).hyperparams_class.for_model(MODEL)
        return seeded(result.replace(append_eos=True) if name.endswith(EOS) else result, seed)

    return Target(
        Path(data).stem if among is None else f"{Path(data).stem} among {Path(among).stem}",
        lm,
        cases,
        titles,
        settings,
        "classic" if among else "wild",
        heldout_text(),
        Elsewhere(lm, *texts, *more),
    )


def small(family: str, count: int) -> Target:
    """A trained model of the test suite; methods with a row in the matrix."""
    sys.path.insert(0, str(ROOT / "tests"))
    from matrix.archives import cached
    from matrix.cell import train, training
    from matrix.settings import BY_ROW, METHOD_OF, hyperparams
    from zoo import load as load_small
    from zoo import world

    work = RUNS / f"small-{family}"
    work.mkdir(parents=True, exist_ok=True)

    def settings(name: str, seed: int) -> HyperParams:
        base, changes = VARIANTS.get(name, (name, {}))
        if name.endswith(EOS):
            base, changes = name.removesuffix(EOS), {"append_eos": True}
        row = BY_ROW[base]
        archive = None
        if row.training is not None:
            config = training(row, family, work)
            archive = cached(config, family, lambda: train(config, family), retrain=False)
        result = hyperparams(row, family, work, archive)
        if "use_icl_examples" in type(result).model_fields:
            result = result.replace(use_icl_examples=False)
        return seeded(result.replace(**changes), seed)

    edited = set(world.subjects("eval"))
    others = [
        (fact.prompt(i), fact.answer)
        for fact in world.facts()
        if fact.subject not in edited
        for i in fact.trained
    ]
    random.Random(0).shuffle(others)
    lm = load_small(family)
    prompts = [Prompt(prompt, chat=False) for prompt, _ in others]
    return Target(
        f"small-{family}",
        lm,
        world.cases("eval")[:count],
        METHOD_OF
        | {name: METHOD_OF[base] for name, (base, _) in VARIANTS.items()}
        | {name + EOS: method for name, method in METHOD_OF.items() if eos(method)},
        settings,
        "classic",
        " ".join(f"{prompt} {answer}." for prompt, answer in others[:HELDOUT_STATEMENTS]),
        Elsewhere(lm, prompts[:KL_TEXTS], prompts[-UNRELATED_PROMPTS:]),
    )


def seeded(settings: HyperParams, seed: int) -> HyperParams:
    """The settings with the seed of the order, where a method has one."""
    return settings.replace(seed=seed) if "seed" in type(settings).model_fields else settings


def pieces(n: int, words: int, start: int) -> list[Prompt]:
    """``n`` beginnings of shipped texts, ``words`` words each, from word ``start`` of each."""
    text = list(own_paragraphs())
    result: list[Prompt] = []
    while len(result) < n:
        for paragraph in text:
            piece = paragraph.split()[start : start + words]
            if len(piece) == words and len(result) < n:
                result.append(Prompt(" ".join(piece), chat=False))
        start += words
    return result
