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
import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

import common
from easyeditor.bench.config import BenchmarkConfig
from easyeditor.bench.run_dir import BEFORE, RunDirectory, write_whole
from easyeditor.bench.runner import SerialExecutor, run
from easyeditor.bench.worker import Result, Task, Worker
from easyeditor.editors.expanding import Expansion, expanded_cases
from easyeditor.edits import Case
from easyeditor.errors import EasyEditError
from easyeditor.evaluate.presets import preset
from easyeditor.evaluate.query import EvalOptions
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.patches.files import load_patch
from elsewhere import Elsewhere
from lifelong_page import growth, picture, write
from lifelong_rows import PARTS, RESULTS, ROOT, RUNS, Part, Row, digest_of, scores_of, stored
from lifelong_targets import EOS, REWORDED, Target, embedded, small

LENGTHS = (1, 3, 10, 30, 100, 300, 1000)
"""Numbers of edits after which it is written what they do elsewhere."""
ANSWER_TOKENS, ASKED_TOKENS = 24, 32


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


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("part", choices=PARTS)
    runs.add_argument("--methods", required=True, help="titles, divided by ; or all without suffix")
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
        write(given.into)
        return
    part = PARTS[given.part]
    count = given.count or part.cases
    seeds = [int(seed) for seed in given.seeds.split(",")]
    for family in given.small or [""]:
        target = (
            small(family, count) if family else embedded(given.data, count, given.among, given.able)
        )
        names = given.methods.split(";")
        if given.methods == "all":
            names = [name for name in target.titles if not name.endswith((EOS, REWORDED))]
        if unknown := [name for name in names if name not in target.titles]:
            parser.error(f"no row {', '.join(unknown)}; there are {'; '.join(target.titles)}")
        go_on(target, given.part, [n for n in names if can(target.titles[n], part)], seeds)


def can(method: str, part: Part) -> bool:
    """Whether a method makes as many edits at once."""
    most = METHODS.get(method).max_batch
    return most is None or most >= part.batch_size


if __name__ == "__main__":
    main()
