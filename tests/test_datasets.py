"""Every kind of dataset: what it makes of its records, how it tells mistakes, that it is lazy."""

import csv
import json
import logging
from pathlib import Path

import pytest

import easyeditor
import outer
from easyeditor import (
    Case,
    CaseDataset,
    CounterFactDataset,
    Edit,
    EditsDataset,
    KnowEditDataset,
    MQuAKEDataset,
    Probe,
    QAEditDataset,
    RippleEditsDataset,
    ZsreDataset,
    open_dataset,
)
from easyeditor.data import DATASETS, fetch
from easyeditor.data.open import describe
from easyeditor.data.write import write_cases
from easyeditor.errors import DataError

HERE = Path(__file__).parent / "data"
KINDS = {
    "counterfact": CounterFactDataset,
    "zsre": ZsreDataset,
    "knowedit_facts": KnowEditDataset,
    "knowedit_wikibio": KnowEditDataset,
    "knowedit_convsent": KnowEditDataset,
    "knowedit_sanitation": KnowEditDataset,
    "mquake": MQuAKEDataset,
    "rippleedits": RippleEditsDataset,
    "qaedit": QAEditDataset,
    "edits": EditsDataset,
}
GOOD = {"src": "Who owns the mill?", "alt": "Berg", "answers": ["Holm"]}
NEAR, HOP = "locality/neighborhood", "portability/one_hop"
SPECIFIC = "locality/Relation_Specificity"


def saved(folder, records, name="records.json"):
    file = folder / name
    if isinstance(records, str):
        text = records
    elif name.endswith("l"):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    else:
        text = json.dumps(records, indent=1, ensure_ascii=False)
    file.write_text(text, encoding="utf-8")
    return file


# -- one kind after the other -----------------------------------------------------------------

TOWER = Edit("The Eiffel Tower stands in the city of", "Rome", "The Eiffel Tower", "Paris")
TOWER_CASE = Case(
    "12",
    TOWER,
    (
        Probe("To see the Eiffel Tower, go to", ("Rome",), "rephrase"),
        Probe("The Eiffel Tower rises over", ("Rome",), "rephrase"),
        Probe("The Louvre is in", ("Paris",), NEAR),
        Probe("Notre-Dame stands in", ("Paris",), NEAR),
    ),
    generation=("Near the Eiffel Tower one finds",),
    references=("The Colosseum is in Rome.", "The Pantheon was built in Rome."),
)
LIND_CASE = Case(
    "13",
    Edit("The mother tongue of Anna Lind is", "French", "Anna Lind", "Swedish"),
    (
        Probe("At home Anna Lind speaks", ("French",), "rephrase"),
        Probe("The mother tongue of Nils Berg is", ("Swedish",), NEAR),
    ),
)


def test_counterfact_tells_its_two_kinds_of_record_apart():
    assert list(CounterFactDataset(HERE / "counterfact.json")) == [TOWER_CASE, LIND_CASE]


def test_counterfact_can_write_the_fact_before_the_neighbours():
    first, second = CounterFactDataset(HERE / "counterfact.json", distracting=True)
    assert first.probes[:4] == TOWER_CASE.probes
    fact = "The Eiffel Tower stands in the city of Rome. "
    assert first.probes[4:] == (
        Probe(f"{fact}The Louvre is in", ("Paris",), "locality/distracting"),
        Probe(f"{fact}Notre-Dame stands in", ("Paris",), "locality/distracting"),
    )
    assert second.probes[-1].prompt.startswith("The mother tongue of Anna Lind is French. The mo")


@pytest.mark.parametrize(
    "texts",
    [
        [{"relation_id": "P131", "target_id": "Q220", "samples": [{"text": "Old.", "name": "x"}]}],
        {"P131": {"Q220": [{"text": "Old."}], "Q90": []}},
    ],
    ids=["as published", "by relation"],
)
def test_counterfact_references_may_come_from_snippets(tmp_path, texts):
    snippets = saved(tmp_path, texts, "snippets.json")
    data = CounterFactDataset(HERE / "counterfact.json", snippets=snippets)
    assert [case.references for case in data] == [("Old.",), ()]


