"""Free answers of the preset ``wild``: seconds, batched as now against batched and one by one.

Three ways to the same texts, in turn: each prompt by a call of ``generate`` of its own, for each
length that is asked of it; one batch for each length, all prompts padded to the longest; and what
``continue_all`` does: a prompt once for all its lengths, short prompts apart from long ones.

    python benchmarks/free_answers.py [--cases 20] [--data worldfacts] [--repeat 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import common
from easyeditor.data.open import open_dataset
from easyeditor.edits import Generate
from easyeditor.evaluate.presets import preset
from easyeditor.evaluate.query import EvalOptions, queries_of
from easyeditor.evaluate.scorers import scorers
from easyeditor.lm import sampling
from easyeditor.lm.inference import generate
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM

ANSWER_TOKENS, ASKED_TOKENS = 24, 32


def one_by_one(lm: LM, queries: Sequence[Generate]) -> list[str]:
    """Every query by itself."""
    return [generate(lm, [query])[0] for query in queries]


def by_length(lm: LM, queries: Sequence[Generate]) -> list[str]:
    """One batch for each length, as large as the budget allows."""
    texts: dict[Generate, str] = {}
    step, sampling.STEP_TOKENS = sampling.STEP_TOKENS, 10**9
    try:
        for length in sorted({query.max_new_tokens for query in queries}):
            some = [query for query in queries if query.max_new_tokens == length]
            texts.update(zip(some, generate(lm, some), strict=True))
    finally:
        sampling.STEP_TOKENS = step
    return [texts[query] for query in queries]


WAYS: dict[str, Callable[[LM, Sequence[Generate]], list[str]]] = {
    "one_by_one": one_by_one,
    "by_length": by_length,
    "now": generate,
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--data", default="worldfacts")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    common.touch(lm.model)
    wild = preset("wild")
    options = wild.options(EvalOptions(ANSWER_TOKENS, asked_tokens=ASKED_TOKENS))
    cases = wild.cases(lm, list(open_dataset(given.data, size=given.cases)))
    asked = queries_of(scorers(options), cases)
    queries = [query for query in asked if isinstance(query, Generate)]
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    texts: dict[str, list[str]] = {}
    for _ in range(given.repeat):
        for name, way in WAYS.items():
            began = time.perf_counter()
            texts[name] = way(lm, queries)
            seconds[name].append(time.perf_counter() - began)
    best = {name: min(values) for name, values in seconds.items()}
    common.write(
        "free_answers",
        {
            "what": f"{len(queries)} free answers of {len(cases)} cases of {given.data}",
            "seconds": seconds,
            "ratio_to_one_by_one": best["one_by_one"] / best["now"],
            "ratio_to_batches_by_length": best["by_length"] / best["now"],
            "texts_that_differ": {
                name: sum(a != b for a, b in zip(other, texts["now"], strict=True))
                for name, other in texts.items()
            },
        },
    )


if __name__ == "__main__":
    main()
