"""The judge against a real server with the embedded model, and against a scripted one."""

import base64
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from easyeditor.errors import (
    EditError,
    EmptyTargetError,
    HyperParamsError,
    JudgeError,
    MissingExtraError,
)
from easyeditor.evaluate.judge import (
    SYSTEM,
    Judge,
    Question,
    Verdict,
    messages,
    parse,
    score_verdicts,
)
from easyeditor.lm import embedded

QUESTIONS = [
    Question(f"The capital of country {i} is", f"City {i}, a big town.", f"City {i}")
    for i in range(6)
]
SOON = {"retry-after-ms": "5"}  # the client waits as long as the server asks for


# -- a scripted server ------------------------------------------------------------------------


def completion(text):
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return 200, json.dumps(body), {}


def refusal(status, message, headers=SOON):
    return status, json.dumps({"error": {"message": message}}), headers


class Script:
    """An endpoint that answers by ``reply(n, body)``, where ``n`` counts the requests from 0."""

    def __init__(self, reply, models=None):
        self.reply, self.models = reply, models
        self.bodies, self.headers = [], []
        self.in_flight = self.most = 0
        self.lock = threading.Lock()

    def serve(self):
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if script.models is None:
                    return self.send(*refusal(404, "no list"))
                listing = {"object": "list", "data": [{"id": name} for name in script.models]}
                return self.send(200, json.dumps(listing), {})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with script.lock:
                    n = len(script.bodies)
                    script.bodies.append(body)
                    script.headers.append(self.headers)
                    script.in_flight += 1
                    script.most = max(script.most, script.in_flight)
                try:
                    answer = script.reply(n, body)
                finally:
                    with script.lock:
                        script.in_flight -= 1
                if answer is not None:  # None: the connection is dropped without a word
                    self.send(*answer)

            def send(self, status, text, headers):
                with contextlib.suppress(ConnectionError):  # the client had given up
                    self.send_response(status)
                    for name, value in {"content-type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(text.encode())))
                    self.end_headers()
                    self.wfile.write(text.encode())

            def log_message(self, *_args):
                pass

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@contextlib.contextmanager
def endpoint(reply, models=None):
    script = Script(reply, models)
    with script.serve() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        script.url = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()


def yes(_n, _body):
    return completion("YES")


def test_what_is_sent():
    with endpoint(yes) as script:
        judge = Judge(script.url, "m", api_key="secret", request={"max_tokens": None, "top_p": 1})
        question = Question('He said "hi"', "Paris,\nNO", "Paris", ["City of Light"])
        assert judge([question]) == [Verdict(True, "YES", cached=False)]
    (body,), (headers,) = script.bodies, script.headers
    assert body == {"model": "m", "temperature": 0, "top_p": 1, "messages": messages(question)}
    assert headers["Authorization"] == "Bearer secret"
    text = body["messages"][1]["content"]
    assert 'Answer: "Paris,\\nNO"\n' in text  # a quoted string cannot pose as one of our lines
    assert '["City of Light"]' in text


def test_the_key_comes_from_the_environment(monkeypatch):
    with endpoint(yes) as script:
        monkeypatch.setenv("OPENAI_API_KEY", "from-env")
        Judge(script.url, "m")(QUESTIONS[:1])
        monkeypatch.delenv("OPENAI_API_KEY")
        Judge(script.url, "m")(QUESTIONS[:1])
    sent = [headers["Authorization"] for headers in script.headers]
    assert sent == ["Bearer from-env", "Bearer none"]


def test_order_duplicates_and_no_verdict():
    replies = {"City 0": "YES", "City 1": "No.", "City 2": "Perhaps", "City 3": ""}

    def reply(_n, body):
        text = body["messages"][1]["content"]
        return completion(next(r for city, r in replies.items() if f'"{city}"' in text))

    asked = [QUESTIONS[i] for i in (3, 1, 0, 2, 1)]
    with endpoint(reply) as script:
        verdicts = Judge(script.url, "m")(asked)
    assert [verdict.correct for verdict in verdicts] == [None, False, True, None, False]
    assert [verdict.raw for verdict in verdicts] == ["", "No.", "YES", "Perhaps", "No."]
    assert len(script.bodies) == 4
    assert score_verdicts(verdicts) == {"judge_acc": 1 / 3, "n": 5, "unparsed": 2}


def test_nothing_to_judge():
    assert Judge("http://127.0.0.1:9/v1", "m")([]) == []
    assert score_verdicts([]) == {"judge_acc": None, "n": 0, "unparsed": 0}
    assert score_verdicts([Verdict(None, "?", False)]) == {"judge_acc": None, "n": 1, "unparsed": 1}


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [
        ("YES", True),
        (" no ", False),
        ("**Yes**, it does.", True),
        ("No\nIt says Rome.", False),
        ("No - it says Rome", False),
        ("Answer: YES", True),
        ("The final verdict is no", None),
        ("Verdict: no.", False),
        ("<think>no, yes, no</think>\n\nYES", True),
        ("<think>YES", None),
        ("No idea", None),
        ("no-one knows", None),
        ("Yes men", None),
        ("Yesterday", None),
        ("I think YES", None),
        ("YES/NO", None),
        ("I'm sorry", None),
        ("", None),
    ],
)
def test_parse(raw, verdict):
    assert parse(raw) is verdict


