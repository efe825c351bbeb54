"""What a client may ask: the body of a chat completion, as the OpenAI API has it.

Parameters that would change the answer and are not served are refused, unless they ask for what is
done anyway; nothing is set aside without a word but what says who asks.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from st3.serving.http.limits import invalid


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Text(_Strict):
    """A part of a message in words."""

    type: Literal["text"]
    text: str


class Url(_Strict):
    """Where a picture is; `detail` asks for a size, and models here have their own."""

    url: str
    detail: str | None = None


class Picture(_Strict):
    """A part of a message that is a picture."""

    type: Literal["image_url"]
    image_url: Annotated[Url, BeforeValidator(lambda v: {"url": v} if isinstance(v, str) else v)]


_Nothing = Annotated[list[Any], Field(max_length=0)]


def _parts(content: Any) -> Any:
    """A text alone is a message of one part."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(_Strict):
    """What somebody says."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Annotated[Text | Picture, Field(discriminator="type")]],
        Field(min_length=1),
        BeforeValidator(_parts),
    ]
    name: str | None = None
    # Of replies that come back as they went out, ours and others'.
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: _Nothing | None = None
    annotations: _Nothing | None = None


class StreamOptions(_Strict):
    """What comes with a stream."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


def _strings(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


_Nought = Annotated[float, Field(ge=0, le=0)]


class ChatRequest(_Strict):
    """The body of a request. Greedy unless a temperature is given, as the commands are."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(max_length=4),
            BeforeValidator(_strings),
        ]
        | None
    ) = None
    # Served as far as they ask for nothing.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    frequency_penalty: _Nought | None = None
    presence_penalty: _Nought | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    tools: _Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: _PlainText | None = None
    # Who asks, which nobody wants to know.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None

    @property
    def tokens(self) -> int | None:
        """Of the answer, at most; None where nothing is said of it."""
        return self.max_completion_tokens or self.max_tokens


class _PlainText(_Strict):
    type: Literal["text"]


ChatRequest.model_rebuild()


_DEFAULTS_ALONE = {
    "n", "logprobs", "top_logprobs", "frequency_penalty", "presence_penalty", "logit_bias", "tools",
    "tool_choice", "response_format",
}  # fmt: skip


def read_request(body: bytes | bytearray) -> ChatRequest:
    """What is asked.

    Raises:
        Refusal: the body is no JSON, or asks for what is not served.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(_line(error)) from None


def _line(error: ValidationError) -> str:
    """The first thing that is wrong; what was sent is not quoted."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(step) for step in first["loc"])
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {first['msg'].removeprefix('Invalid JSON: ')}"
    if first["type"] == "extra_forbidden":
        return f"unknown parameter {where}: leave it out"
    if first["loc"][:1] and first["loc"][0] in _DEFAULTS_ALONE:
        return f"{first['loc'][0]} is served as far as it changes nothing: leave it out"
    if first["type"] == "list_type" and first["loc"][-1] == "content":
        return f"{where} is to be a text, or a list of parts"
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {first['msg']}" if where else "the body is to be an object"