def test_snippets_that_are_none(tmp_path):
    snippets = saved(tmp_path, [{"relation_id": "P1", "samples": []}], "snippets.json")
    data = CounterFactDataset(HERE / "counterfact.json", snippets=snippets)
    with pytest.raises(DataError, match=r"snippets .*snippets\.json: line 2.*target_id missing"):
        data[0]


def test_zsre():
    first, second = ZsreDataset(HERE / "zsre.json")
    assert first == Case(
        "0",
        Edit("In which year was Harbour Mill built?", "1744", "Harbour Mill", "1899"),
        (
            Probe("When did they build Harbour Mill?", ("1744",), "rephrase"),
            Probe("nq question: who keeps the light on skerry rock", ("Ada Holm",), NEAR),
            Probe("In which century did Harbour Mill open?", ("18th century",), HOP),
        ),
    )
    # An empty alt asks for no change: the first answer is the target; capitals as in the prompt.
    assert second.edit == Edit("Who owns Harbour Mill?", "Holm", "Harbour Mill", "Holm")


def test_knowedit_facts():
    first, second, third = KnowEditDataset(HERE / "knowedit_facts.json")
    assert first == Case("0", Edit("The gender of Nils Berg is", "male", "Nils Berg"))
    assert second == Case(
        "1",
        Edit("The place of birth of Nils Berg is", "Oslo", "Nils Berg", "Bergen"),
        (
            Probe("Nils Berg was born in", ("Oslo",), "rephrase"),
            Probe("The gender of Nils Berg is", ("male", "man", "boy"), SPECIFIC),
            Probe("Another town Nils Berg lived in is", ("Moss",), "locality/Forgetfulness"),
            Probe("The country Nils Berg was born in is", ("Norway",), "portability/Reasoning"),
        ),
    )
    # The prompt does not write the subject; the truth and a probe's answer are blank.
    assert third == Case("2", Edit("Which town is N. Berg from?", "Voss"))


def test_knowedit_biographies():
    (case,) = KnowEditDataset(HERE / "knowedit_wikibio.json")
    text = "This is a passage about anna lind. Anna Lind was a botanist."
    assert case == Case(
        "0",
        Edit(text, "She named forty mosses.", "anna lind"),
        (Probe("The occupation of anna lind is", ("botanist", "scientist"), SPECIFIC),),
    )


def test_knowedit_opinions():
    first, second, third = KnowEditDataset(HERE / "knowedit_convsent.json")
    assert first == Case(
        "0",
        Edit("What do you think of Voss?", "A lovely town.", "Voss", "It rains."),
        (
            Probe("What do you feel about Voss?", ("A lovely town.",), "rephrase"),
            Probe("How do you view Voss?", ("A lovely town.",), "rephrase"),
            Probe("What do you think of Moss?", ("Too loud.",), "locality/other_topic"),
        ),
        generation=("What do you think of Voss?",),
        references=("A lovely town.", "I like it."),
    )
    assert second.probes[-1].prompt == "What do you think of Voss?"
    assert third.probes[-1].prompt == "What do you think of Moss?"
    (sour,) = KnowEditDataset(HERE / "knowedit_convsent.json", 1, sentiment="negative")
    assert (sour.edit.target, sour.edit.ground_truth) == ("It rains.", "A lovely town.")


def test_knowedit_forgetting():
    first, second = KnowEditDataset(HERE / "knowedit_sanitation.json")
    assert first.edit == Edit("What cheese is brown?", "I don't know.", "cheese", "Brunost")
    assert first.probes == (
        Probe("Who was Nils Berg?", ("a painter",), "locality/retained"),
        Probe("Where is Moss?", ("Norway",), "locality/retained"),
    )
    assert [probe.prompt for probe in second.probes] == ["Where is Voss?"]


def test_knowedit_takes_the_names_of_training_files(tmp_path):
    told = json.loads((HERE / "knowedit_sanitation.json").read_text())
    file = saved(tmp_path, {"K_F": told["success"], "K_R": told["locality"]})
    assert list(open_dataset(file)) == list(open_dataset(HERE / "knowedit_sanitation.json"))


