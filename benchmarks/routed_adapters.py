"""Methods that route prompts to adapters, on SmolLM2-135M: scores, false fires, seconds, size.

Each argument is one line of the table: a method and changes of its preset. With ``--together`` the
edits are made one by one on the same model and scored at the end, else each is scored alone. A
false fire is an unrelated prompt whose logits are not the unedited model's, to the bit; the prompts
are questions of the data's other records and the prompts of the shipped facts.

    python benchmarks/routed_adapters.py --data zsre_mend_train_1k.json --cases 30
        "GRACE" "GRACE eps_quantile=0.2" "WISE"
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml

import common
from easyeditor import Case, Generate, Score
from easyeditor.data.open import open_dataset
from easyeditor.lm.inference import generate, score
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.methods import METHODS
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied

BATCH = 20


def mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(len(values), 1), 4)


def last_logits(lm: LM, prompts: Sequence[Any]) -> torch.Tensor:
    """Logits after each prompt, in the same batches at every call."""
    result = []
    with lm.at_rest(), torch.no_grad():
        for i in range(0, len(prompts), BATCH):
            rows = [lm.text.row(prompt).ids for prompt in prompts[i : i + BATCH]]
            result.append(lm.target_logits([Row((*ids, 0), (0,)) for ids in rows]))
    return torch.cat(result)


def right(lm: LM, pairs: Sequence[tuple[Any, str]]) -> float:
    """Share of answer tokens that are the argmax under teacher forcing, mean over answers."""
    return mean([s.accuracy for s in score(lm, [Score(*p) for p in pairs])])


def written(lm: LM, pairs: Sequence[tuple[Any, str]]) -> float:
    """Share of answers that greedy generation starts with."""
    texts = generate(lm, [Generate(prompt, 16) for prompt, _ in pairs])
    return mean([t.strip().startswith(a.strip()) for t, (_, a) in zip(texts, pairs, strict=True)])


def argmaxes(lm: LM, pairs: Sequence[tuple[Any, str]]) -> list[tuple[int, ...]]:
    return [s.argmax for s in score(lm, [Score(*p) for p in pairs])]


def probes(case: Case, group: str) -> list[tuple[Any, str]]:
    return [(p.prompt, p.answers[0]) for p in case.probes if p.group == group][:2]


def scores(lm: LM, cases: Sequence[Case], before: Sequence[Any]) -> dict[str, float]:
    edits = [(case.edit.prompt, case.edit.target) for case in cases]
    rephrased = [pair for case in cases for pair in probes(case, "rephrase")]
    others = [pair for case in cases for pair in probes(case, "locality")]
    now = argmaxes(lm, others)
    return {
        "rewrite": right(lm, edits),
        "rewrite_written": written(lm, edits),
        "rephrase": right(lm, rephrased),
        "rephrase_written": written(lm, rephrased),
        "locality": mean(
            [
                mean([a == b for a, b in zip(x, y, strict=True)])
                for x, y in zip(before, now, strict=True)
            ]
        ),
    }


def fires(lm: LM, prompts: Sequence[Any], plain: torch.Tensor) -> float:
    return mean((last_logits(lm, prompts) != plain).any(1).tolist())


def measure(
    lm: LM, line: str, cases: Sequence[Case], unrelated: dict[str, list[Any]], together: bool
) -> dict[str, Any]:
    name, *words = line.split()
    changes = {k: yaml.safe_load(v) for k, v in (w.split("=", 1) for w in words)}
    kind = METHODS.get(name)
    method = kind(kind.hyperparams_class.preset("smollm2-135m", **changes))
    state = method.initial_state(lm)
    plain = {k: last_logits(lm, prompts) for k, prompts in unrelated.items()}
    before = [argmaxes(lm, probes(case, "locality")) for case in cases]
    seconds, numbers, rows = [], [], []
    with ExitStack() as stack:
        for i, case in enumerate(cases):
            start = time.perf_counter()
            outcome = method.edit(lm, [case.edit], state)
            seconds.append(time.perf_counter() - start)
            state = outcome.state if together else state
            patch: Patch = outcome.patch
            numbers.append(sum(t.numel() * t.element_size() for t in patch.dump()[0].values()))
            if together:
                stack.enter_context(applied(lm.model, patch))
                continue
            with applied(lm.model, patch):
                row = scores(lm, [case], before[i])
                if i % 4 == 0:
                    row |= {f"fires_{k}": fires(lm, p, plain[k]) for k, p in unrelated.items()}
                rows.append(row)
        if together:
            rows.append(scores(lm, cases, [some for own in before for some in own]))
            rows[0] |= {f"fires_{k}": fires(lm, p, plain[k]) for k, p in unrelated.items()}
    result = {k: mean([row[k] for row in rows if k in row]) for k in rows[0]}
    return {
        "line": line,
        **result,
        "seconds": round(sorted(seconds)[len(seconds) // 2], 2),
        "kB": round(sum(numbers) / len(numbers) / 1000, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--unrelated", help="another file of the same kind; by default the same")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--write", default="")
    parser.add_argument("lines", nargs="+")
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    cases = list(open_dataset(args.data, size=args.first + args.cases))[args.first :]
    questions = list(open_dataset(args.unrelated or args.data))[-args.prompts :]
    facts = list(open_dataset("worldfacts"))[: args.prompts]
    unrelated = {
        "questions": [case.edit.prompt for case in questions],
        "facts": [case.edit.prompt for case in facts],
    }
    rows = []
    for line in args.lines:
        rows.append(measure(lm, line, cases, unrelated, args.together))
        print(rows[-1], flush=True)
    if args.write:
        common.write(
            args.write,
            {
                "what": f"{Path(args.data).name}, ids {cases[0].id} to {cases[-1].id}, "
                + ("one after the other" if args.together else "each alone"),
                "unrelated": {k: len(p) for k, p in unrelated.items()},
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