@pytest.mark.parametrize("status", [429, 500, 503])
def test_it_tries_again(status):
    def reply(n, _body):
        return refusal(status, "busy") if n < 2 else completion("YES")

    with endpoint(reply) as script:
        assert score_verdicts(Judge(script.url, "m")(QUESTIONS[:1]))["judge_acc"] == 1
    assert len(script.bodies) == 3


@pytest.mark.parametrize(
    ("answer", "fragments"),
    [
        (refusal(401, "bad key s3cr3t"), ["refused the key", "***", "OPENAI_API_KEY"]),
        (refusal(404, "no such model"), ["was not found", "/chat/completions"]),
        (refusal(400, "no field temperature"), ["no field temperature", "request={"]),
        (refusal(429, "slow down"), ["still too busy after 2 tries", "concurrency="]),
        (refusal(500, "out of memory"), ["failed in 2 tries", "out of memory"]),
        ((200, "{bad", {}), ["not answer like an OpenAI-compatible endpoint", "/v1"]),
        ((200, "<html>hello</html>", {"content-type": "text/html"}), ["hello", "/v1"]),
        ((200, '{"error": {"message": "not loaded"}}', {}), ["not loaded"]),
        ((200, '{"choices": []}', {}), ["no chat completion"]),
        ((200, "[1]", {}), ["no chat completion"]),
    ],
    ids=str,
)
def test_failures_say_what_to_do(answer, fragments):
    with endpoint(lambda _n, _body: answer) as script:
        with pytest.raises(JudgeError) as caught:
            Judge(script.url, "m", api_key="s3cr3t", retries=1)(QUESTIONS[:1])
        for fragment in [script.url, "'m'", *fragments, "0 of 1 answers had arrived"]:
            assert fragment in str(caught.value)
        assert "s3cr3t" not in str(caught.value)


