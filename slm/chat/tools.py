"""Functions a model may call, and its calls, as text: for chat templates that know nothing of them.

The form of a call is the one of Hermes and Qwen2.5, which many small models have seen in training:
<tool_call>, a line with {"name": ..., "arguments": {...}}, </tool_call>. It knows nothing of grammars or of HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from slm.joints import Message

CALL_BEGIN = "<tool_call>"
CALL_END = "}\n</tool_call>"


def call_head(name: str) -> str:
    """How a call begins, up to its arguments; `CALL_END` follows them."""
    return f'{CALL_BEGIN}\n{{"name": {json.dumps(name)}, "arguments": '


def call_text(name: str, arguments: Any) -> str:
    """A whole call. arguments: a mapping, or text that was meant to be one."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"{call_head(name)}{text or '{}'}{CALL_END}"


def system_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """What tells a model which functions there are and how a call is written. tools: as OpenAI describes them."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    form = call_text("<function-name>", {}).replace("{}", "<arguments as JSON>")
    return (
        "You may call one or more functions to help with the user's question.\n"
        f"The functions, as JSON schemas:\n<tools>\n{listed}\n</tools>\n"
        f"To call a function, answer with its name and arguments in this form:\n{form}"
    )


def as_plain_turns(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The same conversation in system, user and assistant turns with text only.

    The functions go to the system turn; calls become text of the assistant, their results text of the user. Results
    that follow one another, and a user's turn after them, are one turn, as templates want turns to alternate.
    """
    turns: list[Message] = []
    after_result = False
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            calls = [call["function"] for call in message.get("tool_calls", ())]
            lines = [content] if content else []
            content = "\n".join(lines + [call_text(call["name"], call["arguments"]) for call in calls])
        elif role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
        if after_result and role in ("tool", "user"):
            turns[-1] = Message(role="user", content=f"{turns[-1]['content']}\n{content}")
        else:
            turns.append(Message(role="user" if role == "tool" else role, content=content))
        after_result = role == "tool"
    if tools:
        text = system_text(tools)
        if turns and turns[0]["role"] == "system":
            turns[0] = Message(role="system", content=f"{turns[0]['content']}\n\n{text}")
        else:
            turns.insert(0, Message(role="system", content=text))
    return turns
