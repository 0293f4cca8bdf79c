"""``easyedit trace`` in the terminal, as JSON and as pictures."""

from __future__ import annotations

import pytest

import outer
from outer import PROMPT, SUBJECT, TARGET
from scripting import DONE, document, refused

FEW = ("--samples", "2", "--window", "2")


@pytest.fixture
def asked(folder):
    """The command on the tiny model."""
    return ("trace", PROMPT, "--model", folder)


def test_maps_of_every_kind_and_their_pictures(easyedit, asked, tmp_path):
    kinds = ("--kind", "state", "--kind", "mlp", "--kind", "attention", "--kind", "lens")
    out = tmp_path / "maps.svg"
    reply = easyedit(*asked, "--subject", SUBJECT, *kinds, *FEW, "--out", out)
    assert reply.code == DONE
    for name in ("hidden states", "2 mlp layers", "2 attention layers", "by layer"):
        assert name in " ".join(reply.out.split()), name
    pictures = sorted(path.name for path in tmp_path.iterdir())
    assert pictures == [f"maps-{kind}.svg" for kind in ("attention", "lens", "mlp", "state")]
    assert all(path.read_text().lstrip().startswith("<?xml") for path in tmp_path.iterdir())


def test_json_holds_every_number(easyedit, asked):
    reply = easyedit(*asked, "--subject", SUBJECT, "--answer", TARGET, *FEW, "--json")
    (trace,) = document(reply)["traces"]
    assert len(trace["scores"]) == len(trace["tokens"])
    assert trace["scores"][-1][-1] == pytest.approx(trace["clean"], abs=1e-6)
    assert trace["corrupted"] != trace["clean"]


def test_the_lens_shows_an_edit_before_and_after(easyedit, asked, tmp_path):
    from easyeditor import save_patch

    edited = outer.editor("FT", num_steps=60).edit(
        PROMPT, TARGET, subject=SUBJECT, keep_original_weight=True
    )
    file = tmp_path / "patch.safetensors"
    save_patch(edited.patch, file)
    out = tmp_path / "lens.png"
    words = ("--kind", "lens", "--answer", TARGET, "--patch", file, "--out", out, "--json")
    lens = document(easyedit(*asked, *words))["lens"]
    before, after = (lens[when]["probabilities"][0][-1][-1] for when in ("before", "after"))
    assert after > 5 * before
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--subject"),
        (("--subject", SUBJECT, "--answer", "a", "--answer", "b"), "one answer"),
        (("--subject", SUBJECT, "--out", "map.gif"), ".png, .svg, .pdf"),
        (("--subject", "Big Ben"), "does not occur"),
        (("--subject", SUBJECT, "--swap-with", "The lady with the blue hat"), "number of tokens"),
        (("--subject", SUBJECT, "--patch", "nothing.safetensors"), "No patch file"),
    ],
)
def test_mistakes_are_one_sentence(easyedit, asked, words, message):
    reply = easyedit(*asked, *words)
    said = refused(reply)
    assert message in said
    assert ("loading" in said) == ("--swap-with" in words)  # what can be known is known before
