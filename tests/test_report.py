"""Intervals, summaries, retention, and the tables of a run: numbers worked out by hand."""

import csv
import io
import json
import math
import random
import re
import sys
from pathlib import Path

import pytest

import runs
from easyeditor.bench.captions import captions
from easyeditor.bench.report import report
from easyeditor.bench.results import Run, read_runs
from easyeditor.bench.table import table
from easyeditor.bench.writers import as_csv, as_json, latex, markdown, shown
from easyeditor.errors import BenchError
from easyeditor.evaluate.aggregate import flatten, retention, summary
from easyeditor.evaluate.bootstrap import Estimate, bootstrap
from easyeditor.files import written_whole

# -- intervals --------------------------------------------------------------------------------


def test_means_skip_what_was_not_measured():
    found = bootstrap({"a": [1, 2, None, math.nan], "b": [None] * 4, "c": [4, 4, 4, 4]})
    assert found["a"].value == 1.5
    assert (found["a"].low, found["a"].high, found["a"].n) == (1.0, 2.0, 2)
    assert found["c"] == Estimate(4.0, 4.0, 4.0, 4)
    assert "b" not in found


def test_the_interval_is_the_binomial_one():
    """Of 100 cases 80 succeed: a resample's mean is binomial, its 95 % range 0.72 to 0.87."""
    found = bootstrap({"a": [1.0] * 80 + [0.0] * 20}, resamples=4000)["a"]
    assert found.value == 0.8
    assert found.low == pytest.approx(0.72, abs=0.011)
    assert found.high == pytest.approx(0.87, abs=0.011)


def test_order_statistics():
    """Two cases, 0 and 1: resamples give 0, 1/2 or 1; a quarter each at the ends."""
    assert bootstrap({"a": [0.0, 1.0]})["a"] == Estimate(0.5, 0.0, 1.0, 2)
    assert bootstrap({"a": [3.0]})["a"] == Estimate(3.0, 3.0, 3.0, 1)


def test_cases_are_drawn_together():
    ups = [0.1, 0.5, 0.7, 0.9]
    found = bootstrap({"a": ups, "b": [1 - x for x in ups]})
    assert found["a"].low == pytest.approx(1 - found["b"].high)


def test_draws_are_deterministic_and_leave_no_trace():
    import numpy as np

    columns = {"a": [0.0, 1.0, 0.3, 0.7, 0.2]}
    before = np.random.get_state()[1].tolist()
    assert bootstrap(columns, seed=1) == bootstrap(columns, seed=1)
    assert bootstrap(columns, seed=1) != bootstrap(columns, seed=2)
    assert np.random.get_state()[1].tolist() == before


def test_harmonic_mean():
    found = bootstrap({"x": [1.0, 1.0], "y": [0.5, 0.5], "z": [0.25, None]}, harmonic={"S": "xyz"})
    assert found["S"].value == pytest.approx(3 / (1 + 2 + 4))
    assert found["S"].n == 1
    assert bootstrap({"x": [1.0], "y": [0.0]}, harmonic={"S": "xy"})["S"].value == 0
    assert "S" not in bootstrap({"x": [1.0], "y": [None]}, harmonic={"S": "xy"})


def test_infinite_values_are_no_accident():
    found = bootstrap({"a": [1.0, math.inf]})["a"]
    assert (found.value, found.low, found.high) == (math.inf, 1.0, math.inf)


@pytest.mark.parametrize(("columns", "resamples"), [({"a": [1], "b": [1, 2]}, 10), ({"a": [1]}, 0)])
def test_impossible_intervals(columns, resamples):
    with pytest.raises(BenchError, match="one length"):
        bootstrap(columns, resamples=resamples)


def test_nothing_measured():
    assert bootstrap({}) == bootstrap({"a": []}) == bootstrap({"a": [None]}) == {}


# -- summary ----------------------------------------------------------------------------------


def test_flatten():
    nested = {"a": 1, "b": {"c": 0.5, "d": {"e": 2}}, "f": "text", "g": None, "h": math.nan}
    assert flatten(nested) == {"a": 1.0, "b/c": 0.5, "b/d/e": 2.0}


