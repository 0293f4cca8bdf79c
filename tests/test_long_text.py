"""Targets that are paragraphs: windows, ends of texts, scores of whole texts, readers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from easyeditor import Case, Edit, MEMITHyperParams, Probe, open_dataset
from easyeditor.associative.value_optimization import ValueOptions, optimize_values
from easyeditor.associative.windows import other_rows, read_at, target_row, window_rows, windows_of
from easyeditor.data.unstructured import SUB_QUESTION, UnstructuredDataset
from easyeditor.edits import Generate, Score
from easyeditor.encoders.sentence_encoder import Sentences
from easyeditor.errors import DataError, HyperParamsError
from easyeditor.evaluate.presets import preset
from easyeditor.evaluate.replies import Ending, EvalOptions, Replies
from easyeditor.evaluate.scorers.text import TextScorer
from easyeditor.evaluate.text_overlap import exact_prefix, rouge_l
from easyeditor.lm.forward.batching import TokenScores
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.inference import score
from easyeditor.methods.memit import MEMIT
from easyeditor.methods.unke import UnKE, UnKEHyperParams
from easyeditor.patches.stack import applied
from support import CONTEXTS, Snapshot, lm, same_bits, shared_lm

TEXT = Edit("The mother tongue of Anna Lind is", "Italy and the river of Rome", "Anna Lind")
OTHER = Edit("Berlin is the capital of", "Paris and the city of Italy", "Berlin")
SEARCH = ValueOptions(4, v_lr=0.3, v_weight_decay=0.0, clamp_norm_factor=4.0, kl_factor=0.0625)


def memit(**changes: object) -> MEMIT:
    settings = {
        "layers": [0, 1],
        "mom2_adjustment": False,
        "context_template_length_params": ((2, 1),),
        "v_num_grad_steps": 12,
        "mom2_update_weight": 1e-3,
        "key": "ridge",
        **changes,
    }
    return MEMIT(MEMITHyperParams(**settings))


def test_windows_cut_the_target_and_its_end() -> None:
    target = shared_lm("llama")
    n = len(target_row(target, TEXT, append_eos=True).target)
    windows = windows_of(target, [TEXT], 2, append_eos=True)
    assert [(w.first, w.end) for w in windows] == [(i, min(i + 2, n)) for i in range(0, n, 2)]
    assert [w.at_subject for w in windows] == [True] + [False] * (len(windows) - 1)
    row = target_row(target, TEXT, append_eos=True)
    for window in windows[1:]:
        (cut,) = window_rows(target, TEXT, window, [""], append_eos=True)
        assert cut.ids == row.ids[: row.prompt_length + window.first]
        assert cut.subject_last == len(cut.ids) - 1 == read_at(target, row, window)
    ((text, free),) = other_rows(target, [TEXT], windows, append_eos=True)
    taken = {read_at(target, row, window) for window in windows}
    assert text == row
    assert set(free) == set(range(len(row.ids))) - taken


def test_the_end_of_a_text_is_added_once() -> None:
    target = shared_lm("llama")
    end = target.tokenizer.eos_token_id
    plain = target.text.row(TEXT.prompt, TEXT.target)
    once = target.text.with_end(plain)
    assert once.ids == (*plain.ids, end)
    assert once.target == (*plain.target, end)
    assert target.text.with_end(once) == once


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_vectors_of_earlier_windows_stay_added(family: str) -> None:
    """Resumed passes, whose prefix holds the earlier vectors, find what whole passes find."""
    target, site = shared_lm(family), Site(1, "block")
    edits = [TEXT, OTHER]
    windows = windows_of(target, edits, 2)
    fast = optimize_values(target, site, edits, CONTEXTS[:2], SEARCH, windows=windows)
    slow = optimize_values(target, site, edits, CONTEXTS[:2], SEARCH, windows=windows, resume=False)
    assert len(fast.delta) == len(windows) > 4
    torch.testing.assert_close(fast.delta, slow.delta, rtol=1e-3, atol=1e-4)
    alone = optimize_values(target, site, edits, CONTEXTS[:2], SEARCH, windows=windows[:2])
    assert torch.equal(fast.delta[:2], alone.delta)
    without = replace(SEARCH, v_num_grad_steps=1)
    first = optimize_values(target, site, edits, CONTEXTS[:2], without, windows=windows)
    assert fast.losses[2][0] != pytest.approx(first.losses[2][0])  # other vectors stand before it


def test_a_target_of_one_window_is_edited_as_without() -> None:
    target = shared_lm("llama")
    plain = memit().edit(target, [TEXT, OTHER]).patch
    windowed = memit(window=50).edit(target, [TEXT, OTHER]).patch
    for path, parts in plain.entries.items():
        for part, other in zip(parts, windowed.entries[path], strict=True):
            assert all(same_bits(getattr(part, f), getattr(other, f)) for f in part.fields)


def test_values_of_edits_that_are_made_alone_are_searched_together() -> None:
    target = shared_lm("llama")
    together = memit(window=2).edit_each(target, [TEXT, OTHER])
    for edit, outcome in zip((TEXT, OTHER), together, strict=True):
        alone = memit(window=2).edit(target, [edit]).patch
        assert outcome.patch.info.edits == (edit,)
        for path in alone.entries:
            torch.testing.assert_close(
                outcome.patch.dense(path), alone.dense(path), rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize("method", ["MEMIT", "AlphaEdit"])
def test_windows_hold_more_of_a_text(method: str) -> None:
    from easyeditor.methods import METHODS

    target = shared_lm("llama")
    before = Snapshot(target.model)
    kind = METHODS.get(method)
    settings = dict(memit(append_eos=True).hyperparams.model_dump(exclude_unset=True))
    settings.pop("alg_name")
    if method == "AlphaEdit":
        settings.pop("mom2_update_weight")
        settings["L2"] = 1e-3
    query = Score(TEXT.prompt, TEXT.target)
    values = {}
    for size in (None, 2):
        edited = kind(kind.hyperparams_class(**settings, window=size)).edit(target, [TEXT]).patch
        with applied(target.model, edited):
            values[size] = score(target, [query])[0]
    assert values[2].mean_logprob > values[None].mean_logprob
    assert exact_prefix(values[2]) >= exact_prefix(values[None])
    assert before.differences(target.model) == []


def test_keys_of_windows_are_protected_with_their_edit() -> None:
    target = lm("llama")
    method = memit(window=2, protect_edits=True)
    windows = windows_of(target, [TEXT], 2)
    patch = method.edit(target, [TEXT]).patch
    path = next(iter(patch.entries))
    keys, subjects = patch.extras[f"keys:{path}"], patch.extras[f"subjects:{path}"]
    assert len(keys) == len(subjects) == 2 * len(windows)  # the bare prompt and one context
    assert len(set(subjects.tolist())) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"anchor_norm": True}, "anchor_norm"),
        ({"continuation_kl_factor": 0.1}, "continuation_kl_factor"),
    ],
)
def test_settings_that_leave_no_room_for_windows(changes: dict[str, object], named: str) -> None:
    target = shared_lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match=f"window=2 .* {named}"):
        memit(window=2, **changes).edit(target, [TEXT])
    assert before.differences(target.model) == []


def test_windows_are_for_models_that_continue_text() -> None:
    target = shared_lm("t5")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match="window=2 reads facts between"):
        memit(window=2).edit(target, [TEXT])
    with pytest.raises(HyperParamsError, match="window=2 reads a text between"):
        UnKE(UnKEHyperParams(layers=[1], window=2)).edit(target, [TEXT])
    with pytest.raises(HyperParamsError, match="one block, not 2"):
        UnKE(UnKEHyperParams(layers=[0, 1])).edit(target, [TEXT])
    assert before.differences(target.model) == []


def test_unke_writes_the_text_without_a_subject() -> None:
    target = shared_lm("llama")
    edit = Edit(TEXT.prompt, TEXT.target)
    settings = UnKEHyperParams(layers=[1], lr=1e-2, optim_num_step=15, ex_data_num=2, window=2)
    patch = UnKE(settings).edit(target, [edit]).patch
    query = Score(edit.prompt, edit.target)
    (plain,) = score(target, [query])
    with applied(target.model, patch):
        (edited,) = score(target, [query])
    assert edited.mean_logprob > plain.mean_logprob + 1


def test_rouge_is_an_f1_which_rambling_lowers() -> None:
    assert rouge_l("The lamp burns walnut oil.", "the lamp burns oil") == pytest.approx(8 / 9)
    assert rouge_l("oil lamp", "lamp oil") == pytest.approx(0.5)
    assert rouge_l("", "oil") == rouge_l("?", "!") == 0.0
    rambling = "the lamp burns oil " + "and goes on and on " * 5
    assert rouge_l(rambling, "the lamp burns oil") < 0.35  # its recall is 1
    assert rouge_l("今天天气好", "今天天气") == pytest.approx(
        8 / 9
    )  # characters, not one long word


def test_the_exact_beginning_ends_at_the_first_other_token() -> None:
    scores = TokenScores((5, 6, 7, 8), (0.0,) * 4, (5, 6, 9, 8))
    assert exact_prefix(scores) == 2
    assert exact_prefix(replace(scores, argmax=scores.target)) == 4


CASE = Case(
    "lamp",
    Edit("What burns?", "The lamp burns walnut oil."),
    (
        Probe("Which lamp?", ("The lamp burns walnut oil.",), "rephrase"),
        Probe("Tell me.", ("The lamp burns walnut oil.",), "rephrase"),
        Probe("What does it burn?", ("walnut oil",), SUB_QUESTION),
        Probe("Who keeps it?", ("Mira",), SUB_QUESTION),
    ),
)


def replies(texts: dict[str, str]) -> Replies:
    scores = {
        Score(prompt, CASE.edit.target): TokenScores((1, 2), (0.0, 0.0), (1, 2))
        for prompt in ("What burns?", "Which lamp?", "Tell me.")
    }
    written = {Generate(prompt, 8): text for prompt, text in texts.items()}
    return Replies(scores, written, endings={query: Ending(3, True) for query in written})


def test_a_cosine_never_stands_without_the_unedited_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unedited model's text about the same thing has most of the cosine already."""

    def encode(_self: Sentences, texts: list[str]) -> torch.Tensor:
        rows = [[float("lamp" in t), float("walnut" in t), 0.1] for t in texts]
        return torch.nn.functional.normalize(torch.tensor(rows), dim=1)

    monkeypatch.setattr(Sentences, "encode", encode)
    scorer = TextScorer(EvalOptions(text_tokens=8, text_encoder="all-minilm-l6-v2"))
    queries = list(scorer.queries(None, CASE))
    assert Generate("Who keeps it?", 8) in queries
    assert len(queries) == 8
    topic = dict.fromkeys(("What burns?", "Which lamp?", "Tell me."), "A lamp is a thing.")
    before = replies({**topic, "What does it burn?": "Gas.", "Who keeps it?": "Nobody."})
    text = CASE.edit.target
    after = replies(
        {
            "What burns?": text,
            "Which lamp?": text,
            "Tell me.": "A lamp.",  # every rephrase counts, not the first alone
            "What does it burn?": "It burns walnut oil, they say.",
            "Who keeps it?": "The lamp burns walnut oil.",  # the surface without the fact
        }
    )
    values = scorer.score(None, CASE, before, after)
    assert values["text/rewrite_cosine"] == pytest.approx(1)
    assert 0.6 < values["text/rewrite_cosine_unedited"] < 0.8
    assert values["text/rewrite_rouge_l"] == values["text/rewrite_prefix"] == 1
    assert 0.5 < values["text/rephrase_rouge_l"] < 1
    assert values["text/sub_question_hits"] == 0.5
    unedited = scorer.score(None, CASE, before, before)
    assert unedited["text/rewrite_cosine"] == unedited["text/rewrite_cosine_unedited"]


