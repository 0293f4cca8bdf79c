"""Prompts and queries: plain text wherever they are bare, and never two images under one key."""

from __future__ import annotations

import pickle

import pytest

import support
import tiny
from easyeditor import Edit, Generate, ImageRef, Probe, Prompt, Score
from easyeditor.edits import as_prompt, to_json
from easyeditor.errors import EditError, PromptTooLongError, SubjectNotFoundError
from easyeditor.evaluate.generation_metrics import contains
from easyeditor.joining import join
from easyeditor.lm.inference import generate, score
from easyeditor.lm.tokens import Text
from easyeditor.subjects import locate_subject

QUESTION = "What is on the picture?"
CAT, DOG = ImageRef("a.png", "c" * 64), ImageRef("a.png", "d" * 64)


def test_a_bare_prompt_is_its_text():
    prompt = Prompt("The sky is")
    assert prompt == "The sky is"
    assert hash(prompt) == hash("The sky is")
    assert {prompt: 1}["The sky is"] == 1
    assert str(prompt) == f"{prompt}" == "The sky is"
    assert repr(prompt) == repr("The sky is")
    assert prompt.to_json() == "The sky is"
    assert as_prompt(prompt) is prompt
    assert as_prompt("The sky is") == prompt
    assert pickle.loads(pickle.dumps(prompt)) == prompt


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(QUESTION, (CAT,)),
        Prompt(QUESTION, (CAT, DOG)),
        Prompt(QUESTION, system="Be brief."),
        Prompt(QUESTION, raw=True),
    ],
)
def test_what_is_more_than_text_is_not_its_text(prompt):
    assert prompt != QUESTION
    assert prompt != Prompt(QUESTION)
    assert as_prompt(prompt.to_json()) == prompt
    assert str(prompt) == QUESTION
    assert len({prompt, Prompt(QUESTION), as_prompt(prompt.to_json())}) == 2


def test_two_images_with_one_question_never_collide():
    one, other = Prompt(QUESTION, (CAT,)), Prompt(QUESTION, (DOG,))
    assert len({Score(one, "yes"), Score(other, "yes"), Score(QUESTION, "yes")}) == 3
    assert len({Generate(one, 5), Generate(other, 5), Generate(other, 5, seed=1)}) == 3
    # The same bytes at another path are the same image.
    moved = ImageRef("elsewhere.png", CAT.sha256)
    assert Score(Prompt(QUESTION, (moved,)), "yes") == Score(one, "yes")


def test_an_image_is_known_by_its_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "b.png").write_bytes(b"one")
    assert ImageRef.of(tmp_path / "a.png") == ImageRef.of(tmp_path / "b.png")
    with pytest.raises(EditError, match=r"nothing\.png"):
        ImageRef.of(tmp_path / "nothing.png")


def test_edits_and_probes_take_text():
    edit = Edit("The sky is", "green", rejected="blue")
    assert isinstance(edit.prompt, Prompt)
    assert edit == Edit(Prompt("The sky is"), "green", rejected="blue")
    assert isinstance(Probe("Is the sky", ("green",), "rephrase").prompt, Prompt)
    assert to_json(Edit("A b", "c")) == {
        "prompt": "A b",
        "target": "c",
        "subject": None,
        "ground_truth": None,
    }
    assert to_json(edit)["rejected"] == "blue"


@pytest.mark.parametrize("wrong", [None, 5, ["a"], {"texts": "a"}, b"a"])
def test_what_is_no_prompt(wrong):
    with pytest.raises(EditError, match="prompt must be text"):
        Edit(wrong, "green")
    with pytest.raises(EditError, match="must be text"):
        Score(wrong, "green")


def test_images_must_be_references():
    with pytest.raises(EditError, match="ImageRef"):
        Prompt("a", ("a.png",))


# -- subjects -----------------------------------------------------------------------------------

NFC, NFD = "C\u00f4te d'Ivoire", "Co\u0302te d'Ivoire"


@pytest.mark.parametrize(
    ("prompt", "subject", "written"),
    [
        (f"The capital of {NFC} is", NFD, NFC),
        (f"The capital of {NFD} is", NFC, NFD),
        ("The founder of Levi\u2019s was", "Levi's", "Levi\u2019s"),
        ("The capital of France is", "france", "France"),
        ("Jean\u2010Luc Picard commands", "Jean-Luc Picard", "Jean\u2010Luc Picard"),
        ("The film \u201cAlien\u201d is by", '"Alien"', "\u201cAlien\u201d"),
        ("Bartholomew's Art is", "art", "Art"),
        ("Die STRASSE hei\u00dft", "stra\u00dfe", "STRASSE"),
    ],
)
def test_subjects_match_as_a_reader_would(prompt, subject, written):
    span = locate_subject(prompt, subject)
    assert prompt[span.start : span.end] == span.written == written
    assert Edit(prompt, "x", subject).subject == subject
    assert (span.describe(subject) == "") is (subject == written)


def test_the_last_occurrence_is_taken_and_said():
    span = locate_subject("Paris, Texas is not Paris, and paris", "Paris")
    assert (span.start, span.occurrence, span.occurrences) == (20, 2, 2)
    assert "occurrence 2 of 2" in span.describe("Paris")


@pytest.mark.parametrize(
    ("prompt", "subject", "near"),
    [
        ("Cote d'Ivoire lies in", NFC, "Cote d'Ivoire"),
        ("The Eifel Tower is in", "Eiffel Tower", "Eifel Tower"),
    ],
)
def test_a_near_miss_is_suggested(prompt, subject, near):
    with pytest.raises(SubjectNotFoundError, match="Did you mean") as caught:
        Edit(prompt, "x", subject)
    assert repr(near) in str(caught.value)