KEY = "sk-A1b2C3d4E5f6G7h8"
ECHOES = {
    "refused": lambda: refusal(401, f"Incorrect key {KEY}"),
    "cut short": lambda: refusal(401, f"Incorrect key {KEY[:14]}…"),
    "encoded": lambda: refusal(400, base64.b64encode(f":{KEY}".encode()).decode()),
    "far behind": lambda: refusal(500, "x" * 280 + KEY),
    "no chat completion": lambda: (200, json.dumps({"error": "x" * 190 + KEY}), {}),
    "no JSON": lambda: (200, f"<html>{KEY}</html>", {"content-type": "text/html"}),
    "an offered model": lambda: refusal(404, KEY),
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_the_key_is_in_no_message_and_no_chain(echo):
    with endpoint(lambda *_: echo(), models=[KEY, "b"]) as script:
        url = script.url.replace("://", "://me:pass-word@")
        with pytest.raises(JudgeError) as caught:
            Judge(url, "m", api_key=KEY, retries=0)(QUESTIONS[:1])
    told = "".join(traceback.format_exception(caught.value))
    for secret in (KEY, KEY[:12], "pass-word", base64.b64encode(KEY.encode()).decode()[:8]):
        assert secret not in told
    assert script.url.replace("://", "://***@") in told


def test_the_key_is_not_in_the_cache(tmp_path):
    file = tmp_path / "cache.jsonl"
    with endpoint(lambda *_: completion(f"YES. {KEY}")) as script:
        (verdict,) = Judge(script.url, "m", api_key=KEY, cache=file)(QUESTIONS[:1])
    assert (verdict.correct, verdict.raw) == (True, "YES. ***")
    assert KEY not in file.read_text()


def test_a_login_in_the_address_is_sent_and_not_logged(caplog):
    caplog.set_level("DEBUG")
    with endpoint(yes) as script:
        judge = Judge(script.url.replace("://", "://me:p%40ss-word@"), "m")
        assert judge(QUESTIONS[:1])[0].correct
        expected = "Basic " + base64.b64encode(b"me:p@ss-word").decode()
        assert script.headers[0]["authorization"] == expected
    for secret in ("p@ss-word", "p%40ss-word", expected[6:]):
        assert secret not in caplog.text + judge.base_url
    with pytest.raises(JudgeError, match=r"base_url='ftp://\*\*\*@h' is not an HTTP URL"):
        Judge("ftp://me:pass-word@h", "m")


def test_an_unknown_model_and_those_there_are():
    with (
        endpoint(lambda *_: refusal(404, "unknown"), models=["qwen-7b", "llama"]) as script,
        pytest.raises(JudgeError, match=r"Did you mean 'qwen-7b'\? .* qwen-7b, llama"),
    ):
        Judge(script.url, "qwen7b")(QUESTIONS[:1])


def test_nobody_there():
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(JudgeError, match=r"cannot be reached .*refused.*Start the server"):
            Judge(url, "m", retries=0)(QUESTIONS)


def test_a_slow_answer_is_asked_for_again():
    def reply(n, _body):
        time.sleep(1.5 if n == 0 else 0)
        return completion("YES")

    with endpoint(reply) as script:
        judge = Judge(script.url, "m", timeout=0.5, retries=1)
        assert judge(QUESTIONS[:1])[0].correct
        assert len(script.bodies) == 2
        script.bodies.clear()
        with pytest.raises(JudgeError, match=r"within 0\.5 s in one try.*Raise timeout="):
            Judge(script.url, "m", timeout=0.5, retries=0)(QUESTIONS[:1])


@pytest.mark.parametrize("limit", [1, 3])
def test_the_limit_of_requests_in_flight(limit):
    def reply(_n, _body):
        time.sleep(0.05)
        return completion("YES")

    with endpoint(reply) as script:
        Judge(script.url, "m", concurrency=limit)(QUESTIONS)
    assert script.most == limit


# -- the cache --------------------------------------------------------------------------------


def test_two_judges_share_a_cache(tmp_path):
    file = tmp_path / "deep" / "cache.jsonl"
    with endpoint(yes) as script:
        judge = Judge(script.url, "m", cache=file)
        assert [v.cached for v in judge(QUESTIONS[:2])] == [False, False]
        assert [v.cached for v in judge(QUESTIONS[:3])] == [True, True, False]
        again = Judge(script.url, "m", cache=str(file))(QUESTIONS[:3])
        assert again == [Verdict(True, "YES", cached=True)] * 3
        assert len(script.bodies) == 3
        # another judge, another request or another question is not the same
        Judge(script.url, "m2", cache=file)(QUESTIONS[:1])
        Judge(script.url, "m", cache=file, request={"seed": 1})(QUESTIONS[:1])
        judge([Question(QUESTIONS[0].prompt, QUESTIONS[0].answer, "City 0", ("C0",))])
        assert len(script.bodies) == 6
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 6
    assert lines[0]["raw"] == "YES"
    assert "secret" not in file.read_text(encoding="utf-8")


def test_without_a_file_a_judge_still_remembers():
    with endpoint(yes) as script:
        judge = Judge(script.url, "m")
        judge(QUESTIONS[:2])
        assert [v.cached for v in judge(QUESTIONS[:3])] == [True, True, False]


def test_a_torn_line_is_asked_again(tmp_path, caplog):
    file = tmp_path / "cache.jsonl"
    with endpoint(yes) as script:
        Judge(script.url, "m", cache=file, concurrency=1)(QUESTIONS[:3])
        whole = file.read_bytes()
        file.write_bytes(whole[:-20])
        verdicts = Judge(script.url, "m", cache=file)(QUESTIONS[:3])
        assert [v.cached for v in verdicts] == [True, True, False]
        assert "1 unfinished line(s) skipped" in caplog.text
        assert all(v.cached for v in Judge(script.url, "m", cache=file)(QUESTIONS[:3]))
    assert file.read_bytes().startswith(whole[:-20] + b"\n{")


@pytest.mark.parametrize("content", ['{"prompt": "mine"}\n', "[1]\n", "Dear diary,\nhello\n"])
def test_a_file_that_is_no_cache_is_left_alone(tmp_path, content):
    file = tmp_path / "mine.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(JudgeError, match="is not a judge's cache"):
        Judge("http://127.0.0.1:9/v1", "m", cache=file)(QUESTIONS)
    assert file.read_text(encoding="utf-8") == content
    with pytest.raises(JudgeError, match="cannot be read"):
        Judge("http://127.0.0.1:9/v1", "m", cache=tmp_path)(QUESTIONS)


def test_nothing_is_lost_when_the_server_dies_half_way(tmp_path):
    file = tmp_path / "cache.jsonl"
    with endpoint(lambda n, _body: completion("YES") if n < 4 else None) as script:
        judge = Judge(script.url, "m", cache=file, concurrency=2, retries=0)
        with pytest.raises(JudgeError, match=r"cannot be reached.* 4 of 6 answers .* kept in"):
            judge(QUESTIONS)
        assert len(script.bodies) <= 6
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4
    with endpoint(yes) as script:
        verdicts = Judge(script.url, "m", cache=file)(QUESTIONS)
        assert sum(v.cached for v in verdicts) == 4
        assert len(script.bodies) == 2
    assert all(v.correct for v in verdicts)


def test_what_is_in_flight_when_one_fails_is_kept():
    both = threading.Barrier(2, timeout=10)

    def reply(n, _body):
        both.wait()
        if n == 0:
            return refusal(400, "no")
        time.sleep(0.1)
        return completion("YES")

    with endpoint(reply) as script:
        judge = Judge(script.url, "m", concurrency=2)
        with pytest.raises(JudgeError, match="1 of 6 answers had arrived and are kept by this"):
            judge(QUESTIONS)
        assert len(script.bodies) == 2


# -- what is asked wrongly --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"base_url": "localhost:8000/v1"}, JudgeError),
        ({"base_url": "ftp://host/v1"}, JudgeError),
        ({"model": ""}, JudgeError),
        ({"concurrency": 0}, HyperParamsError),
        ({"retries": -1}, HyperParamsError),
        ({"timeout": 0}, HyperParamsError),
    ],
    ids=str,
)
def test_impossible_settings(change, error):
    with pytest.raises(error):
        Judge(**{"base_url": "http://127.0.0.1:9/v1", "model": "m", **change})


