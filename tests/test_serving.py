"""A served model asked by OpenAI's client: one name per set of patches, none disturbs another."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import serving_cases
import tiny
from easyeditor import LM
from easyeditor.errors import LedgerError, PatchMismatchError, ServingError, UnknownServedModelError
from easyeditor.lm.inference import generate
from easyeditor.serving.engine import Finish, Job, Piece
from easyeditor.serving.names import ServedModels
from easyeditor.serving.sampling import Sampling
from easyeditor.serving.server import names_of
from support import Snapshot

PROMPTS = (
    "The Eiffel Tower is located in the city of",
    "Berlin is the capital of",
    "She plays the",
)
NAMES = ("tiny", "tiny+weights", "tiny+modules", "tiny+route", "tiny+weights+modules+route")


@pytest.fixture(scope="module")
def lm() -> LM:
    return serving_cases.model()


@pytest.fixture(scope="module")
def models(lm) -> ServedModels:
    return ServedModels(lm, patches=serving_cases.patches(lm))


@pytest.fixture(scope="module")
def address(models):
    with serving_cases.running(models) as url:
        yield url


@pytest.fixture(scope="module")
def client(address):
    from openai import OpenAI

    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def complete(client: Any, name: str, prompt: str, **more: Any) -> str:
    options = {"max_tokens": 6, "temperature": 0, **more}
    return client.completions.create(model=name, prompt=prompt, **options).choices[0].text


def post(address: str, path: str, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and document of a request that no client would send."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(address + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


# -- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_name_answers_as_the_model_with_these_patches(lm, client, name):
    model, parts = serving_cases.model(), name.split("+")[1:]
    for part, patch in serving_cases.patches(lm).items():
        if part in parts:
            patch.apply(model.model)
    assert [complete(client, name, prompt) for prompt in PROMPTS] == generate(model, PROMPTS, 6)


def test_every_set_of_patches_answers_in_another_way(client):
    texts = {name: complete(client, name, PROMPTS[0], max_tokens=12) for name in NAMES}
    assert len(set(texts.values())) == len(NAMES)


def test_32_requests_at_once_are_answered_as_each_alone(client, lm):
    untouched = Snapshot(lm.model)
    questions = [(NAMES[i % 5], PROMPTS[i % 3], 1 + i % 3) for i in range(32)]

    def ask(question: tuple[str, str, int]) -> str:
        name, prompt, length = question
        return complete(client, name, prompt, max_tokens=length)

    alone = {question: ask(question) for question in set(questions)}
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, questions)) == [alone[question] for question in questions]
    assert untouched.differences(lm.model) == []


def test_chat_whole_and_in_pieces(client):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": PROMPTS[0]}]},
    ]
    for name in NAMES:
        ask = {"model": name, "messages": messages, "max_completion_tokens": 8, "temperature": 0}
        whole = client.chat.completions.create(**ask)
        chunks = list(
            client.chat.completions.create(
                **ask, stream=True, stream_options={"include_usage": True}
            )
        )
        pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage
        assert whole.usage.completion_tokens == 8
        assert whole.model == name


def test_a_route_reads_the_last_user_turn(client):
    turns = [{"role": "user", "content": PROMPTS[0]}]
    fact = "New Fact: The Eiffel Tower is located in the city of Rome\nPrompt: "
    with_fact = [{"role": "user", "content": f"{fact}{PROMPTS[0]}"}]
    ask = {"max_tokens": 8, "temperature": 0}
    one = client.chat.completions.create(model="tiny+route", messages=turns, **ask)
    two = client.chat.completions.create(model="tiny", messages=with_fact, **ask)
    assert one.choices[0].message.content == two.choices[0].message.content


def test_streams_of_texts_and_several_choices(client):
    stream = client.completions.create(
        model="tiny", prompt=list(PROMPTS), n=2, max_tokens=5, temperature=1, seed=3, stream=True
    )
    texts: dict[int, str] = {}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    whole = client.completions.create(
        model="tiny", prompt=list(PROMPTS), n=2, max_tokens=5, temperature=1, seed=3
    )
    assert [choice.text for choice in whole.choices] == [texts[i] for i in range(6)]
    assert len({choice.text for choice in whole.choices}) > 3


def test_a_seed_gives_the_same_sample_again_and_no_seed_another(client):
    ask = {"max_tokens": 12, "temperature": 1.5, "top_p": 0.95}
    seeded = {complete(client, "tiny", PROMPTS[2], seed=7, **ask) for _ in range(3)}
    others = {complete(client, "tiny", PROMPTS[2], **ask) for _ in range(3)}
    assert (len(seeded), len(others)) == (1, 3)


def test_a_stop_string_ends_the_answer(client):
    text = complete(client, "tiny", PROMPTS[1], max_tokens=12)
    stop = text[5:8]
    assert (
        complete(client, "tiny", PROMPTS[1], max_tokens=12, stop=[stop])
        == (text[: text.index(stop)])
    )


def test_models_and_health(client, address):
    models = client.models.list().data
    assert [model.id for model in models] == list(NAMES)
    assert [model.edits for model in models] == [0, 1, 1, 1, 3]
    assert client.models.retrieve("tiny+route+weights").id == "tiny+route+weights"
    with urllib.request.urlopen(f"{address}/health") as reply:
        assert json.loads(reply.read()) == {"status": "ok", "active": 0, "waiting": 0}


# -- wrong requests ---------------------------------------------------------------------------

ASK = {"model": "tiny", "prompt": "She plays the", "max_tokens": 2}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 100_000, 400, ""),
        ([1], 400, "JSON list"),
        ({"prompt": "a"}, 400, "'model' is missing"),
        ({**ASK, "model": "tiny+nothing"}, 404, "There is no model 'tiny+nothing'"),
        ({**ASK, "model": "tiny+weights+weights"}, 404, "There is no model"),
        ({**ASK, "model": 3}, 400, "model: Input should be a valid string; got 3."),
        ({"model": "tiny"}, 400, "'prompt' is missing"),
        ({**ASK, "prompt": ""}, 400, ""),
        ({**ASK, "prompt": []}, 400, "0 texts"),
        ({**ASK, "prompt": [1, 2]}, 400, "prompt"),
        ({**ASK, "max_tokens": 0}, 400, "max_tokens"),
        ({**ASK, "max_tokens": "ten"}, 400, "max_tokens"),
        ({**ASK, "max_tokens": 10**30}, 400, "max_tokens"),
        ({**ASK, "max_tokens": 127}, 400, "max_tokens asks for 127 more"),
        ({**ASK, "prompt": "river " * 200}, 400, "reads 128 at most"),
        ({**ASK, "temperature": -1}, 400, "temperature"),
        ({**ASK, "top_p": 0}, 400, "top_p"),
        ({**ASK, "n": 1000}, 400, "n:"),
        ({**ASK, "stop": [""]}, 400, "stop has 1 texts"),
        ({**ASK, "logprobs": 5}, 400, "logprobs"),
        ({**ASK, "suffix": "x"}, 400, "suffix"),
        ({**ASK, "prompt": ["a"] * 64, "n": 16}, 400, "are 1024 answers"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', 400, "lone surrogate"),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', 400, "temperature"),
        ({**ASK, "colour": "red"}, 400, "does not know the field 'colour'"),
    ],
)  # fmt: skip
def test_a_wrong_completion_is_refused_in_a_sentence(address, body, status, words):
    code, document = post(address, "/v1/completions", body)
    if body == {**ASK, "prompt": ""}:  # the tokenizer writes no first token by itself
        words = "The prompt is empty"
    assert (code, set(document)) == (status, {"error"}), document
    assert document["error"]["type"] == "invalid_request_error"
    assert words in document["error"]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content' is missing"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content: Input"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text alone"),
        ({"messages": [{"role": "user", "content": "a " * 200}]}, "reads 128 at most"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_completion_tokens": 500}, "max_completion_tokens asks for 500 more"),
    ],
)
def test_a_wrong_chat_is_refused_in_a_sentence(address, change, words):
    code, document = post(address, "/v1/chat/completions", {**CHAT, **change})
    assert (code, set(document)) == (400, {"error"}), document
    assert words in document["error"]["message"]


def test_other_wrong_requests(address):
    assert post(address, "/v1/completions", ASK, **{"Content-Type": "text/plain"})[0] == 415
    assert post(address, "/v1/completions", b"x" * (2**20 + 1))[0] == 413
    assert post(address, "/v1/nothing", ASK)[0] == 404
    assert post(address, "/v1/models", ASK)[0] == 405
    code, document = post(address, "/v1/completions", ASK, Host="evil.example")
    assert (code, "evil.example" in document["error"]["message"]) == (403, True)
    assert post(address, "/v1/completions", ASK)[0] == 200  # and it serves on


def test_another_loopback_address_is_a_name_too(models):
    with serving_cases.running(models, host="127.0.0.2") as address:
        for name, status in (("127.0.0.2:8000", 200), ("localhost", 200), ("127.0.0.3", 403)):
            assert post(address, "/v1/completions", ASK, Host=name)[0] == status
    assert "[::0001]" in names_of("::0001")
    assert names_of("0.0.0.0") == ()


def test_a_client_reads_no_paths_of_the_server(models, address, monkeypatch, caplog):
    def missing(_name: str) -> None:
        raise LedgerError("The patch file of edit 3 is missing: /a/place/of/the/server.")

    monkeypatch.setattr(models, "get", missing)
    code, document = post(address, "/v1/completions", ASK)
    assert (code, document["error"]["type"]) == (500, "server_error")
    assert "(LedgerError); its log says why" in document["error"]["message"]
    assert "/a/place" not in document["error"]["message"]
    assert "/a/place" in caplog.text


def test_a_key_is_asked_for(models):
    with serving_cases.running(models, api_key="secret") as address:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer ä"}):
            code, document = post(address, "/v1/completions", ASK, **header)
            assert (code, document["error"]["code"]) == (401, "invalid_api_key")
        given = {"Authorization": "Bearer secret"}
        assert post(address, "/v1/completions", ASK, **given)[0] == 200


def test_who_hangs_up_while_tokens_come_is_noticed(monkeypatch):
    """An answer that is not streamed; nobody waits for it any more."""
    from easyeditor.serving import app

    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    async def ask() -> tuple[int, bool]:
        events: asyncio.Queue[Any] = asyncio.Queue()
        job = Job(None, (1,), Sampling(10**6), events.put_nowait)

        async def write() -> None:
            while not job.cancelled:
                job.emit(Piece("word "))
                await asyncio.sleep(0.001)
            job.emit(Finish("length", 1))

        writing = asyncio.create_task(write())
        answers = [app.Answer(0, job, events)]
        reply = await asyncio.wait_for(app._whole(Gone(), app._Form(False, "tiny", 1), answers), 5)
        await writing
        return reply.status_code, job.cancelled

    monkeypatch.setattr(app, "POLL_SECONDS", 0.02)
    assert asyncio.run(ask()) == (app.CLIENT_GONE, True)


def test_no_template_no_chat():
    with serving_cases.running(ServedModels(serving_cases.model(None))) as address:
        code, document = post(address, "/v1/chat/completions", CHAT)
    assert (code, "/v1/completions" in document["error"]["message"]) == (400, True)


def test_shared_passes_give_the_same_texts(models):
    from openai import OpenAI

    with (
        serving_cases.running(models, max_batch=8) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        alone = [complete(client, name, p) for name in NAMES[:3] for p in PROMPTS]
        several = [
            client.completions.create(
                model=name, prompt=list(PROMPTS), max_tokens=6, temperature=0
            ).choices
            for name in NAMES[:3]
        ]
    assert [choice.text for choices in several for choice in choices] == alone


# -- names ------------------------------------------------------------------------------------


def test_names_that_cannot_be(lm):
    patch = serving_cases.module_patch(lm)
    for name in ("", "a+b", " "):
        with pytest.raises(ServingError, match="cannot be the name of a patch"):
            ServedModels(lm, patches={name: patch})
    other = LM(tiny.model("gpt2"), tiny.tokenizer())
    untouched = Snapshot(other.model)
    with pytest.raises(PatchMismatchError):
        ServedModels(other, patches={"a": patch})
    assert untouched.differences(other.model) == []
    with pytest.raises(UnknownServedModelError, match="Served: tiny"):
        ServedModels(lm).get("tiny+ledger")


def test_few_copies_are_held(lm):
    models = ServedModels(lm, patches=serving_cases.patches(lm), max_copies=2)
    first = models.get("tiny+weights")
    assert models.get("tiny+weights") is first
    models.get("tiny"), models.get("tiny+route")
    assert models.get("tiny+weights") is not first


def test_copies_share_what_they_do_not_edit(lm, models):
    base = dict(lm.model.named_parameters())
    copied = dict(models.get("tiny+weights").lm.model.named_parameters())
    changed = [name for name, p in copied.items() if p.data_ptr() != base[name].data_ptr()]
    assert changed == ["model.layers.0.mlp.down_proj.weight"]


@pytest.mark.slow
@pytest.mark.real
def test_the_real_model_answers_32_at_once_as_each_alone():
    from openai import OpenAI

    from easyeditor import Edit
    from easyeditor.lm.loading import load
    from easyeditor.methods import METHODS

    real = load("smollm2-135m", device="cpu")
    edit = Edit(PROMPTS[0], "Rome", subject="The Eiffel Tower")
    patches = {}
    for method in ("FT", "GRACE", "IKE"):
        kind = METHODS.get(method)
        settings = kind.hyperparams_class.preset("smollm2-135m")
        if method == "IKE":
            settings = settings.replace(use_icl_examples=False)
        patches[method.lower()] = kind(settings).edit(real, [edit]).patch
    models = ServedModels(real, patches=patches)
    names = [models.base, *(f"{models.base}+{part}" for part in patches)]
    others = ("The Louvre is located in the city of", "The capital of Germany is")
    questions = [
        (names[i % 4], PROMPTS[0] if i % 8 < 4 else others[i // 8 % 2], 5 + i % 4)
        for i in range(32)
    ]
    with (
        serving_cases.running(models) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(32) as pool,
    ):
        alone = [complete(client, n, prompt, max_tokens=k) for n, prompt, k in questions]
        together = list(
            pool.map(lambda q: complete(client, q[0], q[1], max_tokens=q[2]), questions)
        )
        chat = [{"role": "user", "content": "What is the capital of Germany? One word."}]
        reply = client.chat.completions.create(
            model=names[2], messages=chat, max_tokens=6, temperature=0
        )
    assert together == alone
    for (name, prompt, _), text in zip(questions, alone, strict=True):
        if prompt == PROMPTS[0] and name != names[3]:  # it reads the fact, and does not follow it
            assert ("Rome" in text) == (name != models.base), (name, text)
    assert len({alone[i] for i in (0, 3)}) == 2
    assert "Berlin" in reply.choices[0].message.content