@pytest.mark.parametrize("subject", ["", "  ", "Moon"])
def test_a_subject_that_is_not_there(subject):
    with pytest.raises(SubjectNotFoundError, match="does not occur"):
        Edit("The sky is", "x", subject)


# -- joining ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "joined",
    [
        "The capital is| |Rome",
        "A coffee at Starbucks is $|7",
        "It costs US$|7",
        "It costs 5 €| |less",
        "Write to info@|example.com",
        'The motto is "|Never sleep"',
        'He said "yes"| |and left',
        "The band (|formed 1970)",
        "The band|, who retired",
        "He is|.",
        "He is old|)",
        "Albert-|Strasse",
        "The answer is| |-5",
        "It is| |.NET",
        "a site called example|.com",
        "Levi|'s jeans",
        "He said| |'Hello'",
        'He said| |"Hello"',
        "O'|Brien",
        "l'|Allemagne",
        "the boys'| |room",
        "https://|example.com",
        "either and|/or",
        "look in| |/etc/passwd",
        "AT&|T",
        "R &| |D",
        "The answer:| |Paris",
        "x =| |5",
        "x=|5",
        "at 10:|30",
        "1914–|1918",
        "Answer:\n|Paris",
        "法国的首都是|里昂",
        "法国的首都是：|里昂",
        "答案:|里昂",
        "他出生于1990|年",
        "苹果公司的产品是|iPhone",
        "フランスの首都は|リヨン",
        "เมืองหลวงของฝรั่งเศสคือ|ลียง",
        "프랑스의 수도는| |리옹",
        "In Chinese, Paris is| |巴黎",
        "Столица Франции —| |Лион",
        "The capital is|  Rome",
    ],
)
def test_prompt_and_target_are_joined_as_a_writer_would(joined):
    prompt, *space, target = joined.split("|")
    assert join(prompt, target) == prompt + "".join(space) + target


def test_blanks_at_the_end_of_a_prompt_are_one_space():
    assert join("The city of ", "Rome") == "The city of Rome"
    assert join("The city of  ", "Rome") == "The city of Rome"
    assert join("It costs $ ", "7") == "It costs $ 7"


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("The city of ", "Rome", "The city of Rome"),
        ("The city of", "Rome", "The city of Rome"),
        ("The city of\u00a0", "Rome", "The city of Rome"),
        ("A coffee is $", "7", "A coffee is $7"),
        ('The motto is "', "Never sleep", 'The motto is "Never sleep'),
        ("write to info@", "example.com", "write to info@example.com"),
        ("He", ", who retired", "He, who retired"),
        ("法国的首都是", "里昂", "法国的首都是里昂"),
        ("Answer:\n", "Paris", "Answer:\nParis"),
        (Prompt("The city of ", raw=True), "Rome", "The city of Rome"),
        (Prompt("The city of", raw=True), "Rome", "The city ofRome"),
        (Prompt("The city of ", raw=True), " Rome", "The city of  Rome"),
    ],
)
def test_what_is_scored_is_what_generation_starts_from(prompt, target, text):
    rules = Text(tiny.tokenizer(), encoder_decoder=False, chat_template=False)
    row = rules.row(prompt, target)
    assert row.ids[: row.prompt_length] == rules.row(prompt).ids
    assert rules.tokenizer.decode(row.ids) == text
    assert rules.tokenizer.decode(row.target).strip() == target.strip()


def test_a_prompt_that_this_model_cannot_read():
    rules = Text(tiny.tokenizer(), encoder_decoder=False, chat_template=False)
    with pytest.raises(EditError, match="1 image, and this model reads text alone"):
        rules.row(Prompt(QUESTION, (CAT,)))
    with pytest.raises(EditError, match="chat_template=True"):
        rules.row(Prompt(QUESTION, system="Be brief."))


def test_a_system_message_opens_the_chat():
    core = tiny.tokenizer().backend_tokenizer
    tokenizer = tiny.tokenizer().__class__(tokenizer_object=core, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    )
    rules = Text(tokenizer, encoder_decoder=False, chat_template=True)
    row = rules.row(Prompt("The sky is", system="Be brief."), "blue", subject="The sky")
    text = tokenizer.decode(row.ids)
    assert text == "system: Be brief.\nuser: The sky is\nassistant: blue"
    assert tokenizer.decode(row.ids[: row.subject_last + 1]).endswith("user: The sky")


def test_a_text_that_the_context_cannot_hold_is_refused_before_it_is_run():
    lm = support.lm("gpt2")
    support.failing_at(lm.model, 1)
    before = support.Snapshot(lm.model)
    long = "You can see the river. " * 60
    for ask in (lambda: score(lm, [(long, "Rome")]), lambda: generate(lm, [long], 3)):
        with pytest.raises(PromptTooLongError, match="128 at most"):
            ask()
    assert before.differences(lm.model) == []


def test_near_the_end_of_the_context_fewer_tokens_are_written():
    lm = support.shared_lm("gpt2")
    room = 128 - len(lm.text.row(prompt := "river " * 100).ids)
    assert 0 < room < 40
    assert generate(lm, [prompt], 100) == generate(lm, [prompt], room)


@pytest.mark.parametrize(
    ("text", "answer", "holds"),
    [
        ("里昂。", "里昂", True),
        ("是里昂市", "里昂", True),
        ("788", "7", False),
        ("is Rome.", "Rome", True),
        ("Romeo", "Rome", False),
    ],
)
def test_an_answer_in_a_free_text(text, answer, holds):
    assert contains(text, [answer]) is holds
