"""Paragraphs of about 20, 60 and 120 tokens: how much of them methods write, and what stays.

Each of the ``paragraphs`` that come with the package is edited alone into the embedded model. The
exact beginning, in tokens, is read under teacher forcing, where it is the same as in greedy
generation; with ``--texts`` the model also writes, for ROUGE-L, sub-questions and the cosine, which
stands beside the unedited model's. The table of ``docs/long-text.md``. The settings were chosen on
``long_text_dev.json`` (``--dev``), four other paragraphs. Every case is written as it comes and is
not computed again, so the script can be stopped and called anew, a few cases at a time.

    python benchmarks/long_text.py --sizes 60 120 --limit 5 MEMIT "MEMIT, windows"
    python benchmarks/long_text.py --table
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import common
from easyeditor import Case
from easyeditor.data.heldout import heldout_text
from easyeditor.data.open import open_dataset
from easyeditor.edits import Score
from easyeditor.evaluate.bootstrap import bootstrap
from easyeditor.evaluate.generation_metrics import perplexity
from easyeditor.evaluate.query import observe
from easyeditor.evaluate.replies import EvalOptions, Replies
from easyeditor.evaluate.scorers.text import TextScorer
from easyeditor.evaluate.text_overlap import exact_prefix
from easyeditor.files import written_whole
from easyeditor.lm.inference import score
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied

NAME = "long_text"
WHAT = "paragraphs, smollm2-135m, float32, each edit alone, targets with their end"
SIZES = (20, 60, 120)
WINDOW = 8
TEXT_TOKENS = 140
TOGETHER = 10
"""Edits whose values are searched in one batch."""
HELDOUT_CHARACTERS = 3000
"""Of the held-out page; the same for every row."""
LOCATED: dict[str, Any] = {
    "append_eos": True,
    "layers": [10, 11, 12, 13, 14],
    "context_template_length_params": [],
    "mom2_update_weight": 20,
    "v_num_grad_steps": 15,
    "memory_mb": 500,
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "MEMIT": ("MEMIT", LOCATED),
    "MEMIT, windows": ("MEMIT", {**LOCATED, "window": WINDOW}),
    "FT-M": ("FT", {"append_eos": True}),
    "LoRA": ("LoRA", {"append_eos": True}),
    "UnKE": ("UnKE", {}),
    "UnKE, windows": ("UnKE", {"window": WINDOW}),
}


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)}; by default all")
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=SIZES)
    parser.add_argument("--limit", type=int, help="only so many new cases of each row")
    parser.add_argument("--texts", action="store_true", help="also the texts that are written")
    parser.add_argument("--dev", action="store_true", help="the paragraphs settings are chosen on")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    args = parser.parse_args()
    name = f"{NAME}{'_dev' * args.dev}"
    file = Path(__file__).parent / "results" / f"{name}.json"
    cases = _read(file)
    if args.table:
        print(table(cases))
        return
    if wrong := [row for row in args.rows if row not in ROWS]:
        parser.error(f"no row {wrong[0]!r}; there are {', '.join(ROWS)}")
    place = Path(__file__).parent / "long_text_dev.json" if args.dev else "paragraphs"
    data = [case for case in open_dataset(place) if _size(case) in args.sizes]
    lm = load("smollm2-135m")
    text = heldout_text()[:HELDOUT_CHARACTERS]
    base = perplexity(lm, text)
    for row in args.rows or ROWS:
        missing = [case for case in data if _lacking(cases, row, case, texts=args.texts)]
        for case, patch, seconds in _patches(lm, row, missing[: args.limit]):
            result = _measured(lm, case, patch, text, base, texts=args.texts)
            result["seconds"] = round(seconds, 1)
            cases = _read(file)  # another process may have written its cases
            cases.setdefault(row, {}).setdefault(case.id, {}).update(result)
            _write(file, cases)
            print(row, case.id, {k: v for k, v in result.items() if k != "written"}, flush=True)


def _write(file: Path, cases: dict[str, Any]) -> None:
    whole = {
        "machine": common.processor(),
        "torch": torch.__version__,
        "when": time.strftime("%Y-%m-%d"),
        "what": WHAT,
        "settings": ROWS,
        "cases": cases,
    }
    with written_whole(file) as part:
        part.write_text(json.dumps(whole, indent=1) + "\n")


def _size(case: Case) -> int:
    return int(case.id.rpartition("-")[2])


def _read(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    if not file.is_file():
        return {}
    result: dict[str, dict[str, dict[str, Any]]] = json.loads(file.read_text())["cases"]
    return result


def _lacking(cases: dict[str, Any], row: str, case: Case, *, texts: bool) -> bool:
    result = cases.get(row, {}).get(case.id)
    return result is None or (texts and "text" not in result)


def _patches(lm: LM, row: str, cases: Sequence[Case]) -> Iterator[tuple[Case, Patch, float]]:
    """Each case with the patch of its edit, made alone, and the seconds of one.

    Methods that can search the values of several such edits in one batch do so.
    """
    name, settings = ROWS[row]
    method = METHODS.get(name)
    tool = method(method.hyperparams_class.for_model("smollm2-135m", **settings))
    for start in range(0, len(cases), TOGETHER):
        some = cases[start : start + TOGETHER]
        began = time.perf_counter()
        state = tool.initial_state(lm)
        outcomes = tool.edit_each(lm, [case.edit for case in some], state)
        seconds = (time.perf_counter() - began) / len(some)
        for case, outcome in zip(some, outcomes, strict=True):
            yield case, outcome.patch, seconds


def _measured(
    lm: LM, case: Case, patch: Patch, heldout: str, base: float, *, texts: bool
) -> dict[str, Any]:
    """The scores of one edit."""
    options = EvalOptions(text_tokens=TEXT_TOKENS * texts, text_encoder="all-minilm-l6-v2" * texts)
    scorer = TextScorer(options)
    rephrase = next(p.prompt for p in case.probes if p.group == "rephrase")
    queries = [Score(prompt, case.edit.target) for prompt in (case.edit.prompt, rephrase)]
    before = _observed(lm, case, options, scorer) if texts else None
    with applied(lm.model, patch):
        scores = score(lm, queries)
        after = _observed(lm, case, options, scorer) if texts else None
        damage = perplexity(lm, heldout)
    result: dict[str, Any] = {
        "tokens": len(scores[0].target),
        "prefix": exact_prefix(scores[0]),
        "accuracy": round(scores[0].accuracy, 4),
        "rephrase_accuracy": round(scores[1].accuracy, 4),
        "rephrase_prefix": exact_prefix(scores[1]),
        "perplexity": round(damage, 3),
        "perplexity_unedited": round(base, 3),
    }
    if before is not None and after is not None:
        values = scorer.score(None, case, before, after)
        unedited = scorer.score(None, case, before, before)
        result["text"] = {name: round(v, 4) for name, v in values.items() if v is not None}
        result["text_unedited"] = {n: round(v, 4) for n, v in unedited.items() if v is not None}
    return result


def _observed(lm: LM, case: Case, options: EvalOptions, scorer: TextScorer) -> Replies:
    return observe(lm, [case], options, [scorer])


def table(cases: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: a line for each row and size, with means and intervals of the exact beginning."""
    lines = [
        "| row | tokens | n | exact beginning (tokens) | tokens right, teacher forced | "
        "after the rephrase | perplexity | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        for size in SIZES:
            some = [r for name, r in cases.get(row, {}).items() if name.endswith(f"-{size}")]
            if some:
                lines.append(_line(row, size, some))
    both = [
        (first[name]["prefix"], second[name]["prefix"], size)
        for first, second in [(cases.get("MEMIT", {}), cases.get("MEMIT, windows", {}))]
        for size in SIZES
        for name in first
        if name in second and name.endswith(f"-{size}")
    ]
    for size in SIZES:
        pairs = [(a, b) for a, b, of in both if of == size]
        if pairs:
            more = sum(b > a for a, b in pairs), sum(b == a for a, b in pairs)
            lines.append(
                f"\nAbout {size} tokens: windows write more of the text in {more[0]} of "
                f"{len(pairs)}, as much in {more[1]}, less in {len(pairs) - sum(more)}."
            )
    return "\n".join(lines)


def _line(row: str, size: int, some: Sequence[dict[str, Any]]) -> str:
    columns = {
        "prefix": [r["prefix"] for r in some],
        "accuracy": [r["accuracy"] for r in some],
        "rephrase": [r["rephrase_accuracy"] for r in some],
        "perplexity": [r["perplexity"] / r["perplexity_unedited"] for r in some],
        "seconds": [r["seconds"] for r in some],
    }
    means = bootstrap(columns)
    prefix = means["prefix"]
    return (
        f"| {row} | {size} | {len(some)} | {prefix.value:.1f} ({prefix.low:.1f}–{prefix.high:.1f}) "
        f"| {100 * means['accuracy'].value:.0f} % | {100 * means['rephrase'].value:.0f} % "
        f"| × {means['perplexity'].value:.2f} | {means['seconds'].value:.0f} |"
    )


if __name__ == "__main__":
    main()
