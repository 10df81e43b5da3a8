"""A server that speaks OpenAI's API, as somebody to talk to: `slm serve`, llama-server, or any other.

Only what such servers have in common is asked for. /props and /tokenize are llama-server's and ours; where they are
missing, the size of the context is unknown and nothing is left out of a conversation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import httpx

from serve.engine.router import Route
from slm.errors import EngineError, InputError, SlmError, UnknownNameError
from slm.joints import Finish, Message, SamplingOptions

_DEFAULTS = SamplingOptions()
_TOKENS_AROUND_A_TURN = 8
# Fields that are not OpenAI's are sent only where the user chose a value.
_OWN_FIELDS = ("top_k", "min_p", "repeat_penalty", "seed")
_DONE: dict[str, Any] = {}
_HINT = "Start one with slm serve MODEL, or see whether the address is right."


class RemoteTalker:
    """The server at `url` (with or without /v1). key: for Authorization, "" for none. Close it."""

    def __init__(self, url: str, key: str = "", model: str = "") -> None:
        """model: its name there, "" for the first one. Raises InputError, EngineError, UnknownNameError."""
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"'{url}' is no address of a server", hint="Give one like http://127.0.0.1:8080")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # An answer may take minutes to begin; Ctrl-C stops it.
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(None, connect=10.0))
        try:
            self._rows = [row for row in self._get("/v1/models")["data"] if isinstance(row, dict) and "id" in row]
            self._base = self._base_of(model)
            self._context = self._context_of()
            self._routes = any("retrieval" in row for row in self._rows)
        except (KeyError, TypeError, ValueError) as error:
            self.close()
            raise EngineError(f"'{self.url}' does not speak OpenAI's API: /v1/models", hint=_HINT) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    @property
    def name(self) -> str:
        return self._base

    @property
    def context(self) -> int:
        return self._context

    def adapters(self) -> list[tuple[str, str]]:
        return [(str(r["id"]), str(r.get("language") or "")) for r in self._rows if r["id"] != self._base]

    def route(self, wanted: str, messages: Sequence[Message]) -> Route:
        if wanted in ("base", self._base):
            return Route(self._base, "")
        if wanted == "auto":  # only ours chooses by language
            return Route("auto" if self._routes else self._base, "")
        names = [str(row["id"]) for row in self._rows]
        if wanted not in names and "=" in wanted:
            raise InputError(
                f"a server has its own adapters: '{wanted}' is not loaded from here",
                hint="There: slm serve MODEL --adapter NAME=FILE",
            )
        if wanted not in names:
            raise UnknownNameError("model or adapter", wanted, [*names, "base", "auto"])
        return Route(wanted, "")

    def chat(
        self, messages: Sequence[Message], adapter: str | None, sampling: SamplingOptions
    ) -> Generator[str | Finish, None, None]:
        own = {name: value for name in _OWN_FIELDS if (value := getattr(sampling, name)) != getattr(_DEFAULTS, name)}
        body = {
            "model": adapter or self._base, "messages": list(messages), "stream": True,
            "stream_options": {"include_usage": True}, "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature, "top_p": sampling.top_p, **own,
        }  # fmt: skip
        began = time.perf_counter()
        first, reason, pieces = 0.0, "", 0
        who: dict[str, Any] = {}
        usage: dict[str, Any] = {}
        try:
            with self._client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refusal(response)
                for event in _events(response):
                    if event is _DONE:
                        reason = reason or "stop"
                        break
                    if "error" in event:
                        raise EngineError(f"the server broke off: {_message(event)}")
                    who = {"model": event.get("model"), **(event.get("slm") or {})}
                    usage = event.get("usage") or usage
                    for choice in event.get("choices") or []:
                        reason = choice.get("finish_reason") or reason
                        if text := (choice.get("delta") or {}).get("content"):
                            first = first or time.perf_counter()
                            pieces += 1
                            yield text
        except httpx.HTTPError as error:
            raise (_broken_off(error) if first else self._unreachable(error)) from error
        if not reason:  # the connection is closed, and nothing has said that this is the end
            raise _broken_off("the connection was closed")
        ended = time.perf_counter()
        yield Finish(
            reason, who.get("adapter", who.get("model")), str(who.get("route_reason") or ""),
            int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or pieces),
            (first or ended) - began, ended - (first or ended),
        )  # fmt: skip

    def count(self, messages: Sequence[Message], adapter: str | None) -> int:
        text = "\n".join(message["content"] for message in messages)
        try:
            response = self._client.post(f"{self.url}/tokenize", json={"content": text})
            tokens = len(response.json()["tokens"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            tokens = len(text.encode()) // 3  # a byte-pair token has about four Latin letters, or a Japanese one
        return tokens + _TOKENS_AROUND_A_TURN * len(messages)

    def _base_of(self, model: str) -> str:
        names = [str(row["id"]) for row in self._rows]
        if model and model not in names:
            raise UnknownNameError("model", model, names)
        if not names:
            raise EngineError(f"the server '{self.url}' has no model", hint=_HINT)
        return model or names[0]

    def _context_of(self) -> int:
        row = next(row for row in self._rows if row["id"] == self._base)
        for size in (row.get("context"), row.get("max_model_len"), row.get("context_length")):
            if isinstance(size, int):
                return size
        try:
            return int(self._get("/props")["default_generation_settings"]["n_ctx"])
        except (SlmError, KeyError, TypeError, ValueError):
            return 0

    def _get(self, path: str) -> Any:
        try:
            response = self._client.get(self.url + path, timeout=30.0)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if response.status_code >= 400:
            raise _refusal(response)
        return response.json()

    def _unreachable(self, error: Exception) -> EngineError:
        what = str(error) or type(error).__name__
        return EngineError(f"the server '{self.url}' cannot be reached: {what}", hint=_HINT)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Server-sent events with JSON, up to [DONE], which is `_DONE`."""
    for line in response.iter_lines():
        field, _, data = line.partition(":")
        if field != "data":
            continue
        if data.strip() == "[DONE]":
            yield _DONE
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise EngineError("the server sent what is no JSON", found=data[:80]) from error
        if isinstance(event, dict):
            yield event


def _broken_off(what: object) -> EngineError:
    return EngineError(f"the server broke off: {what}", hint="What it had said is kept; /retry asks again.")


def _refusal(response: httpx.Response) -> SlmError:
    try:
        message = _message(response.json())
    except ValueError:
        message = " ".join(response.text.split())[:200]
    hint = "Name the variable that holds its key: --api-key-env VAR." if response.status_code in (401, 403) else ""
    return EngineError(f"the server refused with {response.status_code}: {message}", hint=hint)


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
