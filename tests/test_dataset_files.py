"""A dataset is a lazy sequence of its file, and tells mistakes by file, line and record."""

import json

import pytest

from dataset_cases import GOOD, HERE, saved
from easyeditor import (
    Case,
    CounterFactDataset,
    Edit,
    EditsDataset,
    KnowEditDataset,
    MQuAKEDataset,
    QAEditDataset,
    RippleEditsDataset,
    ZsreDataset,
    open_dataset,
)
from easyeditor.data.write import write_cases
from easyeditor.edits import ImageRef, Prompt
from easyeditor.errors import DataError, SubjectRequiredError

# -- a sequence, and lazy ---------------------------------------------------------------------


def mills(n):
    return [{**GOOD, "src": f"Who owns mill {i}?"} for i in range(n)]


def prompts(cases):
    return [case.edit.prompt for case in cases]


@pytest.mark.parametrize("name", ["mills.json", "mills.jsonl"])
def test_a_dataset_is_a_sequence(tmp_path, name):
    data = ZsreDataset(saved(tmp_path, mills(5), name))
    whole = [f"Who owns mill {i}?" for i in range(5)]
    assert len(data) == 5
    assert prompts(data) == prompts(data) == whole
    assert data[1].edit.prompt == whole[1]
    assert data[-1].edit.prompt == whole[-1]
    for part in (slice(2), slice(1, None), slice(-2, None), slice(None, None, -2), slice(3, 99)):
        assert prompts(data[part]) == whole[part]
    assert data[0:0] == data[9:] == []
    assert data[2] in data
    for index in (5, -6):
        with pytest.raises(IndexError, match="5 cases"):
            data[index]
    assert repr(data) == f"ZsreDataset({str(data.path)!r})"


@pytest.mark.parametrize(("size", "n"), [(None, 5), (1, 1), (3, 3), (5, 5), (9, 5)])
def test_size(tmp_path, size, n):
    data = ZsreDataset(saved(tmp_path, mills(5)), size)
    assert len(data) == len(list(data)) == n
    assert data[-1] == data[n - 1]
    with pytest.raises(IndexError):
        data[n]


@pytest.mark.parametrize("size", [0, -1, 1.5, "3", True, [1]])
def test_a_size_that_is_none(tmp_path, size):
    with pytest.raises(DataError, match=r"size is the number .* above 0, not .*; leave it out"):
        ZsreDataset(saved(tmp_path, mills(1)), size=size)


def test_a_dataset_keeps_the_settings_of_a_trainer(tmp_path):
    settings = object()
    assert ZsreDataset(saved(tmp_path, mills(1)), config=settings).config is settings


def test_a_bad_record_shows_when_it_is_reached(tmp_path):
    data = ZsreDataset(saved(tmp_path, [*mills(2), {"src": 5}]))
    assert len(data) == 3
    assert len(data[:2]) == 2
    for _ in range(2):
        with pytest.raises(DataError, match=r"records\.json, line 16, record 3: src must be text"):
            data[2]
    with pytest.raises(DataError):
        list(data)


def test_a_file_that_is_cut_off_is_refused_each_time(tmp_path):
    text = json.dumps(mills(3), indent=1)[:-40]
    data = ZsreDataset(saved(tmp_path, text))
    for _ in range(2):
        with pytest.raises(DataError, match=r"line 18, column 10: not JSON \(Unterminated"):
            data[0]
        with pytest.raises(DataError, match="not JSON"):
            len(data)


def test_lines_are_read_up_to_a_bad_one(tmp_path):
    text = "".join(json.dumps(record) + "\n" for record in mills(2)) + '{"src": '
    data = ZsreDataset(saved(tmp_path, text, "mills.jsonl"))
    assert prompts(data[:2]) == ["Who owns mill 0?", "Who owns mill 1?"]
    for _ in range(2):
        with pytest.raises(DataError, match=r"line 3, column 9: not JSON"):
            data[2]


