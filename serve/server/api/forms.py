"""What form an answer must have: from tools, tool_choice and response_format to the engine's grammar.

It knows nothing of the engine or of how a grammar is followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve.server.api.requests import ChatRequest, NamedTool
from slm.errors import InputError


@dataclass(frozen=True)
class Form:
    """grammar: for the engine ("": free text). tools: for the chat template. calls: the answer may hold calls."""

    grammar: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    calls: bool = False


def form_of(request: ChatRequest) -> Form:
    """The form of a request's answer. May take some tenths of a second for a large schema.

    Raises UnsupportedError when a schema cannot be followed, InputError when the fields do not fit each other.
    """
    from serve.child.grammar import calls_grammar, json_grammar

    wanted, choice = request.response_format.wanted, request.tool_choice
    functions = {tool.function.name: tool.function.parameters for tool in request.tools}
    if len(functions) < len(request.tools):
        raise InputError("two tools have the same name")
    if not functions and choice not in ("auto", "none"):
        raise InputError("tool_choice needs tools to choose from")
    if not functions or choice == "none":
        if wanted is None:
            return Form()
        _no_stops(request, "a response_format of JSON")
        return Form(json_grammar(wanted))
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in functions:
            raise InputError(f"tool_choice names the tool '{name}', which is not among the tools")
        functions = {name: functions[name]}
    needed = choice != "auto"
    if needed:
        _no_stops(request, "a tool_choice that demands a call")
    many = request.parallel_tool_calls and not isinstance(choice, NamedTool)
    grammar = calls_grammar(functions, needed=needed, many=many, otherwise=None if needed else wanted)
    return Form(grammar, tuple(tool.model_dump(exclude_none=True) for tool in request.tools), calls=True)


def _no_stops(request: ChatRequest, what: str) -> None:
    if request.stops:
        raise InputError(f"stop strings do not go with {what}: they could end it in the middle")
