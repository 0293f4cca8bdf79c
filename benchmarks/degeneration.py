"""How often the checks of the free answer flag sound text, and how often wrecked text.

False alarms: the text that a perfect edit would leave, so every flag is wrong. It is what the
*unedited* model writes after a prompt that already holds the new answer, compared with what it
writes without: fact prompts and their rephrases with the counterfactual target, the subject's
generation prompts with and without the new fact in front, and running text cut at two places.

Hits: edits whose change is multiplied by 1 to 16. A sample counts as wrecked where the next-token
distributions behind the target are more than ``WRECKED_NATS`` (mean KL) from the unedited model's,
which none of the checks looks at.

    python benchmarks/degeneration.py [--facts 120] [--edits 8] [--scales 1,2,4,8,16]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import torch

import common
from easyeditor.edits import Case, Edit, Generate
from easyeditor.evaluate.degeneration import FREE_TOKENS, TOKENS_AFTER_TARGET, examine, free_answers
from easyeditor.lm.inference import Continuation, continue_all
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.lm.sampling import greedy_tokens
from easyeditor.methods import METHODS
from easyeditor.patches.stack import applied
from easyeditor.patches.weight import LowRank, WeightPatch, weight_patch

WRECKED_NATS = 3.0
CUT_WORDS = (12, 16)
"""Words of a running text's two beginnings."""


def records() -> list[dict[str, Any]]:
    text = files("easyeditor.data").joinpath("worldfacts.json").read_text(encoding="utf-8")
    result: list[dict[str, Any]] = json.loads(text)
    return result


def paragraphs() -> list[str]:
    text = files("easyeditor.data").joinpath("heldout.txt").read_text(encoding="utf-8")
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def requests(facts: Sequence[dict[str, Any]]) -> dict[str, list[tuple[str, str, str]]]:
    """Kind of text -> ``(prompt, target, prompt with the target or the new fact)``."""
    statements, rephrases, descriptions, running = [], [], [], []
    for fact in facts:
        target = fact["target_new"]
        statements.append((fact["prompt"], target, f"{fact['prompt']} {target}"))
        prompt = fact["rephrase_prompts"][0]
        rephrases.append((prompt, target, f"{prompt} {target}"))
        prompt = fact["generation_prompts"][0]
        descriptions.append((prompt, "", f"{fact['prompt']} {target}. {prompt}"))
    for text in paragraphs():
        for sentence in re.split(r"(?<=[.!?]) ", text):
            words = sentence.split()
            if len(words) > CUT_WORDS[1]:
                short, long = (" ".join(words[:n]) for n in CUT_WORDS)
                running.append((short, long[len(short) :].strip(), long))
    return {
        "statements": statements,
        "rephrases": rephrases,
        "descriptions": descriptions,
        "running text": running,
    }


def perfect_answers(
    lm: LM, asked: Sequence[tuple[str, str, str]]
) -> Iterator[tuple[Edit, Continuation, Continuation]]:
    """Each request with the unedited model's answer and that of a perfect edit."""
    edits = [Edit(prompt, target or "x") for prompt, target, _ in asked]
    targets = [lm.text.row(prompt, target).target if target else () for prompt, target, _ in asked]
    lengths = [max(FREE_TOKENS, len(ids) + TOKENS_AFTER_TARGET) for ids in targets]
    plain = [Generate(edit.prompt, n) for edit, n in zip(edits, lengths, strict=True)]
    holding = [
        Generate(Edit(long, "x").prompt, n - len(ids))
        for (_, _, long), n, ids in zip(asked, lengths, targets, strict=True)
    ]
    before = continue_all(lm, plain, entropies=True)
    after = continue_all(lm, holding, entropies=True)
    for edit, ids, old, new in zip(edits, targets, before, after, strict=True):
        text = lm.tokenizer.decode((*ids, *new.ids), skip_special_tokens=True)
        spread = (1.0,) * len(ids) + new.entropies
        yield edit, old, Continuation(text, ids + new.ids, spread)


