"""The engine as the rest of the program sees it: chat with any adapter, load and unload them, and survive.

The model lives in a child process (`serve.worker`); when it dies, requests in flight get an EngineDiedError,
another child is started with the same adapters, and serving goes on. Thread-safe. It knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import slm.errors
from serve.adapters import Adapter, Base, Registry, vet_adapter, vet_base
from serve.process import ChildProcess
from serve.prompting import Prompt, chat_prompt, plain_prompt
from serve.router import Route, route
from slm.console import note
from slm.errors import EngineDiedError, EngineError, SlmError
from slm.joints import Finish, Message, SamplingOptions, Scored, TokenScore

Event = str | Scored | Finish | SlmError
Sink = Callable[[Event], None]

_RESTARTS = 3  # a child that cannot even be started so often in a row stays down
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Ticket:
    """A request under way; `cancel` ends it before the engine's next step."""

    route: Route
    cancel: Callable[[], None]


@dataclass(frozen=True)
class _Pending:
    """Where the child's answers to one order go; `route` is set for generation."""

    take: Callable[[dict[str, Any] | SlmError], None]
    route: Route | None = None


class Engine:
    """One base model with adapters (implements `slm.joints.Engine`). Use `open_engine`, or call `close`."""

    def __init__(
        self,
        model: Path,
        adapters: Mapping[str, Path],
        *,
        threads: int = 0,
        context: int = 4096,
        parallel: int = 8,
        hot: int = 3,
        default_adapter: str | None = None,
    ) -> None:
        self.base: Base = vet_base(model)
        vetted = [vet_adapter(name, path, self.base) for name, path in adapters.items()]
        self.default_adapter = default_adapter
        self.context = 0
        self.restarts = 0
        self._options = {
            "model": str(model.resolve()), "threads": threads, "context": context, "parallel": parallel, "hot": hot,
        }  # fmt: skip
        self._registry = Registry(self.base)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._loading = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)
        self._child: ChildProcess | None = None
        self._state = "starting"  # starting | ready | down | closed
        self._why_down = ""
        try:
            self._begin(vetted)
            if default_adapter is not None:
                self._registry.get(default_adapter)
        except BaseException:
            self.close()
            raise

    # --- asking -------------------------------------------------------------------------------------------------

    def chat(
        self,
        messages: Sequence[Message],
        *,
        adapter: str | None = None,
        sampling: SamplingOptions = SamplingOptions(),  # noqa: B008 - frozen
        fit: bool = False,
    ) -> Generator[str | Finish, None, None]:
        """Yield the answer piece by piece, then one Finish. Closing the iterator early cancels the request.

        adapter: a name, None or "base", or "auto". fit: let the answer end where the context ends instead of
        refusing a max_tokens that does not fit. Raises UnknownNameError, ContextOverflowError, EngineDiedError.
        """
        return self._iterate(lambda sink: self.begin_chat(messages, sink, adapter=adapter, sampling=sampling, fit=fit))

    def complete(
        self,
        text: str,
        *,
        adapter: str | None = None,
        sampling: SamplingOptions = SamplingOptions(),  # noqa: B008 - frozen
        fit: bool = False,
    ) -> Generator[str | Finish, None, None]:
        """Continue a plain text, without a chat template; otherwise as `chat`."""
        return self._iterate(lambda sink: self.begin_complete(text, sink, adapter=adapter, sampling=sampling, fit=fit))

    def begin_chat(
        self,
        messages: Sequence[Message],
        sink: Sink,
        *,
        adapter: str | None = None,
        tools: Sequence[dict[str, Any]] = (),
        sampling: SamplingOptions,
        fit: bool = False,
    ) -> Ticket:
        """Start an answer; `sink` gets str (or Scored) pieces and at last a Finish or SlmError, on the reader's thread.

        tools: as OpenAI describes them, for the chat template.
        """
        way = self.route(adapter, messages)
        return self._begin_request(way, lambda a: chat_prompt(self.base, a, messages, tools), sink, sampling, fit)

    def begin_complete(
        self,
        text: str | Sequence[int],
        sink: Sink,
        *,
        adapter: str | None = None,
        sampling: SamplingOptions,
        fit: bool = False,
    ) -> Ticket:
        """As `begin_chat` for a plain text, or for token ids as they stand (which no language can be told from)."""
        way = self.route(adapter, [Message(role="user", content=text if isinstance(text, str) else "")])
        return self._begin_request(way, lambda _: plain_prompt(self.base, text), sink, sampling, fit)

    def route(self, wanted: str | None, messages: Sequence[Message]) -> Route:
        """Which adapter a conversation goes to, and why. Raises UnknownNameError."""
        known = {adapter.name: adapter.language for adapter in self.adapters()}
        return route(wanted, messages, known, base=self.base.name, default=self.default_adapter)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a text; add_special: with BOS where the vocabulary has one. Markers like <|x|> are one token."""
        answer = self._call({"op": "tokenize", "prompt": text, "add_special": add_special})
        return [int(token) for token in answer["tokens"]]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids. Raises InputError for an id outside the vocabulary."""
        return str(self._call({"op": "detokenize", "tokens": list(tokens)})["text"])

    def embed(self, text: str) -> tuple[list[float], int]:
        """The text's embedding (mean of the base's last hidden states, or the model's own pooling; length 1) and
        how many tokens it has. Raises ContextOverflowError."""
        answer = self._call({"op": "embed", "text": text})
        return answer["embedding"], int(answer["tokens"])

    def tokens_of(self, messages: Sequence[Message], *, adapter: str | None = None) -> list[int]:
        """The token ids the model would read for a conversation."""
        way = self.route(adapter, messages)
        chosen = self._adapter(way.adapter)
        prompt = chat_prompt(self.base, chosen, messages)
        answer = self._call({"op": "tokenize", "prompt": prompt.text, "add_special": prompt.add_special})
        return [int(token) for token in answer["tokens"]]

    # --- adapters -----------------------------------------------------------------------------------------------

    def adapters(self) -> list[Adapter]:
        """The loaded adapters, in the order they were loaded."""
        with self._lock:
            return self._registry.all()

    def load_adapter(self, name: str, path: Path, *, scale: float = 1.0) -> Adapter:
        """Load an adapter, or replace the one of that name: requests under way end with what they began with.

        The file is vetted first; on any error (InputError, MismatchError, EngineError) nothing has changed.
        """
        with self._loading:
            adapter = vet_adapter(name, path, self.base, scale=scale)
            self._call({"op": "load", "key": adapter.key, "path": str(adapter.path), "scale": scale})
            with self._lock:
                old = next((a for a in self._registry.all() if a.name == name), None)
                self._registry.put(adapter)
                self._drop_unused(old)
            return adapter

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests under way end with it. Raises UnknownNameError."""
        with self._loading, self._lock:
            self._drop_unused(self._registry.remove(name))

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """starting, ready, down or closed."""
        return self._state

    @property
    def pid(self) -> int | None:
        """Process id of the child that holds the model."""
        child = self._child
        return child.pid if child else None

    def stats(self) -> dict[str, Any]:
        """Running and waiting requests, open contexts and adapters (by key) in the child."""
        return self._call({"op": "stats"})

    def close(self) -> None:
        """End the child; requests in flight get an EngineError."""
        with self._lock:
            self._state = "closed"
            child, pending = self._child, list(self._pending.values())
            self._pending.clear()
            self._changed.notify_all()
        for item in pending:
            item.take(EngineError("the engine was closed"))
        if child:
            child.close()

    # --- inside -------------------------------------------------------------------------------------------------

    def _iterate(self, begin: Callable[[Sink], Ticket]) -> Generator[str | Finish, None, None]:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ticket = begin(events.put)
        try:
            while True:
                event = events.get()
                if isinstance(event, SlmError):
                    raise event
                yield event.text if isinstance(event, Scored) else event
                if isinstance(event, Finish):
                    return
        finally:
            ticket.cancel()

    def _begin_request(
        self,
        way: Route,
        prompt_for: Callable[[Adapter | None], Prompt],
        sink: Sink,
        sampling: SamplingOptions,
        fit: bool,
    ) -> Ticket:
        chosen = self._adapter(way.adapter)
        prompt = prompt_for(chosen)
        options = replace(sampling, stop=(*sampling.stop, *prompt.stop))

        def take(message: dict[str, Any] | SlmError) -> None:
            if isinstance(message, SlmError):
                sink(message)
            elif "scores" in message:
                sink(Scored(message["text"], tuple(_score_of(score) for score in message["scores"])))
            elif "text" in message:
                sink(message["text"])
            elif "finish" in message:
                sink(Finish(adapter=way.adapter, route_reason=way.reason, **message["finish"]))

        order = {
            "op": "generate", "prompt": prompt.text, "add_special": prompt.add_special, "fit": fit,
            "adapter": chosen.key if chosen else "", "sampling": asdict(options),
        }  # fmt: skip
        with self._lock:
            self._wait_ready()
            if chosen:
                # The name may stand for newer content by now, which has to be the one that answers.
                order["adapter"] = self._registry.get(chosen.name).key
            id = self._send(order, _Pending(take, way))
        return Ticket(way, lambda: self._cancel(id))

    def _cancel(self, id: int) -> None:
        with self._lock:
            if self._pending.pop(id, None) and self._child:
                self._child.send({"op": "cancel", "id": id})

    def _adapter(self, name: str | None) -> Adapter | None:
        with self._lock:
            return self._registry.get(name) if name else None

    def _drop_unused(self, adapter: Adapter | None) -> None:
        if adapter and not self._registry.uses(adapter.key) and self._child:
            self._child.send({"op": "unload", "id": 0, "key": adapter.key})

    def _wait_ready(self) -> None:
        """With the lock held: wait while the child is being restarted."""
        self._changed.wait_for(lambda: self._state != "starting", timeout=_PATIENCE_S)
        if self._state != "ready":
            raise EngineError(f"the engine is {self._state}", found=self._why_down)

    def _send(self, order: dict[str, Any], pending: _Pending) -> int:
        """With the lock held: register and write an order, so that a dying child cannot lose it unnoticed."""
        assert self._child is not None
        id = next(self._ids)
        self._pending[id] = pending
        self._child.send({**order, "id": id})
        return id

    def _call(self, order: dict[str, Any], *, starting: bool = False) -> dict[str, Any]:
        """Send an order and wait for its answer. Raises what the child answers, or EngineDiedError."""
        answers: queue.SimpleQueue[dict[str, Any] | SlmError] = queue.SimpleQueue()
        with self._lock:
            if not starting:
                self._wait_ready()
            elif self._state == "closed":
                raise EngineError("the engine was closed")
            self._send(order, _Pending(answers.put))
        answer = answers.get()
        if isinstance(answer, SlmError):
            raise answer
        return dict(answer["ok"])

    def _begin(self, adapters: Sequence[Adapter]) -> None:
        """Start a child, open the model in it, load the adapters; the state is 'ready' afterwards."""
        child = ChildProcess("serve.worker", self._on_message, self._on_exit)
        with self._lock:
            closed = self._state == "closed"
            self._child = child
        if closed:
            child.close()
            return
        try:
            opened = self._call({"op": "open", **self._options}, starting=True)
            self.context = int(opened["context"])
            for adapter in adapters:
                order = {"op": "load", "key": adapter.key, "path": str(adapter.path), "scale": adapter.scale}
                self._call(order, starting=True)
                with self._lock:
                    self._registry.put(adapter)
        except SlmError:
            child.close()
            raise
        with self._lock:
            if self._state == "starting":
                self._state = "ready"
            self._changed.notify_all()

    def _on_message(self, child: ChildProcess, message: dict[str, Any]) -> None:
        final = "text" not in message
        with self._lock:
            get = self._pending.pop if final else self._pending.get
            pending = get(message["id"], None) if child is self._child else None
        if pending is not None:
            pending.take(_error_of(message["error"]) if "error" in message else message)

    def _on_exit(self, child: ChildProcess) -> None:
        with self._lock:
            if child is not self._child or self._state == "closed":
                return
            was_ready = self._state == "ready"
            self._state = "starting"
            lost = list(self._pending.values())
            self._pending.clear()
        epitaph = child.epitaph()
        child.close()
        for item in lost:
            hint = "It is being restarted; ask again." if was_ready else ""
            item.take(EngineDiedError("the inference process ended unexpectedly", found=epitaph, hint=hint))
        if was_ready:
            threading.Thread(target=self._restart, args=(epitaph,), daemon=True).start()

    def _restart(self, epitaph: str) -> None:
        self.restarts += 1
        note(f"the engine ended ({epitaph}); starting it again")
        for _ in range(_RESTARTS):
            with contextlib.suppress(SlmError):
                self._begin(self._still_sound())
                return
        with self._lock:
            if self._state == "starting":
                self._state, self._why_down = "down", epitaph
            self._changed.notify_all()

    def _still_sound(self) -> list[Adapter]:
        """The adapters to load again; their files may have changed since, or be gone: those are named and left out."""
        sound = []
        for adapter in self.adapters():
            try:
                sound.append(vet_adapter(adapter.name, adapter.path, self.base, scale=adapter.scale))
            except SlmError as error:
                note(f"the adapter '{adapter.name}' is not loaded again: {error}")
                with self._lock:
                    self._registry.remove(adapter.name)
        return sound


@contextmanager
def open_engine(
    model: Path,
    adapters: Mapping[str, Path],
    *,
    threads: int = 0,
    context: int = 4096,
    parallel: int = 8,
    hot: int = 3,
    default_adapter: str | None = None,
) -> Iterator[Engine]:
    """An Engine that is closed at the end of the block.

    threads: 0 for the physical cores. context: tokens of a request, at most what the model was trained for, and
    the KV cells its adapter's requests share. parallel: requests at once per adapter. hot: contexts kept open.
    """
    engine = Engine(
        model, adapters, threads=threads, context=context, parallel=parallel, hot=hot, default_adapter=default_adapter
    )
    try:
        yield engine
    finally:
        engine.close()


def _score_of(fields: list[Any]) -> TokenScore:
    token, piece, logprob, top = fields
    return TokenScore(token, piece.encode("latin-1"), logprob, tuple((t, p.encode("latin-1"), v) for t, p, v in top))


def _error_of(fields: dict[str, str]) -> SlmError:
    kind = getattr(slm.errors, fields["type"], EngineError)
    if kind is slm.errors.UnknownNameError or not issubclass(kind, SlmError):
        kind = EngineError
    error = kind(fields["what"], found=fields["found"], hint=fields["hint"])
    assert isinstance(error, SlmError)
    return error
