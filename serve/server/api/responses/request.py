"""POST /v1/responses: what clients may send, and the chat request it comes to.

One path generates text, so a field is done, or refused by name, as chat does it. What needs a store, a background
job or a tool that the server itself would run is refused. It knows nothing of the engine or of how an answer is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serve.server.api.request.bodies import ChatRequest
from serve.server.api.request.fields import whole
from serve.server.api.responses.input import string_of, turns_of
from slm.errors import InputError, UnsupportedError

# Chat's words, and where the same is said here.
_CHATS_WORDS = {
    "messages": "input", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format", "functions": "tools", "function_call": "tool_choice",
    "logprobs": 'include: ["message.output_text.logprobs"]', "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}  # fmt: skip
_STORED = "it stores nothing. Send the whole conversation as input"
# What changes an answer and is not done, and why.
_REFUSED = {
    "previous_response_id": _STORED,
    "conversation": _STORED,
    "prompt": "it stores no prompts. Send the text as instructions or input",
    "background": "it answers while the client waits. Leave it out, and stream",
    "context_management": "it shortens no conversation by itself. Send as much as fits",
    "moderation": "it judges no texts",
    "image": "it makes and reads no images",
    "n": "one request has one answer here; chat completions take n",
    "rag": "passages are for /v1/chat/completions",
}
_INCLUDABLE = (
    "message.output_text.logprobs", "reasoning.encrypted_content", "message.input_image.image_url",
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "computer_call_output.output.image_url", "code_interpreter_call.outputs",
)  # fmt: skip
# Read by OpenAI's own service for its bills, caches and statistics; the answer does not depend on them.
_WITHOUT_EFFECT = (
    "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "service_tier",
    "stream_options", "client_metadata", "background", "background_options", "access_programs",
)  # fmt: skip


# effort is chat's reasoning_effort; the others are of the text of a reasoning, of which answers have none here.
_REASONING = ("effort", "summary", "generate_summary", "context", "mode")
_FUNCTION = ("name", "description", "parameters", "strict")


class ResponsesRequest(BaseModel):
    """POST /v1/responses, as OpenAI; chat's further fields (top_k, seed, lora ...) work too.

    input: a text, or items: messages of text parts, function_call, function_call_output, reasoning (left out). tools:
    functions in the flat form. Nothing is stored: `store` is false in every answer, whatever was asked.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = "auto"
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool = False
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=1)  # of tools the server runs, of which there are none
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int = Field(0, ge=0, le=20)
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: dict[str, Any] = Field(default_factory=dict)
    reasoning: dict[str, Any] = Field(default_factory=dict)
    include: list[str] = Field(default_factory=list)
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    truncation: str = "disabled"
    store: bool = True

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, value: Any) -> Any:
        """null is absent, and what cannot be done is refused by name."""
        if not isinstance(value, dict):
            return value
        given = {name: whole(field) for name, field in value.items() if field is not None}
        for name, word in _CHATS_WORDS.items():
            if name in given:
                raise InputError(f"{name}: is a field of chat completions", hint=f"Here it is: {word}")
        for name, why in _REFUSED.items():
            if given.get(name) and not (name == "n" and given[name] == 1):
                raise UnsupportedError(f"{name}: this server does not do it, because {why}")
        given.pop("n", None)
        if given.get("max_output_tokens") == -1:  # as chat's max_tokens: no limit
            del given["max_output_tokens"]
        if "input" not in given:
            raise InputError("input: is missing", hint='Send "input": a text, or a list of items.')
        return given

    @field_validator("input", mode="before")
    @classmethod
    def _items(cls, value: Any) -> Any:
        if not isinstance(value, str | list):
            raise InputError("input: has to be a text or a list of items", found=type(value).__name__)
        return value if isinstance(value, str) else _objects(value, "input")

    @field_validator("tools", mode="before")
    @classmethod
    def _tools(cls, value: Any) -> Any:
        return _objects(value, "tools")

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _choice(cls, value: Any) -> Any:
        if isinstance(value, dict) or value in ("none", "auto", "required"):
            return value
        raise InputError("tool_choice: has to be none, auto, required or an object", found=str(value)[:80])

    @field_validator("text")
    @classmethod
    def _text(cls, value: dict[str, Any]) -> dict[str, Any]:
        _known(value, "text", ("format", "verbosity"))
        if value.get("verbosity") not in (None, "medium"):
            raise UnsupportedError("text.verbosity: this server does not do it", hint="Say it in the instructions.")
        return value

    @field_validator("reasoning")
    @classmethod
    def _reasoning(cls, value: dict[str, Any]) -> dict[str, Any]:
        _known(value, "reasoning", _REASONING)
        return value

    @field_validator("include")
    @classmethod
    def _known_include(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in _INCLUDABLE:
                raise InputError(f"include: '{name[:80]}' is not known", hint=f"Known: {', '.join(_INCLUDABLE)}.")
        return value

    @field_validator("truncation")
    @classmethod
    def _whole(cls, value: str) -> str:
        if value != "disabled":
            raise UnsupportedError(
                f"truncation: this server does not do '{value[:80]}'; a conversation that does not fit is refused"
            )
        return value

    def chat(self) -> ChatRequest:
        """The same as a chat request. Raises InputError, or RequestValidationError for chat's own fields."""
        tools = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(self.tools)]
        allowed, choice = _chosen(self.tool_choice, tools)
        fields = {name: value for name, value in (self.model_extra or {}).items() if name not in _WITHOUT_EFFECT}
        scores = bool(self.top_logprobs) or "message.output_text.logprobs" in self.include
        fields |= {
            "model": self.model,
            "messages": turns_of(self.input, self.instructions),
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": scores,
            "top_logprobs": self.top_logprobs,
            "tools": allowed,
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": _format(self.text),
            "reasoning_effort": self.reasoning.get("effort"),
        }
        if not fields["messages"]:
            raise InputError("input: the conversation is empty")
        try:
            return _Chat.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            rows = [{**row, "loc": _place(row["loc"])} for row in error.errors()]
            sent = {**fields, "tools": self.tools, "reasoning": self.reasoning, "text": self.text}
            raise RequestValidationError(rows, body=sent) from error

    def echoed(self, chat: ChatRequest) -> dict[str, Any]:
        """The fields of an answer that repeat the request, with what was done where it named nothing."""
        extra = self.model_extra or {}
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata,
            "parallel_tool_calls": self.parallel_tool_calls,
            "previous_response_id": None,
            "prompt_cache_key": extra.get("prompt_cache_key"),
            "reasoning": {"effort": self.reasoning.get("effort"), "summary": None},
            "safety_identifier": extra.get("safety_identifier"),
            "service_tier": "default",
            "store": False,
            "temperature": chat.temperature,
            "text": {**self.text, "format": self.text.get("format") or {"type": "text"}},
            "tool_choice": self.tool_choice,
            "tools": self.tools,
            "top_logprobs": self.top_logprobs,
            "top_p": chat.top_p,
            "truncation": "disabled",
            "user": extra.get("user"),
        }


