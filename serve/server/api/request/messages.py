"""The messages of a chat request: roles, parts of text, calls and their results. It knows nothing of templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from serve.server.api.request.fields import Fields, Off, one_name, refused
from slm.joints import Message

# Parts that are text under another name; a refusal is what an earlier answer said.
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


class TextPart(Fields):
    """One part of a message's content; only text is read."""

    harmless = frozenset({"annotations", "logprobs", "cache_control", "prompt_cache_breakpoint"})

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError('a part is an object like {"type": "text", "text": ...}')
        kind = value.get("type")
        if not isinstance(kind, str) or kind not in _TEXTS:
            raise ValueError(f"only text parts are read, this one is {_named(kind)}")
        field = _TEXTS[kind]
        if not isinstance(value.get(field), str):
            raise ValueError(f"a part of type '{kind}' has its text in the field '{field}'")
        rest = {name: part for name, part in value.items() if name not in ("type", field)}
        return {**rest, "type": "text", "text": value[field]}


class FunctionCall(Fields):
    """A function that was called; the arguments are JSON in a string, or an object."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Fields):
    """One call in an earlier answer."""

    harmless = frozenset({"index", "extra_content", "provider_specific_fields", "cache_control"})

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall

    @classmethod
    def renamed(cls, given: dict[str, Any]) -> dict[str, Any]:
        if (kind := given.get("type", "function")) != "function":
            raise refused("type", f"only calls of functions are read, this one is {_named(kind)}")
        return given

    def plain(self) -> dict[str, Any]:
        """For the chat template, which wants the arguments as a mapping."""
        arguments: Any = self.function.arguments
        parsed: Any = arguments
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments or "{}")
            except (ValueError, RecursionError):  # shown to the model as it was written
                parsed = None
        function = {"name": self.function.name, "arguments": parsed if isinstance(parsed, dict) else arguments}
        return {"id": self.id, "type": "function", "function": function}


class TurnOf(Fields):
    """One message of a conversation."""

    harmless = frozenset({"cache_control", "id", "annotations", "status", "phase", "metadata", "timestamp", "created"})
    off: ClassVar[Off] = {
        "audio": (),
        "images": ([],),
        "thinking_blocks": ([],),
        "provider_specific_fields": ({},),
        "weight": (1,),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = Field(None, description="What was thought before an earlier answer")
    prefix: bool = Field(False, description="The answer goes on from this last message")

    @classmethod
    def renamed(cls, given: dict[str, Any]) -> dict[str, Any]:
        one_name(given, "prefix")
        one_name(given, "reasoning_content")
        if call := given.pop("function_call", None):  # OpenAI's former shape of one call
            if given.get("tool_calls"):
                raise refused("function_call", "it is the former name of 'tool_calls', which is there as well")
            given["tool_calls"] = [{"function": call}]
        if given.get("role") == "function":
            raise refused("role", "'function' is a former role; send the result with the role 'tool' and tool_call_id")
        return given

    @field_validator("content", mode="before")
    @classmethod
    def _text_or_parts(cls, value: Any) -> Any:
        if not isinstance(value, str | list):
            raise ValueError("the content of a message is a text or a list of parts")
        return value

    @model_validator(mode="after")
    def _says_something(self) -> TurnOf:
        for name in ("tool_calls", "refusal", "reasoning_content"):
            if getattr(self, name) and self.role != "assistant":
                raise refused(name, "only an assistant's message has it")
        if self.prefix and self.role != "assistant":
            raise ValueError("only an assistant's message can be continued")
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of the role '{self.role}' needs content")
        return self

    def plain(self) -> Message:
        """Text only, with OpenAI's newer name for the system role understood."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        text = "\n\n".join(filter(None, (text, self.refusal)))  # a refusal is what was said after the content
        message = Message(role="system" if self.role == "developer" else self.role, content=text)
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.role == "tool":
            message["tool_call_id"] = self.tool_call_id or ""
        if self.name:
            message["name"] = self.name
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        return message


def _named(kind: Any) -> str:
    return f"'{kind[:60]}'" if isinstance(kind, str) else "of no type"
