"""The endpoints: ``/v1/models``, ``/v1/chat/completions``, ``/v1/completions``, ``/health``.

On FastAPI and uvicorn. transformers has a server of its own (``transformers serve``), and it was
looked at first: it loads a model per name and knows no edits, answers a wrong request with 500 or
in another form than OpenAI's, seeds the process-wide random generator for a request, which reaches
the others, and its classes are internals that differ between versions. Of transformers the parts
with a contract are used: the model, its chat template, the processors of logits.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from easyeditor.errors import EasyEditError, ServerBusyError, UnknownServedModelError
from easyeditor.serving.admission import Admission, error_response
from easyeditor.serving.engine import Engine, Event, Failure, Finish, Job, Piece
from easyeditor.serving.names import ServedModel, ServedModels
from easyeditor.serving.requests import (
    BadRequest,
    Body,
    ChatBody,
    CompletionBody,
    Question,
    chat_question,
    parsed,
    text_question,
    token_limit,
)
from easyeditor.serving.sampling import Sampling

LOG = logging.getLogger(__name__)
MAX_BODY_BYTES = 2**20
CLIENT_GONE = 499
POLL_SECONDS = 1.0
"""How often it is looked whether somebody still waits for an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of a response, while it is written."""

    index: int
    job: Job
    events: asyncio.Queue[Event]


def build_app(
    models: ServedModels,
    engine: Engine,
    *,
    api_key: str | None = None,
    hosts: Sequence[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The application.

    Args:
        models: what it serves.
        engine: what writes the answers.
        api_key: if given, requests must send it (``Authorization: Bearer …``); not to ``/health``.
        hosts: names under which it may be called, so that a page in a browser cannot reach a
            server on this machine by a name of its own; empty: any.
        max_body_bytes: largest request.
    """
    app = FastAPI(title="easyedit serve", docs_url=None, redoc_url=None, openapi_url=None)
    server = _Server(models, engine, max_body_bytes)
    app.add_api_route("/health", server.health, methods=["GET"])
    app.add_api_route("/v1/models", server.list_models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", server.one_model, methods=["GET"])
    app.add_api_route("/v1/chat/completions", server.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", server.complete, methods=["POST"], response_model=None)

    app.add_middleware(Admission, api_key=api_key, hosts=frozenset(hosts))
    _add_error_handlers(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    async def bad_request(_request: Request, error: Any) -> Response:
        return error_response(400, str(error), param=error.param, code=error.code)

    async def unknown_model(_request: Request, error: Exception) -> Response:
        return error_response(404, str(error), param="model", code="model_not_found")

    async def busy(_request: Request, error: Exception) -> Response:
        return error_response(503, str(error), headers={"Retry-After": "5"})

    async def refused(_request: Request, error: Exception) -> Response:
        LOG.error("A request could not be answered.", exc_info=error)  # it may name files
        return error_response(
            500,
            f"The server cannot use what this model is made of ({type(error).__name__}); its log "
            "says why.",
        )

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    async def unforeseen(_request: Request, error: Exception) -> Response:
        return error_response(500, f"An error that nobody foresaw: {type(error).__name__}.")

    async def by_status(request: Request, error: Any) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"There is nothing at {request.url.path[:200]}. See /v1/models."
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}."
        return error_response(error.status_code, message, headers=error.headers)

    app.add_exception_handler(BadRequest, bad_request)
    app.add_exception_handler(UnknownServedModelError, unknown_model)
    app.add_exception_handler(ServerBusyError, busy)
    app.add_exception_handler(EasyEditError, refused)
    app.add_exception_handler(HTTPException, by_status)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unforeseen)  # the log has the traceback


class _Server:
    """The endpoints."""

    def __init__(self, models: ServedModels, engine: Engine, max_body_bytes: int) -> None:
        self._models, self._engine, self._max_body_bytes = models, engine, max_body_bytes

    async def health(self) -> Response:
        """Whether answers are written, and how many wait."""
        active, waiting = self._engine.load
        status = "ok" if self._engine.alive else "stopped"
        document = {"status": status, "active": active, "waiting": waiting}
        return JSONResponse(document, 200 if self._engine.alive else 503)

    async def list_models(self) -> Response:
        """Every name."""
        data = [await asyncio.to_thread(self._described, n) for n in self._models.names()]
        return JSONResponse({"object": "list", "data": data})

    async def one_model(self, name: str) -> Response:
        """One name."""
        return JSONResponse(await asyncio.to_thread(self._described, name))

    def _described(self, name: str) -> dict[str, Any]:
        patches, entries = self._models.contents(name)
        return {
            "id": name,
            "object": "model",
            "created": self._models.created,
            "owned_by": "easyedit",
            "edits": sum(len(patch.info.edits) for patch in patches),
            "ledger_entries": list(entries),
        }

    async def chat(self, request: Request) -> Response:
        """An answer to a chat."""
        body = parsed(ChatBody, await self._body(request))
        served = await asyncio.to_thread(self._models.get, body.model)
        question = await asyncio.to_thread(chat_question, served, body.messages)
        wanted, param = body.max_completion_tokens, "max_completion_tokens"
        if wanted is None:
            wanted, param = body.max_tokens, "max_tokens"
        return await self._answer(request, body, served, [question], wanted, param)

    async def complete(self, request: Request) -> Response:
        """Continuations of texts."""
        body = parsed(CompletionBody, await self._body(request))
        served = await asyncio.to_thread(self._models.get, body.model)
        questions = [
            await asyncio.to_thread(text_question, served, prompt) for prompt in body.prompts
        ]
        return await self._answer(request, body, served, questions, body.max_tokens, "max_tokens")

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, "Send the request as Content-Type: application/json.")
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > self._max_body_bytes:
                raise HTTPException(
                    413, f"The request is larger than {self._max_body_bytes} bytes."
                )
        return bytes(content)

    async def _answer(
        self,
        request: Request,
        body: Body,
        served: ServedModel,
        questions: Sequence[Question],
        wanted: int | None,
        param: str,
    ) -> Response:
        loop = asyncio.get_running_loop()
        answers: list[Answer] = []
        stops = body.stops
        for question in questions:
            limit = token_limit(question, wanted, param)
            for choice in range(body.n or 1):
                sampling = Sampling.of(
                    served.lm.model.generation_config,
                    limit,
                    temperature=body.temperature,
                    top_p=body.top_p,
                    seed=None if body.seed is None else body.seed + choice,
                    stop=stops,
                )
                events: asyncio.Queue[Event] = asyncio.Queue()

                def emit(event: Event, events: asyncio.Queue[Event] = events) -> None:
                    if not loop.is_closed():
                        loop.call_soon_threadsafe(events.put_nowait, event)

                job = Job(question.lm, question.ids, sampling, emit)
                answers.append(Answer(len(answers), job, events))
        self._engine.submit([answer.job for answer in answers])
        prompt_tokens = sum(len(question.ids) for question in questions)
        form = _Form(isinstance(body, ChatBody), body.model, prompt_tokens)
        if not body.stream:
            return await _whole(request, form, answers)
        usage = body.stream_options is not None and body.stream_options.include_usage
        stream = _stream(form, answers, usage)
        return StreamingResponse(stream, media_type="text/event-stream")


