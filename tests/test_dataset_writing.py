"""Datasets described, and converted: what is written reads back the same, or is refused."""

import csv

import pytest

from dataset_cases import GOOD, HERE, HOP, KINDS, LIND_CASE, NEAR, TOWER_CASE, saved
from easyeditor import (
    Case,
    CounterFactDataset,
    Edit,
    EditsDataset,
    Probe,
    ZsreDataset,
    open_dataset,
)
from easyeditor.data.open import describe
from easyeditor.data.write import write_cases
from easyeditor.errors import DataError


def test_describe():
    told = describe(open_dataset(HERE / "counterfact.json"), examples=1)
    (example,) = told.pop("examples")
    assert example["case_id"] == "12"
    assert told == {
        "path": str(HERE / "counterfact.json"),
        "kind": "counterfact",
        "title": CounterFactDataset.title,
        "cases": 2,
        "with": {"subject": 2, "ground_truth": 2, "also": 0, "generation": 1, "references": 1},
        "probes": {
            NEAR: {"cases": 2, "probes": 3},
            "rephrase": {"cases": 2, "probes": 3},
        },
    }


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_converts_and_reads_back_the_same(tmp_path, name, suffix):
    cases = list(open_dataset(HERE / f"{name}.json"))
    file = write_cases(cases, tmp_path / f"out.{suffix}")
    again = open_dataset(file)
    assert type(again) is EditsDataset
    assert list(again) == cases


def test_csv_holds_plain_cases(tmp_path):
    odd = Edit("say, “so”\r\nthen\n", '"b"\u2028', "so", None)
    probes = (Probe("p\nq", ("a => b",), NEAR), Probe("r", ("s",), HOP))
    cases = [LIND_CASE, Case("x", odd, probes), *ZsreDataset(HERE / "zsre.json")]
    file = write_cases(cases, tmp_path / "out.csv")
    assert list(EditsDataset(file)) == cases
    with file.open(newline="", encoding="utf-8") as opened:
        assert next(csv.DictReader(opened))["locality"] == (
            "The mother tongue of Nils Berg is => Swedish"
        )


PLAIN = Edit("a", "b")
NO_CSV = {
    "rephrases": (Case("7", PLAIN, (Probe("p", ("b",), "rephrase"),) * 2), "2 rephrase prompts"),
    "probes": (Case("7", PLAIN, (Probe("p", ("c",), NEAR),) * 3), "3 locality probes"),
    "name": (Case("7", PLAIN, (Probe("p", ("c",), "locality/far"),)), "a locality/far probe"),
    "aliases": (Case("7", PLAIN, (Probe("p", ("c", "d"), NEAR),)), "2 accepted answers"),
    "arrow": (Case("7", PLAIN, (Probe("p => q", ("c",), NEAR),)), "does not fit 'prompt => ans"),
    "space": (Case("7", PLAIN, (Probe("p ", ("c",), NEAR),)), "does not fit 'prompt => answer'"),
    "also": (Case("7", PLAIN, also=(PLAIN,)), "also"),
    "texts": (Case("7", PLAIN, generation=("p",), references=("r",)), "generation_prompts, refer"),
}


@pytest.mark.parametrize(("case", "why"), NO_CSV.values(), ids=NO_CSV)
def test_csv_refuses_what_it_cannot_hold(tmp_path, case, why):
    with pytest.raises(DataError) as error:
        write_cases([Case("6", PLAIN), case], tmp_path / "out.csv")
    assert str(error.value).startswith("case 7 holds ")
    assert why in str(error.value)
    assert str(error.value).endswith("CSV cannot. Write .json or .jsonl.")
    assert list(tmp_path.iterdir()) == []


def test_probes_no_file_holds(tmp_path):
    other = Case("7", PLAIN, (Probe("p", ("q",), "rephrase"),))
    with pytest.raises(DataError, match=r"case 7: the rephrase 'p' accepts \['q'\]"):
        write_cases([other], tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_probes_of_other_kinds_are_written_with_their_kind(tmp_path):
    other = Case("7", PLAIN, (Probe("p", ("q", "r"), "taste/sour"),))
    assert list(open_dataset(write_cases([other], tmp_path / "out.json"))) == [other]


def test_writing_leaves_all_or_nothing(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(DataError, match=r"out\.jsonl exists; take another name, or --force"):
        write_cases([TOWER_CASE], out)
    bad = ZsreDataset(saved(tmp_path, [GOOD, {}], "bad.json"))
    with pytest.raises(DataError, match=r"bad\.json, line \d+, record 2: src missing"):
        write_cases(bad, out, force=True)
    assert out.read_text() == "mine"
    with pytest.raises(DataError, match="cannot be written as UTF-8"):
        write_cases([Case("\ud800", PLAIN)], out, force=True)
    assert write_cases([TOWER_CASE], out, force=True) == out
    assert list(EditsDataset(out)) == [TOWER_CASE]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.json", "out.jsonl"]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match=r"out\.json cannot be written: No such file"):
        write_cases([TOWER_CASE], tmp_path / "no" / "out.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(
        DataError, match=r"folder\.json exists and is no file; take another name\.$"
    ):
        write_cases([TOWER_CASE], tmp_path / "folder.json", force=True)
    with pytest.raises(DataError, match=r"edits are written as .json, .jsonl or .csv, not '.yaml'"):
        write_cases([TOWER_CASE], tmp_path / "out.yaml")