def test_summary_knows_the_papers_names():
    found = summary([runs.half(1.0), runs.half(0.0)])
    assert (found["ES"].value, found["PS"].value, found["NS"].value) == (0.5, 0.5, 0.5)
    assert found["S"].value == pytest.approx(0.5)
    assert found["EM"].value == pytest.approx(0.85)
    assert found["NM"].value == pytest.approx(0.1)
    assert found["ES"] == found["rewrite_success"]
    assert found["locality/neighborhood_acc"] == Estimate(0.75, 0.75, 0.75, 2)


def test_s_is_harmonic_over_means_not_a_mean_of_harmonics():
    cases = [
        {"rewrite_success": e, "rephrase_success": p, "locality": {"neighborhood_success": n}}
        for e, p, n in ((1, 0, 1), (1, 1, 0))
    ]
    assert summary(cases)["S"].value == pytest.approx(3 / (1 + 2 + 2))


def test_neighbourhood_is_the_probes_of_that_name():
    near, far = {"neighborhood_success": 1.0, "far_success": 0.0}, {"far_success": 0.0}
    found = summary([{"locality": near}, {"locality": far}])
    assert (found["NS"].value, found["NS"].n) == (1.0, 1)
    found = summary([{"locality": {"a_success": 1.0, "b_success": 0.0}}, {"locality": far}])
    assert (found["NS"].value, found["NS"].n) == (0.25, 2)


# -- retention --------------------------------------------------------------------------------


def edited(n):
    """Edit i has accuracy 1 after it, and i / n at the end."""
    return [{"post": {"rewrite_acc": 1.0}, "final": {"rewrite_acc": i / n}} for i in range(n)]


def test_retention_by_single_age():
    found = retention(edited(4))
    assert [(b["age"], b["oldest"], b["n"]) for b in found] == [
        (0, 0, 1), (1, 1, 1), (2, 2, 1), (3, 3, 1)
    ]  # fmt: skip
    assert [b["at_end"]["rewrite_acc"].value for b in found] == [0.75, 0.5, 0.25, 0.0]
    assert {b["after_edit"]["rewrite_acc"].value for b in found} == {1.0}


def test_retention_in_buckets():
    found = retention(edited(25))
    assert [b["n"] for b in found] == [2, 3, 2, 3, 2, 3, 2, 3, 2, 3]
    assert (found[0]["age"], found[-1]["oldest"]) == (0, 24)
    assert found[0]["at_end"]["rewrite_acc"].value == pytest.approx((24 + 23) / 50)
    found = retention(edited(5), bucket=2)
    assert [(b["age"], b["oldest"]) for b in found] == [(0, 1), (2, 3), (4, 4)]
    assert retention([]) == []


def test_retention_needs_both_times():
    with pytest.raises(BenchError, match=r"Edit 1 .*evaluate_when='both'"):
        retention([*edited(1), {"post": {}}])
    with pytest.raises(BenchError, match="bucket=0"):
        retention(edited(2), bucket=0)


# -- reading ----------------------------------------------------------------------------------


def test_torn_lines_and_incomplete_units_do_not_count(tmp_path):
    records = [runs.record(0), runs.record(1, unit=1, of=2), runs.record(2, unit=1, of=2)]
    records += [runs.record(3, unit=2, of=2)]
    folder = runs.write(tmp_path / "x", {"ROME": records})
    with (folder / "ROME" / "records.jsonl").open("a") as file:
        file.write(json.dumps(runs.record(4))[:50])
    (run,) = read_runs([folder])
    assert [r["position"] for r in run.records["ROME"]["post"]] == [0, 1, 2]
    assert "ROME: 3 of 4 cases so far." in table([run]).notes
    untouched = (folder / "ROME" / "records.jsonl").read_bytes()
    assert untouched.endswith(json.dumps(runs.record(4))[:50].encode())


def test_a_record_written_twice_counts_once(tmp_path):
    again = runs.record(0, post=runs.half(0.0))
    (run,) = read_runs([runs.write(tmp_path / "x", {"ROME": [runs.record(0), again]})])
    assert run.records["ROME"]["post"] == [again]


