"""What form an answer must have: from tools, tool_choice and the fields that ask for a form to the engine's grammar.

It knows nothing of the engine or of how a grammar is followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.server.api.request.bodies import ChatRequest, GenerationRequest
from serve.server.api.request.tools import Tool, chosen
from serve.server.api.request.wanted import WantedForm
from slm.errors import InputError, UnsupportedError

_MOST_TOLD = 20


@dataclass(frozen=True)
class Form:
    """grammar: for the engine ("": free text). field: where it was asked for. tools: for the chat template. calls: the
    answer may hold calls.

    not_enforced: what the schemas say and the grammar does not, for the client to know.
    """

    grammar: str = ""
    field: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    calls: bool = False
    not_enforced: tuple[str, ...] = ()


def form_of(request: GenerationRequest) -> Form:
    """The form of a request's answer. May take some tenths of a second for a large schema.

    Raises UnsupportedError when a schema cannot be followed, InputError when the fields do not fit each other.
    """
    wanted = request.wanted
    if isinstance(request, ChatRequest):
        if request.tools and request.tool_choice != "none":
            return _calling(request, wanted)
        if request.tool_choice not in ("auto", "none"):
            raise InputError("tool_choice: needs tools to choose from")
        _distinct(request.tools)
    if wanted is None:
        return Form()
    _no_stops(request, f"a {wanted.field} that gives the answer a form")
    grammar, left_out = _followed(wanted)
    return Form(grammar, wanted.field, not_enforced=_told(left_out))


def _followed(wanted: WantedForm) -> tuple[str, list[str]]:
    """The grammar, and what of the schema is not in it."""
    from serve.child.choice.grammar import json_grammar, loose_json_grammar, text_grammar

    try:
        if wanted.kind != "json":
            return text_grammar(wanted.kind, wanted.value), []
        if wanted.strict:
            return json_grammar(wanted.value), []
    except UnsupportedError as error:
        raise UnsupportedError(f"{wanted.field}: {error.what}", found=error.found, hint=error.hint) from error
    except InputError as error:
        raise InputError(f"{wanted.field}: {error.what}", found=error.found, hint=error.hint) from error
    grammar, left_out = loose_json_grammar(wanted.value)
    return grammar, [f"{wanted.field}: {part}" for part in left_out]


def _calling(request: ChatRequest, wanted: WantedForm | None) -> Form:
    """The form of an answer that may hold calls. A tool's schema never fails the chat: it is loosened."""
    from serve.child.choice.grammar import calls_grammar, followed_schema
    from serve.child.choice.schema import arguments_of, names_no_type

    _distinct(request.tools)
    needed, names, single = chosen(request.tool_choice)
    known = [tool.function.name for tool in request.tools]
    for name in names or ():
        if name not in known:
            raise InputError(f"tool_choice: names '{name}', which is not among the tools")
    if needed:
        if wanted is not None:
            raise InputError(
                f"{wanted.field}: does not go with a tool_choice that demands a call, which has its own form"
            )
        _no_stops(request, "a tool_choice that demands a call")
    left_out: list[str] = []
    functions: dict[str, Any] = {}
    for number, tool in enumerate(request.tools):
        function = tool.function
        if names is None or function.name in names:
            try:
                parameters = arguments_of(function.name, function.parameters)
            except InputError as error:
                raise InputError(f"tools[{number}]: {error.what}", found=error.found) from error
            followed = followed_schema(parameters, rest={"type": "object"})
            functions[function.name] = followed.schema
            unknown = ("'type' at '/'",) if names_no_type(function.parameters) else ()
            left_out += [f"tools[{number}] ({function.name}): {part}" for part in (*unknown, *followed.left_out)]
    otherwise = None
    if wanted is not None and not needed:
        if wanted.kind != "json":
            raise InputError(f"{wanted.field}: does not go with tools that may be called")
        shaped = followed_schema(wanted.value)
        if wanted.strict and shaped.left_out:
            _followed(wanted)  # refuses it
        otherwise = shaped.schema
        left_out += [f"{wanted.field}: {part}" for part in shaped.left_out]
    many = request.parallel_tool_calls and not single
    try:
        grammar = calls_grammar(functions, needed=needed, many=many, otherwise=otherwise)
    except UnsupportedError:  # each alone can be followed, but not all of them in one grammar
        loose: Mapping[str, Any] = {name: {"type": "object"} for name in functions}
        grammar = calls_grammar(loose, needed=needed, many=many, otherwise=otherwise)
        left_out = [*left_out, "tools: the schemas of all arguments, which are too large together"]
    tools = tuple(tool.model_dump(exclude_none=True) for tool in request.tools)
    field = wanted.field if wanted else "tools"  # of both the answer's own is mostly the wider one
    return Form(grammar, field, tools, calls=True, not_enforced=_told(left_out))


def _distinct(tools: Sequence[Tool]) -> None:
    names = [tool.function.name for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"tools[{number}]: two tools have the same name '{name}'")


def _told(left_out: Sequence[str]) -> tuple[str, ...]:
    more = len(left_out) - _MOST_TOLD
    return (*left_out[:_MOST_TOLD], *([f"and {more} more"] if more > 0 else ()))


def _no_stops(request: GenerationRequest, what: str) -> None:
    if request.stops or request.stop_token_ids:
        field = "stop" if request.stops else "stop_token_ids"
        raise InputError(f"{field}: does not go with {what}, which it could end in the middle")
