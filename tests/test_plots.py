"""Pictures: whole files, the same every time, and nobody's pyplot is touched."""

import importlib
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import runs
from easyeditor.bench.drawing import GREY, colours, png, svg, written
from easyeditor.bench.plots import figures, layer_plot
from easyeditor.bench.report import report
from easyeditor.bench.results import read_runs
from easyeditor.bench.table import table
from easyeditor.errors import MissingExtraError
from easyeditor.evaluate.aggregate import summary

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [
    "ROME",
    "FT",
    "a $method$ with a name that takes more than a single line",
    "日本",
    "E",
    "F",
]


def drawn(folder):
    read = read_runs([folder])
    return figures(read, table(read))


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    methods = {name: runs.sequence(12) for name in NAMES}
    return runs.write(tmp_path_factory.mktemp("six") / "x", methods, protocol="sequential")


def test_every_picture_is_a_whole_png_and_svg(six):
    made = report(six)
    assert made.without == ""
    pictures = {f.name for f in made.files if f.suffix != ".md" and f.stem != "table"}
    names = ("scores", "probability", "time", "memory", "retention")
    assert pictures == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for file in made.files:
        if file.suffix == ".png":
            data = file.read_bytes()
            assert data.startswith(b"\x89PNG\r\n\x1a\n")
            assert data.endswith(b"IEND\xaeB`\x82")
        elif file.suffix == ".svg":
            assert ElementTree.parse(file).getroot().tag == f"{SVG}svg"


@pytest.mark.slow
def test_equal_numbers_equal_bytes(six):
    first, second = drawn(six), drawn(six)
    assert svg(first["scores"]) == svg(second["scores"])
    assert png(first["retention"]) == png(second["retention"])


def test_only_pictures_there_are_numbers_for(tmp_path):
    record = runs.record(0, seconds={}, peak_memory_mb=None, extra_memory_mb=None)
    folder = runs.write(tmp_path / "x", {"ROME": [record]})
    (folder / "report").mkdir()
    (folder / "report" / "retention.png").write_text("of an earlier report")
    (folder / "report" / "notes.txt").write_text("mine")
    made = report(folder)
    assert {f.stem for f in made.files} == {"table", "scores", "probability"}
    left = {p.name for p in (folder / "report").iterdir()}
    assert left == {f.name for f in made.files} | {"notes.txt"}


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_bars_say_what_they_are_worth(tmp_path):
    records = [runs.record(0), runs.record(1, post=runs.half(0.0))]
    found = drawn(runs.write(tmp_path / "x", {"ROME": records}))
    panels = {axis.get_title(loc="left"): axis for axis in found["scores"].axes}
    assert {"NS: neighbours unchanged", "rewrite accuracy", "locality: neighborhood"} <= set(panels)
    assert all(panels)
    assert all(axis.get_xlim() == (0, 100) for axis in panels.values())
    assert found["scores"].get_suptitle()
    assert texts(panels["ES: new answer likelier"]) == ["0.0", "50.0"]
    assert [bar.get_width() for bar in panels["ES: new answer likelier"].patches] == [0.0, 50.0]
    assert texts(panels["locality: neighborhood"]) == ["75.0"]
    peak, extra = found["memory"].axes
    assert (texts(peak), texts(extra)) == (["101"], ["10"])
    edit, evaluate = found["time"].axes
    assert (texts(edit), texts(evaluate)) == (["2.50"], ["0.50"])
    (legend,) = found["time"].legends
    assert [t.get_text() for t in legend.get_texts()] == ["values", "other"]


def test_probabilities_move(tmp_path):
    (axis,) = drawn(runs.write(tmp_path / "x", {"ROME": [runs.record(0)]}))["probability"].axes
    moves = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 2]
    assert [0.01, 0.9] in [pytest.approx(list(x)) for x in moves]
    assert [0.6, 0.05] in [pytest.approx(list(x)) for x in moves]


def test_what_was_forgotten_is_old(six):
    axes = drawn(six)["retention"].axes
    first = next(axis for axis in axes if axis.get_title(loc="left") == "rewrite acc")
    fresh, end = first.lines
    assert list(fresh.get_ydata()) == [100.0] * 10
    assert list(end.get_ydata()) == [100.0] * 5 + [0.0] * 5
    assert end.get_xdata()[-1] == 10.5  # the bucket of ages 10 and 11


def test_layers():
    points = {3: summary([runs.half(1.0)]), 1: summary([runs.half(0.0), runs.half(1.0)])}
    figure = layer_plot(points, unedited=summary([runs.PRE]))
    (axis,) = figure.axes
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == {"ES", "PS", "NS", "S", "NS, unedited"}
    assert list(lines["ES"].get_xdata()) == [1, 3]
    assert list(lines["ES"].get_ydata()) == [50.0, 100.0]
    assert list(lines["NS, unedited"].get_ydata()) == [100.0, 100.0]
    assert svg(figure)


def test_colours_go_with_the_method(six):
    rows = table(read_runs([six])).rows
    found = colours(rows)
    assert found[:3] == [GREY, "#7FB8D8", "#0072B2"]
    assert len(set(found)) == 1 + 2 * len(NAMES)


def test_names_are_no_mathematics():
    assert written("a$b$") == r"a\$b\$"
    assert max(map(len, written("word " * 30).split("\n"))) <= 36


def test_settings_and_pyplot_are_left_alone():
    code = (
        "import sys, matplotlib\n"
        # to read the backend is to choose one, which imports pyplot
        "def settings(): return {k: matplotlib.rcParams[k] for k in names}\n"
        "names = [k for k in matplotlib.rcParams if k != 'backend']\n"
        "before = settings()\n"
        "import runs; from easyeditor.bench.plots import layer_plot\n"
        "from easyeditor.bench.drawing import png, svg\n"
        "from easyeditor.evaluate.aggregate import summary\n"
        "figure = layer_plot({0: summary([runs.half()])}); png(figure); svg(figure)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert settings() == before\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert ran.returncode == 0, ran.stderr


def test_without_matplotlib(monkeypatch):
    assert importlib.import_module("matplotlib").__version__
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'needs matplotlib.*"easyedit-lm\[bench\]"'):
        layer_plot({})
