"""The published figures belong to the settings that are shipped."""

import json
from pathlib import Path

import pytest

from easyeditor.methods import METHODS

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


@pytest.mark.parametrize("method", ["ROME", "MEMIT", "FT"])
def test_quality_was_measured_with_the_preset(method):
    measured = json.loads((RESULTS / "quality.json").read_text(encoding="utf-8"))[method]
    preset = METHODS.get(method).hyperparams_class.preset("smollm2-135m").model_dump(mode="json")
    settings = measured["settings"]
    assert settings == {name: preset[name] for name in settings}
    assert measured["not_taken"] == []
