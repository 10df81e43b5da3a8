"""What clients may send to generate text, as OpenAI writes it, with llama-server's further fields.

What a client may send and we do not do is refused by name; what has no effect on the answer is ignored.
It knows nothing of the engine or of how an answer is built.
"""

from __future__ import annotations

import json
import random
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve.server.guard import MAX_ANSWERS
from slm.errors import InputError, UnsupportedError
from slm.joints import Message, SamplingOptions

# The answer's length when a request names none and the context has room for it.
DEFAULT_MAX_TOKENS = 512

_FUNCTION_NAME = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
_REFUSED = {"functions", "function_call", "suffix", "echo", "grammar", "json_schema", "audio", "prediction"}


class TextPart(BaseModel):
    """One part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


class FunctionCall(BaseModel):
    """A function that was called; the arguments are JSON in a string."""

    name: str
    arguments: str = "{}"


class ToolCall(BaseModel):
    """One call in an earlier answer."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall

    def plain(self) -> dict[str, Any]:
        """For the chat template, which wants the arguments as a mapping."""
        arguments: Any = self.function.arguments
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):  # shown to the model as it was written
            parsed = None
        function = {"name": self.function.name, "arguments": parsed if isinstance(parsed, dict) else arguments}
        return {"id": self.id, "type": "function", "function": function}


class TurnOf(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> TurnOf:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content, or tool_calls of an assistant")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        return self

    def plain(self) -> Message:
        """Text only, with OpenAI's newer name for the system role understood."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        message = Message(role="system" if self.role == "developer" else self.role, content=text)
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.role == "tool":
            message["tool_call_id"] = self.tool_call_id or ""
        if self.name:
            message["name"] = self.name
        return message


class StreamOptions(BaseModel):
    """stream_options of OpenAI."""

    include_usage: bool = False


class LoraScale(BaseModel):
    """One adapter of a request's own set, as llama-server: `id` as GET /lora-adapters lists it."""

    id: int = Field(ge=0)
    scale: float = Field(ge=-10, le=10)


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
    repeat_penalty: float = Field(1.0, ge=0.1, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=1024)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int = Field(1, ge=1, le=MAX_ANSWERS, strict=True)  # what --max-n allows is the guard's affair
    lora: list[LoraScale] | None = Field(None, max_length=64)

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

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, *, grammar: str = "", logprobs: int | None = None) -> SamplingOptions:
        """The engine's options. Without a seed every request draws another one. Raises UnsupportedError."""
        given = self.model_extra or {}
        asked = sorted(name for name in _REFUSED if given.get(name))
        if given.get("best_of", self.n) != self.n:
            asked.append("best_of")
        if asked:
            raise UnsupportedError(f"this server does not do: {', '.join(asked)}", hint="Leave it out of the request.")
        seed = random.getrandbits(32) if self.seed is None else self.seed
        return SamplingOptions(
            max_tokens=self.limit or DEFAULT_MAX_TOKENS,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            seed=seed & (2**63 - 1),
            stop=self.stops,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(self.logit_bias.items()),
            logprobs=logprobs,
            grammar=grammar,
        )


class Function(BaseModel):
    """A function the model may call. parameters: the JSON schema of its arguments; without it there are none."""

    name: str = _FUNCTION_NAME
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """One entry of `tools`."""

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    """Which function."""

    name: str


class NamedTool(BaseModel):
    """A tool_choice that names the function to call."""

    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(BaseModel):
    """json_schema of a response_format; it is always followed, whether `strict` is set or not."""

    name: str = ""
    strict: bool | None = None
    schema_: dict[str, Any] | bool = Field(default=True, alias="schema")


class ResponseFormat(BaseModel):
    """What form the answer has; llama-server's `schema` beside json_object works too."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")

    @property
    def wanted(self) -> Any:
        """The JSON schema to follow, or None for free text. Raises InputError when a json_schema has none."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return self.schema_ or {"type": "object"}
        if self.json_schema is None:
            raise InputError("response_format of type json_schema needs the field json_schema")
        return self.json_schema.schema_


class ChatRequest(Generation):
    """POST /v1/chat/completions. `rag`: answer from the server's index, with citations."""

    messages: list[TurnOf]
    rag: bool = False
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    tools: list[Tool] = Field(default_factory=list, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()

    def conversation(self) -> list[Message]:
        """The messages for the chat template; a tool's result gets the name of the function that was called."""
        messages = [turn.plain() for turn in self.messages]
        names: dict[str, str] = {}
        for message in messages:
            names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
            if message["role"] == "tool" and "name" not in message:
                message["name"] = names.get(message["tool_call_id"], "")
        return messages

    @property
    def scores(self) -> int | None:
        """How many likeliest tokens to report with each one; None: no scores. Raises InputError."""
        if self.top_logprobs and not self.logprobs:
            raise InputError("top_logprobs needs logprobs to be true")
        return self.top_logprobs if self.logprobs else None


class CompletionRequest(Generation):
    """POST /v1/completions: one prompt or several, as text or as token ids."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids. Raises InputError for none or too many."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            prompt = [prompt]
        if not 1 <= len(prompt) * self.n <= MAX_ANSWERS:
            raise InputError(f"a request may ask for 1 to {MAX_ANSWERS} answers", found=str(len(prompt) * self.n))
        return list(prompt)
