"""Seconds of an edit now against an earlier revision of this repository, in one run.

The revision is checked out beside; processes of both alternate, each edits the embedded model
through the public API (statistics on disk, contexts sampled by the first edit, which is not
timed). The seconds are those of the edit itself as its metrics report them, without the scores
and free answers around it, and the ratio of the fastest counts, as whatever else runs on the
machine only adds to them: 1.05 means five per cent slower than before.

    python benchmarks/edit_speed_compare.py REVISION [--pairs 3] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METHODS = ("ROME", "MEMIT", "FT")
PEOPLE = (("Anna Lindqvist", "Vienna"), ("Boris Moreau", "Madrid"), ("Clara Okafor", "Cairo"))
ROOT = Path(__file__).resolve().parent.parent


def requests() -> list[dict[str, Any]]:
    """Three facts about made-up people, as ``BaseEditor.edit(requests=…)`` takes them."""
    return [
        {
            "prompt": f"{person} was born in the city of",
            "subject": person,
            "target_new": city,
            "ground_truth": None,
        }
        for person, city in PEOPLE
    ]


def time_edits(repeats: int, methods: Sequence[str]) -> dict[str, list[float]]:
    """Seconds of each repeated edit: one fact by each method, and three in a batch by MEMIT."""
    import torch

    import easyeditor

    torch.set_num_threads(os.cpu_count() or 1)
    seconds: dict[str, list[float]] = {}
    for name in methods:
        config = getattr(easyeditor, f"{name}HyperParams").preset("smollm2-135m")
        editor = easyeditor.BaseEditor.from_hparams(config)
        calls = {name: (editor.edit, requests()[:1])}
        if name == "MEMIT":
            calls["MEMIT, batch of 3"] = (editor.batch_edit, requests())
        for label, (edit, facts) in calls.items():
            for number in range(repeats + 1):
                metrics, *_ = edit(requests=facts, keep_original_weight=True, verbose=False)
                if number:
                    seconds.setdefault(label, []).append(metrics[0]["time"])
    return seconds


def child(tree: Path, repeats: int, methods: Sequence[str]) -> dict[str, list[float]]:
    """The same in a process of its own that imports the package of ``tree``."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--repeats", str(repeats)]
    command += ["--methods", *methods]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "EASYEDITOR_OFFLINE": "1"}
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds: dict[str, list[float]] = json.loads(out.stdout.splitlines()[-1])
    return seconds


def compare(revision: str, pairs: int, repeats: int, methods: Sequence[str]) -> dict[str, Any]:
    """The fastest edit of both trees and their ratio, by kind of edit."""
    before: dict[str, list[float]] = {}
    now: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(tree), revision], check=True)
        try:
            for pair in range(pairs):
                sides = [(tree, before), (ROOT, now)]
                for side, seconds in sides if pair % 2 == 0 else reversed(sides):
                    for label, values in child(side, repeats, methods).items():
                        seconds.setdefault(label, []).extend(values)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    return {
        label: {
            "before_s": min(before[label]),
            "now_s": min(now[label]),
            "ratio": min(now[label]) / min(before[label]),
            "ratio_of_medians": statistics.median(now[label]) / statistics.median(before[label]),
        }
        for label in now
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", nargs="?", help="what to compare with, as git names it")
    parser.add_argument("--pairs", type=int, default=3, help="processes of either tree")
    parser.add_argument("--repeats", type=int, default=5, help="timed edits of each kind")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="what is timed")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        sys.stdout.write(json.dumps(time_edits(chosen.repeats, chosen.methods)) + "\n")
        return
    if chosen.revision is None:
        parser.error("Name a revision to compare with, such as HEAD~10.")

    import common

    result = compare(chosen.revision, chosen.pairs, chosen.repeats, chosen.methods)
    for label, row in result.items():
        sys.stdout.write(f"{label}: {row['before_s']:.2f} s -> {row['now_s']:.2f} s, ")
        sys.stdout.write(f"ratio {row['ratio']:.3f}\n")
    common.write("edit_speed_compare", {"revision": chosen.revision, **result})


if __name__ == "__main__":
    main()