def test_a_damaged_line_is_named(tmp_path):
    folder = runs.write(tmp_path / "x", {"ROME": [runs.record(0)]})
    with (folder / "ROME" / "records.jsonl").open("a") as file:
        file.write('{"stage": "post"}\n')
    with pytest.raises(BenchError, match=r"records\.jsonl, line 2 is damaged"):
        read_runs([folder])


def test_folders_that_cannot_be_reported(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="no run folder"):
        report(tmp_path / "empty")
    with pytest.raises(BenchError, match="at least one"):
        report([])
    with pytest.raises(BenchError, match="no complete records yet"):
        report(runs.write(tmp_path / "young", {"ROME": []}))
    with pytest.raises(BenchError, match="reads format 1"):
        report(runs.write(tmp_path / "new", {"ROME": [runs.record(0)]}, format=2))
    with pytest.raises(BenchError, match=r"does not say seed, versions"):
        report(runs.write(tmp_path / "bare", {"ROME": []}, seed=None, versions=None))
    broken = runs.write(tmp_path / "broken", {"ROME": [runs.record(0)]})
    (broken / "run.json").write_text("{")
    with pytest.raises(BenchError, match=r"run\.json cannot be read"):
        report(broken)


# -- rows and columns -------------------------------------------------------------------------


def row(made, method, scored=""):
    return next(r for r in made.rows if (r.method, r.scored) == (method, scored))


@pytest.fixture
def run(tmp_path):
    records = [runs.record(0), runs.record(1, post=runs.half(0.0)), runs.record(2)]
    return read_runs([runs.write(tmp_path / "x", {"ROME": records})])[0]


def test_rows(run):
    made = table([run])
    assert [(r.run, r.method, r.scored, r.cases) for r in made.rows] == [
        ("", "unedited", "", 3),
        ("", "ROME", "", 3),
    ]
    numbers = made.rows[1].numbers
    assert numbers["ES"].value == pytest.approx(2 / 3)
    assert numbers["S"].value == pytest.approx(3 / (1.5 + 1.5 + 2))
    assert numbers["change/relative"] == Estimate(0.03, 0.03, 0.03, 3)
    assert numbers["seconds/edit"].value == 3.0
    assert numbers["seconds/values"].value == 1.0
    assert (numbers["memory/peak_mb"].value, numbers["memory/peak_mb"].n) == (102.0, 3)
    assert made.rows[0].numbers["perplexity"].value == 20.0
    assert made.rows[1].before["rewrite_prob/ground_truth"].value == pytest.approx(0.6)
    assert "seconds/edit" not in made.rows[0].numbers


def test_only_columns_that_exist(run):
    keys = [column.key for column in table([run]).columns]
    assert keys[:4] == ["S", "ES", "PS", "NS"]
    assert {"locality/neighborhood_acc", "portability/one_hop_acc", "perplexity"} <= set(keys)
    assert not {"fluency", "consistency", "generation/rewrite_acc"} & set(keys)
    assert "locality/neighborhood_success" not in keys  # that is NS
    kept = [column.key for column in table([run], measured=False).columns]
    assert kept == [k for k in keys if not k.startswith(("seconds/", "memory/"))]


def test_a_second_kind_of_locality_has_its_own_success(tmp_path):
    both = {"neighborhood_success": 1.0, "distracting_success": 0.0, "distracting_acc": 0.5}
    records = [runs.record(0, post=runs.half(locality=both))]
    made = table(read_runs([runs.write(tmp_path / "x", {"ROME": records})]))
    assert made.rows[1].numbers["NS"].value == 1.0
    titles = {c.key: c.title for c in made.columns}
    assert titles["locality/distracting_success"] == "distracting success"


