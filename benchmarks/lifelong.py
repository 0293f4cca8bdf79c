"""One table of all methods: single edits, a batch, batches in sequence, edits one by one.

Every method edits the same cases in the same orders with its settings for ``smollm2-135m``, is
asked the same questions, and starts from the unedited model. A run is written edit by edit and
goes on where it was stopped; its row is added to ``benchmarks/results/lifelong.json``:

    python benchmarks/lifelong.py run single --methods "ROME;MEMIT;FT" --data counterfact_500.json
    python benchmarks/lifelong.py run one-by-one --methods all --data … --seeds 0,1,2
    python benchmarks/lifelong.py run one-by-one --data … --among counterfact-edit.json --count 1000
    python benchmarks/lifelong.py table --into docs/lifelong.md   # the rows that are there
    python benchmarks/lifelong.py picture one-by-one --data … --methods "MEMIT;AlphaEdit"

``--small gpt2 llama2`` measures the trained models of ``tests/zoo`` instead, in minutes: the 100
cases of their world whose subjects no setting was chosen on, each method with its row of
``tests/cases.py``; MEND and SERAC are trained on the other cases first.

``--among`` mixes the records with as many of another file, which are edited between them but
asked for their own sentence alone, so that a thousand edits are asked about in minutes.

Beside the scores of ``easyedit bench`` a row of a sequence has what ``elsewhere.py`` measures and
the size of the saved patch. ``--able FOLDER`` names a folder with ``known_1000.json`` and
``wikitext2_test.txt``, for known facts, last words and WikiText; ``elsewhere --able FOLDER`` adds
them to rows whose runs are kept. After 1, 3, 10, … edits the KL and the known facts are written to
``build/lifelong``, which ``picture --growth`` draws. A title that ends in ``, EOS`` is the row of a
method whose targets end with the end-of-sequence token, one in ``, rewordings`` that of edits made
with rewordings by templates; those rows are not asked the questions, which their edits hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from filelock import FileLock

import common
from easyeditor.bench.config import BenchmarkConfig, Protocol
from easyeditor.bench.drawing import COLOURS, MARKS, legend, panels, styled
from easyeditor.bench.plots import ageing
from easyeditor.bench.results import read_runs
from easyeditor.bench.run_dir import BEFORE, RunDirectory, write_whole
from easyeditor.bench.runner import SerialExecutor, run
from easyeditor.bench.table import table
from easyeditor.bench.worker import Result, Task, Worker
from easyeditor.data.corpus import own_paragraphs
from easyeditor.data.heldout import heldout_text
from easyeditor.data.open import open_dataset
from easyeditor.editors.expanding import Expansion, expanded_cases
from easyeditor.edits import Case, Prompt
from easyeditor.errors import EasyEditError
from easyeditor.evaluate.presets import preset
from easyeditor.evaluate.query import EvalOptions
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.base import Need
from easyeditor.patches.files import load_patch
from elsewhere import Elsewhere, from_folder

Row = dict[str, Any]
MODEL = "smollm2-135m"
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "lifelong.json"
RUNS = ROOT / "build" / "lifelong"
KL_TEXTS, KL_WORDS = 200, 40
FILES = ("archive", "stats_dir")
"""Settings that name a file or a folder."""
LENGTHS = (1, 3, 10, 30, 100, 300, 1000)
"""Numbers of edits after which it is written what they do elsewhere."""
HELDOUT_STATEMENTS = 30
UNRELATED_PROMPTS, UNRELATED_WORDS = 1000, 12
EOS = ", EOS"
"""Ends the titles of rows whose edits teach the model to end its text behind the answer."""
REWORDED = ", rewordings"
"""Ends the titles of rows whose edits are made with rewordings by templates (docs/expand.md)."""
MARKER = "<!-- the tables: benchmarks/lifelong.py table --into docs/lifelong.md -->"
ANSWER_TOKENS, ASKED_TOKENS = 24, 32


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
    "generation/chat_question_acc": "free: question in the chat",
    "generation/chat_acc": "free: sentence in the chat",
    "generation/rewrite_exact": "free: sentence, then the end",
    "portability_acc": "portability",
    "perplexity": "perplexity",
}
"""Columns of the scores, by the keys of ``easyedit bench report``."""
EXTRA = {
    "kl": "KL elsewhere",
    "fires": "fires elsewhere",
    "known": "other facts known",
    "last_word": "last words",
    "wikitext": "WikiText perplexity",
    "seconds": "seconds per edit",
    "memory_mb": "memory, MB",
    "patch_mb": "patch, MB",
}
SHARES = {name for name in SCORES if name != "perplexity"} | {"fires", "known", "last_word"}


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


def side_effects(target: Target, folder: Path, label: str) -> dict[str, float]:
    """What a whole sequence's patch does elsewhere, and its size."""
    files = sorted((folder / label).glob("total-*.safetensors"))
    patches = [file for file in files if ".state." not in file.name]
    if not patches:  # every edit failed
        return {}
    size = sum(file.stat().st_size for file in files if patches[-1].stem in file.name) / 1e6
    return target.elsewhere.of(load_patch(patches[-1])) | {"patch_mb": size}


