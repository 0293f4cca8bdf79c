"""One table of all methods: single edits, a batch, batches in sequence, edits one by one.

Every method edits the same cases in the same orders with its settings for ``smollm2-135m``, is
asked the same questions, and starts from the unedited model. A run is written edit by edit and
goes on where it was stopped; its row is added to ``benchmarks/results/lifelong.json``:

    python benchmarks/lifelong.py run single --methods ROME,MEMIT,FT --data counterfact_500.json
    python benchmarks/lifelong.py run one-by-one --methods all --data … --seeds 0,1,2
    python benchmarks/lifelong.py table   # docs/lifelong.md, from the rows that are there

Beside the scores of ``easyedit bench`` a row of a sequence has: the mean KL of the next-token
distributions behind 200 shipped texts to the unedited model's; the size of the saved patch; and,
of methods with a router, the share of 1,000 unrelated prompts after which any logit differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import common
from easyeditor.bench.config import BenchmarkConfig, Protocol
from easyeditor.bench.results import read_runs
from easyeditor.bench.run_dir import write_whole
from easyeditor.bench.runner import run
from easyeditor.bench.table import table
from easyeditor.data.corpus import own_paragraphs
from easyeditor.data.heldout import heldout_text
from easyeditor.data.open import open_dataset
from easyeditor.edits import Case, Prompt
from easyeditor.errors import EasyEditError
from easyeditor.evaluate.presets import preset
from easyeditor.evaluate.query import EvalOptions
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.lm.next_token import kl_divergence, next_token
from easyeditor.methods import METHODS
from easyeditor.methods.base import Need
from easyeditor.patches.files import load_patch
from easyeditor.patches.stack import applied
from easyeditor.patches.weight import WeightPatch

Row = dict[str, Any]
MODEL = "smollm2-135m"
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "lifelong.json"
RUNS = ROOT / "build" / "lifelong"
KL_TEXTS, KL_WORDS = 200, 40
UNRELATED_PROMPTS, UNRELATED_WORDS = 1000, 12
ANSWER_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Part:
    """One way of editing: the protocol, how many cases, how many at once."""

    title: str
    protocol: Protocol
    cases: int
    batch_size: int = 1


PARTS = {
    "single": Part("{n} single edits, each on the unedited model", "single", 100),
    "batch": Part("One batch of {n}", "batch", 100, 100),
    "batches": Part("{n} edits in batches of 10, all kept", "sequential", 200, 10),
    "one-by-one": Part("{n} edits one by one, all kept", "sequential", 200),
}
SCORES = {
    "rewrite_acc": "reliability",
    "rephrase_acc": "generalization",
    "locality/neighborhood_acc": "locality: unchanged",
    "NS": "NS",
    "ES": "ES",
    "PS": "PS",
    "S": "S",
    "generation/rewrite_acc": "free: sentence",
    "generation/rephrase_acc": "free: rephrased",
    "generation/question_acc": "free: question",
    "generation/chat_acc": "free: in the chat",
    "portability_acc": "portability",
    "perplexity": "perplexity",
}
"""Columns of the scores, by the keys of ``easyedit bench report``."""
EXTRA = {
    "kl": "KL elsewhere",
    "fires": "fires elsewhere",
    "seconds": "seconds per edit",
    "memory_mb": "memory, MB",
    "patch_mb": "patch, MB",
}
SHARES = {name for name in SCORES if name != "perplexity"} | {"fires"}


def methods_for(part: Part) -> list[str]:
    """Methods that need nothing but edits, and can edit as many at once."""
    lacking = (Need.ARCHIVE, Need.REJECTED, Need.IMAGES)
    return [
        name
        for name in METHODS
        if not any(need in METHODS.get(name).needs for need in lacking)
        and (METHODS.get(name).max_batch or part.batch_size) >= part.batch_size
    ]


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


def side_effects(lm: LM, folder: Path, label: str) -> dict[str, float]:
    """What a whole sequence's patch does elsewhere, and its size."""
    files = sorted((folder / label).glob("total-*.safetensors"))
    patches = [file for file in files if ".state." not in file.name]
    if not patches:  # every edit failed
        return {}
    patch = load_patch(patches[-1])
    texts = pieces(KL_TEXTS, KL_WORDS, 0)
    before = [one.top() for one in next_token(lm, texts)]
    with applied(lm.model, patch):
        divergences = [
            kl_divergence(old, new) for old, new in zip(before, next_token(lm, texts), strict=True)
        ]
    result = {
        "kl": sum(divergences) / len(divergences),
        "patch_mb": sum(f.stat().st_size for f in files if patches[-1].stem in f.name) / 1e6,
    }
    if not isinstance(patch, WeightPatch):
        result["fires"] = fires(lm, patch)
    return result


def fires(lm: LM, patch: Any) -> float:
    """The share of unrelated prompts behind which any logit differs from the unedited model's."""
    prompts = pieces(UNRELATED_PROMPTS, UNRELATED_WORDS, KL_WORDS)
    different = 0
    for start in range(0, len(prompts), 100):
        some = prompts[start : start + 100]
        before = next_token(lm, some)
        with applied(lm.model, patch):
            after = next_token(lm, some)
        different += sum(
            not torch.equal(old.logprobs, new.logprobs)
            for old, new in zip(before, after, strict=True)
        )
    return different / len(prompts)


