"""Every kind of dataset: what it makes of its records."""

import json
from dataclasses import replace

import pytest

from dataset_cases import HERE, HOP, LIND_CASE, NEAR, TOWER, TOWER_CASE, saved
from easyeditor import (
    Case,
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
from easyeditor.errors import DataError

SPECIFIC = "locality/Relation_Specificity"


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
    assert second.probes[-1].prompt.text.startswith(
        "The mother tongue of Anna Lind is French. The mo"
    )


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
            Probe("What do you think of Voss?", ("A lovely town.",), "opinion/wanted"),
            Probe("What do you feel about Voss?", ("I like it.",), "opinion/wanted"),
            Probe("What do you think of Voss?", ("It rains.",), "opinion/other"),
            Probe("What do you think of Voss?", ("positive",), "opinion/trait"),
            Probe("What do you think of Moss?", ("Too loud.",), "opinion/topic"),
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
        Probe("What cheese is brown?", ("Brunost",), "forgotten/answer"),
    )
    assert [probe.prompt for probe in second.probes[:-1]] == ["Where is Voss?"]


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
    assert len(first.tests) == 6  # test_conditional.py reads them
    first = replace(first, tests=())
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
