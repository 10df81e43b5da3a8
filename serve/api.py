"""The shapes of requests and answers, as OpenAI, llama-server and vLLM write them. It knows nothing of the engine.

What a client may send and we do not do is refused by name; what has no effect on the answer is ignored.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from slm.errors import (
    ContextOverflowError,
    EngineDiedError,
    EngineError,
    InputError,
    MismatchError,
    SlmError,
    UnknownNameError,
    UnsupportedError,
)
from slm.joints import Finish, Grounded, Message, SamplingOptions

# The answer's length when a request names none and the context has room for it.
DEFAULT_MAX_TOKENS = 512
_FUTURE = {"tools", "functions", "logprobs", "top_logprobs", "logit_bias", "suffix", "echo", "lora"}


class TextPart(BaseModel):
    """One part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """One message of a conversation."""

    role: str
    content: str | list[TextPart]

    def plain(self) -> Message:
        """Text only, with OpenAI's newer name for the system role understood."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(BaseModel):
    """stream_options of OpenAI."""

    include_usage: bool = False


class Generation(BaseModel):
    """What chat and completion requests share."""

    model_config = ConfigDict(extra="allow")

    model: str = "auto"
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.7, ge=0, le=5)
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(40, ge=0)
    min_p: float = Field(0.05, ge=0, le=1)
    repeat_penalty: float = Field(1.0, gt=0, le=10)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int = 1

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > 16:
            raise ValueError("at most 16 stop strings")
        return value

    @property
    def limit(self) -> int | None:
        """The longest answer the client asked for, in tokens."""
        return self.max_completion_tokens or self.max_tokens

    def sampling(self) -> SamplingOptions:
        """The engine's options. Without a seed every request draws another one. Raises UnsupportedError."""
        asked = sorted(name for name in _FUTURE if (self.model_extra or {}).get(name))
        response_format = (self.model_extra or {}).get("response_format") or {"type": "text"}
        if not isinstance(response_format, dict) or response_format.get("type", "text") != "text":
            asked.append("response_format")
        if self.n != 1:
            asked.append("n")
        if asked:
            raise UnsupportedError(f"this server does not do: {', '.join(asked)}", hint="Leave it out of the request.")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingOptions(
            max_tokens=self.limit or DEFAULT_MAX_TOKENS,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            seed=random.getrandbits(32) if self.seed is None else self.seed,
            stop=stop,
        )


class ChatRequest(Generation):
    """POST /v1/chat/completions. `rag`: answer from the server's index, with citations."""

    messages: list[Turn]
    rag: bool = False


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: str


class LoadAdapter(BaseModel):
    """POST /lora-adapters."""

    model_config = ConfigDict(extra="forbid")

    name: str
    path: str
    scale: float = Field(1.0, ge=-10, le=10)


class VllmLoad(BaseModel):
    """POST /v1/load_lora_adapter, as vLLM."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class VllmUnload(BaseModel):
    """POST /v1/unload_lora_adapter, as vLLM."""

    lora_name: str


class Answer:
    """Builds the objects of one answer, streamed or whole; `chat` chooses between OpenAI's two shapes."""

    def __init__(self, *, chat: bool, model: str, adapter: str | None, reason: str) -> None:
        self.chat = chat
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
            "slm": {"adapter": adapter, "route_reason": reason},
        }

    def whole(self, text: str, finish: Finish, citations: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer that was not streamed."""
        what: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **what, "logprobs": None, "finish_reason": finish.reason}
        body = {**self._head, "object": "chat.completion" if self.chat else "text_completion", "choices": [choice]}
        return {**body, "usage": usage(finish), "timings": timings(finish), **citations}

    def chunk(
        self,
        text: str | None,
        *,
        reason: str | None = None,
        first: bool = False,
        citations: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """One event of a streamed answer."""
        if self.chat:
            delta: dict[str, Any] = {"role": "assistant"} if first else {}
            if text is not None:
                delta["content"] = text
            what: dict[str, Any] = {"delta": delta}
        else:
            what = {"text": text or ""}
        choice = {"index": 0, **what, "logprobs": None, "finish_reason": reason}
        return {**self._head, "object": self._chunk_object, "choices": [choice], **(citations or {})}

    def usage_chunk(self, finish: Finish) -> dict[str, Any]:
        """The last event, when stream_options.include_usage asks for it."""
        return {**self._head, "object": self._chunk_object, "choices": [], "usage": usage(finish)}

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"


def citations_of(grounded: Grounded | None, quotes: Sequence[str] = ()) -> dict[str, Any]:
    """The passages an answer was given and which of them it cites so far; with their quotes when these are there."""
    if grounded is None:
        return {}
    cited = grounded.citations.cited
    rows = [{"number": n, "cited": n in cited, **asdict(p)} for n, p in enumerate(grounded.passages, 1)]
    return {"citations": [{**row, "quote": quote} for row, quote in zip(rows, quotes, strict=True)] if quotes else rows}


def usage(finish: Finish) -> dict[str, Any]:
    """OpenAI's token counts."""
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finish.cached_tokens},
    }


def timings(finish: Finish) -> dict[str, float | None]:
    """Speeds in tokens per second; prefill counts only tokens that were not in the cache. None: too short to tell."""
    read = finish.prompt_tokens - finish.cached_tokens
    made = finish.completion_tokens - 1  # the first token belongs to prefill
    return {
        "prefill_tokens_per_s": round(read / finish.prefill_s, 1) if finish.prefill_s > 0 else None,
        "decode_tokens_per_s": round(made / finish.decode_s, 1) if made > 0 and finish.decode_s > 0 else None,
    }


def error_body(error: SlmError) -> tuple[int, dict[str, Any]]:
    """HTTP status and OpenAI-shaped body of an error."""
    status, kind, code = 500, "server_error", "internal_error"
    if isinstance(error, UnknownNameError):
        status, kind, code = 404, "invalid_request_error", "model_not_found"
    elif isinstance(error, ContextOverflowError):
        status, kind, code = 400, "invalid_request_error", "context_length_exceeded"
    elif isinstance(error, InputError | MismatchError):
        status, kind, code = 400, "invalid_request_error", "invalid_value"
    elif isinstance(error, EngineDiedError):
        status, code = 503, "engine_died"
    elif isinstance(error, EngineError):
        status, code = 503, "engine_unavailable"
    return status, plain_error(str(error), kind=kind, code=code)


def plain_error(message: str, *, kind: str = "invalid_request_error", code: str, param: str | None = None) -> Any:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