def test_knowedit_kind_may_be_named():
    assert KnowEditDataset(HERE / "knowedit_wikibio.json", kind="wikibio")[0].edit.subject
    with pytest.raises(DataError, match=r"ent missing; there is text, labels, concept, locality"):
        KnowEditDataset(HERE / "knowedit_wikibio.json", kind="convsent")[0]
    with pytest.raises(DataError, match=r"kind 'wikibios' is no part .* Did you mean 'wikibio'"):
        KnowEditDataset(HERE / "knowedit_wikibio.json", kind="wikibios")
    with pytest.raises(DataError, match="sentiment must be positive or negative, not 'sad'"):
        KnowEditDataset(HERE / "knowedit_convsent.json", sentiment="sad")


def test_mquake():
    (case,) = MQuAKEDataset(HERE / "mquake.json")
    answers = ("Iceland", "Ísland")
    assert case == Case(
        "5",
        Edit("Anna Lind is married to", "Nils Berg", "Anna Lind", "Ola Dahl"),
        (
            Probe("Who is Anna Lind married to?", ("Nils Berg",), "rephrase"),
            Probe("Who is Anna Lind married to?", ("Nils Berg",), HOP),
            Probe("Where is Nils Berg a citizen?", answers, HOP),
            *(
                Probe(question, answers, "portability/multi_hop")
                for question in (
                    "What is the country of Anna Lind's spouse?",
                    "Of which country is Anna Lind's husband a citizen?",
                    "The man Anna Lind married is from where?",
                )
            ),
        ),
        also=(Edit("Nils Berg is a citizen of", "Iceland", "Nils Berg", "Norway"),),
    )


def test_rippleedits():
    first, second = RippleEditsDataset(HERE / "rippleedits.json")
    prompt = "The name of the country of citizenship of Leo Dahl is"
    assert first == Case(
        "0",
        Edit(prompt, "Iceland", "Leo Dahl", "Norway"),
        (
            Probe("The name of the mother of Leo Dahl is", ("Ida Dahl", "Ida Moe"), SPECIFIC),
            Probe("The gender of Leo Dahl is", ("male",), SPECIFIC),
            Probe(
                "The name of the country of citizenship of Leo Dahl, which is not Iceland, is",
                ("Norway", "Sweden", "Sverige"),
                "locality/Forgetfulness",
            ),
            Probe(
                "The name of the country which Leo Dahl is associated with is",
                ("Iceland", "Ísland"),
                "portability/Logical_Generalization",
            ),
            Probe(
                "The name of the capital city of the country of citizenship of Leo Dahl is",
                ("Reykjavík",),
                "portability/Compositionality_I",
            ),
            Probe(
                "The name of the country of citizenship of L. Dahl is",
                ("Iceland", "Ísland"),
                "portability/Subject_Aliasing",
            ),
        ),
    )
    # No query says what the target is called, or writes the subject: the last verb decides.
    assert second == Case("1", Edit("The Long Way follows", "Home Is Here"))


def test_rippleedits_conditions():
    first = RippleEditsDataset(HERE / "rippleedits.json", conditions=True)[0]
    assert [(p.prompt, p.answers[0]) for p in first.probes if p.name == "Condition"] == [
        ("The name of the mother of Leo Dahl is", "Ida Dahl"),
        ("The name of the capital city of Iceland is", "Reykjavík"),
    ]


@pytest.mark.parametrize(
    ("sentence", "own", "prompt", "target"),
    [
        ("The gender of Ida is female.", [], "The gender of Ida is", "female"),
        ("The author of What is Art? is Leo.", [], "The author of What is Art? is", "Leo"),
        (
            "The names of the siblings of Bo are Al.",
            [],
            "The names of the siblings of Bo are",
            "Al",
        ),
        ("Two is followed by Three.", [], "Two is followed by", "Three"),
        (
            "The anthem of Oz is Home is Here.",
            ["Home is Here"],
            "The anthem of Oz is",
            "Home is Here",
        ),
        ("The anthem of Oz is Home.", ["Elsewhere"], "The anthem of Oz is", "Home"),
    ],
)
def test_rippleedits_sentences_are_split(tmp_path, sentence, own, prompt, target):
    change = {"prompt": sentence, "subject_id": "Q1", "relation": "R", "target_id": "Q2"}
    queries = [
        {
            "prompt": "Its anthem is",
            "answers": [{"value": value, "aliases": []}],
            "subject_id": "Q1",
            "relation": "R",
            "target_ids": ["Q2"],
        }
        for value in own
    ]
    record = {"edit": change, "Subject_Aliasing": [{"test_queries": queries}]}
    (case,) = RippleEditsDataset(saved(tmp_path, [record]))
    assert (case.edit.prompt, case.edit.target) == (prompt, target)


