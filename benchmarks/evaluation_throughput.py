"""Evaluation, batched against one prompt per forward pass: seconds, and equal scores.

The slow way is written here on its own, as evaluation scripts do it: every (prompt, answer) is
tokenised, run alone, and the log-probabilities of the whole vocabulary are computed at every
position. Both ways answer the same questions, those that the metrics of the cases read.

    python benchmarks/evaluation_throughput.py [--cases 20] [--data worldfacts]
"""

from __future__ import annotations

import argparse
import time

import torch

import common
from easyeditor.data.open import open_dataset
from easyeditor.edits import Score
from easyeditor.evaluate.query import queries_of
from easyeditor.evaluate.scorers import scorers
from easyeditor.lm.inference import score
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM


def one_by_one(lm: LM, pairs: list[tuple[str, str]]) -> list[tuple[list[float], list[int]]]:
    """Log-probabilities and argmaxes of each answer's tokens; one forward pass per pair."""
    told = []
    with torch.inference_mode():
        for prompt, answer in pairs:
            row = lm.text.row(prompt, answer)
            logp = lm.model(torch.tensor([row.ids])).logits[0].float().log_softmax(-1)
            at = torch.arange(row.prompt_length - 1, len(row.ids) - 1)
            picked = logp[at, torch.tensor(row.target)]
            told.append((picked.tolist(), logp[at].argmax(-1).tolist()))
    return told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--data", default="worldfacts")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    common.touch(lm.model)
    cases = list(open_dataset(args.data, size=args.cases))
    queries = queries_of(scorers(), cases)
    pairs = [(str(query.prompt), query.answer) for query in queries if isinstance(query, Score)]
    score(lm, pairs[:4])
    one_by_one(lm, pairs[:4])
    slow, fast = [], []
    for _ in range(args.repeat):
        start = time.perf_counter()
        alone = one_by_one(lm, pairs)
        slow.append(time.perf_counter() - start)
        start = time.perf_counter()
        together = score(lm, pairs)
        fast.append(time.perf_counter() - start)
    worst = max(
        abs(a - b)
        for (values, _), scores in zip(alone, together, strict=True)
        for a, b in zip(values, scores.logprobs, strict=True)
    )
    other = sum(
        tuple(best) != scores.argmax for (_, best), scores in zip(alone, together, strict=True)
    )
    common.write(
        "evaluation_throughput",
        {
            "what": f"{len(pairs)} questions of {len(cases)} cases of {args.data.split('/')[-1]}",
            "one_prompt_per_forward_s": min(slow),
            "batched_s": min(fast),
            "ratio": min(slow) / min(fast),
            "worst_logprob_difference": worst,
            "answers_with_another_argmax": other,
        },
    )


if __name__ == "__main__":
    main()
