"""The engine as the rest of the program sees it: chat with any adapter, load and unload them, and survive.

The model lives in a child process (`serve.child.worker`), which `serve.engine.supervisor` keeps alive. Thread-safe. It
knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve.adapters.registry import Adapter, Base, Registry, vet_adapter, vet_base
from serve.adapters.vault import Vault
from serve.child.messages import (
    Answer,
    AskStats,
    Detokenize,
    Embed,
    Embeddings,
    Failed,
    Generate,
    Load,
    Open,
    Opened,
    Stats,
    Tokenize,
    Unload,
    is_segments,
)
from serve.engine.events import Sink, Ticket, event_of, iterated
from serve.engine.options import EngineOptions
from serve.engine.prompting import Prompt, TemplateOptions, chat_prompt, plain_prompt
from serve.engine.router import Route
from serve.engine.served import way_of
from serve.engine.supervisor import Call, Supervisor
from serve.engine.trial import Trials
from slm.chat.segments import Markers
from slm.errors import SlmError
from slm.joints import Finish, Message, SamplingOptions

_GREEDY = SamplingOptions()
_PLAIN = TemplateOptions()
_DEFAULTS = EngineOptions()


class Engine:
    """One base model with adapters (implements `slm.joints.ChatEngine`). Use `open_engine`, or call `close`."""

    def __init__(
        self,
        model: Path,
        adapters: Mapping[str, Path],
        *,
        name: str = "",
        default_adapter: str | None = None,
        options: EngineOptions = _DEFAULTS,
    ) -> None:
        """name: what the model is called, "" for its file's name."""
        self.default_adapter = default_adapter
        self.options = options
        self.context = 0
        self._markers = Markers()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._vault = Vault()
        self._child = Supervisor(self._prepare)
        try:
            self._child.spawn()
            self.base: Base = vet_base(model, name)
            self._registry = Registry(self.base)
            for called, path in adapters.items():
                self._registry.put(vet_adapter(called, path, self.base, vault=self._vault))
            if default_adapter is not None:
                self._registry.get(default_adapter)
            self._trials = Trials(self.base.path, {adapter.content for adapter in self._registry.all()})
            self._child.start()
        except BaseException:
            self.close()
            raise

    # --- asking ---------------------------------------------------------------------------------------------------

    def chat(
        self,
        messages: Sequence[Message],
        *,
        adapter: str | None = None,
        sampling: SamplingOptions = _GREEDY,
        fit: bool = False,
    ) -> Generator[str | Finish, None, None]:
        """Yield the answer piece by piece, then one Finish. Closing the iterator early cancels the request.

        adapter: a name, None or "base", or "auto". fit: let the answer end where the context ends instead of
        refusing a max_tokens that does not fit. Raises UnknownNameError, ContextOverflowError, EngineDiedError.
        """
        return iterated(lambda sink: self.begin_chat(messages, sink, adapter=adapter, sampling=sampling, fit=fit))

    def complete(
        self,
        text: str,
        *,
        adapter: str | None = None,
        sampling: SamplingOptions = _GREEDY,
        fit: bool = False,
    ) -> Generator[str | Finish, None, None]:
        """Continue a plain text, without a chat template; otherwise as `chat`."""
        return iterated(lambda sink: self.begin_complete(text, sink, adapter=adapter, sampling=sampling, fit=fit))

    def begin_chat(
        self,
        messages: Sequence[Message],
        sink: Sink,
        *,
        adapter: str | None = None,
        lora: Sequence[tuple[str, float]] | None = None,
        template: TemplateOptions = _PLAIN,
        sampling: SamplingOptions,
        fit: bool = False,
    ) -> Ticket:
        """Start an answer; `sink` gets str (or Scored) pieces, at last one Finish or SlmError, on the reader's thread.

        lora: adapters with their scales for this request alone, instead of `adapter`.
        """
        way = self.route(adapter, messages, lora=lora)
        return self._begin(way, lora, lambda a: self._chat_prompt(a, messages, template), sink, sampling, fit)

    def begin_complete(
        self,
        text: str | Sequence[int],
        sink: Sink,
        *,
        adapter: str | None = None,
        lora: Sequence[tuple[str, float]] | None = None,
        sampling: SamplingOptions,
        fit: bool = False,
    ) -> Ticket:
        """As `begin_chat` for a plain text or token ids."""
        shown = text if isinstance(text, str) else ""
        way = self.route(adapter, [Message(role="user", content=shown)], lora=lora)
        return self._begin(way, lora, lambda _: plain_prompt(self.base, text), sink, sampling, fit)

    def route(
        self,
        wanted: str | None,
        messages: Sequence[Message],
        *,
        lora: Sequence[tuple[str, float]] | None = None,
    ) -> Route:
        """Which adapter a conversation goes to, and why; `lora` decides where it is given. Raises UnknownNameError."""
        return way_of(self, wanted, messages, lora)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of a text; add_special: with BOS where the vocabulary has one. Markers like <|x|> are one token."""
        return self._tokens(replace(plain_prompt(self.base, text), add_special=add_special))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids. Raises InputError for an id outside the vocabulary."""
        return self._child.call(Detokenize(tuple(tokens))).text

    def begin_embed(
        self, texts: Sequence[str | Sequence[int]], sink: Callable[[Embeddings | SlmError], None], *, first: int = 0
    ) -> Ticket:
        """Start the embeddings of texts or token ids: means of the base's last hidden states, or the model's own
        pooling; each of length 1. `sink` gets them all, or one SlmError, which counts the texts from `first`, on the
        reader's thread.
        """

        def take(answer: Answer) -> None:
            if isinstance(answer, Embeddings):
                sink(answer)
            elif isinstance(answer, Failed):
                sink(answer.error)

        id = self._child.begin(Embed(tuple(t if isinstance(t, str) else tuple(t) for t in texts), first), take)
        return Ticket(Route(None, "embeddings are of the base"), lambda: self._child.cancel(id))

    def tokens_of(self, messages: Sequence[Message], *, adapter: str | None = None) -> list[int]:
        """The token ids the model would read for a conversation."""
        way = self.route(adapter, messages)
        return self._tokens(self._chat_prompt(self._named(way.adapter), messages))

    # --- adapters -------------------------------------------------------------------------------------------------

    def adapters(self) -> list[Adapter]:
        """The loaded adapters, in the order they were loaded."""
        with self._lock:
            return self._registry.all()

    def load_adapter(self, name: str, path: Path, *, scale: float = 1.0) -> Adapter:
        """Load an adapter, or replace the one of that name: requests under way end with what they began with.

        The file is vetted first, and tried in a process of its own; on any error (InputError, MismatchError,
        EngineError) nothing has changed.
        """
        with self._loading:
            adapter = vet_adapter(name, path, self.base, scale=scale, vault=self._vault)
            try:
                self._trials.check(adapter)
                self._child.call(Load(adapter.content, str(adapter.file)))
            except SlmError:
                adapter.file.unlink()
                raise
            with self._lock:
                old = next((a for a in self._registry.all() if a.name == name), None)
                self._registry.put(adapter)
            self._drop_unused(old)
            return adapter

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests under way end with it. Raises UnknownNameError, InputError for a reader's."""
        with self._loading:
            with self._lock:
                old = self._registry.remove(name)
            self._drop_unused(old)

    # --- state ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """starting, ready, down or closed."""
        return self._child.state

    @property
    def restarts(self) -> int:
        """How often the child process had to be started again."""
        return self._child.restarts

    @property
    def pid(self) -> int | None:
        """Process id of the child that holds the model."""
        return self._child.pid

    def stats(self) -> Stats:
        """What the child is doing."""
        return self._child.call(AskStats())

    def close(self) -> None:
        """End the child; requests in flight get an EngineError."""
        self._child.close()
        self._vault.close()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _prepare(self, call: Call) -> None:
        """Make a fresh child ready: the model, then the adapters, from the copies that were checked."""
        options = self.options
        folder = str(options.cache_folder) if options.cache_folder else ""
        identity = ""
        if folder:  # llama.cpp's own version shapes its states as well
            from importlib.metadata import version

            identity = f"{self.base.content}/{self.context or options.context}/{version('llama-cpp-python')}"
        opened = call(
            Open(
                str(self.base.path.resolve()), threads=options.threads, context=options.context,
                parallel=options.parallel, hot=options.hot, draft=options.draft, ends=self.base.ends,
                identity=identity, cache_bytes=options.cache_bytes, cache_folder=folder,
            )
        )  # fmt: skip
        self.context = opened.context
        self._markers = self._markers_of(opened)
        for adapter in self.adapters():
            call(Load(adapter.content, str(adapter.file)))

    def _markers_of(self, opened: Opened) -> Markers:
        """The model's special tokens as a fresh child names them; the same object while they are the same."""
        same = (opened.control, opened.added) == (self._markers.control, self._markers.added)
        return self._markers if same else Markers(opened.control, opened.added, self.base.marker_like)

    def _chat_prompt(
        self,
        adapter: Adapter | None,
        messages: Sequence[Message],
        template: TemplateOptions = _PLAIN,
    ) -> Prompt:
        return chat_prompt(self.base, adapter, messages, template, markers=self._markers)

    def _tokens(self, prompt: Prompt) -> list[int]:
        if not is_segments(prompt.content):
            return list(prompt.content)
        return list(self._child.call(Tokenize(prompt.content, prompt.add_special)).tokens)

    def _begin(
        self,
        way: Route,
        lora: Sequence[tuple[str, float]] | None,
        prompt_for: Callable[[Adapter | None], Prompt],
        sink: Sink,
        sampling: SamplingOptions,
        fit: bool,
    ) -> Ticket:
        named = [name for name, scale in lora if scale] if lora is not None else [way.adapter] if way.adapter else []
        prompt = prompt_for(self._named(named[0]) if named else None)
        options = replace(sampling, stop=(*sampling.stop, *prompt.stop))

        def order() -> Generate:
            return Generate(prompt.content, prompt.add_special, fit, self._pairs(named, lora or ()), options)

        def take(answer: Answer) -> None:
            if (event := event_of(answer, way)) is not None:
                sink(event)

        id = self._child.compute(order, take, _fingerprint(prompt.content, named, replace(options, seed=0)))
        return Ticket(way, lambda: self._child.cancel(id))

    def _pairs(self, named: Sequence[str], lora: Sequence[tuple[str, float]] = ()) -> tuple[tuple[str, float], ...]:
        """(content hash, scale) of adapters, asked for when an order is sent: a name may stand for newer content by
        then, which has to be the one that answers."""
        with self._lock:
            adapters = [self._registry.get(name) for name in named]
        scales = dict(lora)
        return tuple((a.content, scales.get(a.name, a.scale)) for a in adapters)

    def _named(self, name: str | None) -> Adapter | None:
        with self._lock:
            return self._registry.get(name) if name else None

    def _drop_unused(self, adapter: Adapter | None) -> None:
        with self._lock:
            unused = adapter is not None and not self._registry.uses(adapter.content)
        if unused and adapter:
            self._child.tell(Unload(adapter.content))
        if adapter:
            adapter.file.unlink(missing_ok=True)


@contextmanager
def open_engine(
    model: Path, adapters: Mapping[str, Path], *, name: str = "", default_adapter: str | None = None, **options: Any
) -> Iterator[Engine]:
    """An Engine that is closed at the end of the block; options: the fields of EngineOptions."""
    engine = Engine(model, adapters, name=name, default_adapter=default_adapter, options=EngineOptions(**options))
    try:
        yield engine
    finally:
        engine.close()


def _fingerprint(*parts: object) -> str:
    """What names a request to the supervisor: the same one when it is asked again."""
    return hashlib.sha256(ascii(parts).encode()).hexdigest()
