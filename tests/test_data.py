"""Files of edits: three formats, one meaning; a mistake names its file and record."""

import csv
import json

import pytest

from easyeditor.data.edits_file import parse_arrow, read_cases
from easyeditor.edits import Case, Edit, Probe
from easyeditor.errors import DataError

TOWER = "The Eiffel Tower stands in"
LOUVRE = "The Louvre is in"
FULL = {
    "case_id": 7,
    "prompt": TOWER,
    "target_new": "Rome",
    "subject": "The Eiffel Tower",
    "ground_truth": "Paris",
    "rephrase_prompts": ["One finds the Eiffel Tower in", "To see it, go to"],
    "locality": {"neighborhood": {"prompt": [LOUVRE], "ground_truth": ["Paris"]}},
    "portability": {"one_hop": {"prompt": "Its river is the", "ground_truth": "Tiber"}},
}
FULL_CASE = Case(
    "7",
    Edit(TOWER, "Rome", "The Eiffel Tower", "Paris"),
    (
        Probe("One finds the Eiffel Tower in", ("Rome",), "rephrase"),
        Probe("To see it, go to", ("Rome",), "rephrase"),
        Probe(LOUVRE, ("Paris",), "locality/neighborhood"),
        Probe("Its river is the", ("Tiber",), "portability/one_hop"),
    ),
)
FLAT = {
    "prompt": TOWER,
    "target_new": "Rome",
    "subject": "The Eiffel Tower",
    "ground_truth": "Paris",
    "rephrase_prompt": "To see it, go to",
    "locality": f"{LOUVRE} => Paris",
    "portability": "Its river is the => Tiber",
}
FLAT_CASE = Case("0", FULL_CASE.edit, FULL_CASE.probes[1:])
GOOD = {"prompt": TOWER, "target_new": "Rome"}


def saved(folder, suffix, records, bom=False):
    """The records in a file of this format, written with the standard library."""
    file = folder / f"edits.{suffix}"
    encoding = "utf-8-sig" if bom else "utf-8"
    with file.open("w", encoding=encoding, newline="") as out:
        if suffix == "json":
            json.dump(records, out, ensure_ascii=False)
        elif suffix == "jsonl":
            out.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        else:
            names = list(dict.fromkeys(name for record in records for name in record))
            writer = csv.DictWriter(out, names)
            writer.writeheader()
            writer.writerows(records)
    return file


def raw(folder, name, content):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


# -- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_nested_records(tmp_path, suffix):
    assert read_cases(saved(tmp_path, suffix, [FULL, GOOD])) == [
        FULL_CASE,
        Case("1", Edit(TOWER, "Rome")),
    ]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("bom", [False, True])
def test_flat_records(tmp_path, suffix, bom):
    assert read_cases(saved(tmp_path, suffix, [FLAT], bom)) == [FLAT_CASE]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
@pytest.mark.parametrize(
    "text", ["two\nlines", "a\u2028b", "a\u2029b\x85c", 'say "so", then', "Zürich 東京 🗼"]
)
def test_odd_characters_inside_a_text(tmp_path, suffix, text):
    records = [{"prompt": f"{text} is in", "target": text}, GOOD]
    cases = read_cases(saved(tmp_path, suffix, records))
    assert [case.edit for case in cases] == [Edit(f"{text} is in", text), Edit(TOWER, "Rome")]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_empty_fields_are_absent_fields(tmp_path, suffix):
    nothing = "" if suffix == "csv" else None
    file = saved(tmp_path, suffix, [{**GOOD, "subject": nothing, "locality": nothing}])
    assert read_cases(file) == [Case("0", Edit(TOWER, "Rome"))]


def test_one_record_needs_no_list(tmp_path):
    assert read_cases(raw(tmp_path, "edits.json", json.dumps(FULL))) == [FULL_CASE]


def test_blank_lines_and_windows_line_ends(tmp_path):
    line = json.dumps(GOOD)
    assert len(read_cases(raw(tmp_path, "edits.jsonl", f"\r\n{line}\r\n\r\n{line}\r\n"))) == 2


def test_the_suffix_may_be_in_capitals(tmp_path):
    assert len(read_cases(raw(tmp_path, "EDITS.JSONL", json.dumps(GOOD)))) == 1


@pytest.mark.parametrize(
    "given",
    [
        "Q => A",
        ["Q => A"],
        [{"prompt": "Q", "answer": "A"}],
        [{"prompt": "Q", "ground_truth": "A"}],
        {"neighborhood": {"prompt": "Q", "ground_truth": "A"}},
        {"neighborhood": {"prompt": ["Q"], "ground_truth": ["A"]}},
    ],
)
def test_ways_to_write_a_probe(tmp_path, given):
    (case,) = read_cases(saved(tmp_path, "json", [{**GOOD, "locality": given}]))
    assert case.probes == (Probe("Q", ("A",), "locality/neighborhood"),)


def test_named_probes(tmp_path):
    given = [{"prompt": "Q", "answer": "A", "name": "alias"}, "R => B"]
    (case,) = read_cases(saved(tmp_path, "json", [{**GOOD, "portability": given}]))
    assert [probe.kind for probe in case.probes] == ["portability/alias", "portability/one_hop"]


# -- mistakes ---------------------------------------------------------------------------------

