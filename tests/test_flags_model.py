"""``flags-135m``: what it sees, that its text is the embedded model's, and edits of it."""

from __future__ import annotations

import json

import pytest

from easyeditor.data.flag_cases import CAPITALS, QUESTION, flag_cases
from easyeditor.data.flag_pictures import COUNTRIES, THINGS, draw, photograph

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture(scope="module")
def flags():
    from easyeditor.lm.loading import load

    return load("flags-135m")


def test_pictures_are_the_same_bytes_for_one_seed():
    assert set(CAPITALS) == set(COUNTRIES)
    assert photograph("France", 3).tobytes() == photograph("France", 3).tobytes()
    assert photograph("France", 3).tobytes() != photograph("France", 4).tobytes()
    flat = {draw(thing).tobytes() for thing in THINGS}
    assert len(flat) == len(THINGS)


def test_text_gives_the_bits_of_the_embedded_model(flags):
    import torch

    from easyeditor.lm.loading import load
    from easyeditor.lm.tokens import Row

    embedded = load("smollm2-135m")
    row = embedded.text.row("The capital of France is", "Paris")
    assert flags.text.row("The capital of France is", "Paris") == row
    with torch.no_grad():
        one, other = (lm.target_logits([Row(row.ids, row.ids[1:])]) for lm in (flags, embedded))
    assert torch.equal(one, other)


def test_flags_it_was_not_trained_on_are_named(flags):
    from easyeditor.data.flag_cases import picture
    from easyeditor.edits import Prompt
    from easyeditor.lm.inference import generate

    asked = COUNTRIES[::5]
    said = generate(flags, [Prompt(QUESTION, (picture(c, 7),)) for c in asked], 4)
    right = [text.strip().startswith(c) for text, c in zip(said, asked, strict=True)]
    assert sum(right) >= len(asked) - 1


def test_the_report_is_of_the_file(flags):
    from easyeditor.lm import flags_model

    report = json.loads(flags_model.WEIGHTS.with_suffix(".json").read_text())
    assert report["bytes"] == flags_model.WEIGHTS.stat().st_size <= 2_000_000
    assert report["picture"][QUESTION] >= 36
    parts = flags_model.tower_parts(flags.model)
    assert report["parameters"] == sum(p.numel() for p in parts.parameters())


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("FT", {}),
        ("FT", {"site": "projector", "layers": [0]}),
        ("LoRA", {}),
        ("IKE", {"use_icl_examples": False}),
    ],
)
def test_an_edit_holds_in_other_words_and_on_another_picture(flags, method, changes):
    from easyeditor.editors.session import EditSession
    from easyeditor.evaluate.metrics import summarise
    from easyeditor.evaluate.query import observe
    from easyeditor.evaluate.scorers import scorers
    from easyeditor.methods import METHODS

    kind = METHODS.get(method)
    session = EditSession(flags, kind(kind.hyperparams_class.for_model("flags-135m", **changes)))
    (case,) = flag_cases(1, seed=2)
    before = observe(flags, [case])
    attempt = session.attempt(case.edits)
    with session.carrying(attempt.patch):
        after = observe(flags, [case])
    result = summarise(case, before, after, scorers())
    assert result["rewrite_acc"] == result["rephrase_acc"] == result["image_rephrase_acc"] == 1.0
    assert observe(flags, [case]).scores == before.scores  # put back to the bit
