"""What stands in `input` of POST /v1/responses, as turns of a chat: messages, calls of functions and their results.

Pure: items in, turns out. It knows nothing of the engine, of HTTP or of the other fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slm.errors import InputError, UnsupportedError

_ROLES = ("user", "assistant", "system", "developer")
# The field that holds the text of a part.
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_READ = "message, function_call, function_call_output, reasoning"


def turns_of(given: str | Sequence[Mapping[str, Any]], instructions: str | None = None) -> list[dict[str, Any]]:
    """The messages of a chat request. instructions: a system turn before them.

    Items are no turns: agents send several messages of the same side in a row, and many templates want the sides to
    alternate, so these are one turn, with a blank line between. What an assistant says and the calls after it are one
    turn, too. Reasoning is left out: templates show a model none of its earlier turns. Raises InputError with the
    place of what cannot be read.
    """
    turns: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*turns, {"role": "user", "content": given}]
    called: set[str] = set()
    for number, item in enumerate(given):
        place = f"input[{number}]"
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            _add(turns, _message(item, place))
        elif kind == "function_call":
            call = _call(item, place)
            called.add(call["id"])
            if not turns or turns[-1]["role"] != "assistant":
                turns.append({"role": "assistant", "content": None})
            turns[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            turns.append(_result(item, place, called))
        elif kind == "item_reference":
            raise UnsupportedError(
                f"{place}: an item_reference points to what the server has stored, and this one stores nothing",
                hint="Send the item itself; clients do with store: false.",
            )
        elif kind != "reasoning":
            raise UnsupportedError(
                f"{place}: items of this type are not read here", found=str(kind)[:80], hint=f"Known: {_READ}."
            )
    return turns


def text_of(content: Any, place: str) -> str:
    """The text of a message or a function's result: a text, or a list of text parts. Raises InputError."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InputError(f"{place}: has to be a text or a list of parts", found=_kind(content))
    return "".join(_part(part, f"{place}[{number}]") for number, part in enumerate(content))


def string_of(item: Mapping[str, Any], name: str, place: str, *, default: str | None = None) -> str:
    """A field that has to be a text. Raises InputError: it is missing (and has no default), or something else."""
    value = item.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise InputError(f"{place}.{name}: has to be a text", found=_kind(value))
    return value


def _add(turns: list[dict[str, Any]], message: dict[str, Any]) -> None:
    last = turns[-1] if turns else None
    if last and last["role"] == message["role"] and last["content"] and "tool_calls" not in last:
        last["content"] += f"\n\n{message['content']}" if message["content"] else ""
    else:
        turns.append(message)


def _message(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in _ROLES:
        raise InputError(f"{place}.role: has to be one of {', '.join(_ROLES)}", found=str(role)[:80])
    side = "system" if role == "developer" else role
    return {"role": side, "content": text_of(item.get("content"), f"{place}.content")}


def _call(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    function = {
        "name": string_of(item, "name", place),
        "arguments": string_of(item, "arguments", place, default="{}"),
    }
    return {"id": string_of(item, "call_id", place), "type": "function", "function": function}


def _result(item: Mapping[str, Any], place: str, called: set[str]) -> dict[str, Any]:
    id = string_of(item, "call_id", place)
    if id not in called:
        raise InputError(
            f"{place}: is the result of the call '{id[:80]}', which is not among the items before it",
            hint="Send the function_call too: this server stores no earlier answers.",
        )
    return {"role": "tool", "tool_call_id": id, "content": text_of(item.get("output"), f"{place}.output")}


def _part(part: Any, place: str) -> str:
    if not isinstance(part, Mapping):
        raise InputError(f"{place}: has to be a part, like {{'type': 'input_text', 'text': ...}}", found=_kind(part))
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise UnsupportedError(f"{place}: only text parts are read", found=str(kind)[:80])
    return string_of(part, _TEXT_PARTS[kind], place)


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