BAD_RECORDS = {
    "not an object": (["a", "list"], "list"),
    "no prompt": ({"target_new": "Rome"}, "prompt missing"),
    "no target": ({"prompt": TOWER}, "target_new missing"),
    "neither": ({}, "prompt and target_new missing"),
    "misspelt": ({**GOOD, "subjekt": "Tower"}, "subjekt.*Did you mean 'subject'"),
    "number": ({**GOOD, "target_new": 5}, "target must be text, not int"),
    "list": ({**GOOD, "prompt": ["a", "b"]}, "prompt must be text, not list"),
    "empty target": ({**GOOD, "target_new": "  "}, "target .* empty"),
    "empty prompt": ({**GOOD, "prompt": ""}, "prompt is empty"),
    "subject elsewhere": ({**GOOD, "subject": "Louvre"}, "'Louvre' does not occur"),
    "rephrase number": ({**GOOD, "rephrase": 5}, "rephrase"),
    "rephrase numbers": ({**GOOD, "rephrase": [5]}, "must be text, not int"),
    "rephrase object": ({**GOOD, "rephrase": {"a": "b"}}, "rephrase"),
    "no arrow": ({**GOOD, "locality": "Q is A"}, "'Q is A' must read"),
    "no answer": ({**GOOD, "locality": [{"prompt": "Q"}]}, "needs 'prompt' and 'answer'"),
    "answer number": ({**GOOD, "locality": [{"prompt": "Q", "answer": 3}]}, "must be text"),
    "probe number": ({**GOOD, "portability": 5}, "portability must be"),
    "block text": ({**GOOD, "locality": {"near": "Q => A"}}, r"locality\['near'\]"),
    "block half": ({**GOOD, "locality": {"near": {"prompt": "Q"}}}, r"locality\['near'\]"),
    "block lengths": (
        {**GOOD, "locality": {"near": {"prompt": ["Q", "R"], "ground_truth": ["A"]}}},
        "2 prompts but 1 answers",
    ),
    "block numbers": (
        {**GOOD, "locality": {"near": {"prompt": 5, "ground_truth": 6}}},
        r"locality\['near'\]",
    ),
    "block null": (
        {**GOOD, "locality": {"near": {"prompt": "Q", "ground_truth": None}}},
        r"locality\['near'\]",
    ),
    "two targets": ({**GOOD, "target": "Berlin"}, "target"),
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(("record", "why"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_a_bad_record_is_named(tmp_path, suffix, record, why):
    file = saved(tmp_path, suffix, [GOOD, record])
    place = "line 1, record 2" if suffix == "json" else "line 2"
    with pytest.raises(DataError, match=rf"edits\.{suffix}, {place}: .*{why}"):
        read_cases(file)


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    lines = ["", json.dumps({"prompt": "a\u2028b", "target": "c"}, ensure_ascii=False), "{}"]
    with pytest.raises(DataError, match="line 3: prompt and target_new missing"):
        read_cases(raw(tmp_path, "edits.jsonl", "\n".join(lines)))


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ('"a\nb",c\n,c', "line 4: prompt missing"),
        ("a,", "line 2: target_new missing"),
        ("a,b,c", "line 2: (?!.*None)"),  # says what is wrong, not "unknown field None"
        ("x" * 200_000 + ",b", "line 2: .*field larger"),
    ],
    ids=["counted", "missing", "surplus", "huge"],
)
def test_a_bad_row_is_named(tmp_path, rows, why):
    with pytest.raises(DataError, match=rf"edits\.csv, {why}"):
        read_cases(raw(tmp_path, "edits.csv", f"prompt,target_new\n{rows}\n"))


def test_a_misspelt_column(tmp_path):
    with pytest.raises(DataError, match=r"edits\.csv.*'promt'.*Did you mean 'prompt'"):
        read_cases(raw(tmp_path, "edits.csv", "promt,target_new\na,b\n"))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("edits.json", '[{"prompt": "a",\n "target": }]', "line 2, column 12: not JSON"),
        ("edits.json", "[1", "line 1"),
        ("edits.json", "", "line 1"),
        ("edits.json", "[]", "holds no edits"),
        ("edits.json", '"text"', "record 1"),
        ("edits.jsonl", "", "holds no edits"),
        ("edits.jsonl", "\n \n", "holds no edits"),
        ("edits.jsonl", '{"prompt": "a"', "line 1, column 15: not JSON"),
        ("edits.jsonl", '{"prompt": "a",\n "target": "b"}', "column 16.*whole record in each line"),
        ("edits.jsonl", json.dumps(GOOD) + "\n{]\n", "line 2"),
        ("edits.csv", "", "holds no edits"),
        ("edits.csv", "prompt,target_new\n", "holds no edits"),
        ("edits.txt", "prompt => answer", "'.txt'"),
        ("edits", "{}", "json, .jsonl, .csv or .tsv"),
        ("edits.json", b'{"prompt": "caf\xe9"}', "UTF-8"),
        ("edits.csv", "prompt,target\na,b".encode("utf-16"), "UTF-8"),
    ],
    ids=range(16),
)
def test_a_bad_file_is_named(tmp_path, name, content, why):
    with pytest.raises(DataError, match=why) as error:
        read_cases(raw(tmp_path, name, content))
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["nothing.json", "."])
def test_no_file(tmp_path, name):
    with pytest.raises(DataError, match="No file of edits"):
        read_cases(tmp_path / name)


# -- arrows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "prompt", "answer"),
    [
        ("The Louvre is in => Paris", "The Louvre is in", "Paris"),
        ("  a=>b ", "a", "b"),
        ("a => b => c", "a", "b => c"),
        ("a = b => c > d", "a = b", "c > d"),
    ],
)
def test_parse_arrow(text, prompt, answer):
    assert parse_arrow(text, "locality/x") == Probe(prompt, (answer,), "locality/x")


@pytest.mark.parametrize("text", ["", "=>", "a =>", "=> b", "a -> b", "a = > b", " => "])
def test_arrows_that_are_none(text):
    with pytest.raises(DataError, match="must read 'prompt => answer'"):
        parse_arrow(text, "locality/x")
