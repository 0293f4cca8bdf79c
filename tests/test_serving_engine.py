"""The engine continues texts as the model's own ``generate`` does, whoever else is continued."""

from __future__ import annotations

import math
import threading

import pytest
import torch

import tiny
from easyeditor import LM
from easyeditor.errors import DivergedError, ServerBusyError, UnsupportedModelError
from easyeditor.lm.inference import generate
from easyeditor.patches.copies import shared_copy
from easyeditor.serving.engine import Engine, Failure, Finish, Job, Piece, _groups
from easyeditor.serving.names import ServedModels
from easyeditor.serving.sampling import Sampling, TextStream, TokenChooser
from support import EDITS, lm
from tiers import tiered

PROMPTS = ("The Eiffel Tower is located in the city of", "She plays the", "Berlin is")
FAMILIES = ("llama", "gpt2", "opt", "bloom", "gemma2", "mistral", "gptj", "mamba", "lfm2")
FAST = ("gpt2", "bloom", "mistral", "mamba")


def text(target: LM, prompt: str) -> tuple[int, ...]:
    return target.text.plain(prompt)


class Answers:
    """Collects the events of some jobs."""

    def __init__(self) -> None:
        self.events: list[list] = []
        self.ended: list[threading.Event] = []

    def job(self, target: LM, prompt: str, tokens: int = 8, **sampling: object) -> Job:
        events, ended = [], threading.Event()
        self.events.append(events)
        self.ended.append(ended)

        def emit(event) -> None:
            events.append(event)
            if not isinstance(event, Piece):
                ended.set()

        return Job(target, text(target, prompt), Sampling(tokens, **sampling), emit)

    def texts(self) -> list[str]:
        assert all(ended.wait(20) for ended in self.ended)
        assert all(isinstance(events[-1], Finish) for events in self.events), self.events
        return ["".join(e.text for e in events[:-1]) for events in self.events]


@pytest.fixture
def engine():
    result = Engine()
    yield result
    result.close()
    assert not result.alive


def written(engine: Engine, target: LM, tokens: int = 8) -> list[str]:
    answers = Answers()
    engine.submit([answers.job(target, prompt, tokens) for prompt in PROMPTS])
    return answers.texts()


@pytest.mark.parametrize("family", tiered(FAMILIES, FAST))
def test_every_family_is_continued_as_by_generate(engine, family):
    target = lm(family)
    assert written(engine, target) == generate(target, PROMPTS, 8)


@pytest.mark.parametrize("method", tiered(("GRACE", "MEMOIR"), ("GRACE",)))
def test_a_router_decides_by_the_prompt_and_holds_while_it_is_continued(
    engine, make_method, method
):
    target = lm("llama")
    patch = make_method(method, target, "llama").edit(target, EDITS[:1]).patch
    edited = LM(shared_copy(target.model), target.tokenizer)
    patch.apply(edited.model)
    prompts = [str(EDITS[0].prompt), *PROMPTS]
    answers = Answers()
    engine.submit([answers.job(who, p) for p in prompts for who in (target, edited)])
    texts = answers.texts()
    assert texts[1::2] == generate(edited, prompts, 8)
    assert texts[0::2] == generate(target, prompts, 8)
    assert texts[0] != texts[1]


def test_a_short_answer_does_not_wait_for_a_long_one(engine):
    target, answers = lm("llama"), Answers()
    engine.submit([answers.job(target, PROMPTS[0], 110)])
    engine.submit([answers.job(target, PROMPTS[1], 2)])
    assert answers.ended[1].wait(20)
    assert not answers.ended[0].is_set()


def test_who_goes_away_is_not_continued(engine):
    target, answers = lm("llama"), Answers()
    job = answers.job(target, PROMPTS[0], 110)
    engine.submit([job])
    while not job.written:
        pass
    job.cancelled = True
    engine.submit([answers.job(target, PROMPTS[1], 3)])
    assert answers.ended[1].wait(20)
    assert len(job.written) < 110
    assert not answers.ended[0].is_set()


def test_a_model_that_fails_ends_its_own_requests(engine):
    broken, sound, answers = lm("llama"), lm("llama"), Answers()
    with torch.no_grad():
        broken.model.model.norm.weight.fill_(float("nan"))
    jobs = [answers.job(who, prompt) for who in (broken, sound) for prompt in PROMPTS[:2]]
    engine.submit(jobs)
    assert all(ended.wait(20) for ended in answers.ended)
    last = [events[-1] for events in answers.events]
    assert [type(event) for event in last] == [Failure, Failure, Finish, Finish]
    assert "are not numbers" in last[0].message
    broken.model.lm_head = torch.nn.Identity()  # an error of torch's, not of ours
    more = Answers()
    engine.submit([more.job(broken, PROMPTS[0])])
    assert more.ended[0].wait(20)
    assert isinstance(more.events[0][-1], (Failure, Finish))
    assert written(engine, sound) == generate(sound, PROMPTS, 8)


