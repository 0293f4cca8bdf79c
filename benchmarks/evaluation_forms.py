"""Teacher forcing and free generation on the same prompts: where they disagree.

Each fact of ``worldfacts`` is edited alone. On every form of the request (the edited sentence, its
question, both in chat form) the target is scored token by token under teacher forcing, and the
model answers freely: greedy, up to ``--tokens`` tokens or its own end. The table of
``docs/evaluation.md``.

    python benchmarks/evaluation_forms.py --cases 20 rome ft
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import common
from easyeditor import Case
from easyeditor.data.open import open_dataset
from easyeditor.edits import Probe, Query, Score
from easyeditor.evaluate.aggregate import summary
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.presets import preset
from easyeditor.evaluate.query import observe, observe_each, texts_of
from easyeditor.evaluate.replies import EvalOptions, Replies
from easyeditor.evaluate.scorers.asked import AskedScorer
from easyeditor.evaluate.scorers.base import Scorer, Values
from easyeditor.evaluate.scorers.rewrite import RewriteScorer
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS

FORMS = ("sentence", "question", "chat", "chat_question")
SHOWN = 3
"""Cases whose answers are written out."""


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


def questions(lm: LM, cases: Sequence[Case]) -> list[Case]:
    """The cases with the probes of the preset alone, and the edited sentence itself as one."""
    bare = [replace(case, probes=(), generation=(), references=()) for case in cases]
    result = []
    for case in preset("wild").cases(lm, bare):
        plain = replace(case.edit.prompt, chat=False)
        sentence = Probe(plain, (case.edit.target,), "asked/sentence")
        result.append(replace(case, probes=(sentence, *case.probes)))
    return result


def row(
    cases: Sequence[Case], before: Replies, after: Sequence[Replies], options: EvalOptions
) -> dict[str, Any]:
    """The scores of one model, each with its 95 % interval, and some of its answers."""
    scorers = [kind(options) for kind in (RewriteScorer, ForcedScorer, AskedScorer)]
    metrics = [
        summarise(case, before, reply, scorers) for case, reply in zip(cases, after, strict=True)
    ]
    names = ("rewrite_acc", "ES", "forced/", "generation/")
    estimates = {
        name: [round(estimate.value, 4), round(estimate.low, 4), round(estimate.high, 4)]
        for name, estimate in summary(metrics).items()
        if name.startswith(names)
    }
    texts = {
        case.id: {a["name"]: a["text"] for a in texts_of(case, reply, options)["asked"]}
        for case, reply in list(zip(cases, after, strict=True))[:SHOWN]
    }
    return {"scores": estimates, "texts": texts}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: one line per model and form."""
    lines = [
        "| model | asked as | every token the argmax (teacher forced) | answer contains it "
        "| answer equals it | ended by itself | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, result in rows.items():
        scores = result["scores"]
        for form in FORMS:
            keys = (f"forced/{form}_all", *(f"generation/{form}_{k}" for k in ("acc", "exact")))
            shares = [scores[key] for key in (*keys, f"generation/{form}_ended")]
            cells = [
                f"{100 * value:.0f} ({100 * low:.0f}–{100 * high:.0f})"
                for value, low, high in shares
            ]
            cells.append(f"{scores[f'generation/{form}_tokens'][0]:.0f}")
            lines.append(f"| {label} | {form.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("methods", nargs="+")
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    cases = list(open_dataset("worldfacts", size=args.first + args.cases))[args.first :]
    cases = questions(lm, cases)
    options = EvalOptions(asked_tokens=args.tokens)
    scorers = [kind(options) for kind in (RewriteScorer, ForcedScorer, AskedScorer)]
    before = observe(lm, cases, options, scorers)
    rows = {"unedited": row(cases, before, [before] * len(cases), options)}
    for name in args.methods:
        method_class = METHODS.get(name)
        method = method_class(method_class.hyperparams_class.preset("smollm2-135m"))
        state = method.initial_state(lm)
        patches = [method.edit(lm, case.edits, state).patch for case in cases]
        after = observe_each(lm, cases, patches, options, scorers)
        rows[METHODS.canonical(name)] = row(cases, before, after, options)
        print(table(rows), flush=True)
        common.write(
            "evaluation_forms",
            {
                "what": f"worldfacts, smollm2-135m, float32, each edit alone, presets; "
                f"{args.tokens} tokens at most",
                "ids": [case.id for case in cases],
                "prompts": {
                    case.id: {p.name: p.prompt.text for p in case.probes} for case in cases[:SHOWN]
                },
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
