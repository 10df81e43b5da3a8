"""Calls of functions found in an answer while it streams, and OpenAI's deltas for them.

The grammar (`serve.child.choice.grammar.calls_grammar`) has made sure of the form of a call; here it is only taken
apart. It knows nothing of grammars, of the engine or of HTTP.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

from serve.child.spelling.text import overlap
from slm.chat.tools import CALL_BEGIN, CALL_END

_HEAD = re.compile(re.escape(CALL_BEGIN) + r'\n\{"name": "([^"]*)", "arguments": ')


@dataclass
class StreamedCall:
    """One call as far as it is known."""

    id: str
    name: str
    arguments: str = ""

    def plain(self) -> dict[str, Any]:
        """As in a message."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class CallStream:
    """Splits an answer's text into what is said and what is called. `feed` it all, then `flush`."""

    def __init__(self) -> None:
        self.calls: list[StreamedCall] = []
        self._held = ""
        self._where = self._in_text

    def feed(self, text: str) -> list[dict[str, Any]]:
        """The deltas (content, or tool_calls) that became certain with this text."""
        self._held += text
        deltas: list[dict[str, Any]] = []
        while self._where(deltas):
            pass
        return deltas

    def flush(self, *, cut: bool = False) -> list[dict[str, Any]]:
        """The rest at the end of the answer. cut: the model had more to say, so what begins a marker is one.

        Of a call whose function is not known yet nothing can be told, and behind a call only another one follows.
        """
        if self._where == self._in_head or not self._held:
            return []
        if self._where == self._in_arguments:
            # The marker begins with a bracket as arguments end with one: it is the marker's where they are whole.
            return [] if cut and _is_json(self.calls[-1].arguments) else [self._arguments(self._held)]
        if self.calls:
            return []
        begun = overlap(self._held, CALL_BEGIN) if cut else 0
        text = self._held[: len(self._held) - begun]
        return [{"content": text}] if text.strip() or not begun else []

    def _in_text(self, deltas: list[dict[str, Any]]) -> bool:
        at = self._held.find(CALL_BEGIN)
        found = at >= 0
        shown = self._held[: at if found else len(self._held) - overlap(self._held, CALL_BEGIN)]
        if not shown.strip() and not found:
            return False  # blanks before a call are no text; before text they are shown with it
        self._held = self._held[len(shown) :]
        if shown.strip():
            deltas.append({"content": shown})
        if found:
            self._where = self._in_head
        return found

    def _in_head(self, deltas: list[dict[str, Any]]) -> bool:
        head = _HEAD.match(self._held)
        if head is None:
            return False
        call = StreamedCall(f"call_{uuid.uuid4().hex[:24]}", head.group(1))
        deltas.append({"tool_calls": [{"index": len(self.calls), **call.plain()}]})
        self.calls.append(call)
        self._held, self._where = self._held[head.end() :], self._in_arguments
        return True

    def _in_arguments(self, deltas: list[dict[str, Any]]) -> bool:
        at = self._held.find(CALL_END)  # JSON has no line break in a string, so this is not inside the arguments
        found = at >= 0
        size = at if found else len(self._held) - overlap(self._held, CALL_END)
        if size:
            deltas.append(self._arguments(self._held[:size]))
        self._held = self._held[size + len(CALL_END) :] if found else self._held[size:]
        if found:
            self._where = self._in_text
        return found

    def _arguments(self, text: str) -> dict[str, Any]:
        self.calls[-1].arguments += text
        return {"tool_calls": [{"index": len(self.calls) - 1, "function": {"arguments": text}}]}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