def test_a_sequence_has_two_rows(tmp_path):
    folder = runs.write(tmp_path / "x", {"ROME": runs.sequence(4)}, protocol="sequential")
    scores = {"acc": 0.5, "acc_stderr": 0.1, "n": 40, "version": 2}
    told = {
        "ROME": {"before": {"hellaswag": scores}, "after": {"hellaswag": scores | {"acc": 0.3}}}
    }
    (folder / "downstream.json").write_text(json.dumps(told))
    made = table(read_runs([folder]))
    after, at_end = row(made, "ROME", "after its edit"), row(made, "ROME", "at the end")
    assert (after.numbers["ES"].value, at_end.numbers["ES"].value) == (1.0, 0.5)
    assert "seconds/edit" not in at_end.numbers
    assert at_end.numbers["seconds/evaluate"].value == 1.0
    assert "downstream/hellaswag/acc" not in after.numbers
    task = at_end.numbers["downstream/hellaswag/acc"]
    assert (task.value, task.n) == (0.3, 40)
    assert (task.low, task.high) == pytest.approx((0.104, 0.496))
    assert row(made, "unedited").numbers["downstream/hellaswag/acc"].value == 0.5
    assert at_end.numbers["downstream/hellaswag/acc_change"].value == pytest.approx(-0.2)
    assert [c.key for c in made.columns if c.group == "Downstream tasks"] == [
        "downstream/hellaswag/acc",
        "downstream/hellaswag/acc_change",
    ]


def test_equal_records_equal_tables_in_any_order(tmp_path):
    rng = random.Random(0)
    records = [
        runs.record(i, post=runs.half(rng.random(), fluency=rng.random())) for i in range(20)
    ]
    shuffled = [
        r | {"seconds": {"edit": rng.random()}, "peak_memory_mb": rng.random()} for r in records
    ]
    rng.shuffle(shuffled)
    first = runs.write(tmp_path / "first", {"ROME": records})
    second = runs.write(tmp_path / "second", {"ROME": shuffled})
    a, b = (table(read_runs([folder]), measured=False) for folder in (first, second))
    assert a == b
    for write in (markdown, latex, as_csv, as_json):
        assert write(a) == write(b)
    assert markdown(table(read_runs([first]))) != markdown(table(read_runs([second])))


def test_runs_side_by_side(tmp_path):
    first = runs.write(tmp_path / "a" / "x", {"ROME": [runs.record(0)]})
    second = runs.write(
        tmp_path / "b" / "x", {"ROME": [runs.record(0)]}, model="other", fingerprint="f" * 16
    )
    made = table(read_runs([first, second]))
    assert [r.run for r in made.rows] == [str(first)] * 2 + [str(second)] * 2
    assert "The runs are of different models" in made.caption
    assert "different cases" not in made.caption
    assert [r.run for r in table(read_runs([first, tmp_path / "b" / ".." / "b" / "x"])).rows]


def test_caption():
    info = runs.RUN | {"n": 4, "case_ids": ["0", "1", "2", "3"], "methods": {"A": {}}}
    failed = [{"error": "diverged"}, {}, {}, {}]
    said = captions([Run("x", info, {"A": {"post": failed}})])
    assert said[0] == (
        "Model tiny_llama (fingerprint 0123456789ab), protocol single, 4 cases (ids 0–3) of "
        "facts_100%.json (sha256 fedcba987654), seed 7; easyeditor 0.1.0, torch 2.13.0."
    )
    assert said[1] == "A: 1 edits failed; they count, measured without the edit."
    info |= {"case_ids": ["a", "7"], "batch_size": 2, "protocol": "batch"}
    said = captions([Run("x", info, {})])
    assert "protocol batch, 2 edits at a time, 4 cases (ids a, 7)" in said[0]
    info |= {"case_ids": [str(i) for i in (5, 9, 1, 2, 3, 4)]}
    assert "(ids from 5 to 4, not in a row)" in captions([Run("x", info, {})])[0]


# -- writers ----------------------------------------------------------------------------------


def test_markdown(run):
    text = markdown(table([run]))
    assert "| method | n | S | ES | PS | NS | EM | PM | NM | rewrite acc | rephrase acc |" in text
    assert "| unedited | 3 | 0.0 (0.0–0.0) | 0.0 (0.0–0.0) |" in text
    assert "−59.0 (−59.0 to −59.0)" in text
    assert "| ROME | 3 | 60.0 (" in text
    assert "facts\\_100%.json" in text
    assert "| ROME | 3 | 0.0300 (0.0300–0.0300) | 3.00 (" in text


def test_cells_tell_their_own_n(tmp_path):
    less = {k: v for k, v in runs.half().items() if k != "rephrase_acc"}
    records = [runs.record(0, post=less), runs.record(1)]
    text = markdown(table(read_runs([runs.write(tmp_path / "x", {"ROME": records})])))
    assert "100.0 (100.0–100.0), n=1 |" in text


