"""What the server lets in: keys, hosts and origins, sizes, and how many requests at once.

Pure decisions over plain data. It knows nothing of sockets, of ASGI or of the engine; `serve.server.middleware` asks
it about every request, `serve.server.connection` about every connection. Refusals have OpenAI's error shape.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import time
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm.errors import InputError, UnsupportedError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
GENERATION = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"})
_PROMPTS = ("messages", "prompt", "input", "content", "tokens")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
# Characters for each token of the context. English has 4 to 5 a token and code with wide indentation up to about 16,
# so what is longer cannot fit, and the tokenizer need not read it to know.
_CHARACTERS_PER_TOKEN = 32
# What --max-n may be at most, and the answers of one request with several prompts.
MAX_ANSWERS = 128
# A JSON value costs Python up to 64 bytes where the text has two ("[],"): so many are enough for any sound request.
_MOST_VALUES = 500_000
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:\[\]@/?#]+?)\.?)(?::\d*)?")
_HEAD_BYTES, _HEADERS = 16_384, 100


@dataclass(frozen=True)
class Refusal:
    """An answer to a request that goes no further."""

    status: int
    message: str
    code: str
    kind: str = "invalid_request_error"
    param: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def content(self) -> bytes:
        """OpenAI's error object as JSON."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode()

    def head(self, *, close: bool = False) -> list[tuple[bytes, bytes]]:
        """The headers of the answer. close: the connection ends with it."""
        pairs = [("content-type", "application/json"), ("content-length", str(len(self.content()))), *self.headers]
        pairs += [("connection", "close")] if close else []
        return [(name.encode(), value.encode()) for name, value in pairs]


@dataclass(frozen=True)
class Limits:
    """Sizes and times that hold for every client.

    body_bytes: a request's body. prompt_characters: its text (0: by the context). choices: the most `n`. queue:
    requests that run or wait. request_s: from the body's last byte to the answer's (0: no limit). read_s: for a
    request's head, and for its body. idle_s: a connection between two requests. connections: open at once.
    """

    body_bytes: int = 10_000_000
    prompt_characters: int = 0
    choices: int = 8
    queue: int = 512
    request_s: float = 600.0
    read_s: float = 30.0
    idle_s: float = 75.0
    connections: int = 512

    def characters(self, context: int) -> int:
        """The longest prompt in characters for a context of so many tokens."""
        return self.prompt_characters or _CHARACTERS_PER_TOKEN * context