def settings_of(name: str, seed: int) -> HyperParams:
    """A method's settings for the model, with the seed of the order where it has one."""
    settings = METHODS.get(name).hyperparams_class.for_model(MODEL)
    return settings.replace(seed=seed) if "seed" in type(settings).model_fields else settings


def measured(
    lm: LM, settings: HyperParams, part: str, cases: Sequence[Case], seed: int, data: str
) -> Row:
    """The row of one method: run, or gone on with, in its own folder."""
    what, evaluation, name = PARTS[part], preset("wild"), settings.alg_name
    folder = RUNS / f"{Path(data).stem}-{part}-{seed}-{name}"
    config = BenchmarkConfig(
        {name: settings},
        evaluation.cases(lm, cases),
        what.protocol,
        what.batch_size,
        evaluation.options(EvalOptions(ANSWER_TOKENS, heldout=heldout_text())),
        seed,
        data,
        preset="wild",
    )
    run(lm, config, folder)
    rows = table(read_runs([folder])).rows
    at_end = rows[-1]
    row: Row = {
        "scores": {
            key: [at_end.numbers[key].value, at_end.numbers[key].low, at_end.numbers[key].high]
            for key in SCORES
            if key in at_end.numbers
        },
        "unedited": {key: rows[0].numbers[key].value for key in SCORES if key in rows[0].numbers},
        "n": at_end.cases,
        "seconds": rows[1].numbers["seconds/edit"].value,
        "memory_mb": rows[1].numbers["memory/extra_mb"].value,
        "machine": common.processor(),
    }
    if what.protocol == "sequential":
        row |= side_effects(lm, folder, name)
    return row


def ordered(cases: Sequence[Case], seed: int) -> list[Case]:
    """The cases in the order of a seed; 0: as they are."""
    result = list(cases)
    if seed:
        random.Random(seed).shuffle(result)
    return result


def go_on(part: str, methods: Sequence[str], data: str, seeds: Sequence[int], count: int) -> None:
    """Add the rows that are missing."""
    lm = load(MODEL)
    cases = list(open_dataset(data, size=count))
    for seed in seeds:
        for name in methods:
            key = f"{Path(data).stem}|{part}|{len(cases)}|{seed}|{name}"
            settings = settings_of(name, seed)
            digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]
            if stored().get(key, {}).get("settings") == digest:
                continue
            began = time.perf_counter()
            try:
                row = measured(lm, settings, part, ordered(cases, seed), seed, data)
            except EasyEditError as error:
                print(f"{key}: {error}", flush=True)
                continue
            write_whole(
                RESULTS, json.dumps(stored() | {key: row | {"settings": digest}}, indent=1) + "\n"
            )
            print(f"{key}: {time.perf_counter() - began:.0f} s", flush=True)


def stored() -> dict[str, Row]:
    """The rows so far, by data, part, number of cases, seed and method."""
    if not RESULTS.exists():
        return {}
    rows: dict[str, Row] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return rows


def tables(rows: Mapping[str, Row]) -> Iterator[str]:
    """A table per data, part and number of cases: a row per method, means over the orders."""
    groups: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for key, row in rows.items():
        data, part, n, _, name = key.split("|")
        groups.setdefault((data, part, n), {}).setdefault(name, []).append(row)
    for (data, part, n), methods in groups.items():
        every = [run for runs in methods.values() for run in runs]
        keys = [key for key in SCORES if any(key in run["scores"] for run in every)]
        extra = [key for key in EXTRA if any(key in run for run in every)]
        titles = ["method", "orders", *map(SCORES.get, keys), *map(EXTRA.get, extra)]
        yield f"### {PARTS[part].title.format(n=n)} ({data})\n"
        yield line([str(title) for title in titles])
        yield "|" + "---|" * len(titles)
        before = [shown(key, [every[0]["unedited"].get(key)]) for key in keys]
        yield line(["unedited", "", *before, *("" for _ in extra)])
        for name, runs in methods.items():
            costs = [shown(key, [run.get(key) for run in runs]) for key in extra]
            yield line([name, str(len(runs)), *(scored(key, runs) for key in keys), *costs])
        yield ""


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def scored(key: str, runs: Sequence[Row]) -> str:
    """The mean over orders; of one order with its interval over cases."""
    values = [run["scores"].get(key) for run in runs]
    text = shown(key, [value and value[0] for value in values])
    if len(runs) > 1 or not values[0] or key not in SHARES or math.isnan(values[0][1]):
        return text
    return f"{text} ({100 * values[0][1]:.0f} to {100 * values[0][2]:.0f})"


def shown(key: str, values: Sequence[float | None]) -> str:
    """A mean, in percent where it is a share."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–"
    mean = sum(numbers) / len(numbers)
    return f"{100 * mean:.1f}" if key in SHARES else f"{mean:.3g}"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("part", choices=PARTS)
    runs.add_argument("--methods", required=True, help="names, or all that need nothing but edits")
    runs.add_argument("--data", required=True)
    runs.add_argument("--seeds", default="0", help="of the order of the cases")
    runs.add_argument("--count", type=int, help="cases; by default as many as the part has")
    commands.add_parser("table")
    given = parser.parse_args()
    if given.command == "table":
        print("\n".join(tables(stored())))
        return
    part = PARTS[given.part]
    names = methods_for(part) if given.methods == "all" else given.methods.split(",")
    methods = [METHODS.canonical(name) for name in names]
    seeds = [int(seed) for seed in given.seeds.split(",")]
    go_on(given.part, methods, given.data, seeds, given.count or part.cases)


if __name__ == "__main__":
    main()