class WatchedWorker(Worker):
    """A worker that also writes what a sequence's patch does elsewhere, at some of its lengths."""

    def __init__(self, lm: LM, plan: BenchmarkConfig, elsewhere: Elsewhere, log: Path) -> None:
        super().__init__(lm, plan)
        self._elsewhere, self._log = elsewhere, log

    def run_task(self, task: Task) -> Result:
        """See :class:`Worker`."""
        result = super().run_task(task)
        if task.kind == "edit" and result.total is not None and task.unit.stop in LENGTHS:
            known = self._elsewhere.of(result.total, briefly=True)
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"edits": task.unit.stop, **known}) + "\n")
        return result


def measured(target: Target, name: str, settings: HyperParams, part: str, seed: int) -> Row:
    """The row of one method: run, or gone on with, in its own folder."""
    what, evaluation = PARTS[part], preset(target.preset)
    cases = ordered(target.cases, seed)
    if name.endswith(REWORDED):
        cases = expanded_cases(target.lm, cases, Expansion(chat=False))
    kind = f"{target.data}-{part}-{len(target.cases)}-{seed}"
    folder = RUNS / f"{kind}-{name}"
    config = BenchmarkConfig(
        {name: settings},
        evaluation.cases(target.lm, cases),
        what.protocol,
        what.batch_size,
        evaluation.options(
            EvalOptions(ANSWER_TOKENS, asked_tokens=ASKED_TOKENS, heldout=target.heldout)
        ),
        seed,
        target.data,
        preset=target.preset,
    )
    unedited = RUNS / f"{kind}.unedited.jsonl"
    if unedited.exists() and not folder.exists():  # every method starts from the same answers
        with RunDirectory(folder, config.describe(target.lm)):
            pass
        shutil.copy(unedited, folder / BEFORE)
    worker = WatchedWorker(target.lm, config, target.elsewhere, RUNS / f"{kind}-{name}.jsonl")
    run(target.lm, config, folder, SerialExecutor(worker))
    shutil.copy(folder / BEFORE, unedited)
    row = scores_of(folder) | {"machine": common.processor()}
    if what.protocol == "sequential":
        row |= side_effects(target, folder, name)
        row["unedited"] |= target.elsewhere.unedited
    return row


def scores_of(folder: Path) -> Row:
    """The scores after all edits, those of the unedited model, and what the edits cost."""
    rows = table(read_runs([folder])).rows
    at_end = rows[-1]
    return {
        "scores": {
            key: [at_end.numbers[key].value, at_end.numbers[key].low, at_end.numbers[key].high]
            for key in SCORES
            if key in at_end.numbers
        },
        "unedited": {key: rows[0].numbers[key].value for key in SCORES if key in rows[0].numbers},
        "n": at_end.cases,
        "seconds": rows[1].numbers["seconds/edit"].value,
        "memory_mb": rows[1].numbers["memory/extra_mb"].value,
    }


def ordered(cases: Sequence[Case], seed: int) -> list[Case]:
    """The cases in the order of a seed; 0: as they are."""
    result = list(cases)
    if seed:
        random.Random(seed).shuffle(result)
    return result


