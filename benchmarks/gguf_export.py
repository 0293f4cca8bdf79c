"""How much of an edit survives in a GGUF model, by the type its matrices are stored in.

Edits the embedded model (the numbers of a Q4_1 file) with each fact alone, stores the edited
matrices in each type, and asks whether the target is still the likeliest answer, token by token.
Prints a Markdown table.

    python benchmarks/gguf_export.py --methods ROME,MEMIT,FT --facts 10
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from easyeditor import BaseEditor, load
from easyeditor.export.gguf_file import packed, unpacked_values
from easyeditor.lm.inference import score
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.patches.parts import Dense
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied
from easyeditor.patches.weight import WeightPatch

FACTS = Path(__file__).parent.parent / "tests" / "facts.json"
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16")


def stored(lm: LM, patch: WeightPatch, name: str) -> tuple[WeightPatch, float]:
    """What a file of this type holds of a patch, and the least share of a matrix's change."""
    parts, shares = {}, []
    for path in patch.entries:
        weight = lm.model.get_parameter(path).detach()
        change = patch.dense(path).T.contiguous()
        values = (weight + change).numpy()
        effect = torch.tensor(unpacked_values(packed(values, name), name, values.shape)) - weight
        shares.append(float((effect * change).sum() / change.square().sum()))
        parts[path] = (Dense(effect.T.contiguous()),)
    return WeightPatch(parts, patch.info), min(shares)


def answers(lm: LM, patch: Patch, prompt: str, target: str) -> bool:
    """Whether each token of the target is the likeliest."""
    with applied(lm.model, patch):
        (scores,) = score(lm, [(prompt, target)])
    return scores.accuracy == 1


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="ROME,MEMIT,FT")
    parser.add_argument("--facts", type=int, default=10, help="how many, spread over the file")
    options = parser.parse_args()
    facts = json.loads(FACTS.read_text(encoding="utf-8"))
    facts = facts[:: max(1, len(facts) // options.facts)][: options.facts]
    lm = load("smollm2-135m", device="cpu")
    print("facts:", ", ".join(str(fact["id"]) for fact in facts), flush=True)
    print("| method | stored as | new answers | share of the change: mean, least |")
    print("|---|---|---|---|")
    for method in options.methods.split(","):
        editor = BaseEditor(lm, METHODS.get(method).hyperparams_class.preset("smollm2-135m"))
        rows: dict[str, list[tuple[bool, float]]] = {name: [] for name in TYPES}
        for fact in facts:
            prompt, target = fact["prompt"], fact["target"]
            patch = editor.edit(
                prompt,
                target,
                subject=fact["subject"],
                keep_original_weight=True,
                verbose=False,
            ).patch
            assert isinstance(patch, WeightPatch)
            if not answers(lm, patch, prompt, target):
                print("not held:", method, fact["id"])
                continue
            for name in TYPES:
                change, share = stored(lm, patch, name)
                rows[name].append((answers(lm, change, prompt, target), share))
        for name, row in rows.items():
            shares = [share for _, share in row]
            print(
                f"| {method} | {name} | {sum(held for held, _ in row)} of {len(row)} "
                f"| {sum(shares) / len(shares):.1%}, {min(shares):.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
