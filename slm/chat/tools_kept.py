"""Whether a chat template that knows of tools writes all of them: the functions, the calls, and their results.

Like `slm.chat.system_text` it finds out by rendering words that nobody says. It knows nothing of Jinja.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from slm.chat.segments import Tools
from slm.errors import InputError
from slm.joints import Message

_NONCE = secrets.token_hex(8)
# (template and its options, shape of a conversation) -> whether everything is written.
_VERDICTS: dict[Hashable, bool] = {}
_MOST_VERDICTS = 512


def keeps_tools(
    messages: Sequence[Message], tools: Tools, write: Callable[[Sequence[Message], Tools], str], template: Hashable
) -> bool:
    """Whether `write` loses none of the functions, calls and results of a conversation; known by its shape.

    template: what `write` depends on beside these. True where the template refuses them: that is told, not lost.
    """
    shape = tuple((m["role"], bool(m["content"].strip()), len(m.get("tool_calls", ()))) for m in messages)
    key = (template, shape, len(tools))
    if key not in _VERDICTS:
        marks = _Marks()
        marked_tools = [marks.in_function(tool) for tool in tools]
        marked = [marks.in_turn(message) for message in messages]
        try:
            text = write(marked, marked_tools).lower()
        except InputError:
            return True
        if len(_VERDICTS) >= _MOST_VERDICTS:
            _VERDICTS.clear()
        _VERDICTS[key] = all(word in text for word in marks.words)
    return _VERDICTS[key]


class _Marks:
    """Words put into what has to be written; `words` are all of them."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def _word(self) -> str:
        self.words.append(f"{_NONCE}x{len(self.words)}x")
        return self.words[-1]

    def in_function(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        function = tool.get("function")
        if not isinstance(function, Mapping) or "name" not in function:
            return dict(tool)
        return {**tool, "function": {**function, "name": f"{function['name']}_{self._word()}"}}

    def in_turn(self, message: Message) -> Message:
        marked = message.copy()
        if message["role"] == "tool":
            marked["content"] = f"{message['content']} {self._word()}"
        if message.get("tool_calls"):
            marked["tool_calls"] = [self._in_call(call) for call in message["tool_calls"]]
        return marked

    def _in_call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = dict(call.get("function", {}))
        if "name" in function:
            function["name"] = f"{function['name']}_{self._word()}"
        arguments = function.get("arguments")
        if isinstance(arguments, Mapping):
            function["arguments"] = {**arguments, "a": self._word()}
        return {**call, "function": function}
