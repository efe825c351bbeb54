"""What is said to clients: documents as the OpenAI API has them, and what st3 adds.

`usage` counts the prompt's tokens as sent; `kept_prompt_tokens` are those that were kept, text and
the mean over layers of visual tokens, at the end of prefill. `st3` holds what `st3 run --json` says
under the same names.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from starlette.responses import JSONResponse

from st3.serving.http.job import Done
from st3.serving.http.limits import Refusal

_RETRY = {429: "1", 503: "5"}  # seconds after which to ask again


def error_document(refusal: Refusal) -> dict[str, Any]:
    """What is wrong, in one line."""
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    error = {"message": refusal.line, "type": kind, "param": None, "code": refusal.code}
    return {"error": error}


def error_reply(refusal: Refusal) -> JSONResponse:
    """The same as a reply."""
    headers = {}
    if refusal.status in _RETRY:
        headers["Retry-After"] = _RETRY[refusal.status]
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_document(refusal), refusal.status, headers)


def usage(done: Done) -> dict[str, Any]:
    """Tokens of the prompt and of the answer."""
    dropped = done.visual - done.kept_visual
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.new_tokens,
        "total_tokens": done.prompt_tokens + done.new_tokens,
        "kept_prompt_tokens": round(done.prompt_tokens - dropped, 2),
        "prompt_tokens_details": {
            "text_tokens": done.prompt_tokens - done.visual,
            "image_tokens": done.visual,
            "kept_image_tokens": round(done.kept_visual, 2),
        },
    }


def trimmed(done: Done) -> dict[str, Any]:
    """What was trimmed, how long it took, and beside how many."""
    return {
        "method": done.method,
        "visual_tokens": {"total": done.visual, "kept_per_layer": list(done.kept)},
        "kv_cache": {
            "bytes": done.kv_bytes,
            "untrimmed_bytes": done.untrimmed_kv_bytes,
            "ratio": done.kv_bytes / done.untrimmed_kv_bytes,
        },
        "timing": done.timing,
        "batch": done.batch,
    }


class Voice:
    """The documents of one answer.

    Args:
        model: as clients call it.
        with_usage: whether a stream ends with what was counted.
    """

    def __init__(self, model: str, with_usage: bool = False) -> None:
        self.model, self.with_usage = model, with_usage
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def whole(self, done: Done) -> dict[str, Any]:
        """An answer that is not streamed."""
        message = {"role": "assistant", "content": done.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.finish}
        head = self._document("chat.completion", [choice])
        return head | {"usage": usage(done), "st3": trimmed(done)}

    def begin(self) -> bytes:
        """The first event of a stream."""
        return self._delta({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """Some text."""
        return self._delta({"content": text})

    def end(self, done: Done) -> bytes:
        """The last events."""
        said = self._delta({}, done.finish)
        if self.with_usage:
            document = self._document("chat.completion.chunk", [])
            said += event(document | {"usage": usage(done), "st3": trimmed(done)})
        return said + b"data: [DONE]\n\n"

    def _delta(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(self._document("chat.completion.chunk", [choice]))

    def _document(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "choices": choices,
        }  # fmt: skip


def event(document: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()