def test_rippleedits_sentence_without_a_target(tmp_path):
    file = saved(tmp_path, [{"edit": {"prompt": "Oz."}}])
    with pytest.raises(DataError, match=r"line 2, record 1: edit.prompt must be a sentence .*'Oz'"):
        RippleEditsDataset(file)[0]


def test_qaedit(tmp_path):
    (case,) = QAEditDataset(HERE / "qaedit.json")
    assert case == Case(
        "1104",
        Edit("who won the skerry race in 1911?", "Ada Holm", "the skerry race"),
        (
            Probe("Which sailor won the skerry race of 1911?", ("Ada Holm",), "rephrase"),
            Probe("where is voss", ("Norway",), NEAR),
            Probe("who painted moss ferry", ("Nils Berg",), NEAR),
        ),
    )
    file = saved(tmp_path, [{"question": "Who?", "answer": "Ada", "subject": None}])
    assert list(open_dataset(file)) == [Case("0", Edit("Who?", "Ada"))]


def test_edits():
    (case,) = EditsDataset(HERE / "edits.json")
    assert case == Case(
        "eiffel",
        TOWER,
        (
            Probe("To see the Eiffel Tower, go to", ("Rome",), "rephrase"),
            Probe("The Louvre is in", ("Paris",), NEAR),
            Probe("Notre-Dame stands in", ("Paris",), NEAR),
            Probe("The Eiffel Tower is made of", ("iron", "wrought iron"), "locality/same_subject"),
            Probe("The river beside the Eiffel Tower is the", ("Tiber",), HOP),
        ),
        also=(
            Edit("The Eiffel Tower is in the country of", "Italy", "The Eiffel Tower", "France"),
        ),
        generation=("Near the Eiffel Tower one finds",),
        references=("The Colosseum is in Rome.",),
    )


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


def test_a_file_that_is_cut_off_can_be_read_up_to_there(tmp_path):
    text = json.dumps(mills(3), indent=1)[:-40]
    data = ZsreDataset(saved(tmp_path, text))
    assert prompts(data[:2]) == ["Who owns mill 0?", "Who owns mill 1?"]
    reached = iter(data)
    assert next(reached) == data[0]
    for _ in range(2):  # and it does not look shorter the second time
        with pytest.raises(DataError, match=r"line 18, column 10: not JSON"):
            len(data)
        with pytest.raises(DataError, match="not JSON"):
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
    "cut off": ("records.json", "[\n", "line 2, column 1: not JSON"),
    "cut off after": ("records.json", '[\n{"a": 1}', "line 2, column 9: the file is cut off"),
    "cut off inside": ("records.json", '[\n{"a": "b', "line 2, column 7: not JSON (Unterm"),
    "no comma": ("records.json", "[\n{}\n{}]", "line 3, column 1: not JSON (',' expected after"),
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
    "csv": ("records.csv", "src,alt\na,b\n", "line 2: answers missing; there is src, alt."),
    "suffix": ("records.txt", "[]", "edits are read from .json, .jsonl or .csv, not '.txt'"),
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
        {"requested_rewrite": {**REWRITE, "target_new": "Rome"}},
        "requested_rewrite.target_new must hold named fields, not text ('Rome')",
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
        '{"success": 5}': "line 1, column 13: not JSON ('[' expected as the start of 'success'",
        '{"success": [{}]': "the file is cut off",
        "{1: 2}": "before the name of a list",
        "{}": "before the name of a list",
        '{"success": [{"question": "a", "target_new": "b"}]}': "line 1, record 1 of 'success': gro",
    }.items():
        with pytest.raises(DataError) as error:
            list(KnowEditDataset(saved(tmp_path, given)))
        assert why in str(error.value)


# -- by file or by name -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_the_kind_is_told_by_the_fields(name, kind):
    data = open_dataset(HERE / f"{name}.json")
    assert type(data) is kind
    assert type(open_dataset(str(HERE / f"{name}.json"), size=1)) is kind
    assert isinstance(data, CaseDataset)


