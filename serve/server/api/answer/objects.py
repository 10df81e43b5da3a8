"""Answers as OpenAI writes them, streamed or whole, from what the engine yields. It knows nothing of HTTP.

A `Choice` follows one run of the engine; a `Completion` puts the choices of one request into one body or its events.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from serve.server.api.answer.calls import CallStream
from slm.joints import Finish, Grounded, Scored, TokenScore

_LEAST_LOGPROB = -9999.0  # OpenAI's figure for what is as good as impossible; JSON has no infinity


class Choice:
    """One of the answers to a request: what was said, called and scored so far.

    chat: OpenAI's newer shape. grounded: the text passes through its citations. calls: it may hold calls.
    """

    def __init__(self, index: int, *, chat: bool, grounded: Grounded | None = None, calls: bool = False) -> None:
        self.index = index
        self.finish: Finish | None = None
        self._chat = chat
        self._grounded = grounded
        self._calls = CallStream() if calls else None
        self._text: list[str] = []
        self._scores: list[TokenScore] = []
        self._scored = False
        self._offset = 0

    def first(self) -> dict[str, Any]:
        """What opens a stream of chat."""
        return self._part({"role": "assistant", "content": ""})

    def take(self, event: str | Scored | Finish) -> Iterator[dict[str, Any]]:
        """What this event adds, as entries for the `choices` of a stream."""
        if isinstance(event, Finish):
            self.finish = event
            yield from map(self._part, self._rest(cut=event.reason == "length"))
            yield self._part({}, reason=self.reason)
            return
        text, scores = (event.text, event.tokens) if isinstance(event, Scored) else (event, ())
        self._scored = self._scored or bool(scores)
        deltas = self._deltas(text)
        if scores and not deltas:
            deltas = [{"content": ""}]
        for number, delta in enumerate(deltas):
            yield self._part(delta, self._logprobs(scores) if scores and number == 0 else None)
        self._scores += scores

    def whole(self) -> dict[str, Any]:
        """The entry for the `choices` of a whole answer."""
        text = "".join(self._text)
        what: dict[str, Any] = {"text": text}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if self._calls and self._calls.calls:
                message |= {"content": text or None, "tool_calls": [call.plain() for call in self._calls.calls]}
            what = {"message": message}
        self._offset = 0
        logprobs = self._logprobs(self._scores) if self._scored else None
        return {"index": self.index, **what, "logprobs": logprobs, "finish_reason": self.reason}

    @property
    def reason(self) -> str:
        """OpenAI's finish_reason."""
        if self.finish is None:
            raise RuntimeError("the answer has no end yet")
        if self.finish.reason == "stop" and self._calls and self._calls.calls:
            return "tool_calls"
        return self.finish.reason

    def _deltas(self, text: str) -> list[dict[str, Any]]:
        if self._grounded:
            text = self._grounded.citations.feed(text)
        deltas = self._calls.feed(text) if self._calls else [{"content": text}] if text else []
        return self._remember(deltas)

    def _rest(self, *, cut: bool) -> list[dict[str, Any]]:
        text = self._grounded.citations.end() if self._grounded else ""
        deltas = self._calls.flush(cut=cut) if self._calls else [{"content": text}] if text else []
        return self._remember(deltas)

    def _remember(self, deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self._text += [delta["content"] for delta in deltas if "content" in delta]
        return deltas

    def _part(self, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        what = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        return {"index": self.index, **what, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        if self._chat:
            rows = []
            for score in scores:
                top = [_scored(piece, logprob) for _, piece, logprob in score.top]
                rows.append({**_scored(score.piece, score.logprob), "top_logprobs": top})
            return {"content": rows, "refusal": None}
        body: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for score in scores:
            shown = _shown(score.piece)
            body["tokens"].append(shown)
            body["token_logprobs"].append(max(score.logprob, _LEAST_LOGPROB))
            body["top_logprobs"].append({_shown(p): max(v, _LEAST_LOGPROB) for _, p, v in score.top})
            body["text_offset"].append(self._offset)
            self._offset += len(shown)
        return body


class Completion:
    """The objects around the choices of one request; `chat` chooses between OpenAI's two shapes."""

    def __init__(
        self, *, chat: bool, model: str, adapter: str | None, reason: str, not_enforced: Sequence[str] = ()
    ) -> None:
        """not_enforced: what the request's schemas say and the answer was not held to."""
        self.chat = chat
        loose = {"not_enforced": list(not_enforced)} if not_enforced else {}
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
            "slm": {"adapter": adapter, "route_reason": reason, **loose},
        }

    @property
    def about(self) -> dict[str, Any]:
        """Who answers, and why."""
        return {"model": self._head["model"], "slm": self._head["slm"]}

    def whole(self, choices: Sequence[Choice], prompts: int, citations: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer that was not streamed. prompts: how many different ones there were."""
        finishes = [choice.finish for choice in choices if choice.finish]
        body = {**self._head, "object": "chat.completion" if self.chat else "text_completion"}
        rows = [choice.whole() for choice in choices]
        return {
            **body,
            "choices": rows,
            "usage": usage(finishes, prompts),
            "timings": finishes[0].timings(),
            **citations,
        }

    def chunk(self, part: dict[str, Any], citations: dict[str, Any] | None = None) -> dict[str, Any]:
        """One event of a streamed answer."""
        return {**self._head, "object": self._chunk_object, "choices": [part], **(citations or {})}

    def usage_chunk(self, choices: Sequence[Choice], prompts: int) -> dict[str, Any]:
        """The last event, when stream_options.include_usage asks for it."""
        finishes = [choice.finish for choice in choices if choice.finish]
        return {**self._head, "object": self._chunk_object, "choices": [], "usage": usage(finishes, prompts)}

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"


def citations_of(grounded: Grounded | None, quotes: Sequence[str] = ()) -> dict[str, Any]:
    """The passages an answer was given and which of them it cites so far; with their quotes when these are there."""
    if grounded is None:
        return {}
    cited = grounded.citations.cited
    rows = [{"number": n, "cited": n in cited, **asdict(p)} for n, p in enumerate(grounded.passages, 1)]
    return {"citations": [{**row, "quote": quote} for row, quote in zip(rows, quotes, strict=True)] if quotes else rows}


def usage(finishes: Sequence[Finish], prompts: int = 1) -> dict[str, Any]:
    """OpenAI's token counts: every prompt once, however many answers it has; those of one prompt follow each other."""
    firsts = finishes[:: max(1, len(finishes) // prompts)]
    read, made = sum(f.prompt_tokens for f in firsts), sum(f.completion_tokens for f in finishes)
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
        "prompt_tokens_details": {"cached_tokens": sum(f.cached_tokens for f in firsts)},
    }


def _scored(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _shown(piece), "logprob": max(logprob, _LEAST_LOGPROB), "bytes": list(piece)}


def _shown(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")