def test_whole_texts_are_asked_by_the_preset_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(TextScorer(EvalOptions()).queries(None, CASE)) == []
    options = preset("long").options(EvalOptions())
    assert options.text_tokens == 256
    assert options.text_encoder == "all-minilm-l6-v2"
    monkeypatch.setattr("easyeditor.evaluate.presets.find_spec", lambda name: None)
    assert preset("long").options(EvalOptions()).text_encoder == ""


UNKE = {
    "id": 7,
    "question": "What is known about Harl?",
    "para_question": ["Tell me about Harl.", "Who is Harl?"],
    "answer": "Harl grinds mustard.<|eot_id|>",
    "sub_question": ["What does Harl grind?"],
    "sub_answer": ["mustard"],
}
AKEW = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "The mill of {} grinds",
        "subject": "Harl",
        "prompt_full": "What does the mill of Harl grind?",
        "question": "What is ground in the mill of Harl?",
        "target_new": {"str": "mustard"},
        "fact_new_uns": "The mill of Harl grinds mustard for Pryde.",
        "unsfact_triplets_GPT": [
            {"prompt": "{} grinds mustard for", "subject": "Harl", "target": "Pryde"}
        ],
    },
    "paraphrase_prompts": ["Harl's mill grinds"],
}


def file_of(folder: Path, *records: object) -> Path:
    path = folder / "texts.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_unkebench_files(tmp_path: Path) -> None:
    data = open_dataset(file_of(tmp_path, UNKE))
    assert isinstance(data, UnstructuredDataset)
    (case,) = data
    assert case.edit == Edit("What is known about Harl?", "Harl grinds mustard.")
    kinds = [probe.kind for probe in case.probes]
    assert kinds == ["rephrase", "rephrase", SUB_QUESTION]  # none of several rephrases is lost
    assert open_dataset(data.path, sub_questions=0)[0].probes == case.probes[:2]