def test_latex_is_escaped(tmp_path):
    label = r"A_b & 50% of $c^2$ {x} #1 ~\end"
    text = latex(table(read_runs([runs.write(tmp_path / "x", {label: [runs.record(0)]})])))
    assert (
        r"A\_b \& 50\% of \$c\textasciicircum{}2\$ \{x\} \#1 \textasciitilde{}\textbackslash{}end &"
        in text
    )
    assert r"$\Vert$$\Delta$W$\Vert$/$\Vert$W$\Vert$" in text
    assert r"$-$59.0" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}}") == 4
    assert text.isascii()


def test_markdown_is_escaped(tmp_path):
    text = markdown(table(read_runs([runs.write(tmp_path / "x", {"a|b": [runs.record(0)]})])))
    assert "| a\\|b | 1 |" in text


def test_csv_and_json_hold_what_was_measured(run):
    made = table([run])
    (plain, edited_row) = csv.DictReader(io.StringIO(as_csv(made)))
    assert (edited_row["method"], edited_row["cases"]) == ("ROME", "3")
    assert float(edited_row["ES"]) == 2 / 3
    assert edited_row["ES_n"] == "3"
    assert float(edited_row["ES_low"]) <= 2 / 3 <= float(edited_row["ES_high"])
    assert (edited_row["memory/peak_mb"], edited_row["memory/peak_mb_low"]) == ("102.0", "")
    assert plain["seconds/edit"] == plain["seconds/edit_n"] == ""
    told = json.loads(as_json(made))
    assert told["rows"][1]["numbers"]["ES"]["value"] == 2 / 3
    assert told["rows"][1]["before"]["perplexity"] == {
        "value": 20.0, "low": 20.0, "high": 20.0, "n": 3
    }  # fmt: skip


def test_a_broken_model_is_shown(tmp_path):
    records = [runs.record(0, post=runs.half(perplexity=math.inf))]
    made = table(read_runs([runs.write(tmp_path / "x", {"ROME": records})]))
    assert "inf (inf–inf)" in markdown(made)
    told = json.loads(as_json(made), parse_constant=pytest.fail)
    assert told["rows"][1]["numbers"]["perplexity"]["value"] == "inf"


def test_digits():
    assert [shown(x, 1) for x in (0.04, -0.04, -1.25, 99999.0, 123456.0)] == [
        "0.0", "0.0", "−1.2", "99999.0", "1.2e+05"
    ]  # fmt: skip


def test_the_pages_on_metrics_hang_together():
    pages = Path(__file__).parent.parent / "docs" / "metrics"
    text = {page.name: page.read_text(encoding="utf-8") for page in pages.glob("*.md")}
    linked = set(re.findall(r"\]\(([^/\s]+?\.md)\)", "".join(text.values())))
    assert linked | {"README.md"} == set(text)
    assert all(f"]({name})" in text["README.md"] for name in linked)
    assert [n for n in linked if "does not tell you" not in text[n]] == []


# -- files ------------------------------------------------------------------------------------


def test_report_writes_tables_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = runs.write(tmp_path / "x", {"ROME": [runs.record(0)]})
    made = report(str(folder))
    assert made.out == folder / "report"
    assert [f.name for f in made.files] == ["table.md", "table.csv", "table.tex", "table.json"]
    assert sorted(p.name for p in made.out.iterdir()) == sorted(f.name for f in made.files)
    assert 'pip install "easyedit-lm[bench]"' in made.without
    assert made.files[0].read_text(encoding="utf-8") == made.markdown()
    assert json.loads(made.files[3].read_text(encoding="utf-8")) == made.document()


def test_an_unwritable_out_is_said(tmp_path):
    folder = runs.write(tmp_path / "x", {"ROME": [runs.record(0)]})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BenchError, match=r"cannot be written to .*file"):
        report(folder, tmp_path / "file", pictures=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "table.md"
    target.write_text("old")

    def full(self, content):
        self.touch()
        raise OSError("disk full")

    monkeypatch.setattr(type(target), "write_bytes", full)
    with pytest.raises(OSError, match="disk full"), written_whole(target) as part:
        part.write_bytes(b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["table.md"]
    assert target.read_text() == "old"