def test_nothing_is_parsed_before_it_is_asked_for(tmp_path):
    file = saved(tmp_path, "no JSON at all")
    data = ZsreDataset(file)
    with pytest.raises(DataError, match=r"line 1, column 1: not JSON"):
        data[0]


@pytest.mark.parametrize("name", ["odd.json", "odd.jsonl"])
def test_odd_line_ends_inside_a_text(tmp_path, name):
    text = "a\u2028b\u2029c\x85d"
    file = saved(tmp_path, [{**GOOD, "alt": text}, {**GOOD, "alt": 1}], name)
    data = ZsreDataset(file)
    assert data[0].edit.target == text
    line = 9 if name == "odd.json" else 2
    with pytest.raises(DataError, match=rf"{name}, line {line}\b.*: alt must be text"):
        data[1]


# -- mistakes ---------------------------------------------------------------------------------

FILES = {
    "empty": ("records.json", "", "line 1: the file is empty; it must hold a list of records"),
    "blank": ("records.json", " \n ", "line 1: the file is empty"),
    "no records": ("records.json", "[ ]", "holds no edits"),
    "object": ("records.json", '{"data": []}', "an object with 'data' where a list of records is"),
    "text": ("records.json", '"a"', "holds 'a' where a list of records is expected"),
    "cut off": ("records.json", "[\n", "line 2, column 1: the file is cut off (Expecting value"),
    "cut off after": ("records.json", '[\n{"a": 1}', "line 2, column 9: the file is cut off"),
    "cut off inside": ("records.json", '[\n{"a": "b', "line 2, column 7: not JSON (Unterm"),
    "no comma": (
        "records.json",
        "[\n{}\n{}]",
        "line 3, column 1: not JSON (Expecting ',' delimiter",
    ),
    "comma": ("records.json", "[{},\n]", "not JSON"),
    "after the end": ("records.json", "[{}]\n[{}]", "line 2, column 1: more text after the end"),
    "number": (
        "records.json",
        "[1]",
        "line 1, record 1: a record must hold named fields, not a nu",
    ),
    "nested": ("records.json", "[" * 100_000, "line 1: lists nested too deeply"),
    "no lines": ("records.jsonl", "\n\n", "holds no edits"),
    "two in a line": ("records.jsonl", "{} {}", "line 1, column 4: more text after the record"),
    "cut off line": ("records.jsonl", '\n{"a": ', "line 2, column 7: not JSON"),
    "csv header": ("records.csv", "src,alt\n", "holds no edits"),
    "csv cut off": ("records.csv", 'src,alt\na,"b', "line 2: unexpected end of data"),
    "csv cells": ("records.csv", "src,alt\na,b,c\n", "line 2: more cells than columns"),
    "csv": ("records.csv", "src,at\na,b\n", "line 2: alt missing; there is src, at. Did you mean"),
    "semicolons": ("records.csv", "src;alt\na;b\nc", "line 3: alt missing; there is src."),
    "spreadsheet": (
        "records.csv",
        "sep=;\nsrc;alt\na;b;c\n",
        "line 3: more cells than columns (sep",
    ),
    "tabs": ("records.tsv", "src\talt\na,b\n", "line 2: alt missing; there is src."),
    "suffix": ("records.txt", "[]", "edits are read from .json, .jsonl, .csv or .tsv, not '.txt'"),
}


@pytest.mark.parametrize(("name", "text", "why"), FILES.values(), ids=FILES)
def test_a_bad_file_is_named(tmp_path, name, text, why):
    file = saved(tmp_path, text, name) if isinstance(text, str) else text
    with pytest.raises(DataError) as error:
        list(ZsreDataset(file))
    assert why in str(error.value)
    assert str(file) in str(error.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"src": "caf\xe9"}]')
    with pytest.raises(DataError, match=r"a\.json cannot be read as UTF-8 text"):
        list(ZsreDataset(tmp_path / "a.json"))


