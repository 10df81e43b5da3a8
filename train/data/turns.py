"""One turn of training data, in OpenAI's, ShareGPT's or TRL's spelling -> a Message, and whether it is learned.

What a turn says beside its text is honoured (calls of functions, their results, thoughts, weights), and what would
change the meaning and is not done is refused by name. It knows nothing of files or templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from slm.joints import Message
from train.data.row import Row, kind, parsed

# The names of roles -> ours. OpenAI's "developer" is its newer name for the system's role.
ROLES = {
    "system": "system", "developer": "system",
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "ai": "assistant", "chatbot": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "tool_response": "tool",
    "function_response": "tool", "tool_result": "tool",
}  # fmt: skip
_CALLS = ("function_call", "tool_call")  # roles whose text is a call in JSON
# OpenAI's, axolotl's, ms-swift's and others' names for whether a turn is learned; factors of its loss, 0 or 1.
_LEARNED = ("weight", "train", "training", "trainable", "learn", "train_on_turn", "loss", "loss_weight", "loss_scale",
            "loss_mask")  # fmt: skip
# Parts of a name that say so in a way of its own, which is not guessed at.
_ABOUT_LEARNING = frozenset((
    "train", "trained", "training", "trainable", "learn", "learned", "learnable", "mask", "masked", "weight", "weights",
    "weighting", "supervise", "supervised",
))  # fmt: skip
_SAYS_HOW_MUCH = re.compile(r"true|false|yes|no|on|off|[tfyn]|[-+]?\d*\.?\d+(?:e[-+]?\d+)?")  # as text
_ABOUT_LOSS = frozenset(("loss", "grad", "label", "labels"))  # of a turn; a row may tell what its loss was
# gpt-oss writes thoughts and calls as turns of their own, told apart by their channel.
_ANSWERS_CHANNEL = "final"
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "think")
_REFUSED = {
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), "only text is learned"),
    "refusal": "write what the assistant says as its content",
    **dict.fromkeys(
        ("train_detail", "training_detail", "ignore"),
        'a turn is learned as a whole or not at all: "weight" 0 or 1',
    ),
    "prefix": "an answer is learned whole",
}
_MARK_IT = 'Mark the turn instead: "weight": 1 (learned) or 0 (not).'
_TEXT_PARTS = ("text", "input_text", "output_text")


def turn_of(row: Row) -> tuple[Message, bool]:
    """(message, whether it is learned) of one turn. Raises DamagedFileError or UnsupportedError with the place."""
    role_key = row.first("role", "from") or "role"
    name = row.take(role_key)
    role = ROLES.get(str(name).lower())
    if role is None:
        raise row.fault(f'the "{role_key}" is {name!r}', hint=f"Known: {', '.join(ROLES)}.")
    for field, why in _REFUSED.items():
        if row.values.get(field):
            raise row.refusal(f'"{field}" of a turn is not learned from', hint=f"Take it out; {why}.")
    if row.has("channel") and row.take("channel") != _ANSWERS_CHANNEL:
        raise row.refusal(
            f"the turn is of the channel {row.values['channel']!r}, which would be learned as an answer",
            hint='Write a thought as "thinking" of the turn that answers, and a call as "tool_calls".',
        )
    text_key = row.named("content", "value", "text", "message") or "content"
    raw = row.take(text_key)
    calls = _calls(row, role)
    if str(name).lower() in _CALLS:
        calls += _calls_of_text(row, text_key, raw, role)
        raw = None
    if raw is None and row.values.get(text_key) is None and not calls and role in ("system", "user"):
        raise row.fault(f'there is no text in "{text_key}"', hint='Write "" for a turn that says nothing.')
    content = text_of(row, text_key, raw, role)
    if calls and role != "assistant":
        raise row.fault(f"a turn of the {role} calls a function; only the assistant's do")
    if role == "assistant":
        content = with_thought(row, content)
    message = Message(role=role, content=content)
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        message["tool_call_id"] = str(row.take("tool_call_id") or "")
        if isinstance(called := row.take("name"), str):
            message["name"] = called
    return message, _is_learned(row, role) and role == "assistant"


def about_learning(row: Row, words: frozenset[str] = _ABOUT_LEARNING) -> str:
    """The first field that nobody took, whose name speaks of learning and whose value says how much; "" for none."""
    for name in row.own_unused():
        parts = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_").split("_")
        if _says_how_much(row.values[name]) and not words.isdisjoint(parts):
            return name
    return ""


def _says_how_much(value: Any) -> bool:
    """Whether a value is a truth value or a number, be it spelled as text, or a list of them."""
    if isinstance(value, list):
        return bool(value) and all(map(_says_how_much, value))
    if isinstance(value, str):
        return _SAYS_HOW_MUCH.fullmatch(value.strip().lower()) is not None
    return isinstance(value, bool | int | float)


def name_results(messages: Sequence[Message]) -> None:
    """Give each result of a call the name of the function that was called, where the turn itself has none."""
    names: dict[str, str] = {}
    last = ""
    for message in messages:
        for call in message.get("tool_calls", ()):
            last = call["function"]["name"]
            names[call["id"]] = last
        if message["role"] == "tool" and not message.get("name"):
            message["name"] = names.get(message.get("tool_call_id", ""), last)


def text_of(row: Row, key: str, value: Any, role: str) -> str:
    """The text of a content that may be in parts. Raises DamagedFileError or UnsupportedError with the place."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    parts = isinstance(value, list) and all(isinstance(part, str | dict) for part in value)
    typed = parts and any(isinstance(part, dict) and part.get("type") in _TEXT_PARTS for part in value)
    if typed or (parts and role != "tool"):
        return "".join(_part(row, key, part, number, role) for number, part in enumerate(value, start=1))
    if role == "tool":  # a result as an object, not as its JSON
        return json.dumps(value, ensure_ascii=False)
    raise row.fault(f'"{key}" must be text (is {kind(value)})')