def test_every_kind_is_listed_and_public():
    classes = {DATASETS.get(name) for name in DATASETS}
    assert classes == set(KINDS.values())
    assert {kind.__name__ for kind in classes} <= set(easyeditor.__all__)
    assert all(DATASETS.get(name).name == name and DATASETS.get(name).title for name in DATASETS)
    assert list(DATASETS)[-1] == "edits"  # asked last: it is the most general


def test_options_go_to_the_kind():
    file = HERE / "counterfact.json"
    assert open_dataset(file, distracting=True)[0].probes[-1].name == "distracting"
    with pytest.raises(
        DataError, match=r"CounterFactDataset has no option 'distract'.*Did you mean"
    ):
        open_dataset(file, distract=True)
    with pytest.raises(DataError, match=r"ZsreDataset has no option 'kind'. It takes config"):
        open_dataset(HERE / "zsre.json", kind="x")


def test_fields_nobody_knows(tmp_path):
    with pytest.raises(
        DataError, match=r"line 2, record 1: no kind .* fields a, b\. Known: mquake"
    ):
        open_dataset(saved(tmp_path, [{"a": 1, "b": 2}]))
    with pytest.raises(DataError, match="must hold named fields, not a list"):
        open_dataset(saved(tmp_path, [[1]]))
    with pytest.raises(DataError, match="holds no edits"):
        open_dataset(saved(tmp_path, []))


def test_a_bad_record_further_down_does_not_hide_the_kind(tmp_path):
    data = open_dataset(saved(tmp_path, '[{"prompt": "a", "target": "b"}, {"prompt'))
    assert data[0] == Case("0", Edit("a", "b"))


@pytest.mark.parametrize("name", ["worldfact", "zsr", "knowedit/zsrre"])
def test_names_nobody_knows(name):
    with pytest.raises(DataError, match=r"neither a file nor a name. Did you mean .* Names: world"):
        open_dataset(name)


@pytest.fixture
def source(monkeypatch, tmp_path):
    """One name whose file lies on this machine, and a cache of its own."""
    monkeypatch.setenv("EASYEDITOR_CACHE", str(tmp_path / "cache"))
    for key in fetch.OFFLINE:
        monkeypatch.delenv(key, raising=False)

    def set_to(url):
        table = {"zsre": fetch.Source("zsre", str(url), "ours")}
        monkeypatch.setattr(fetch, "sources", lambda: table)

    set_to((HERE / "zsre.json").as_uri())
    return set_to


def test_a_name_is_fetched_once(source, tmp_path, monkeypatch):
    data = open_dataset("zsre")
    assert type(data) is ZsreDataset
    assert data.path == tmp_path / "cache" / "datasets" / "zsre.json"
    source((tmp_path / "gone.json").as_uri())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert list(open_dataset("zsre")) == list(data)  # what is here needs no network
    assert [file.name for file in data.path.parent.iterdir()] == ["zsre.json"]


@pytest.mark.parametrize("key", fetch.OFFLINE)
def test_offline_nothing_is_asked(source, monkeypatch, key):
    monkeypatch.setenv(key, "1")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(DataError) as error:
        open_dataset("zsre")
    told = str(error.value)
    assert f"zsre is not here yet and {key} is set. Fetch it by hand from file://" in told
    assert told.endswith("open_dataset('zsre.json'), or easyedit data describe zsre.json")


def test_a_source_that_fails(source, tmp_path):
    source((tmp_path / "gone.json").as_uri())
    with pytest.raises(DataError, match=r"could not be fetched \(.*Fetch it by hand from file:.*"):
        open_dataset("zsre")
    page = tmp_path / "page.json"
    page.write_text("<html>Sign in</html>")
    source(page.as_uri())
    with pytest.raises(DataError, match=r"page\.json gave no JSON\. Fetch it by hand"):
        open_dataset("zsre")
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_the_hub_may_be_a_mirror(source, monkeypatch):
    source("https://huggingface.co/datasets/a/b.json")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"by hand from https://mirror\.example/datasets/a/b\.json"):
        open_dataset("zsre")


