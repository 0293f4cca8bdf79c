"""The classic example, three edits at once with two kinds of locality, by all seven methods.

On the embedded model: from Python as users of 0.0.1 call it, each edit alone, and by the command
line, which leaves all three in one model (``--edits``). MEND and SERAC need archives trained before
(docs/methods.md says how).

    python benchmarks/all_seven.py --mend ARCHIVE --serac ARCHIVE
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import easyeditor
from classic import LOCALITY, PROMPTS, SUBJECTS, TARGETS, TRUTH
from easyeditor import BaseEditor
from easyeditor.evaluate.aggregate import averages

REPHRASES = [
    "At which university was Watts Humphrey a student?",
    "The family that Ramalinaceae is part of is called",
    "In football, Denny Herzig plays in the role of",
]


def from_python(method: str, archives: dict[str, str]) -> list[dict[str, Any]]:
    """The metrics of ``editor.edit``, as users of 0.0.1 call it."""
    kind = getattr(easyeditor, f"{method}HyperParams")
    hparams = kind.from_hparams(f"./hparams/{method}/smollm2-135m")
    if method in archives:
        hparams = hparams.replace(archive=archives[method])
    editor = BaseEditor.from_hparams(hparams)
    metrics, edited, _ = editor.edit(
        prompts=PROMPTS,
        ground_truth=TRUTH,
        target_new=TARGETS,
        subject=SUBJECTS,
        rephrase_prompts=REPHRASES,
        locality_inputs=LOCALITY,
        keep_original_weight=True,
    )
    assert edited is not editor.model
    return metrics


def from_shell(method: str, archives: dict[str, str], file: Path) -> list[dict[str, Any]]:
    """The metrics of ``easyedit edit``."""
    extra = ["--set", f"archive={archives[method]}"] if method in archives else []
    easyedit = Path(sys.executable).with_name("easyedit")
    command = [str(easyedit), "edit", "--method", method, "--edits", str(file), "--json", *extra]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: an edit did not take
        raise SystemExit(done.stderr)
    metrics: list[dict[str, Any]] = json.loads(done.stdout)["metrics"]
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mend", required=True)
    parser.add_argument("--serac", required=True)
    args = parser.parse_args()
    archives = {"MEND": args.mend, "SERAC": args.serac}
    records = [
        {
            "prompt": prompt,
            "target_new": TARGETS[i],
            "subject": SUBJECTS[i],
            "ground_truth": TRUTH[i],
            "rephrase_prompts": REPHRASES[i],
            "locality": {
                name: {"prompt": own["prompt"][i], "ground_truth": own["ground_truth"][i]}
                for name, own in LOCALITY.items()
            },
        }
        for i, prompt in enumerate(PROMPTS)
    ]
    told: dict[str, object] = {
        "what": "means of three edits; Python: each alone; shell: all in one model"
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "edits.json"
        file.write_text(json.dumps(records))
        for method in ("FT", "SERAC", "IKE", "MEND", "KN", "ROME", "MEMIT"):
            here = averages(from_python(method, archives))["post"]
            there = averages(from_shell(method, archives, file))["post"]
            told[method] = {"python": here, "shell": there}
            print(method, json.dumps({"python": here, "shell": there}), flush=True)
    common.write("all_seven", told)


if __name__ == "__main__":
    main()
