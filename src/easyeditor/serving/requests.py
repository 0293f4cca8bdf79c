"""Bodies of requests as OpenAI writes them, checked, and turned into tokens.

Every refusal is a :class:`BadRequest` with the field it is about; what the server does not do
(tools, images, log-probabilities) is refused by name, because an answer without it would be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from easyeditor.edits import Prompt
from easyeditor.errors import EasyEditError, ServingError
from easyeditor.lm.model import LM
from easyeditor.lm.routing import Rerouted, rerouted
from easyeditor.serving.names import ServedModel

B = TypeVar("B", bound="Body")
MAX_CHOICES, MAX_PROMPTS, MAX_ANSWERS, MAX_STOPS = 16, 64, 64, 4
UNION_TAGS = ("str", "list[str]", "list[Part]")
"""What pydantic adds to the place of a problem where several types are allowed."""
DEFAULT_TOKENS = 1024
"""How long an answer may become where the request does not say, if the context has room."""


class BadRequest(ServingError):
    """A request that cannot be answered as it is.

    Attributes:
        param: the field it is about; None for the whole.
        code: OpenAI's word for the kind of problem, where there is one.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class StreamOptions(BaseModel):
    """What a stream holds beside text."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class Body(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Accepted and of no effect: they ask for nothing that an answer could lack.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Accepted where they ask for nothing.
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(given) > MAX_STOPS or not all(given):
            raise BadRequest(
                f"stop has {len(given)} texts; up to {MAX_STOPS} that are not empty are allowed.",
                "stop",
            )
        return tuple(given)


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: str
    text: str | None = None


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        """The content."""
        if isinstance(self.content, str):
            return self.content
        for part in self.content:
            if part.type != "text" or part.text is None:
                raise BadRequest(
                    f"A message has a part of type {part.type!r}, and this server reads text "
                    "alone. Send parts of type 'text'.",
                    "messages",
                )
        return "".join(part.text or "" for part in self.content)

    def turn(self) -> dict[str, str]:
        """As a chat template reads it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.text}


class ResponseFormat(BaseModel):
    """Text, and nothing else."""

    type: Literal["text"]


class ChatBody(Body):
    """A request for ``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: str | None = None


class CompletionBody(Body):
    """A request for ``/v1/completions``."""

    prompt: str | list[str]
    logprobs: None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def prompts(self) -> list[str]:
        """Every prompt."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise BadRequest(
                f"prompt holds {len(prompts)} texts; 1 to {MAX_PROMPTS} are allowed.", "prompt"
            )
        if len(prompts) * (self.n or 1) > MAX_ANSWERS:
            raise BadRequest(
                f"{len(prompts)} prompts with n={self.n} are {len(prompts) * (self.n or 1)} "
                f"answers; up to {MAX_ANSWERS} are allowed in one request.",
                "n",
            )
        return prompts


def parsed(kind: type[B], content: bytes) -> B:
    """A body from its bytes.

    Raises:
        BadRequest: it is not JSON, or not such a request; says which field, and why.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {error}.", code="invalid_json") from None
    if b"\\ud" in content.lower() and _has_half_characters(data):
        raise BadRequest("The body holds half of a character (a lone surrogate). Send UTF-8.")
    if not isinstance(data, dict):
        raise BadRequest(f"The body is a JSON {type(data).__name__}; an object is expected.")
    unset = {name: value for name, value in data.items() if value is not None or name == "messages"}
    try:
        return kind.model_validate(unset)
    except ValidationError as error:
        raise _refusal(error) from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _has_half_characters(data: Any) -> bool:
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return True
    return False


def _refusal(error: ValidationError) -> BadRequest:
    problem = error.errors(include_url=False, include_context=False)[0]
    place = [str(part) for part in problem["loc"] if part not in UNION_TAGS]
    field = ".".join(place)
    if problem["type"] == "extra_forbidden":
        text = f"This server does not know the field {field[:200]!r}. Leave it out."
    elif problem["type"] == "missing":
        text = f"The field {field!r} is missing."
    else:
        shown = repr(problem["input"])
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        text = f"{field}: {problem['msg']}; got {shown}."
    return BadRequest(text, place[0] if place else None)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of which model: the served one, or one that an edit sends the prompt to."""

    lm: LM
    ids: tuple[int, ...]


def chat_question(served: ServedModel, messages: Sequence[Message]) -> Question:
    """A chat in the tokens of the model's own template.

    Edits that act on prompts see the text of the last user turn.

    Raises:
        BadRequest: the tokenizer has no template, or the template refuses the turns.
    """
    lm = served.lm
    if not getattr(lm.tokenizer, "chat_template", None):
        raise BadRequest(
            f"{served.name} has no chat template, so it cannot read messages. Ask "
            "/v1/completions with a prompt.",
            "model",
        )
    turns = [message.turn() for message in messages]
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if last is not None:
        target = _rerouted(lm, turns[last]["content"])
        if target is not None and target.lm is not None:
            return Question(target.lm, target.lm.text.row(target.prompt).ids)
        if target is not None:
            turns[last] = {"role": "user", "content": str(target.prompt)}
    try:
        text = lm.text.chat.write(turns)
    except Exception as error:  # of any type: the template is a program that came with the model
        raise BadRequest(f"The chat template of {served.name} refuses: {error}", "messages") from (
            None
        )
    return Question(lm, tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"]))


def text_question(served: ServedModel, prompt: str) -> Question:
    """A text that is to be continued exactly as it stands.

    Raises:
        BadRequest: it is empty, and the model begins no text by itself.
    """
    lm = served.lm
    target = _rerouted(lm, prompt)
    if target is not None:
        who = target.lm or lm
        return Question(who, who.text.row(target.prompt).ids)
    ids = lm.text.plain(prompt)
    if not ids:
        raise BadRequest("The prompt is empty; send a text to continue.", "prompt")
    return Question(lm, ids)


def _rerouted(lm: LM, text: str) -> Rerouted | None:
    try:
        return rerouted(lm, [Prompt(text)]).get(text)
    except EasyEditError as error:
        raise BadRequest(str(error)) from None


def token_limit(question: Question, wanted: int | None, param: str) -> int:
    """How many tokens may be written.

    Raises:
        BadRequest: the prompt, or the prompt with as many, does not fit into the context.
    """
    limit, length = question.lm.context_length, len(question.ids)
    if limit is None:
        return wanted or DEFAULT_TOKENS
    if length + (wanted or 1) > limit:
        asked_for = f" and {param} asks for {wanted} more" if wanted else ""
        raise BadRequest(
            f"The prompt has {length} tokens{asked_for}; the model reads {limit} at most. Shorten "
            "the prompt or ask for fewer.",
            param if wanted and length < limit else None,
            "context_length_exceeded",
        )
    return wanted or min(DEFAULT_TOKENS, limit - length)
