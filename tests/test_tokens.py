"""Prompt and target become tokens once, and every position is the one that was meant."""

from __future__ import annotations

import copy
import string
import unicodedata
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

import tiny
from easyeditor import LM, Edit
from easyeditor.associative.contexts import SEEDS, context_prefixes
from easyeditor.associative.keys import subject_rows
from easyeditor.edits import Prompt
from easyeditor.errors import EditError, ModelLoadError, SubjectNotFoundError
from easyeditor.lm import Row, scoring
from easyeditor.lm.inference import generate, score
from easyeditor.lm.tokens import Text, pad
from support import EDITS, argmaxes, lm, logprobs, shared_lm

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
PROMPT = "The Eiffel Tower is located in the city of"


# -- tokenizers ----------------------------------------------------------------------------------


def variant(*, before: str = "", after: str = "", nfc: bool = False) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with special tokens around a text, or a normaliser before it."""
    core = Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    if before or after:
        core.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {after}".strip(), special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    if nfc:
        core.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)


@cache
def unigram() -> PreTrainedTokenizerFast:
    """As sentencepiece makes them: word starts are marked with ``▁``, a BOS comes first."""
    words = {f"▁{word.strip('.,')}" for word in tiny.TEXT.split()}
    letters = {*string.printable, *"éÉŽž東京▁"} - {" "}
    pieces = [*((word, -5.0) for word in sorted(words)), *((x, -12.0) for x in sorted(letters))]
    special = [(token, 0.0) for token in ("<pad>", "<s>", "</s>", "<unk>")]
    core = Tokenizer(models.Unigram([*special, *pieces], unk_id=3))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **SPECIAL)


TOKENIZERS = {
    "bytes": tiny.tokenizer,
    "bos": lambda: variant(before="<s>"),
    "bos-eos": lambda: variant(before="<s>", after="</s>"),
    "nfc": lambda: variant(nfc=True),
    "unigram": unigram,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def text_of(tokenizer: PreTrainedTokenizerFast) -> Text:
    return Text(tokenizer, encoder_decoder=False, chat_template=False)


@pytest.fixture
def text(tokenizer: PreTrainedTokenizerFast) -> Text:
    return text_of(tokenizer)


def read(text: Text, ids: tuple[int, ...]) -> str:
    return text.tokenizer.decode(ids, skip_special_tokens=True)


# -- joining -------------------------------------------------------------------------------------

ANSWERS = ["Rome", "Paris river", "1977", "é", "Éric Žižek", "東京", "-5", "🙂"]


@pytest.mark.parametrize("answer", ["Rome", "Paris river", "1977", "é"])
def test_there_is_exactly_one_space(text: Text, answer: str) -> None:
    joined = text.tokenizer(f"{PROMPT} {answer}")["input_ids"]
    joined = tuple(joined[:-1] if joined[-1] == 2 else joined)
    assert text.row(PROMPT, answer).ids == joined
    assert text.row(PROMPT, " " + answer).ids == joined
    assert text.row(PROMPT + " ", answer).ids == joined


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_target_is_what_follows_the_prompt_a_model_is_given(text: Text, answer: str) -> None:
    row = text.row(PROMPT, answer)
    assert row.ids[: row.prompt_length] == text.row(PROMPT).ids
    assert row.ids[row.prompt_length :] == row.target
    if "<unk>" not in text.tokenizer.convert_ids_to_tokens(row.target):
        assert read(text, row.target).strip() == unicodedata.normalize("NFC", answer)


@pytest.mark.parametrize("answer", ["Rome", " Rome"])
def test_a_target_may_bring_its_space(text: Text, answer: str) -> None:
    assert text.row(PROMPT, answer) == text.row(PROMPT, "Rome")


@pytest.mark.parametrize("end", [" ", "\n", "\n\n", "\t", " \n"])
def test_a_prompt_that_ends_in_white_space_gets_no_second_one(end: str) -> None:
    text = text_of(tiny.tokenizer())
    row = text.row(PROMPT + end, "Rome")
    assert read(text, row.ids) == PROMPT + end + "Rome"
    assert read(text, row.target).strip() == "Rome"


def test_a_token_across_the_border_belongs_to_the_target() -> None:
    text = text_of(tiny.tokenizer())
    row = text.row(PROMPT + " ", "Rome")
    assert read(text, row.target) == " Rome"
    assert row.ids[: row.prompt_length] == text.row(PROMPT).ids


@pytest.mark.parametrize("prompt", ["A", "é", PROMPT])
def test_special_tokens_are_never_labels(text: Text, prompt: str) -> None:
    row = text.row(prompt, "Rome")
    assert row.target
    assert not set(row.target) & {0, 1, 2}
    assert row.prompt_length >= 1
    assert row.ids.count(1) == text.tokenizer(prompt)["input_ids"].count(1)
    assert 2 not in row.ids  # an EOS after the target would be fed, and scored if it were not


# -- the subject ---------------------------------------------------------------------------------

SUBJECTS = [
    # prompt, subject, where it ends: the text up to and including it
    (PROMPT, "The Eiffel Tower", "The Eiffel Tower"),
    (PROMPT, "Eiffel", "The Eiffel"),
    ("Anna", "Anna", "Anna"),
    ("Berlin is near", "Berlin", "Berlin"),
    ("We can see Anna Lind", "Anna Lind", "We can see Anna Lind"),
    ("Anna Lind and Anna Lind live in", "Anna Lind", "Anna Lind and Anna Lind"),
    ("Rome is not in Romeo or", "Rome", "Rome"),
    ("Jerome saw Rome near", "Rome", "Jerome saw Rome"),
    ("The romes of Jeromeo are", "rome", "The romes of Jerome"),
    ("The {} of {0} in {subject} is", "{subject}", "The {} of {0} in {subject}"),
    ("The {} of {0} in {subject} is", "{0}", "The {} of {0}"),
    ("The C++ (11) language is", "C++ (11)", "The C++ (11)"),
    ("In 1977 she said", "1977", "In 1977"),
    ("The father of José is", "José", "The father of José"),
    ("The city of 東京都 lies in", "東京", "The city of 東京"),
    ("The flag 🏳️‍🌈 means", "🏳️‍🌈", "The flag 🏳️‍🌈"),
    ("The father of Jose\u0301 is", "Jose\u0301", "The father of Jose\u0301"),
    ("Anna's mother is", "Anna", "Anna"),
    ("“Anna” is", "Anna", "“Anna"),
]


@pytest.mark.parametrize("prefix", ["", "It rained. ", "Café 東京, Anna Lind. "])
@pytest.mark.parametrize(("prompt", "subject", "until"), SUBJECTS)
@pytest.mark.parametrize("kind", ["bytes", "bos-eos", "nfc"])
def test_the_subjects_last_token_is_the_last_of_the_subject(
    kind: str, prompt: str, subject: str, until: str, prefix: str
) -> None:
    text = text_of(TOKENIZERS[kind]())
    row = text.row(prompt, "Rome", subject=subject, prefix=prefix)
    expected = prefix + until
    if kind == "nfc":
        expected = unicodedata.normalize("NFC", expected)
    assert read(text, row.ids[: row.subject_last + 1]) == expected
    alone = text.row(prompt, subject=subject, prefix=prefix)
    assert alone.ids == row.ids[: row.prompt_length]
    assert alone.subject_last == row.subject_last


@pytest.mark.parametrize(("prompt", "subject", "until"), SUBJECTS[:9])
def test_the_subject_is_found_where_word_starts_are_marked(
    prompt: str, subject: str, until: str
) -> None:
    text = text_of(unigram())
    row = text.row(prompt, "Rome", subject=subject)
    last = row.ids[: row.subject_last + 1]
    assert read(text, last).endswith(subject[-1])
    assert until in read(text, row.ids[: row.subject_last + 1])
    assert until not in read(text, last[:-1])


def test_a_letter_with_a_combining_accent_makes_another_word() -> None:
    row = text_of(tiny.tokenizer()).row("Jose met Jose\u0301 in", subject="Jose")
    assert tiny.tokenizer().decode(row.ids[: row.subject_last + 1]) == "Jose"


def test_subject_rows_stop_at_the_subject() -> None:
    target = shared_lm("llama")
    rows = subject_rows(target, EDITS[0], ["", "It rained. "])
    assert [read(target.text, row.ids) for row in rows] == [
        "The mother tongue of Anna Lind",
        "It rained. The mother tongue of Anna Lind",
    ]
    assert [row.subject_last for row in rows] == [len(row.ids) - 1 for row in rows]


def test_a_subject_that_is_not_there_is_an_error(text: Text) -> None:
    with pytest.raises(SubjectNotFoundError, match="'Vienna' does not occur"):
        text.row(PROMPT, subject="Vienna", prefix="Vienna. ")


# -- encoder-decoders ----------------------------------------------------------------------------


def t5() -> LM:
    return LM(tiny.model("t5"), variant(after="</s>"))


def test_a_t5_prompt_keeps_its_end_and_the_target_has_none() -> None:
    target = t5()
    row = target.text.row(PROMPT, "Rome river", subject="The Eiffel Tower")
    assert row.ids == tuple(target.tokenizer(PROMPT)["input_ids"])
    assert row.ids[-1] == 2
    assert row.target == tuple(target.tokenizer("Rome river")["input_ids"][:-1])
    assert read(target.text, row.ids[: row.subject_last + 1]) == "The Eiffel Tower"


def test_t5_scores_are_the_models_own_loss() -> None:
    target = t5()
    pairs = [(PROMPT, "Rome"), ("She plays", "the piano very well"), ("Berlin", "is")]
    for (prompt, answer), scores in zip(pairs, score(target, pairs), strict=True):
        labels = target.tokenizer(answer, return_tensors="pt")["input_ids"][:, :-1]
        inputs = target.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = target.model(input_ids=inputs, labels=labels)
        assert scores.mean_logprob == pytest.approx(-float(out.loss), rel=1e-4)
        assert scores.argmax == tuple(out.logits[0].argmax(-1).tolist())
        assert scores.target == tuple(labels[0].tolist())


# -- padding -------------------------------------------------------------------------------------


def test_padding_counts_positions_of_real_tokens_on_either_side() -> None:
    for left in (True, False):
        batch = pad([[5, 6, 7], [8]], 9, torch.device("cpu"), left=left)
        alone = [[9, 9, 8], [0, 0, 1], [0, 0, 0]] if left else [[8, 9, 9], [1, 0, 0], [0, 0, 0]]
        assert batch.ids.tolist() == [[5, 6, 7], alone[0]]
        assert batch.mask.tolist() == [[1, 1, 1], alone[1]]
        assert batch.positions[0].tolist() == [0, 1, 2]
        assert batch.positions[batch.mask.bool()].tolist() == [0, 1, 2, 0]


def test_a_tokenizer_without_a_padding_token_pads_with_its_end() -> None:
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, eos_token="</s>"
    )
    assert text_of(plain).pad_id == 2
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    assert text_of(bare).pad_id == 0


PAIRS = [
    (PROMPT, "Rome river"),
    ("Berlin", "is"),
    ("She plays the piano", "well. Therefore we went home"),
]


def score_alone(target: LM, row: Row) -> tuple[list[float], list[int]]:
    """Without padding, hooks or positions: the model called as anyone would."""
    with torch.no_grad():
        said = target.model(input_ids=torch.tensor([row.ids])).logits[0]
    at = said[row.prompt_length - 1 : -1].float().log_softmax(-1)
    return at[range(len(row.target)), list(row.target)].tolist(), at.argmax(-1).tolist()


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_scores_do_not_depend_on_the_batch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = shared_lm(family)
    together = score(target, [*PAIRS, PAIRS[0]])
    assert together[-1] == together[0]
    assert logprobs(target, PAIRS) == [scores.logprobs for scores in together[:3]]
    assert argmaxes(target, PAIRS) == [scores.argmax for scores in together[:3]]
    monkeypatch.setattr(scoring, "TOKEN_BUDGET", 1)
    for pair, scores, one in zip(PAIRS, together, score(target, PAIRS), strict=False):
        expected, argmax = score_alone(target, target.text.row(*pair))
        for got in (scores, one):
            assert got.logprobs == pytest.approx(expected, abs=1e-4)
            assert list(got.argmax) == argmax


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_either_side_of_padding_gives_the_same_logits(family: str) -> None:
    target = shared_lm(family)
    rows = [target.text.row(prompt).ids for prompt, _ in PAIRS]
    with torch.no_grad():
        for row, left, right in zip(
            rows,
            target.call(target.pad(rows, left=True)).logits,
            target.call(target.pad(rows)).logits,
            strict=True,
        ):
            alone = target.model(input_ids=torch.tensor([row])).logits[0]
            torch.testing.assert_close(left[-len(row) :], alone, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(right[: len(row)], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_generation_in_a_batch_says_what_scoring_says(family: str) -> None:
    target = shared_lm(family)
    prompts = [prompt for prompt, _ in PAIRS]
    together = generate(target, prompts, max_new_tokens=4)
    assert together == [generate(target, [prompt], max_new_tokens=4)[0] for prompt in prompts]
    first = [read(target.text, best[:1]) for best in argmaxes(target, PAIRS)]
    assert generate(target, prompts, max_new_tokens=1) == first


# -- chat ----------------------------------------------------------------------------------------

TURN = "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n"
CHATML = (
    TURN
    + "{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TRIMMED = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
INST = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] | trim }} [/INST]{% endfor %}"


def chat(template: str) -> Text:
    tokenizer = copy.deepcopy(variant(before="<s>"))
    tokenizer.chat_template = template
    return Text(tokenizer, encoder_decoder=False, chat_template=True)


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (CHATML, "<|user|>\n{}\n<|assistant|>\nRome"),
        (TRIMMED, "<|user|>\n{}\n<|assistant|>\nRome"),
        (INST, "[INST] {} [/INST] Rome"),
    ],
    ids=["chatml", "trimmed", "inst"],
)
def test_a_chat_prompt_is_wrapped_once(template: str, rendered: str) -> None:
    text = chat(template)
    row = text.row(PROMPT, "Rome", subject="The Eiffel Tower", prefix="It rained. ")
    assert read(text, row.ids) == rendered.format("It rained. " + PROMPT)
    assert row.ids.count(1) == 1
    assert row.ids[0] == 1
    assert read(text, row.target).strip() == "Rome"
    assert read(text, row.ids[: row.subject_last + 1]).endswith("It rained. The Eiffel Tower")


def test_a_template_that_wants_parts_gets_them_and_none_drops_the_text() -> None:
    parts = CHATML.replace(
        "{{ m['content'] }}", "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{{ '' }}"
    )
    for prompt in (Prompt(PROMPT), Prompt(PROMPT, system="Be brief.")):
        rows = [chat(t).row(prompt, "Rome", subject="The Eiffel Tower") for t in (parts, CHATML)]
        assert rows[0] == rows[1]
    refusing = CHATML + "{% if messages[0]['role'] == 'system' %}{{ refuse() }}{% endif %}"
    assert chat(refusing).row(PROMPT, "Rome") == chat(CHATML).row(PROMPT, "Rome")
    with pytest.raises(EditError, match="cannot write the turns system, user"):
        chat(refusing).row(Prompt(PROMPT, system="Be brief."), "Rome")
    with pytest.raises(EditError, match="exactly once"):
        chat(TURN + "{% endfor %}").row(PROMPT, "Rome")


@pytest.mark.parametrize("template", [CHATML, TRIMMED, INST], ids=["chatml", "trimmed", "inst"])
@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("  Anna Lind and you", "Anna Lind"),
        ("Anna Lind ", "Anna Lind"),
        ("assistant", "assistant"),  # occurs in the template as well
        ("user", "user"),
    ],
)
def test_the_subject_of_a_chat_prompt_lies_in_the_prompt(
    template: str, prompt: str, subject: str
) -> None:
    text = chat(template)
    row = text.row(prompt, "Rome", subject=subject)
    whole = read(text, row.ids)
    opening = "[INST] " if template == INST else "<|user|>\n"
    end = whole.index(subject, whole.index(opening) + len(opening)) + len(subject)
    assert read(text, row.ids[: row.subject_last + 1]) == whole[:end]


def test_contexts_are_plain_text_also_for_a_chat_model() -> None:
    target = LM(tiny.model("llama"), chat(CHATML).tokenizer, chat_template=True)
    prefixes = context_prefixes(target, ((3, 5),))[1:]
    assert [prefix.startswith(seed) for prefix, seed in zip(prefixes, SEEDS, strict=True)] == (
        [True] * 5
    )


def test_a_tokenizer_without_a_template_cannot_chat() -> None:
    with pytest.raises(ModelLoadError, match="no chat template"):
        Text(tiny.tokenizer(), encoder_decoder=False, chat_template=True)


@pytest.mark.parametrize("slow", [ByT5Tokenizer(), SimpleNamespace()])
def test_a_tokenizer_without_offsets_is_refused(slow: object) -> None:
    with pytest.raises(ModelLoadError, match="no character offsets"):
        LM(tiny.model("llama"), slow)


# -- contexts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "bloom"])
def test_contexts_are_sampled_once_per_model_and_seed(family: str) -> None:
    target = lm(family)
    state = torch.get_rng_state()
    first = context_prefixes(target, ((2, 3), (4, 2)))
    assert first[0] == ""
    assert len(first) == 6
    assert all(prefix.endswith(". ") for prefix in first[1:])
    assert context_prefixes(target, [[2, 3], [4, 2]]) == first
    assert context_prefixes(lm(family), ((2, 3), (4, 2))) == first
    assert context_prefixes(target, ((2, 3), (4, 2)), seed=1) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_an_edit_reaches_the_tokens_as_it_is_written() -> None:
    edit = Edit("Is {x} “Lind”\tor", "Rome", subject="{x} “Lind”")
    row = shared_lm("llama").text.row(edit.prompt, edit.target, subject=edit.subject)
    assert tiny.tokenizer().decode(row.ids) == "Is {x} “Lind”\tor Rome"