class Keys:
    """The API keys of a server; without any, everybody is let in. Its repr shows none of them.

    digests: SHA-256 of more keys, as `digests` gives them: enough to admit a client, and no key.
    """

    def __init__(self, keys: Iterable[str] = (), digests: Iterable[str] = ()) -> None:
        self._keys = tuple(keys)
        told = tuple(bytes.fromhex(digest) for digest in digests)
        self._digests = (*(hashlib.sha256(key.encode()).digest() for key in self._keys), *told)

    def __bool__(self) -> bool:
        return bool(self._digests)

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each key in hexadecimal digits."""
        return tuple(digest.hex() for digest in self._digests)

    def single(self) -> str | None:
        """The key for a server that takes at most one. Raises UnsupportedError for more."""
        if len(self._keys) > 1:
            raise UnsupportedError("this engine takes one API key", found=str(len(self._keys)))
        return self._keys[0] if self._keys else None

    def admit(self, authorization: bytes) -> bool:
        """Whether an Authorization header carries one of the keys.

        Digests of equal length are compared, all of them: the time taken tells neither a key's length nor which one
        was nearest.
        """
        if not self._digests:
            return True
        scheme, _, given = authorization.strip().partition(b" ")
        digest = hashlib.sha256(given.strip()).digest()
        right = False
        for known in self._digests:
            right |= hmac.compare_digest(digest, known)
        return right and scheme.lower() == b"bearer"


def keys_of_text(text: str, source: str) -> tuple[str, ...]:
    """The keys of a key file: one a line; `#` begins a comment line. Raises InputError: none, or spaces in one."""
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InputError(f"'{source}' holds no API key", hint="Write one key a line.")
    for number, key in enumerate(lines, 1):
        if key in keys and any(char.isspace() for char in key):
            raise InputError(f"line {number} of '{source}' is no API key: it has spaces in it")
    return keys


@dataclass(frozen=True)
class Policy:
    """Everything that decides whether a request is let in.

    hosts: names that the Host header may carry (None: any). origins: web pages of other origins that may use the
    server, like "https://chat.example.com". open_paths: what needs no key.
    """

    keys: Keys = field(default_factory=Keys)
    limits: Limits = Limits()
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    open_paths: frozenset[str] = frozenset({"/health"})
    access_log: bool = False


def refuse_size(target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
    """Judge a head by its size: h11 holds it to 16 kB only while it is incomplete."""
    size = len(target) + sum(len(name) + len(value) for name, value in headers)
    if size > _HEAD_BYTES or len(headers) > _HEADERS:
        message = f"the request's head is larger than {_HEAD_BYTES:,} bytes or {_HEADERS} headers"
        return Refusal(431, message, "head_too_large")
    return None


def refuse_head(method: str, path: str, headers: Mapping[bytes, bytes], policy: Policy) -> Refusal | None:
    """Judge a request by its head. headers: names in lower case. None lets it in."""
    host = headers.get(b"host", b"").decode("latin-1")
    if host and policy.hosts is not None and host_name(host) not in policy.hosts:
        # A page whose own name was made to point here (DNS rebinding) still sends that name.
        message = f"this server does not answer for the host '{host[:80]}'"
        return Refusal(421, f"{message}. Start it with --allow-host {host_name(host)[:80]}", "host_not_allowed")
    origin = headers.get(b"origin", b"").decode("latin-1")
    if origin and method not in _READING and not _same_origin(origin, host) and origin.lower() not in policy.origins:
        message = f"web pages of '{origin[:80]}' may not use this server"
        return Refusal(403, f"{message}. Start it with --cors-origin ORIGIN to allow them", "origin_not_allowed")
    if path not in policy.open_paths and not policy.keys.admit(headers.get(b"authorization", b"")):
        return Refusal(
            401, "a valid API key is needed", "invalid_api_key", "authentication_error",
            headers=(("www-authenticate", "Bearer"),),
        )  # fmt: skip
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if method in ("POST", "PUT", "PATCH") and kind != b"application/json":
        # Forms and plain text are what any page may send anywhere without being asked.
        found = f" (found: {kind.decode('latin-1')[:80]})" if kind else ""
        return Refusal(
            415, f"the body has to be JSON{found}. Send 'Content-Type: application/json'", "unsupported_media_type"
        )
    coding = headers.get(b"content-encoding", b"").strip().lower()
    if method not in _READING and coding not in (b"", b"identity"):
        # A few kB could unpack to more than any limit below, so nothing is unpacked.
        found = coding.decode("latin-1")[:80]
        message = f"a body with 'Content-Encoding: {found}' is not unpacked. Send it as it is, without Content-Encoding"
        return Refusal(415, message, "unsupported_content_encoding", headers=(("accept-encoding", "identity"),))
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length[:20]) > policy.limits.body_bytes:
        return too_large(policy.limits)
    return None


def host_name(host: str) -> str:
    """A Host header's name without port, brackets, capitals and trailing dot; "" for what is no host (RFC 3986)."""
    match = _HOST.fullmatch(host.strip().lower())
    return (match[1] or match[2]) if match else ""


def _same_origin(origin: str, host: str) -> bool:
    """Whether a page came from this server. The scheme may differ: TLS may end in front of it."""
    return bool(host) and origin.lower().partition("://")[2] == host.lower()


def too_large(limits: Limits) -> Refusal:
    """For a body over the limit."""
    return Refusal(413, f"the body is larger than {limits.body_bytes:,} bytes", "body_too_large")


def too_slow(what: str, seconds: float) -> Refusal:
    """For a head or a body that did not arrive in time."""
    return Refusal(408, f"the request's {what} did not arrive within {seconds:g} s", "request_timeout", "timeout_error")


def took_too_long(seconds: float) -> Refusal:
    """For an answer that was not done in time."""
    return Refusal(504, f"the answer was not done within {seconds:g} s", "answer_timeout", "timeout_error")


def refuse_values(body: bytes | bytearray) -> Refusal | None:
    """Judge a body before it is parsed, by its encoding and by how many values it can hold."""
    if body[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) or b"\0" in body[:4]:  # RFC 4627: JSON begins with two of ASCII
        return Refusal(400, "the body is UTF-16 or UTF-32. Send UTF-8", "invalid_request")
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _MOST_VALUES:
        return Refusal(413, f"the body holds more than {_MOST_VALUES:,} values", "body_too_large")
    return None