def test_no_file(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match=r"No file of edits .*easyedit data ls"):
            ZsreDataset(path)
    with pytest.raises(DataError, match="must be text, not 5"):
        ZsreDataset(5)


REWRITE = json.loads((HERE / "counterfact.json").read_text())[0]["requested_rewrite"]
HOPS = json.loads((HERE / "mquake.json").read_text())[0]
RECORDS = {
    "zsre missing": (ZsreDataset, {"scr": "a", "alt": "b"}, "src missing; there is scr, alt. Did"),
    "zsre null": (ZsreDataset, {**GOOD, "src": None}, "src missing"),
    "zsre answers": (ZsreDataset, {**GOOD, "answers": 5}, "answers must be a text or a list of te"),
    "zsre answer": (ZsreDataset, {**GOOD, "answers": [{}]}, "answers[0] must be a text or a list"),
    "zsre rephrase": (ZsreDataset, {**GOOD, "rephrase": ["a"]}, "rephrase must be text, not a lis"),
    "zsre loc": (ZsreDataset, {**GOOD, "loc": "a"}, "loc_ans missing"),
    "zsre hop": (ZsreDataset, {**GOOD, "portability": "a"}, "portability must hold named fields"),
    "zsre blank": (ZsreDataset, {**GOOD, "alt": " ", "answers": []}, "The target of"),
    "cf template": (
        CounterFactDataset,
        {"case_id": 9, "requested_rewrite": {**REWRITE, "prompt": "It is in"}},
        "record 1 (case 9): requested_rewrite.prompt must hold {} where the subject goes",
    ),
    "cf target": (
        CounterFactDataset,
        {"requested_rewrite": {**REWRITE, "target_new": 5}},
        "requested_rewrite.target_new must be text, or an object with 'str', not a number (5)",
    ),
    "cf prompts": (
        CounterFactDataset,
        {"requested_rewrite": REWRITE, "neighborhood_prompts": ["a", None]},
        "neighborhood_prompts[1] must be text, not null",
    ),
    "cf kind": (
        CounterFactDataset,
        {"requested_rewrite": REWRITE, "paraphrase_prompts": 1.5},
        "paraphrase_prompts must be a text or a list of texts, not a number (1.5)",
    ),
    "mquake none": (MQuAKEDataset, {**HOPS, "requested_rewrite": []}, "at least one edit"),
    "mquake one": (
        MQuAKEDataset,
        {**HOPS, "requested_rewrite": [REWRITE, "a"]},
        "requested_rewrite[1] must hold named fields, not text ('a')",
    ),
    "mquake answer": (MQuAKEDataset, {**HOPS, "new_answer": True}, "new_answer must be a text or"),
    "mquake hop": (
        MQuAKEDataset,
        {**HOPS, "new_single_hops": [{"answer": "a"}]},
        "new_single_hops[0].question missing; there is answer.",
    ),
    "ripple": (RippleEditsDataset, {"edit": {}}, "edit.prompt missing; there is nothing."),
    "ripple tests": (
        RippleEditsDataset,
        {"edit": {"prompt": "A is B."}, "Forgetfulness": {"a": 1}},
        "Forgetfulness must be a list of objects, not an object",
    ),
    "qaedit": (QAEditDataset, {"prompt": "a"}, "target or answer missing; there is prompt."),
    "qaedit near": (
        QAEditDataset,
        {"prompt": "a", "target": "b", "locality": [{"loc": "c"}]},
        "locality[0].loc_ans missing",
    ),
    "knowedit": (KnowEditDataset, {"prompt": "a"}, "target_new missing"),
    "knowedit group": (
        KnowEditDataset,
        {"prompt": "a", "target_new": "b", "locality": {"Reasoning": ["c"]}},
        "locality.Reasoning[0] must hold named fields, not text ('c')",
    ),
    "knowedit opinion": (KnowEditDataset, {"ent": "a", "pos": [" "], "neg": []}, "no text to edit"),
    "edits also": (
        EditsDataset,
        {"prompt": "a", "target": "b", "also": [{"promt": "c"}]},
        "unknown field 'also[0].promt'. Did you mean 'prompt'?",
    ),
    "edits references": (
        EditsDataset,
        {"prompt": "a", "target": "b", "references": [1]},
        "references[0] must be text, not a number (1)",
    ),
    "edits block": (
        EditsDataset,
        {"prompt": "a", "target": "b", "locality": {"near": [{"prompt": "c"}]}},
        "a locality entry needs 'prompt' and 'answer'",
    ),
}