def _place(place: Sequence[str | int]) -> tuple[str | int, ...]:
    """Where a field of chat's stands here; a function's fields stand directly in its tool."""
    if place[:1] == ("reasoning_effort",):
        return ("reasoning", "effort")
    if place[:1] == ("response_format",):  # whose schema stands beside its type here
        return ("text", "format", *(step for step in place[1:] if step != "json_schema"))
    return tuple(step for step in place if step != "function")


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise InputError(f"{name}: has to be a list", found=type(value).__name__)
    for number, row in enumerate(value):
        if not isinstance(row, dict):
            raise InputError(f"{name}[{number}]: has to be an object", found=type(row).__name__)
    return value


def _known(given: Mapping[str, Any], place: str, names: Sequence[str]) -> None:
    for name, value in given.items():
        if name not in names and value is not None:
            raise UnsupportedError(
                f"{place}.{name[:80]}: this server does not do it", hint=f"Known: {', '.join(names)}."
            )


def _tool(tool: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A function as chat completions write it."""
    kind = tool.get("type")
    if kind != "function":
        raise UnsupportedError(
            f"{place}: this server runs no tools of its own; only functions may be called", found=str(kind)[:80]
        )
    if "name" not in tool and isinstance(tool.get("function"), dict):
        raise InputError(f"{place}: name, description and parameters stand beside type here, not under function")
    _known({name: value for name, value in tool.items() if name != "type" and value is not False}, place, _FUNCTION)
    string_of(tool, "name", place)
    return {"type": "function", "function": {name: tool[name] for name in _FUNCTION if tool.get(name) is not None}}


def _chosen(choice: str | Mapping[str, Any], tools: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    """The tools that may be called, and chat's tool_choice."""
    if isinstance(choice, str):
        return tools, choice
    kind = choice.get("type")
    if kind == "function":
        return tools, {"type": "function", "function": {"name": string_of(choice, "name", "tool_choice")}}
    if kind != "allowed_tools":
        raise UnsupportedError("tool_choice: only functions may be called", found=str(kind)[:80])
    mode = choice.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise InputError("tool_choice.mode: has to be auto or required", found=str(mode)[:80])
    rows = _objects(choice.get("tools"), "tool_choice.tools")
    names = {string_of(row, "name", f"tool_choice.tools[{number}]") for number, row in enumerate(rows)}
    if unknown := names - {tool["function"]["name"] for tool in tools}:
        raise InputError(f"tool_choice.tools: '{min(unknown)[:80]}' is allowed, which is not among the tools")
    return [tool for tool in tools if tool["function"]["name"] in names], mode


class _Chat(ChatRequest):
    format_field = "text.format"
    effort_field = "reasoning.effort"


def _format(text: Mapping[str, Any]) -> dict[str, Any] | None:
    """Chat's response_format."""
    form = text.get("format")
    if form is None:
        return None
    if not isinstance(form, dict):
        raise InputError("text.format: has to be an object", found=type(form).__name__)
    kind = form.get("type")
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        raise InputError("text.format.type: has to be text, json_object or json_schema", found=str(kind)[:80])
    if "schema" not in form:
        nested = isinstance(form.get("json_schema"), dict)
        hint = "Here name and schema stand beside type, not under json_schema." if nested else ""
        raise InputError("text.format.schema: is missing, which the type json_schema needs", hint=hint)
    given: Sequence[str] = [name for name in ("name", "schema", "strict") if form.get(name) is not None]
    return {"type": "json_schema", "json_schema": {name: form[name] for name in given}}