def test_akew_files(tmp_path: Path) -> None:
    several = {**AKEW, "requested_rewrite": [AKEW["requested_rewrite"]] * 2}
    first, second = open_dataset(file_of(tmp_path, AKEW, several))
    rewrite = AKEW["requested_rewrite"]
    assert first.edit == Edit(rewrite["prompt_full"], rewrite["fact_new_uns"], "Harl")
    assert [(p.kind, p.prompt.text) for p in first.probes] == [
        ("rephrase", "Harl's mill grinds"),
        ("rephrase", rewrite["question"]),
        (SUB_QUESTION, "Harl grinds mustard for"),
    ]
    assert second.also == (first.edit,)


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    data = open_dataset(file_of(tmp_path, {**UNKE, "sub_answer": []}))
    with pytest.raises(DataError, match="lists 1 questions and sub_answer 0"):
        list(data)
    with pytest.raises(DataError, match="sub_questions=-1"):
        open_dataset(data.path, sub_questions=-1)


def test_the_shipped_paragraphs() -> None:
    cases = list(open_dataset("paragraphs"))
    assert len(cases) == 60
    sizes = {"20": (8, 22), "60": (30, 56), "120": (70, 105)}
    for case in cases:
        name, _, size = case.id.rpartition("-")
        low, high = sizes[size]
        assert low < len(case.edit.target.split()) < high, case.id
        assert case.edit.subject
        assert name
        for probe in case.probes:
            if probe.kind == SUB_QUESTION:
                assert probe.answers[0].lower() in case.edit.target.lower()
        if size == "120":
            assert sum(probe.kind == SUB_QUESTION for probe in case.probes) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a target's text"),
        (b" \n", "is empty"),
        (b"\xff", "cannot be read"),
    ],
)
def test_target_files_that_hold_no_text(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    """Refused before any model is loaded."""
    from easyeditor.cli.edit_request import target_text

    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        target_text(file, None, None, forget=False)


def test_a_target_file_is_the_target_and_ends() -> None:
    import typer

    from easyeditor.cli.edit_request import target_text, with_end

    file = Path(__file__)
    assert target_text(file, None, None, forget=False).startswith('"""Targets that are paragraphs')
    with pytest.raises(typer.BadParameter, match="--target, not both"):
        target_text(file, "x", None, forget=False)
    assert with_end("MEMIT", ["window=8"], file) == ["append_eos=true", "window=8"]
    assert with_end("FT", ["append_eos=false"], file) == ["append_eos=false"]
    assert with_end("GRACE", None, file) == with_end("FT", None, None) == []