def not_json(error: ValueError) -> str:
    """What is wrong with a text that `pydantic_core.from_json` does not read; its depth is no fault of the JSON."""
    said = str(error)
    if said.startswith("recursion limit exceeded"):
        return "is nested too deep: at most 200 levels are read"
    return f"is not valid JSON: {said[:200]}"


def refuse_body(value: Any, limits: Limits, context: int) -> Refusal | None:
    """Judge a parsed body: the length of its texts, `n`, and numbers that are none."""
    characters, finite = _measure(value)
    if not finite:
        return Refusal(400, "the body holds a number that is too large", "invalid_request")
    if characters > limits.characters(context):
        found = f"the prompt has {characters:,} characters; the context holds {context:,} tokens"
        message = f"{found}, and at most {limits.characters(context):,} characters are read. Shorten it"
        field = next((name for name in _PROMPTS if isinstance(value, dict) and name in value), None)
        return Refusal(400, message, "context_length_exceeded", param=field)
    if not isinstance(value, dict):
        return None
    n = _asked_n(value)
    if n > limits.choices:
        return Refusal(400, f"n is {n:,}; at most {limits.choices} answers are given", "invalid_value", param="n")
    return None


def _measure(value: Any) -> tuple[int, bool]:
    """(characters of a body, whether every number is finite).

    In a conversation (messages, or items as input) every string counts, because all of it is read as one prompt;
    otherwise the longest one, because a list of texts is a list of prompts. A list of token ids counts as a text of
    that length.
    """
    items = value.get("input") if isinstance(value, dict) else None
    one_prompt = isinstance(value, dict) and ("messages" in value or _holds_objects(items))
    total = longest = 0
    finite = True
    todo = [value]
    while todo:
        item = todo.pop()
        size = 0
        if isinstance(item, str):
            size = len(item)
        elif isinstance(item, dict):
            todo += item.values()
            size = sum(map(len, item)) if one_prompt else 0
        elif isinstance(item, list):
            todo += item
            size = len(item) if item and isinstance(item[0], int) else 0
        elif isinstance(item, float):
            finite = finite and math.isfinite(item)
        total += size
        longest = max(longest, size)
    return (total if one_prompt else longest), finite


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def answers_asked(value: Any) -> int:
    """How many answers a sound body asks for: `n` for each of its prompts."""
    if not isinstance(value, dict):
        return 1
    prompt = value.get("prompt")
    many = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return max(1, _asked_n(value)) * many


def _asked_n(value: Mapping[str, Any]) -> int:
    """`n` of a body, 2.0 as 2; 1 for what is no number, which is refused where the fields are read."""
    n = value.get("n")
    return int(n) if isinstance(n, int) or (isinstance(n, float) and n.is_integer()) else 1


class Queue:
    """How many answers are under way, running or waiting for the engine; refuses what is over the limit.

    One thread uses it. clock: monotonic seconds.
    """

    _WINDOW_S = 60.0

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.inside = 0
        self._clock = clock
        self._ended: deque[float] = deque(maxlen=4096)
        self._refused: deque[float] = deque(maxlen=4096)

    def enter(self, answers: int = 1) -> Refusal | None:
        """Take `answers` places, or say when to come again. More than the limit count as the limit."""
        if self.inside + min(answers, self.limit) <= self.limit:
            self.inside += min(answers, self.limit)
            return None
        wait = self.retry_after_s()
        self._refused.append(self._clock())
        message = f"{self.inside} answers are under way, which is all this server takes on. Try again in {wait} s"
        return Refusal(429, message, "queue_full", "rate_limit_error", headers=(("retry-after", str(wait)),))

    def leave(self, answers: int = 1) -> None:
        """Give the places back."""
        self.inside -= min(answers, self.limit)
        self._ended += [self._clock()] * min(answers, self.limit)

    def retry_after_s(self) -> int:
        """Seconds until a place is likely free: after those that were refused lately, at the recent rate; 1 to 120."""
        now = self._clock()
        for times in (self._ended, self._refused):
            while times and now - times[0] > self._WINDOW_S:
                times.popleft()
        if not self._ended:
            return 10
        rate = len(self._ended) / max(1.0, now - self._ended[0])
        ahead = sum(1 for then in self._refused if now - then < 10) + 1
        return max(1, min(120, math.ceil(ahead / rate)))
