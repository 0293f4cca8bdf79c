"""Teacher forcing and free generation on the same prompts: where they disagree.

Each fact of ``worldfacts`` is edited alone. On every form of the request (the edited sentence, its
question, both in chat form) the target is scored token by token under teacher forcing, and the
model answers freely: greedy, up to ``--tokens`` tokens or its own end. The table of
``docs/evaluation.md``. Facts are written as they come and are not computed again, so the script can
be stopped and called anew.

    python benchmarks/evaluation_forms.py --cases 20 rome ft
    python benchmarks/evaluation_forms.py --table
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
from easyeditor import Case
from easyeditor.data.open import open_dataset
from easyeditor.edits import Probe, Query, Score
from easyeditor.evaluate.aggregate import flatten
from easyeditor.evaluate.bootstrap import bootstrap
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.presets import preset
from easyeditor.evaluate.query import observe, texts_of
from easyeditor.evaluate.replies import EvalOptions, Replies
from easyeditor.evaluate.scorers.asked import AskedScorer
from easyeditor.evaluate.scorers.base import Scorer, Values
from easyeditor.evaluate.scorers.rewrite import RewriteScorer
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.patches.stack import applied

NAME = "evaluation_forms"
WHAT = "worldfacts, smollm2-135m, float32, each edit alone, presets, answers of at most {} tokens"
FORMS = ("sentence", "question", "chat", "chat_question")


class ForcedScorer(Scorer):
    """``forced/<name>_acc``: token accuracy of the answer after an ``asked`` probe's prompt;
    ``forced/<name>_all``: whether every token is the argmax."""

    group = "asked"

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Query]:
        """The answer."""
        assert probe is not None
        yield Score(probe.prompt, probe.answers[0])

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        assert probe is not None
        accuracy = after[Score(probe.prompt, probe.answers[0])].accuracy
        name = f"forced/{probe.name}"
        return {f"{name}_acc": accuracy, f"{name}_all": float(accuracy == 1.0)}


KINDS = (RewriteScorer, ForcedScorer, AskedScorer)


def questions(lm: LM, cases: Sequence[Case]) -> list[Case]:
    """The cases with the probes of the preset alone, and the edited sentence itself as one."""
    bare = [replace(case, probes=(), generation=(), references=()) for case in cases]
    result = []
    for case in preset("wild").cases(lm, bare):
        plain = replace(case.edit.prompt, chat=False)
        sentence = Probe(plain, (case.edit.target,), "asked/sentence")
        result.append(replace(case, probes=(sentence, *case.probes)))
    return result


def row(case: Case, before: Replies, after: Replies, options: EvalOptions) -> dict[str, Any]:
    """The scores of one fact and model, and its answers."""
    scorers = [kind(options) for kind in KINDS]
    return {
        "scores": {
            name: value
            for name, value in flatten(summarise(case, before, after, scorers)).items()
            if name.startswith(("rewrite_acc", "rewrite_success", "forced/", "generation/"))
        },
        "texts": {a["name"]: a["text"] for a in texts_of(case, after, options)["asked"]},
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: one line per model and form, with 95 % bootstrap intervals over the facts."""
    lines = [
        "| model (facts) | asked as | every token the argmax (teacher forced) | answer contains it "
        "| answer equals it | ended by itself | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for label in dict.fromkeys(key.partition("/")[0] for key in rows):
        chosen = [result["scores"] for key, result in rows.items() if key.startswith(f"{label}/")]
        estimates = bootstrap({name: [row.get(name) for row in chosen] for name in chosen[0]})
        for form in FORMS:
            keys = (f"forced/{form}_all", *(f"generation/{form}_{k}" for k in ("acc", "exact")))
            shares = [estimates[key] for key in (*keys, f"generation/{form}_ended")]
            cells = [f"{100 * e.value:.0f} ({100 * e.low:.0f}–{100 * e.high:.0f})" for e in shares]
            cells.append(f"{estimates[f'generation/{form}_tokens'].value:.0f}")
            title = f"{label} ({len(chosen)})"
            lines.append(f"| {title} | {form.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("methods", nargs="*")
    args = parser.parse_args()
    file = Path(__file__).parent / "results" / f"{NAME}.json"
    rows: dict[str, Any] = json.loads(file.read_text())["rows"] if file.is_file() else {}
    if args.table:
        print(table(rows))
        return
    lm = load("smollm2-135m", device="cpu")
    cases = list(open_dataset("worldfacts", size=args.first + args.cases))[args.first :]
    options = EvalOptions(asked_tokens=args.tokens)
    scorers = [kind(options) for kind in KINDS]
    methods = {}
    for name in map(METHODS.canonical, args.methods):
        method_class = METHODS.get(name)
        methods[name] = method_class(method_class.hyperparams_class.preset("smollm2-135m"))
    states = {name: method.initial_state(lm) for name, method in methods.items()}
    for case in questions(lm, cases):
        if all(f"{label}/{case.id}" in rows for label in ("unedited", *methods)):
            continue
        before = observe(lm, [case], options, scorers)
        rows[f"unedited/{case.id}"] = row(case, before, before, options)
        for name, method in methods.items():
            patch = method.edit(lm, case.edits, states[name]).patch
            with applied(lm.model, patch):
                after = observe(lm, [case], options, scorers)
            rows[f"{name}/{case.id}"] = row(case, before, after, options)
        common.write(NAME, {"what": WHAT.format(args.tokens), "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