def false_alarms(lm: LM, facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for kind, asked in requests(facts).items():
        flagged = []
        for edit, before, after in perfect_answers(lm, asked):
            faults = examine(lm, edit, before, after)["faults"]
            if faults:
                flagged.append(
                    {"prompt": str(edit.prompt), "faults": faults, "text": after.text,
                     "before": before.text}
                )  # fmt: skip
        result[kind] = {"texts": len(asked), "flagged": len(flagged), "which": flagged}
        print(kind, json.dumps(result[kind]), flush=True)
    return result


def divergence(lm: LM, ids: Sequence[tuple[tuple[int, ...], int]]) -> list[torch.Tensor]:
    """Log-probabilities behind the target for rows of ``(ids, position)``."""
    rows = []
    with lm.at_rest(), torch.no_grad():
        for row, start in ids:
            logits = lm.model(torch.tensor([row], device=lm.device)).logits[0, start:]
            rows.append(logits.float().log_softmax(-1))
    return rows


def hits(
    lm: LM, facts: Sequence[dict[str, Any]], scales: Sequence[float], method: str
) -> list[dict[str, Any]]:
    kind = METHODS.get(method)
    edit_by = kind(kind.hyperparams_class.preset("smollm2-135m"))
    state = edit_by.initial_state(lm)
    samples = []
    for fact in facts:
        edit = Edit(fact["prompt"], fact["target_new"], fact["subject"])
        case = Case(fact["id"], edit)
        row = lm.text.row(edit.prompt, edit.target)
        whole = row.ids + greedy_tokens(lm, [row.ids], TOKENS_AFTER_TARGET)[0]
        read = [(whole, len(row.ids) - 1)]
        (before,), (usual,) = free_answers(lm, [case]), divergence(lm, read)
        patch = edit_by.edit(lm, [edit], state).patch
        assert isinstance(patch, WeightPatch)
        for scale in scales:
            entries = {
                path: [LowRank(p.u, p.v * scale) for p in parts if isinstance(p, LowRank)]
                for path, parts in patch.entries.items()
            }
            larger = weight_patch(lm, method, (edit,), edit_by.hyperparams, entries, {})
            with applied(lm.model, larger):
                (after,), (now,) = free_answers(lm, [case]), divergence(lm, read)
            kl = float((usual.exp() * (usual - now)).sum(-1).mean())
            faults = examine(lm, edit, before, after)["faults"]
            samples.append(
                {"id": fact["id"], "scale": scale, "kl": round(kl, 3), "faults": faults,
                 "text": after.text}
            )  # fmt: skip
            print(json.dumps(samples[-1]), flush=True)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--facts", type=int, default=120)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--edits", type=int, default=8)
    parser.add_argument("--scales", default="1,2,4,8,16")
    parser.add_argument("--method", choices=["ROME", "MEMIT"], default="ROME")
    args = parser.parse_args()
    facts = records()[args.first :][: args.facts]
    lm = load("smollm2-135m", device="cpu")
    alarms = false_alarms(lm, facts) if facts else {}
    scales = [float(scale) for scale in args.scales.split(",")]
    samples = hits(lm, records()[2::37][: args.edits], scales,
                   args.method) if args.edits else []  # fmt: skip
    wrecked = [sample for sample in samples if sample["kl"] > WRECKED_NATS]
    results = {
        "facts": [args.first, args.first + len(facts)],
        "texts": sum(kind["texts"] for kind in alarms.values()),
        "false_alarms": sum(kind["flagged"] for kind in alarms.values()),
        "by_kind": alarms,
        "wrecked": len(wrecked),
        "hits": sum(bool(sample["faults"]) for sample in wrecked),
        "samples": samples,
    }
    common.write("degeneration", results)


if __name__ == "__main__":
    main()