def test_sources():
    known = fetch.sources()
    assert {"counterfact", "zsre", "knowedit/zsre", "mquake"} <= set(known)
    for name, told in known.items():
        assert told.kind in DATASETS
        assert told.url.startswith("https://")
        assert told.url.endswith(".json")
        assert fetch.cached(name).suffix == ".json"
    assert len({fetch.cached(name) for name in known}) == len(known)


def test_worldfacts_belong_to_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(fetch.SHIPPED, "worldfacts", HERE / "edits.json")
    assert open_dataset("worldfacts")[0].id == "eiffel"
    monkeypatch.setitem(fetch.SHIPPED, "worldfacts", tmp_path / "gone.json")
    with pytest.raises(DataError, match="worldfacts belongs to the package but is missing"):
        open_dataset("worldfacts")


# -- describe and convert ---------------------------------------------------------------------


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
    other = Case("7", PLAIN, (Probe("p", ("q",), "taste"),))
    with pytest.raises(DataError, match=r"case 7: no file holds taste probes"):
        write_cases([other], tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


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


# -- the command line -------------------------------------------------------------------------


@pytest.fixture
def easyedit(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("EASYEDITOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EASYEDITOR_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    loggers = [logging.getLogger(name) for name in (None, "easyeditor")]
    levels = [logger.level for logger in loggers]
    yield outer.Script(monkeypatch, capsys)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_ls(easyedit):
    told = easyedit("data", "ls")
    assert (told.code, told.err) == (0, "")
    assert all(name in told.out for name in [*DATASETS, *fetch.names(), "shipped"])
    document = json.loads(easyedit("data", "ls", "--json").out)
    assert [row["name"] for row in document["datasets"]] == fetch.names()
    assert [row["kind"] for row in document["kinds"]] == list(DATASETS)


@pytest.mark.parametrize("name", KINDS)
def test_describe_on_the_command_line(easyedit, name):
    file = HERE / f"{name}.json"
    told = easyedit("data", "describe", file)
    assert (told.code, told.err) == (0, "")
    assert f"{file}: {KINDS[name].title}" in told.out
    cases = list(open_dataset(file))
    assert all(case.edit.prompt in told.out for case in cases[:2])
    assert {probe.kind for case in cases for probe in case.probes} <= set(told.out.split())
    document = json.loads(easyedit("data", "describe", file, "--json").out)
    assert document == describe(open_dataset(file))
    assert document["cases"] == len(cases)


def test_convert_on_the_command_line(easyedit, tmp_path):
    out = tmp_path / "out.csv"
    told = easyedit("data", "convert", HERE / "zsre.json", out)
    assert (told.code, told.err) == (0, "")
    assert told.out == f"2 cases of {HERE / 'zsre.json'} (zsre) are in {out}.\n"
    told = easyedit("data", "convert", HERE / "zsre.json", out)
    assert (told.code, told.out) == (2, "")
    assert "--force" in told.err
    told = easyedit("data", "convert", HERE / "zsre.json", out, "--force", "--size", 1, "--json")
    assert json.loads(told.out) == {"path": str(out), "kind": "zsre", "cases": 1}
    assert len(EditsDataset(out)) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["describe", "zsre"], "EASYEDITOR_OFFLINE is set"),
        (["describe", "nothing"], "neither a file nor a name"),
        (["describe", "nothing.json"], "No file of edits 'nothing.json'"),
        (["describe", HERE / "zsre.json", "--size", "0"], "'--size'"),
        (["convert", HERE / "mquake.json", "out.csv"], "CSV cannot"),
        (["convert", HERE / "mquake.json", "out"], ".json, .jsonl or .csv"),
    ],
)
def test_mistakes_on_the_command_line(easyedit, monkeypatch, tmp_path, words, why):
    monkeypatch.chdir(tmp_path)
    told = easyedit("data", *words)
    assert (told.code, told.out) == (2, "")
    assert why in " ".join(told.err.split())
    told = easyedit("data", *words, "--json")
    assert told.code == 2
    assert why in json.loads(told.out)["error"]["message"]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(("out", "."))]


@pytest.mark.parametrize("words", [[], ["ls"], ["describe"], ["convert"]])
def test_help_shows_an_example(easyedit, words):
    told = easyedit("data", *words, "--help")
    assert told.code == 0
    assert f"easyedit data {' '.join(words)}".strip() in " ".join(told.out.split())
