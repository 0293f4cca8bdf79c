"""The published figures belong to the settings that are shipped."""

import json
from pathlib import Path

import pytest

from easyeditor.methods import METHODS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("method", ["ROME", "MEMIT", "FT"])
def test_quality_was_measured_with_the_preset(method):
    measured = json.loads((RESULTS / "quality.json").read_text(encoding="utf-8"))[method]
    preset = METHODS.get(method).hyperparams_class.preset("smollm2-135m").model_dump(mode="json")
    settings = measured["settings"]
    assert settings == {name: preset[name] for name in settings}
    assert measured["not_taken"] == []


def test_the_page_shows_what_was_measured():
    results = json.loads((RESULTS / "quality.json").read_text(encoding="utf-8"))
    lines = []
    for method, label in [
        ("ROME", "ROME, one at a time"),
        ("MEMIT", "MEMIT, all in one batch"),
        ("FT", "FT-M, one at a time"),
    ]:
        post = results[method]["post"]
        scores = [
            post["rewrite_acc"],
            post["rephrase_success"],
            post["locality"]["neighborhood_acc"],
        ]
        lines.append(f"| {label} | " + " | ".join(f"{score:.2f}" for score in scores) + " |")
    assert "\n".join(lines) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
