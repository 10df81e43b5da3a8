"""`tools` and `tool_choice` in all their spellings. It knows nothing of grammars or of templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from serve.server.api.request.fields import Fields

CHOICES = ("none", "auto", "required")
_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FORMS = (
    'is \'none\', \'auto\', \'required\', {"type": "function", "function": {"name": ...}} '
    'or {"type": "allowed_tools", "allowed_tools": {"mode": ..., "tools": [...]}}'
)


class Function(Fields):
    """A function the model may call. parameters: the JSON schema of its arguments; without it there are none."""

    harmless = frozenset({"cache_control", "defer_loading"})

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not _FUNCTION_NAME.fullmatch(name):
            shown = name if len(name) <= 60 else f"{name[:59]}…"
            raise ValueError(f"has to be 1 to 64 of the letters a to z, digits, '_' and '-', not {shown!r}")
        return name


class Tool(Fields):
    """One entry of `tools`."""

    harmless = frozenset({"cache_control", "defer_loading"})

    type: Literal["function"] = "function"
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, value: Any) -> Any:
        kind = value.get("type", "function") if isinstance(value, Mapping) else None
        if kind not in ("function", None):
            raise ValueError(f"only functions can be called here, this tool is of type {str(kind)[:60]!r}")
        if isinstance(value, Mapping) and "function" not in value and "name" in value:
            raise ValueError("name, description and parameters stand in the field 'function'")
        return value


class NamedFunction(Fields):
    """Which function."""

    name: str


class NamedTool(Fields):
    """A tool_choice that names the function to call; the name may also stand beside the type."""

    type: Literal["function"] = "function"
    function: NamedFunction

    @classmethod
    def renamed(cls, given: dict[str, Any]) -> dict[str, Any]:
        if "name" in given and "function" not in given:
            given["function"] = {"name": given.pop("name")}
        return given


class Allowed(Fields):
    """The tools that may be called, out of those that are listed."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=128)


class AllowedTools(Fields):
    """A tool_choice that allows some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: Allowed

    @classmethod
    def renamed(cls, given: dict[str, Any]) -> dict[str, Any]:
        if "allowed_tools" not in given:
            inner = {name: given.pop(name) for name in ("mode", "tools") if name in given}
            given["allowed_tools"] = inner
        return given


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


def checked_choice(value: Any) -> Any:
    """A tool_choice whose kind is known, before it is parsed. Raises ValueError that lists the kinds."""
    kind = value.get("type", "function") if isinstance(value, Mapping) else None
    if not (isinstance(value, str) and value in CHOICES) and kind not in ("function", "allowed_tools"):
        shown = repr(value)
        raise ValueError(f"{_FORMS}, not {shown if len(shown) <= 80 else shown[:79] + '…'}")
    return value


def chosen(choice: ToolChoice) -> tuple[bool, list[str] | None, bool]:
    """(whether a call is demanded, the names that may be called or None for all, whether it is a single call)."""
    if isinstance(choice, NamedTool):
        return True, [choice.function.name], True
    if isinstance(choice, AllowedTools):
        allowed = choice.allowed_tools
        return allowed.mode == "required", [tool.function.name for tool in allowed.tools], False
    return choice == "required", None, False
