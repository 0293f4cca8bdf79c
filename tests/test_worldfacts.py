"""The facts that ship with the package: their rules, and that the reader takes them."""

import copy
import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT / "src" / "easyeditor" / "data"


def script():
    spec = importlib.util.spec_from_file_location(
        "worldfacts_script", ROOT / "scripts" / "worldfacts.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worldfacts = script()
RECORDS = json.loads((DATA / "worldfacts.json").read_text(encoding="utf-8"))


def test_no_rule_is_broken():
    assert worldfacts.faults(RECORDS) == []


def test_size_and_spread():
    relations = Counter(r["relation"] for r in RECORDS)
    assert len(RECORDS) >= 220
    assert len(relations) >= 15
    assert max(relations.values()) <= 20


@pytest.mark.parametrize("field", ["id", "prompt"])
def test_nothing_is_there_twice(field):
    assert len({r[field] for r in RECORDS}) == len(RECORDS)


def test_the_edit_changes_something_and_names_its_subject():
    for r in RECORDS:
        assert r["subject"] in r["prompt"], r["id"]
        assert r["target_new"] != r["ground_truth"], r["id"]
        assert r["prompt"] == r["prompt"].strip(), r["id"]


def test_neighbours_never_answer_with_the_target():
    for r in RECORDS:
        near = r["locality"]["neighborhood"]
        assert len(near) == 3, r["id"]
        assert r["target_new"] not in [item["answer"] for item in near], r["id"]


def test_the_distraction_is_the_edit_and_then_a_neighbour():
    for r in RECORDS:
        (far,) = r["locality"]["distracting"]
        assert far["prompt"].startswith(f"{r['prompt']} {r['target_new']}"), r["id"]
        assert not far["prompt"].endswith(r["target_new"]), r["id"]


@pytest.mark.parametrize(("kind", "share"), [("one_hop", 0.8), ("alias", 0.4), ("inverse", 0.25)])
def test_portability_is_common_enough(kind, share):
    assert sum(kind in r["portability"] for r in RECORDS) >= share * len(RECORDS)


def test_aliases_ask_for_the_target():
    for r in RECORDS:
        for item in r["portability"].get("alias", []):
            assert item["answer"] == r["target_new"], r["id"]


def test_the_embedded_model_knows_most():
    assert all(isinstance(r["known"]["smollm2-135m"], bool) for r in RECORDS)
    assert worldfacts.known_by(RECORDS, "smollm2-135m") >= 150


def test_the_file_is_written_as_the_script_writes_it(tmp_path):
    worldfacts.write(RECORDS, tmp_path / "again.json")
    again = (tmp_path / "again.json").read_bytes()
    assert again == (DATA / "worldfacts.json").read_bytes()


def broken(change):
    records = copy.deepcopy(RECORDS)
    change(records)
    return " ".join(worldfacts.faults(records))


def neighbour(records, **fields):
    records[0]["locality"]["neighborhood"][2].update(fields)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda r: r[0].pop("known"), "missing or unknown"),
        (lambda r: r[0].update(subject="The Tower"), "does not occur exactly once"),
        (lambda r: r[0].update(target_new="paris"), "the target is the ground truth"),
        (lambda r: r[0].update(rephrase_prompts=["So: " + r[0]["prompt"]] * 2), "only prefixes"),
        (lambda r: neighbour(r, answer="Rome"), "has the target as its answer"),
        (lambda r: neighbour(r, prompt="The Eiffel Tower stands in"), "holds the subject"),
        (lambda r: neighbour(r, prompt="We saw the Kremlin in"), "which is edited too"),
        (lambda r: r[0]["locality"].pop("distracting"), "locality holds"),
        (lambda r: r[0]["portability"]["alias"][0].update(answer="Oslo"), "with the target"),
        (lambda r: r.append(copy.deepcopy(r[0])), "is used twice"),
        (lambda r: r.__delitem__(slice(200, None)), "only 200 records"),
        (lambda r: [x["portability"].pop("inverse", 0) for x in r], "have inverse probes"),
    ],
)
def test_a_broken_rule_is_found(change, fault):
    assert fault in broken(change)


def test_a_short_answer_is_not_the_start_of_a_longer_word():
    assert worldfacts.starts_with(" Au.\n\nThe", "Au")
    assert worldfacts.starts_with(" Salvador Dali. It", "Salvador Dalí")
    assert not worldfacts.starts_with(" Autumn", "Au")


def test_the_dataset_opens_by_name():
    from easyeditor.data.open import open_dataset

    cases = list(open_dataset("worldfacts"))
    assert [case.id for case in cases] == [r["id"] for r in RECORDS]
    for case, r in zip(cases, RECORDS, strict=True):
        assert (case.edit.prompt, case.edit.target) == (r["prompt"], r["target_new"])
        assert (case.edit.subject, case.edit.ground_truth) == (r["subject"], r["ground_truth"])
        assert list(case.generation) == r["generation_prompts"]
        told = Counter((p.kind, p.prompt, p.answers[0]) for p in case.probes)
        assert told == Counter(worldfacts.probes(r))


def test_heldout_text_is_running_prose():
    text = (DATA / "heldout.txt").read_text(encoding="utf-8")
    assert 800 <= len(text.split()) <= 1100
    assert len(text.split("\n\n")) >= 8
    for r in RECORDS:
        assert not worldfacts.holds(text, r["subject"]), r["id"]


def test_the_page_counts_right():
    page = (ROOT / "docs" / "worldfacts.md").read_text(encoding="utf-8")
    known = worldfacts.known_by(RECORDS, "smollm2-135m")
    assert f"{known} of {len(RECORDS)} are known" in page
    for name, n in Counter(r["relation"] for r in RECORDS).items():
        mine = [r for r in RECORDS if r["relation"] == name]
        assert f"| `{name}` | {n} | {worldfacts.known_by(mine, 'smollm2-135m')} |" in page
    for kind, n in Counter(kind for r in RECORDS for kind, _, _ in worldfacts.probes(r)).items():
        assert f"| {kind} | {n} |" in page


def test_the_package_ships_its_data():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"data/*.json"' in text
    assert '"data/*.txt"' in text
