"""An answer of POST /v1/responses from what the engine yields: its output items, and every event in order.

The same state makes the whole body and the stream's last event, so the two cannot differ. It knows nothing of HTTP.
Fields: the official client's types/responses; the order of events: OpenAI's streaming reference.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from serve.server.api.answer.objects import Choice
from serve.server.api.errors import error_body
from slm.errors import SlmError
from slm.joints import Finish, Scored

_Event = dict[str, Any]


class ResponsesWriter:
    """One response under way (a `serve.server.api.answer.writer.Writer`). head: the fields that do not change."""

    tail = ""

    def __init__(self, head: dict[str, Any], choice: Choice) -> None:
        self._head = {"id": _id("resp"), "object": "response", "created_at": int(time.time()), **head}
        self._choice = choice
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._open = False
        self._scores: list[dict[str, Any]] = []  # of tokens whose text is still held back
        self._status = "in_progress"
        self._error: dict[str, Any] | None = None

    def opening(self) -> Iterator[_Event]:
        yield self._event("response.created", response=self.whole())
        yield self._event("response.in_progress", response=self.whole())

    def take(self, number: int, event: str | Scored | Finish) -> Iterator[_Event]:
        for part in self._choice.take(event):
            self._scores += (part["logprobs"] or {}).get("content", ())
            if text := part["delta"].get("content"):
                yield from self._said(text)
            for call in part["delta"].get("tool_calls", ()):
                yield from self._called(call)
            if part["finish_reason"]:
                whole = part["finish_reason"] in ("stop", "tool_calls")
                yield from self._ended("completed" if whole else "incomplete")

    async def before_end(self) -> None:
        pass

    def closing(self) -> Iterator[_Event]:
        yield self._event(f"response.{self._status}", response=self.whole())

    def failed(self, error: SlmError) -> Iterator[_Event]:
        """The response as far as it came, then the error itself, at which clients raise."""
        status, body = error_body(error)
        told = body["error"]
        self._status = "failed"
        self._error = {"code": "server_error" if status >= 500 else "invalid_prompt", "message": told["message"]}
        if self._open:
            self._output[-1]["status"] = "incomplete"
        yield self._event("response.failed", response=self.whole())
        yield self._event("error", code=told["code"], message=told["message"], param=told["param"], error=told)

    def frame(self, value: _Event) -> str:
        return f"event: {value['type']}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"

    def whole(self) -> dict[str, Any]:
        """The response as it stands."""
        finish = self._choice.finish
        body = {
            **self._head,
            "status": self._status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "output": self._output,
            "usage": _usage(finish) if finish else None,
        }
        if finish:
            body |= {"completed_at": int(time.time()), "timings": finish.timings()}
        return body

    def _said(self, text: str) -> Iterator[_Event]:
        if not (self._open and self._output[-1]["type"] == "message"):
            yield from self._message()
        part, scores = self._output[-1]["content"][0], self._scores
        self._scores = []
        part["text"] += text
        part["logprobs"] += scores
        yield self._event("response.output_text.delta", content_index=0, delta=text, logprobs=scores, **self._item)

    def _message(self) -> Iterator[_Event]:
        yield from self._close("completed")
        content: list[dict[str, Any]] = []
        yield from self._add({
            "id": _id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": content,
        })  # fmt: skip
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        content.append(part)
        yield self._event("response.content_part.added", content_index=0, part=part, **self._item)

    def _called(self, call: dict[str, Any]) -> Iterator[_Event]:
        """A call's beginning, with its id and name, or more of its arguments."""
        if "id" in call:
            yield from self._close("completed")
            self._scores = []  # text parts alone have a place for them
            yield from self._add({
                "id": _id("fc"), "type": "function_call", "status": "in_progress", "call_id": call["id"],
                "name": call["function"]["name"], "arguments": "",
            })  # fmt: skip
        if text := call["function"].get("arguments"):
            self._output[-1]["arguments"] += text
            yield self._event("response.function_call_arguments.delta", delta=text, **self._item)

    def _ended(self, status: str) -> Iterator[_Event]:
        if not self._output:  # an answer without a word is an answer all the same
            yield from self._message()
        yield from self._close(status)
        self._status = status

    def _add(self, item: dict[str, Any]) -> Iterator[_Event]:
        self._output.append(item)
        self._open = True
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _close(self, status: str) -> Iterator[_Event]:
        if not self._open:
            return
        self._open = False
        item = self._output[-1]
        if item["type"] == "message":
            part = item["content"][0]
            part["logprobs"] += self._scores
            self._scores = []
            yield self._event(
                "response.output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"], **self._item
            )
            yield self._event("response.content_part.done", content_index=0, part=part, **self._item)
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **done, **self._item)
        item["status"] = status
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    @property
    def _item(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _event(self, type: str, **fields: Any) -> _Event:
        self._sequence += 1
        return {"type": type, "sequence_number": self._sequence - 1, **fields}


def _usage(finish: Finish) -> dict[str, Any]:
    """OpenAI's token counts. What is read is kept for the next request, but nobody pays for the writing of a cache."""
    return {
        "input_tokens": finish.prompt_tokens,
        "input_tokens_details": {"cached_tokens": finish.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": finish.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": finish.prompt_tokens + finish.completion_tokens,
    }


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