def test_impossible_questions():
    with pytest.raises(EmptyTargetError):
        Question("a", "b", " ")
    with pytest.raises(EditError, match="one text"):
        Question("a", "b", "c", "d")
    with pytest.raises(EditError, match="NoneType"):
        Question("a", None, "c")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"needs openai.*easyedit-lm\[judge\]"):
        Judge("http://127.0.0.1:9/v1", "m")


def test_the_wording_is_pinned():
    """Whoever changes it: numbers by the old wording are no longer comparable. Say so in docs."""
    chat = json.dumps(messages(Question("p", "a", "t", ("u",))))
    assert hashlib.sha256(chat.encode()).hexdigest()[:8] == "671d27dd"
    page = Path(__file__).parent.parent / "docs" / "metrics" / "judge.md"
    assert textwrap.indent(SYSTEM, "    ") in page.read_text(encoding="utf-8")


# -- a real server ----------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """``transformers serve`` with the embedded model: its URL, and the model's name there."""
    name, port = str(embedded.folder()), free_port()
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [
        str(Path(sys.executable).parent / "transformers"),
        *("serve", name, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, log.read_text(encoding="utf-8", errors="replace")[-3000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", name, log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


@pytest.mark.slow  # the server takes longer to start than all other tests here together
@pytest.mark.real
def test_a_real_model_as_judge(served, tmp_path):
    url, name, log = served
    answers = ["Paris, of course.", "Rome."]
    questions = [Question("The capital of France is", a, "Paris") for a in answers]
    questions.append(Question("Die Hauptstadt von Österreich ist", "Wien 🎡", "Wien", ("Vienna",)))

    def requests():
        return log.read_text(encoding="utf-8").count("POST /v1/chat/completions")

    settings = {"cache": tmp_path / "cache.jsonl", "request": {"max_tokens": 4}}
    judge = Judge(url, name, concurrency=2, **settings)
    verdicts = judge(questions)
    assert all(verdict.raw and not verdict.cached for verdict in verdicts)
    assert [verdict.correct for verdict in verdicts] == [parse(verdict.raw) for verdict in verdicts]
    assert score_verdicts(verdicts)["n"] == 3
    assert requests() == 3
    again = Judge(url, name, **settings)(questions)
    assert [verdict.raw for verdict in again] == [verdict.raw for verdict in verdicts]
    assert all(verdict.cached for verdict in again)
    assert requests() == 3


@pytest.mark.slow
@pytest.mark.real
def test_a_real_server_refuses(served):
    url, name, _log = served
    with pytest.raises(JudgeError, match="was not found"):
        Judge(url + "/v1", name, retries=0)(QUESTIONS[:1])