def _part(row: Row, key: str, part: str | dict[str, Any], number: int, role: str) -> str:
    if isinstance(part, str):
        return part
    name = part.get("type") or ("text" if "text" in part else None)
    # datasets gives every part the fields of all, null where they are not its own.
    if name not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        raise row.refusal(f"part {number} of the content is {name!r}", hint="Only parts of type 'text' are learned.")
    inside = row.inner(key, part, f"part {number} of the content")
    inside.take("type", "text")
    _require_learned(inside, role)
    return str(part["text"])


def with_thought(row: Row, content: str) -> str:
    """The answer with its thought before it, in the form that Qwen3's and DeepSeek's templates know."""
    thoughts = {name: row.values[name] for name in THOUGHTS if row.has(name)}
    row.take(*THOUGHTS)
    for thought in thoughts.values():
        if not isinstance(thought, str):
            raise row.fault(f"the thought must be text (is {kind(thought)})")
    told = dict.fromkeys(thought.strip() for thought in thoughts.values())
    before, end, _ = content.partition("</think>")
    if len(told) > 1 or (end and not all(thought in before for thought in told)):
        beside = ' and one before the content\'s "</think>"' if end else ""
        raise row.refusal(
            f"there are several thoughts: {', '.join(thoughts)}{beside}; one is learned", hint="Join them in one."
        )
    return content if end or not told else f"<think>\n{next(iter(told))}\n</think>\n\n{content}"


def _require_learned(inside: Row, role: str) -> None:
    """Raise UnsupportedError where a part of a turn is marked as not learned: its neighbours would be, and it too."""
    if not _is_learned(inside, role) and role == "assistant":
        raise inside.refusal("it is marked as not learned, and a turn is learned whole or not at all", hint=_MARK_IT)


def _is_learned(row: Row, role: str) -> bool:
    """Whether the marks of a turn, or of a part of one of this role, let it be learned. Raises UnsupportedError."""
    if row.has("mask"):  # some mask what is learned, others what is not
        raise row.refusal('"mask" of a turn may mean either', hint=_MARK_IT)
    given = {name: row.values[name] for name in _LEARNED if row.values.get(name) is not None}
    row.take(*_LEARNED)
    for name, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise row.refusal(f'"{name}" is {value!r}', hint="A turn is learned (1, true) or not (0, false).")
        if value and role != "assistant":
            raise row.refusal(
                f'"{name}" is {value!r} on a turn of the {role}', hint="Only the assistant's turns are learned."
            )
    if doubtful := about_learning(row, _ABOUT_LEARNING | _ABOUT_LOSS):
        raise row.refusal(f'"{doubtful}" of a turn seems to say whether it is learned, and is not known', hint=_MARK_IT)
    return all(given.values())


def _calls(row: Row, role: str) -> list[dict[str, Any]]:
    """The calls in OpenAI's field, and in the one it had before ("function_call")."""
    calls = row.take_json("tool_calls") or []
    old = row.take_json("function_call")
    if not isinstance(calls, list):
        raise row.fault(f'"tool_calls" must be a list (is {kind(calls)})')
    read = [_call(row, "tool_calls", call, role) for call in calls]
    if old is None:
        return read
    former = _call(row, "function_call", old, role)
    if not read:
        return [former]
    if former["function"] not in [call["function"] for call in read]:
        raise row.refusal('"function_call" and "tool_calls" are different calls', hint="Write all into tool_calls.")
    return read  # one call in both spellings, as some exports have it


def _calls_of_text(row: Row, key: str, text: Any, role: str) -> list[dict[str, Any]]:
    value = parsed(text) if isinstance(text, str) else text
    if not isinstance(value, dict | list) or not value:
        raise row.fault(
            "the call is not JSON", found=repr(text)[:40], hint='Form: {"name": "...", "arguments": {...}}.'
        )
    return [_call(row, key, call, role) for call in (value if isinstance(value, list) else [value])]


def _call(row: Row, key: str, call: Any, role: str) -> dict[str, Any]:
    """A call in OpenAI's form, with its arguments as a mapping where they are one."""
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if isinstance(function, str):  # Cohere's and older exports: {"function": "name", "arguments": ...}
        function = {**call, "name": function}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise row.fault("a call has no function's name", found=json.dumps(call, ensure_ascii=False)[:60])
    arguments = function.get("arguments")
    if arguments is None:
        arguments = function.get("parameters")
    if isinstance(arguments, str):  # what is no object is shown to the model as it was written
        value = parsed(arguments)
        arguments = value if isinstance(value, dict) else arguments
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict | str):
        raise row.fault(f"the arguments of a call of '{function['name']}' must be an object (is {kind(arguments)})")
    for one in (call, function) if isinstance(call.get("function"), dict) else (call,):
        inside = row.inner(key, one, "a call")
        inside.take("id", "type", "index", "function", "name", "arguments", "parameters")
        _require_learned(inside, role)
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