@pytest.mark.parametrize(("kind", "record", "why"), RECORDS.values(), ids=RECORDS)
def test_a_bad_record_is_named(tmp_path, kind, record, why):
    file = saved(tmp_path, [record])
    with pytest.raises(DataError) as error:
        list(kind(file))
    assert str(error.value).startswith(f"{file}, line 2, record 1")
    assert why in str(error.value)


def test_sections(tmp_path):
    for given, why in {
        '{"succes": [{"question": "a"}]}': "the lists in it are 'succes', the edits stand in 'succ",
        '{"success": 5}': "'success' must hold a list of records, not 5",
        '{"success": [{}]': "the file is cut off",
        "{1: 2}": "line 1, column 2: not JSON",
        "{}": "holds no edits",
        '{"success": [{"question": "a", "target_new": "b"}]}': "line 1, record 1 of 'success': gro",
    }.items():
        with pytest.raises(DataError) as error:
            list(KnowEditDataset(saved(tmp_path, given)))
        assert why in str(error.value)


# -- the same edits as others write them --------------------------------------------------------

MOTHER = Edit("The mother of Ida is", "Eva", "Ida", "Una")
PLAIN = {"subject": "Ida", "target_new": "Eva", "ground_truth": "Una"}
REWRITTEN = {"prompt": "The mother of {} is", "subject": "Ida", "target_new": {"str": "Eva"}}
SPELLINGS = {
    "a gap": {**PLAIN, "prompt": "The mother of {} is"},
    "ROME's request": {**REWRITTEN, "target_true": {"str": "Una", "id": "Q1"}, "relation_id": "P1"},
    "ROME's record": {"requested_rewrite": {**REWRITTEN, "target_true": {"str": "Una"}}},
    "plain targets": {"requested_rewrite": {**PLAIN, "prompt": "The mother of {} is"}},
    "no gap": {"requested_rewrite": {**PLAIN, "prompt": MOTHER.prompt.text}},
    "several truths": {**PLAIN, "prompt": MOTHER.prompt.text, "ground_truth": ["Una", "Una B."]},
    "nested truths": {**PLAIN, "prompt": MOTHER.prompt.text, "ground_truth": [["", "Una"], ["U."]]},
}


@pytest.mark.parametrize("record", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_of_one_edit(tmp_path, record):
    assert [case.edit for case in open_dataset(saved(tmp_path, [record]))] == [MOTHER]


def test_prompts_with_images(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"a cat")
    cat = ImageRef.of(tmp_path / "cat.png")
    prompt = {"text": "This is a", "images": ["cat.png"], "system": "Be short."}
    record = {
        "prompt": prompt,
        "target": "dog",
        "rephrase": [{"text": "It shows a", "images": [{"path": "cat.png"}]}, "A cat is a"],
        "locality": [{"prompt": prompt, "answer": "cat"}],
        "generation_prompts": prompt,
    }
    file = saved(tmp_path, [record])
    (case,) = open_dataset(file)
    expected = Prompt("This is a", (cat,), "Be short.")
    assert case.edit == Edit(expected, "dog")
    assert case.generation == (expected,)
    shown = Prompt("It shows a", (cat,))
    assert [probe.prompt for probe in case.probes] == [shown, "A cat is a", expected]
    assert list(open_dataset(write_cases([case], tmp_path / "again.jsonl"))) == [case]


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ({"text": "a", "images": ["gone.png"]}, "line 2, record 1: The image .*gone.png"),
        ({"text": "a", "images": "x.png"}, "images must be a list of paths, not text"),
        ({"text": "a", "images": [5]}, "an image must be a path or an object with 'path', not 5"),
        ({"text": 5}, "text must be text"),
        ({"text": "a", "image": "x"}, "prompt must be text"),
    ],
)
def test_prompts_that_are_none(tmp_path, prompt, why):
    with pytest.raises(DataError, match=why):
        list(EditsDataset(saved(tmp_path, [{"prompt": prompt, "target": "b"}])))