def test_an_error_of_one_request_leaves_those_in_its_passes_alone(monkeypatch, caplog):
    target, answers = lm("llama"), Answers()
    jobs = [answers.job(target, prompt) for prompt in PROMPTS[:2]]
    chooses = TokenChooser.choose

    def choose(chooser: TokenChooser, ids: tuple[int, ...], logits: torch.Tensor) -> int:
        if ids[:-2] == jobs[0].ids:
            raise RuntimeError("/a/place/of/the/server")
        return chooses(chooser, ids, logits)

    monkeypatch.setattr(TokenChooser, "choose", choose)
    (group,) = _groups(jobs)
    while group.live:
        group.step()
    last = [events[-1] for events in answers.events]
    assert [type(event) for event in last] == [Failure, Finish]
    assert len(jobs[0].written) == 2
    assert "the server's log says why" in last[0].message
    assert "/a/place" not in last[0].message
    assert "/a/place" in caplog.text


def test_a_request_that_cannot_be_started_leaves_the_others_alone():
    target, answers = lm("llama"), Answers()
    wrong = answers.job(target, PROMPTS[0], temperature=1.0, top_p=-1.0)
    right = answers.job(target, PROMPTS[1])
    assert [group.jobs for group in _groups([wrong, right])] == [[right]]
    assert isinstance(answers.events[0][-1], Failure)
    assert answers.events[1] == []


def test_a_temperature_near_zero_is_zero():
    logits = torch.tensor([1.0, 3.0, 2.0])
    for temperature in (0.0, 1e-40, 1e-6, 1e-5):
        assert TokenChooser(Sampling(1, temperature, top_k=2, top_p=0.9)).choose([0], logits) == 1


@pytest.mark.parametrize("logits", [[1.0, math.inf], [-math.inf, -math.inf], [math.nan, 1.0]])
def test_no_token_is_sampled_from_what_are_no_probabilities(logits):
    with pytest.raises(DivergedError, match="are not numbers"):
        TokenChooser(Sampling(1, 1.0)).choose([0], torch.tensor(logits))


def test_too_many_are_turned_away_and_none_of_them_is_continued():
    engine = Engine(max_active=1, max_waiting=2)
    target, answers = lm("llama"), Answers()
    try:
        engine.submit([answers.job(target, PROMPTS[0], 110) for _ in range(3)])
        before = len(answers.events)
        with pytest.raises(ServerBusyError, match="Ask again later"):
            engine.submit([answers.job(target, PROMPTS[0]) for _ in range(3)])
    finally:
        engine.close()
    assert all(isinstance(events[-1], Failure) for events in answers.events[:before])
    assert all(events == [] for events in answers.events[before:])
    with pytest.raises(ServerBusyError, match="shutting down"):
        engine.submit([answers.job(target, PROMPTS[0])])


def test_an_encoder_decoder_is_refused():
    with pytest.raises(UnsupportedModelError, match="easyedit generate --patch"):
        ServedModels(lm("t5"))


# -- text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("written_text", ["naïve café – 東京 🗼!", "plain words", "  two  blanks "])
def test_pieces_make_the_text(written_text):
    tokenizer = tiny.tokenizer()
    ids = tokenizer(written_text)["input_ids"]
    stream = TextStream(tokenizer, ())
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.end() == written_text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [
        (("Rome",), "All ways lead to "),
        (("to Rome", "lead"), "All ways "),
        (("Rome or",), "All ways lead to Rome, or none"),
        (("none at all", "e at"), "All ways lead to Rome, or none"),
    ],
)
def test_a_stop_string_is_no_part_of_the_text(stop, wanted):
    tokenizer = tiny.tokenizer()
    stream = TextStream(tokenizer, stop)
    result = ""
    for token in tokenizer("All ways lead to Rome, or none")["input_ids"]:
        result += stream.add(token)
        if stream.stopped:
            break
    assert result + stream.end() == wanted
    assert stream.stopped == (wanted != "All ways lead to Rome, or none")


def test_what_a_request_leaves_out_is_the_models_own():
    from transformers import GenerationConfig

    sampled = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    assert Sampling.of(sampled, 5) == Sampling(5, 0.6, 0.9, 20)
    assert Sampling.of(sampled, 5, temperature=0.0).temperature == 0
    assert Sampling.of(GenerationConfig(), 5) == Sampling(5)
    assert Sampling.of(GenerationConfig(repetition_penalty=1.1), 5).repetition_penalty == 1.1