def go_on(target: Target, part: str, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Add the rows that are missing."""
    for seed in seeds:
        for name in names:
            key = f"{target.data}|{part}|{len(target.cases)}|{seed}|{name}"
            settings = target.settings(name, seed)
            digest = digest_of(settings)
            if stored().get(key, {}).get("settings") == digest:
                continue
            began = time.perf_counter()
            try:
                row = measured(target, name, settings, part, seed)
            except EasyEditError as error:
                print(f"{key}: {error}", flush=True)
                continue
            with FileLock(RUNS / "results.lock"):  # several processes may add rows
                rows = stored() | {key: row | {"settings": digest}}
                write_whole(RESULTS, json.dumps(rows, indent=1) + "\n")
            print(f"{key}: {time.perf_counter() - began:.0f} s", flush=True)


def side_effects_again(data: str, count: int, among: str | None, able: Path) -> None:
    """Measure the side effects of sequences anew whose runs are here, with what is in ``able``."""
    target = embedded(data, count, among, able)
    for key, row in stored().items():
        name_of_data, part, n, seed, name = key.split("|")
        folder = RUNS / f"{name_of_data}-{part}-{n}-{seed}-{name}"
        sequence = PARTS[part].protocol == "sequential"
        here = (name_of_data, int(n)) == (target.data, len(target.cases)) and folder.exists()
        if not sequence or not here or "known" in row:
            continue
        changes = side_effects(target, folder, name)
        scores = scores_of(folder)
        with FileLock(RUNS / "results.lock"):
            rows = stored()
            rows[key] |= changes | scores
            rows[key]["unedited"] |= target.elsewhere.unedited
            write_whole(RESULTS, json.dumps(rows, indent=1) + "\n")
        print(f"{key}: {changes}", flush=True)


def digest_of(settings: HyperParams) -> str:
    """A digest of settings: not of their order, nor of the folders that files lie in."""
    document = settings.model_dump(mode="json")
    files = {name: Path(document[name]).name for name in FILES if document.get(name)}
    return hashlib.sha256(json.dumps(document | files, sort_keys=True).encode()).hexdigest()[:16]


def stored() -> dict[str, Row]:
    """The rows so far, by data, part, number of cases, seed and method."""
    if not RESULTS.exists():
        return {}
    rows: dict[str, Row] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return rows


def picture(data: str, part: str, count: int, names: Sequence[str], file: Path) -> None:
    """Draw how much of the edits of some methods is left, by their age, from the runs made here."""
    runs = read_runs([RUNS / f"{data}-{part}-{count}-0-{name}" for name in names])
    records = {label: stages for one in runs for label, stages in one.records.items()}
    drawn = ageing([replace(runs[0], records=records)])
    assert drawn is not None, "no sequence was measured"
    drawn.savefig(file, dpi=110)


def growth(data: str, part: str, count: int, names: Sequence[str], file: Path) -> None:
    """Draw what a sequence does elsewhere after more and more edits: mean over its orders."""
    wanted = {"kl": "KL elsewhere, nats", "known": "other facts known, %"}
    lines: dict[str, dict[str, dict[int, list[float]]]] = {key: {} for key in wanted}
    for name in names:
        for log in RUNS.glob(f"{data}-{part}-{count}-*-{name}.jsonl"):
            if not log.stem.removesuffix(f"-{name}").rpartition("-")[2].isdecimal():
                continue  # of another method, whose name ends in this one
            by_length = {r["edits"]: r for r in map(json.loads, log.read_text().splitlines())}
            for length, record in by_length.items():
                for key in wanted.keys() & record.keys():
                    lines[key].setdefault(name, {}).setdefault(length, []).append(record[key])
    shown_keys = [key for key in wanted if lines[key]]
    with styled():
        figure, axes = panels(len(shown_keys), 3.2, width=5.5)
        for axis, key in zip(axes, shown_keys, strict=True):
            share = 100 if key in SHARES else 1
            for i, name in enumerate(names):
                by_length = lines[key].get(name, {})
                lengths = sorted(by_length)
                means = [share * sum(by_length[n]) / len(by_length[n]) for n in lengths]
                colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
                axis.plot(lengths, means, color=colour, marker=mark, label=name)
            axis.set_xscale("log")
            axis.set_xlabel("edits")
            axis.set_title(wanted[key], loc="left")
            if key == "kl":
                axis.set_yscale("symlog", linthresh=1e-3)
                axis.set_ylim(bottom=-3e-4)
        legend(figure, axes[0])
        figure.savefig(file, dpi=110)


def tables(rows: Mapping[str, Row]) -> Iterator[str]:
    """A table per data, part and number of cases: a row per method, means over the orders."""
    groups: dict[tuple[str, str, str, bool], dict[str, list[Row]]] = {}
    for key, row in rows.items():
        data, part, n, _, name = key.split("|")
        groups.setdefault((data, part, n, name.endswith(EOS)), {}).setdefault(name, []).append(row)
    for (data, part, n, ends), rows_of in groups.items():
        if ends:  # beside those that always learn the end
            alike = groups.get((data, part, n, False), {})
            rows_of |= {name: runs for name, runs in alike.items() if always_ends(name)}
    places = list(PARTS)
    of_size = sorted(groups, key=lambda g: (g[0].startswith("small-"), g[3], places.index(g[1])))
    for data, part, n, ends in of_size:
        methods = groups[data, part, n, ends]
        every = [run for runs in methods.values() for run in runs]
        keys = [key for key in SCORES if any(key in run["scores"] for run in every)]
        extra = [key for key in EXTRA if any(key in run for run in every)]
        titles = ["method", "orders", *map(SCORES.get, keys), *map(EXTRA.get, extra)]
        taught = ", an end-of-sequence token behind every answer" if ends else ""
        yield f"### {PARTS[part].title.format(n=n)}{taught} ({data})\n"
        yield line([str(title) for title in titles])
        yield "|" + "---|" * len(titles)
        before = [shown(key, [every[0]["unedited"].get(key)]) for key in keys]
        able = [[run["unedited"][key] for run in every if key in run["unedited"]] for key in extra]
        pairs = zip(extra, able, strict=True)
        costs = [shown(key, values[:1]) if values else "" for key, values in pairs]
        yield line(["unedited", "", *before, *costs])
        for name, runs in sorted(methods.items(), key=lambda item: -answered(item[1])):
            costs = [shown(key, [run.get(key) for run in runs]) for key in extra]
            yield line(
                [
                    name.removesuffix(EOS),
                    str(len(runs)),
                    *(scored(key, runs) for key in keys),
                    *costs,
                ]
            )
        yield ""


def answered(runs: Sequence[Row]) -> float:
    """By what the rows are ordered: free answers to the sentence and in other words."""
    keys = ("generation/rewrite_acc", "generation/rephrase_acc")
    found = [run["scores"].get(key, [0.0])[0] for run in runs for key in keys]
    return float(sum(found)) / len(runs)


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
    runs.add_argument("--methods", required=True, help="names, divided by ; or all")
    where = runs.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", help="cases for the model that comes with the package")
    where.add_argument("--small", nargs="+", help="families of tests/zoo")
    runs.add_argument("--among", help="a file whose edits are made between those of --data")
    runs.add_argument("--able", type=Path, help="a folder with known_1000.json, wikitext2_test.txt")
    runs.add_argument("--seeds", default="0", help="of the order of the cases")
    runs.add_argument("--count", type=int, help="cases; by default as many as the part has")
    again = commands.add_parser("elsewhere")
    again.add_argument("--data", required=True)
    again.add_argument("--count", type=int, default=100)
    again.add_argument("--among", help="as of run")
    again.add_argument("--able", type=Path, required=True, help="as of run")
    writing = commands.add_parser("table")
    writing.add_argument("--into", type=Path, help="a page; what is below its marker is replaced")
    drawing = commands.add_parser("picture")
    drawing.add_argument("part", choices=[n for n, p in PARTS.items() if p.protocol != "single"])
    drawing.add_argument("--data", required=True, help="the name of the cases in the runs")
    drawing.add_argument("--count", type=int, default=100)
    drawing.add_argument("--methods", required=True, help="names, divided by ;")
    drawing.add_argument("--to", type=Path, default=ROOT / "docs/pictures/lifelong.png")
    drawing.add_argument("--growth", action="store_true", help="side effects by number of edits")
    given = parser.parse_args()
    if given.command == "picture":
        draw = growth if given.growth else picture
        draw(given.data, given.part, given.count, given.methods.split(";"), given.to)
        return
    if given.command == "elsewhere":
        side_effects_again(given.data, given.count, given.among, given.able)
        return
    if given.command == "table":
        text = "\n".join(tables(stored()))
        if given.into is None:
            print(text)
            return
        above, marker, _ = given.into.read_text(encoding="utf-8").partition(MARKER)
        assert marker, f"{given.into} has no line {MARKER}"
        write_whole(given.into, f"{above}{marker}\n\n{text.rstrip()}\n")
        return
    part = PARTS[given.part]
    count = given.count or part.cases
    seeds = [int(seed) for seed in given.seeds.split(",")]
    for family in given.small or [""]:
        target = (
            small(family, count) if family else embedded(given.data, count, given.among, given.able)
        )
        names = list(target.titles) if given.methods == "all" else given.methods.split(";")
        go_on(target, given.part, [n for n in names if can(target.titles[n], part)], seeds)


def can(method: str, part: Part) -> bool:
    """Whether a method makes as many edits at once."""
    most = METHODS.get(method).max_batch
    return most is None or most >= part.batch_size


if __name__ == "__main__":
    main()
