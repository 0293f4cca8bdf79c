"""Seconds and peak memory of edits of the embedded model, after loading, statistics cached.

python benchmarks/edit_speed.py
"""

from __future__ import annotations

import shutil
import tempfile
import time
from functools import partial

import common
from easyeditor.edits import Edit
from easyeditor.lm.inference import score
from easyeditor.lm.loading import load
from easyeditor.methods import METHODS
from easyeditor.methods.base import Need
from easyeditor.second_moments import moments

EIFFEL = Edit("The Eiffel Tower is located in the city of", "Rome", "The Eiffel Tower")
BATCHES = {"ROME": (1,), "MEMIT": (1, 10, 100), "FT": (1,)}


def main() -> None:
    lm = load("smollm2-135m", device="cpu")
    common.touch(lm.model)
    score(lm, [("warm", "up")])
    size = common.model_mb(lm.model)
    told: dict[str, object] = {"model_mb": round(size)}

    folder = tempfile.mkdtemp()
    start = time.perf_counter()
    found = moments(lm, [2, 3, 4, 5, 6], tokens=20000, source=_text(folder), directory=folder)
    told["moments_five_layers_20000_tokens_s"] = time.perf_counter() - start
    told["moments_tokens"] = found[2].tokens
    shutil.rmtree(folder)

    for name, sizes in BATCHES.items():
        method = METHODS.get(name)
        settings = method.hyperparams_class.preset("smollm2-135m")
        for n in sizes:
            edits = [EIFFEL] if n == 1 else common.made_up_edits(n)
            made = method(settings)
            if Need.SUBJECT in method.needs:  # statistics on disk; contexts are sampled by the edit
                made.initial_state(lm)
            lm.caches.clear()
            outcome, seconds, extra = common.measured(partial(made.edit, lm, edits))
            patch = outcome.patch
            told[f"{name} {n}"] = {
                "seconds": seconds,
                "seconds_per_edit": seconds / n,
                "phases": dict(patch.info.seconds),
                "peak_extra_mb": round(extra),
                "peak_extra_share_of_model": extra / size,
            }
            print(name, n, told[f"{name} {n}"], flush=True)
    common.write("edit_speed", told)


def _text(folder: str) -> str:
    """A text file of over 20,000 tokens, made up: only the time is measured on it."""
    path = f"{folder}/text.txt"
    people = common.made_up_edits(100)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(60):
            line = " ".join(f"{e.prompt} {e.target}." for e in people[i % 7 :: 2])
            file.write(line + "\n")
    return path


if __name__ == "__main__":
    main()
