"""Results that show themselves: HTML without markup of the data's, short texts, data frames."""

from __future__ import annotations

import builtins

import pytest
import torch

import outer
from easyeditor.display import bar, bar_pair, data_frame, heat_map_html, table_html
from easyeditor.errors import MissingExtraError
from easyeditor.interpret.causal_trace import CausalTrace, TraceOptions
from easyeditor.interpret.logit_lens import LogitLens

EVIL = "<img src=x onerror='alert(1)'>"


@pytest.fixture(scope="module")
def result():
    editor = outer.editor()
    return editor.edit(
        [f"The {EVIL} is", "Berlin is the capital of"],
        [EVIL, "Italy"],
        [None, "Germany"],
        locality_inputs={"near": {"prompt": ["She plays", "A"], "ground_truth": ["piano", "B"]}},
        verbose=False,
    )


@pytest.fixture(scope="module")
def trace():
    scores = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.7, 0.1]])
    tokens = (EVIL, " is")
    return CausalTrace(
        "state", EVIL, " Rome", True, tokens, (0, 0), 0.8, 0.1, scores, TraceOptions()
    )


@pytest.fixture(scope="module")
def lens():
    numbers = torch.tensor([[[0.1, 0.2], [0.3, 0.9]]])
    top = ((EVIL, "b"), ("c", "d"))
    return LogitLens(EVIL, (EVIL, " is"), (EVIL,), numbers, numbers.mul(10).long(), top)


def test_nothing_of_the_data_is_markup(result, trace, lens):
    for value in (result, result.patch, trace, lens):
        page = value._repr_html_()
        assert "<img" not in page
        assert "&lt;img" in page


def test_short_texts(result, trace, lens):
    assert all(len(repr(value)) < 250 for value in (result, result.patch, trace, lens))
    assert "layer 1" in repr(trace)
    assert "0.900" in repr(lens)


def test_data_frames(result, trace, lens):
    frame = result.to_frame()
    assert list(frame["target_new"]) == [EVIL, "Italy"]
    assert frame["post/rewrite_acc"].tolist() == [m["post"]["rewrite_acc"] for m in result.metrics]
    assert frame["post/locality/near_acc"].notna().all()
    assert list(result.patch.to_frame()["target"]) == [EVIL, "Italy"]
    assert trace.to_frame()["effect"].max() == pytest.approx(0.6)
    assert len(trace.to_frame()) == 6
    assert lens.to_frame().iloc[-1]["top"] == "d"


def test_without_pandas_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **how):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **how)

    monkeypatch.setattr("easyeditor.display.import_module", refuse)
    with pytest.raises(MissingExtraError, match=r'pip install "easyedit-lm\[pandas\]"'):
        data_frame([])


def test_tables_say_what_they_leave_out():
    page = table_html("t", ["a", "empty"], [[str(i), None] for i in range(60)])
    assert "and 10 more" in page
    assert "empty" not in page
    assert len(table_html("", ["a"], [["x" * 5000]])) < 1000


def test_bars_and_heat_maps_stay_in_their_bounds():
    assert "width:90px" in bar(1.5).markup
    assert "width:0px" in bar(-1.0).markup
    assert bar(None).markup == bar_pair(None, None, rises=True).markup == ""
    page = heat_map_html("t", ["a"], [[0.0, 2.0, float("nan")]], low=0, high=1)
    assert ",0.00)" in page
    assert ",1.00)" in page
    assert heat_map_html("t", [], [], low=0, high=0)
