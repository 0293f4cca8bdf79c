"""How often the checks of the free answer flag sound text, and how often wrecked text.

False alarms: the text that a perfect edit would leave, so every flag is wrong. It is what the
*unedited* model writes after a prompt that already holds the new answer, compared with what it
writes without: fact prompts and their rephrases with the counterfactual target, the subject's
generation prompts with and without the new fact in front, and running text cut at two places.

Hits: text of a model wrecked by noise of ``--scales`` times the weights' own standard deviation in
the last ``--layers`` down-projections, written behind the target. (ROME's change on this model,
multiplied by up to 16, loses the fact and leaves fluent text.) Wrecked is what the unedited model
gives a mean NLL of more than ``WRECKED_NATS`` per token, which none of the checks looks at.

    python benchmarks/degeneration.py [--facts 80] [--wrecked 12] [--scales 1,3]
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
from easyeditor.methods import METHODS
from easyeditor.patches.stack import applied
from easyeditor.patches.weight import Dense, Part, weight_patch

WRECKED_NATS = 5.0
"""A perfect edit's greedy text has 0.3 to 1.5."""
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


def hits(
    lm: LM, facts: Sequence[dict[str, Any]], scales: Sequence[float], layers: int
) -> list[dict[str, Any]]:
    edits = [Edit(fact["prompt"], fact["target_new"], fact["subject"]) for fact in facts]
    cases = [Case(fact["id"], edit) for fact, edit in zip(facts, edits, strict=True)]
    asked = [(edit.prompt.text, edit.target, f"{edit.prompt} {edit.target}") for edit in edits]
    answers = [(before, right) for _, before, right in perfect_answers(lm, asked)]
    samples, settings = [], METHODS.get("FT").hyperparams_class()
    for scale in scales:
        entries: dict[str, list[Part]] = {}
        for layer in range(lm.n_layers - layers, lm.n_layers):
            weight = lm.projection(layer).weight
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(layer))
            entries[lm.projection(layer).path] = [Dense(noise * scale * weight.std())]
        patch = weight_patch(lm, "noise", (), settings, entries, {})
        with applied(lm.model, patch):
            written = free_answers(lm, cases)
        for case, (before, right), now in zip(cases, answers, written, strict=True):
            target = lm.text.row(case.edit.prompt, case.edit.target).target
            # Behind the target, which a wrecking edit has right.
            after = Continuation(
                case.edit.target + now.text,
                (*target, *now.ids),
                (1.0,) * len(target) + now.entropies,
            )
            faults = examine(lm, case.edit, before, after)["faults"]
            nll = unedited_nll(lm, case, now.ids)
            usual = unedited_nll(lm, case, right.ids[len(target) :])
            sample = {"id": case.id, "scale": scale, "nll": round(nll, 2), "usual": round(usual, 2)}
            samples.append({**sample, "faults": faults, "text": now.text})
            print(json.dumps(samples[-1]), flush=True)
    return samples


def unedited_nll(lm: LM, case: Case, ids: Sequence[int]) -> float:
    """Mean NLL per token of a text behind the target, by the unedited model; 0 of no text."""
    if not ids:
        return 0.0
    start = lm.text.row(case.edit.prompt, case.edit.target).ids
    with lm.at_rest(), torch.no_grad():
        whole = torch.tensor([[*start, *ids]], device=lm.device)
        logp = lm.model(whole).logits[0, len(start) - 1 : -1].float().log_softmax(-1)
    return -float(logp[range(len(ids)), list(ids)].mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--facts", type=int, default=80)
    parser.add_argument("--wrecked", type=int, default=12)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--scales", default="1,3")
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    results: dict[str, Any] = {}
    if args.facts:
        alarms = false_alarms(lm, records()[: args.facts])
        results |= {
            "facts": args.facts,
            "texts": sum(kind["texts"] for kind in alarms.values()),
            "false_alarms": sum(kind["flagged"] for kind in alarms.values()),
            "by_kind": alarms,
        }
    if args.wrecked:
        scales = [float(scale) for scale in args.scales.split(",")]
        samples = hits(lm, records()[100:][: args.wrecked], scales, args.layers)
        wrecked = [sample for sample in samples if sample["nll"] > WRECKED_NATS]
        results |= {
            "wrecked": len(wrecked),
            "hits": sum(bool(sample["faults"]) for sample in wrecked),
            "samples": samples,
        }
    common.write("degeneration", results)


if __name__ == "__main__":
    main()