def test_braces_that_are_no_gap(tmp_path, caplog):
    records = [
        {"prompt": "In Python {} is a", "target": "dict"},
        {"prompt": "In Python {} is a", "target": "dict", "subject": "Python"},
    ]
    data = open_dataset(saved(tmp_path, records))
    assert [case.edit.prompt for case in data] == ["In Python {} is a"] * 2
    (warning,) = {record.getMessage() for record in caplog.records}
    assert "names no subject" in warning


def test_zsre_without_answers(tmp_path):
    record = {"src": "Who owns the mill?", "alt": "Berg", "subject": "the mill"}
    (case,) = open_dataset(saved(tmp_path, [record]))
    assert case.edit == Edit("Who owns the mill?", "Berg", "the mill")


def test_zsre_without_a_new_answer(tmp_path):
    """As in ROME's protocol: what is asked for is the known answer."""
    record = {"src": "Who owns the mill?", "answers": ["Holm", "A. Holm"], "subject": "the mill"}
    (case,) = open_dataset(saved(tmp_path, [record]))
    assert case.edit == Edit("Who owns the mill?", "Holm", "the mill", "Holm")


TABLE = [["case_id", " prompt ", "target_new", ""], ["7", "a; b, c\td is", "e", "0"]]


@pytest.mark.parametrize("start", ["", "sep={}\n"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters(tmp_path, delimiter, name, start):
    text = "".join(delimiter.join(f'"{cell}"' for cell in row) + "\r\n" for row in TABLE)
    data = open_dataset(saved(tmp_path, start.format(delimiter) + text, name))
    assert list(data) == [Case("7", Edit("a; b, c\td is", "e"))]


def test_lines_in_a_file_named_json(tmp_path):
    text = "".join(json.dumps(record) + "\n" for record in mills(2))
    with pytest.raises(DataError, match=r"line 2, column 1: more text .* is named \.jsonl"):
        len(ZsreDataset(saved(tmp_path, text)))


def test_names_no_file_can_have(tmp_path):
    for name in ("a\0.json", "a" * 300 + ".json"):
        with pytest.raises(DataError, match=r"cannot be opened|No file of edits"):
            ZsreDataset(tmp_path / name)


def test_a_missing_subject_is_named_with_its_line(tmp_path):
    records = [{"prompt": "Ida is", "target": "old", "subject": "Ida"}]
    open_dataset(saved(tmp_path, records)).require_subjects()
    data = open_dataset(saved(tmp_path, [*records, {"id": "x", "prompt": "a", "target": "b"}]))
    assert data.place(1) == "line 7, record 2 (case x)"
    with pytest.raises(SubjectRequiredError, match=r"json, line 7, record 2 \(case x\): the edit"):
        data.require_subjects()


# -- work grows with the file, not with its square ----------------------------------------------


def test_what_to_retain_is_parsed_once(tmp_path, monkeypatch):
    n, calls, loads = 300, [], json.loads
    asked = [
        {"question": f"Q{i}?", "target_new": "I don't know.", "ground_truth": "x", "subject": ""}
        for i in range(n)
    ]
    file = saved(tmp_path, {"success": asked, "locality": asked * 2})
    monkeypatch.setattr(json, "loads", lambda text: calls.append(len(text)) or loads(text))
    cases = list(KnowEditDataset(file))
    assert [len(case.probes) for case in cases] == [3] * n  # two of them to retain
    assert len(calls) == 1