class _Form:
    """The JSON of responses, whole and in pieces, of a chat or of a completion."""

    def __init__(self, chat: bool, model: str, prompt_tokens: int) -> None:
        self._chat, self._prompt_tokens = chat, prompt_tokens
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def usage(self, tokens: int) -> dict[str, int]:
        """The numbers of tokens."""
        prompt = self._prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
        }

    def whole(self, texts: Sequence[str], ends: Sequence[Finish]) -> dict[str, Any]:
        """A response that is not streamed."""
        choices = []
        for index, (text, end) in enumerate(zip(texts, ends, strict=True)):
            message = {"role": "assistant", "content": text, "refusal": None}
            content = {"message": message} if self._chat else {"text": text}
            choice = {"index": index, **content, "logprobs": None, "finish_reason": end.reason}
            choices.append(choice)
        kind = "chat.completion" if self._chat else "text_completion"
        usage = self.usage(sum(end.tokens for end in ends))
        return {**self._head, "object": kind, "choices": choices, "usage": usage}

    def chunk(
        self, index: int, text: str = "", reason: str | None = None, first: bool = False
    ) -> dict[str, Any]:
        """A piece of a stream."""
        if self._chat:
            delta: dict[str, str] = {"role": "assistant", "content": ""} if first else {}
            if text:
                delta["content"] = text
            content: dict[str, Any] = {"delta": delta}
        else:
            content = {"text": text}
        choice = {"index": index, **content, "logprobs": None, "finish_reason": reason}
        return {**self._chunk_head, "choices": [choice]}

    def last_chunk(self, tokens: int) -> dict[str, Any]:
        """The piece with the numbers of tokens."""
        return {**self._chunk_head, "choices": [], "usage": self.usage(tokens)}

    @property
    def _chunk_head(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head, "object": kind}


async def _whole(request: Request, form: _Form, answers: Sequence[Answer]) -> Response:
    """The response with all answers; none where the client hangs up, which ends its jobs."""
    clock = asyncio.get_running_loop().time
    texts, ends = [], []
    look = clock() + POLL_SECONDS
    try:
        for answer in answers:
            pieces: list[str] = []
            while True:
                if clock() >= look:  # by the clock: tokens may come all the time
                    if await request.is_disconnected():
                        return Response(status_code=CLIENT_GONE)
                    look = clock() + POLL_SECONDS
                try:
                    event = await asyncio.wait_for(answer.events.get(), look - clock())
                except asyncio.TimeoutError:
                    continue
                if isinstance(event, Failure):
                    return error_response(500, event.message)
                if isinstance(event, Finish):
                    ends.append(event)
                    break
                pieces.append(event.text)
            texts.append("".join(pieces))
    finally:
        for answer in answers:
            answer.job.cancelled = True
    return JSONResponse(form.whole(texts, ends))


async def _stream(form: _Form, answers: Sequence[Answer], usage: bool) -> AsyncIterator[str]:
    """Server-sent events of all answers, as they come."""
    events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def forward(answer: Answer) -> None:
        while True:
            event = await answer.events.get()
            events.put_nowait((answer.index, event))
            if not isinstance(event, Piece):
                return

    tasks = [asyncio.create_task(forward(answer)) for answer in answers]
    try:
        for answer in answers:
            if form.chunk(answer.index, first=True)["object"].startswith("chat"):
                yield _sse(form.chunk(answer.index, first=True))
        left, tokens = len(answers), 0
        while left:
            index, event = await events.get()
            if isinstance(event, Failure):
                error = {"message": event.message, "type": "server_error"}
                yield _sse({"error": {**error, "param": None, "code": None}})
                return
            if isinstance(event, Finish):
                left -= 1
                tokens += event.tokens
                yield _sse(form.chunk(index, reason=event.reason))
            else:
                yield _sse(form.chunk(index, event.text))
        if usage:
            yield _sse(form.last_chunk(tokens))
        yield "data: [DONE]\n\n"
    finally:
        for answer, task in zip(answers, tasks, strict=True):
            answer.job.cancelled = True
            task.cancel()


def _sse(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
