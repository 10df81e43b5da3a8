"""The engine's child process: one model, many adapters, orders in and answers out (`python -m serve.child.worker`).

What is said is in `serve.child.messages`, a line each. It knows adapters by the hash of their content, never by name,
and nothing of HTTP, languages or chat templates. llama.cpp may abort this process; the parent
(`serve.engine.supervisor`) then starts another.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from serve.child.adapters import key_of
from serve.child.cells.store import PrefixStore
from serve.child.choice.sampling import Sampler, Vocabulary, vocabulary_of
from serve.child.contexts import LaneContext
from serve.child.embedding import EmbeddingWorker
from serve.child.lanes import AnswerSink, Lanes
from serve.child.messages import (
    Answer,
    AnyOrder,
    AskStats,
    Cancel,
    Detokenize,
    Done,
    Embed,
    Failed,
    Generate,
    Load,
    Open,
    Opened,
    Text,
    Tokenize,
    Tokens,
    Unload,
    is_segments,
)
from serve.child.slots import Request
from serve.child.spelling.lines import answer_line, read_order
from serve.child.spelling.tokens import checked, prompt_tokens
from slm.errors import ContextOverflowError, EngineError, InputError, SlmError
from slm.native.llama import fast_attention, library, open_adapter, open_model, physical_cores, token_bytes

Orders = queue.SimpleQueue[tuple[int, AnyOrder] | None]  # None: there will be no more
# The interpreter gives a waiting thread its turn after this long; the default of 5 ms is half a token's time.
_SWITCH_S = 0.0005


class Replies:
    """Lines for the parent, written with one flush a step (implements `serve.child.lanes.AnswerSink`)."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._lock = out, threading.Lock()
        self._lines: list[str] = []

    def add(self, request: int, answer: Answer) -> None:
        line = answer_line(request, answer)
        with self._lock:
            self._lines.append(line)

    def flush(self) -> None:
        with self._lock:
            if self._lines:
                self._out.write("\n".join(self._lines) + "\n")
                self._out.flush()
                self._lines.clear()


@dataclass(frozen=True)
class Model:
    """An open model, and what answers with it. context: tokens of a prompt with its answer."""

    handle: Any
    vocabulary: Vocabulary
    context: int
    lanes: Lanes
    embedder: EmbeddingWorker

    def prompt(self, order: Generate) -> list[int]:
        """The token ids of a prompt. Raises InputError for one that is empty, or has ids of another vocabulary."""
        if is_segments(order.prompt):
            prompt = prompt_tokens(self.handle, order.prompt, order.add_special)
        else:
            prompt = checked(order.prompt, self.vocabulary.size)
        if not prompt:
            raise InputError("the prompt is empty")
        return prompt

    def request(self, id: int, order: Generate) -> Request:
        """What the lanes are to do. Raises ContextOverflowError, or what `Sampler` raises."""
        prompt, options = self.prompt(order), order.sampling
        room = self.context - len(prompt)
        if room < 1 or (options.max_tokens > room and not order.fit):
            answer = "" if order.fit else f" and the answer may take {options.max_tokens:,}"
            raise ContextOverflowError(
                f"the prompt has {len(prompt):,} tokens{answer}; the context holds {self.context:,}",
                hint="Shorten the conversation, ask for fewer tokens, or start with a larger --context.",
            )
        if options.min_tokens > room:
            raise ContextOverflowError(
                f"min_tokens is {options.min_tokens:,}; a prompt of {len(prompt):,} tokens leaves room for {room:,}",
                hint="Shorten the conversation, ask for fewer tokens, or start with a larger --context.",
            )
        options = replace(options, max_tokens=max(1, min(options.max_tokens, room)))
        return Request(id, key_of(order.lora), prompt, options, Sampler(options, prompt, self.vocabulary))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of token ids, control tokens by their names. Raises InputError for an id that is none."""
        pieces = (token_bytes(self.handle, token, special=True) for token in checked(tokens, self.vocabulary.size))
        return b"".join(pieces).decode("utf-8", "replace")


def open_served(stack: ExitStack, order: Open, sink: AnswerSink) -> tuple[Model, Opened]:
    """The model of an order, served until the stack is closed, and what there is to tell of it."""
    model = open_model(stack, Path(order.model))
    vocabulary = vocabulary_of(model, order.ends)
    trained = int(library().llama_model_n_ctx_train(model))
    context = min(order.context, trained) if trained > 0 else order.context
    folder = Path(order.cache_folder) if order.cache_folder else None
    shape = "+attention" if fast_attention() else ""  # values lie otherwise in the cells then
    store = PrefixStore(order.identity + shape, budget=order.cache_bytes, folder=folder)

    def open_context(threads: int) -> LaneContext:
        return LaneContext(
            model, vocabulary, store, cells=context, parallel=order.parallel, threads=threads, draft=order.draft
        )

    cores = order.threads or physical_cores()
    lanes = Lanes(open_context, sink, store, lanes=order.hot, cores=cores, parallel=order.parallel)
    markers = vocabulary.markers
    embedder = EmbeddingWorker(model, sink, lanes.borrowed_cores, size=vocabulary.size, context=context)
    return Model(model, vocabulary, context, lanes, embedder), Opened(context, trained, markers.control, markers.added)


class Worker:
    """Obeys orders; what takes long runs on other threads, so that a cancellation is heard at once."""

    def __init__(self, out: IO[str]) -> None:
        self._replies = Replies(out)
        self._stack = ExitStack()
        self._opened: Model | None = None

    def run(self, orders: Orders) -> None:
        """Serve until there are no more orders."""
        while (said := orders.get()) is not None:
            id, order = said
            try:
                answer = self._obey(id, order)
            except SlmError as error:
                answer = Failed(error)
            if answer is not None:
                self._replies.add(id, answer)
            if orders.empty():
                self._replies.flush()
        if self._opened:
            self._opened.lanes.finish()

    @property
    def _model(self) -> Model:
        if self._opened is None:
            raise EngineError("no model was opened yet")
        return self._opened

    def _obey(self, id: int, order: AnyOrder) -> Answer | None:
        """Carry an order out; None when another thread will answer it."""
        match order:
            case Open():
                self._opened, answer = open_served(self._stack, order, self._replies)
                return answer
            case Load(content, path):
                model = self._model
                model.lanes.load(content, lambda stack: open_adapter(stack, model.handle, Path(path)))
                return Done()
            case Unload(content):
                self._model.lanes.unload(content)
                return Done()
            case AskStats():
                return self._model.lanes.stats()
            case Tokenize(prompt, add_special):
                return Tokens(tuple(prompt_tokens(self._model.handle, prompt, add_special)))
            case Detokenize(tokens):
                return Text(self._model.text(tokens))
            case Embed():
                self._model.embedder.submit(id, order)
                return None
            case Generate():
                model = self._model
                model.lanes.submit(model.request(id, order))
                return None
            case Cancel(request):
                self._model.lanes.cancel(request)
                self._model.embedder.cancel(request)
                return Done()


def _read(stdin: IO[str], orders: Orders) -> None:
    try:
        for line in stdin:
            orders.put(read_order(line))
    except EngineError as error:  # the parent is of another version, or no parent of ours
        print(f"Error: {error}", file=sys.stderr, flush=True)
        os._exit(70)
    # The parent has closed the pipe or is gone: there is nobody left to answer, and no more than a moment to tidy up.
    threading.Timer(2.0, os._exit, [0]).start()
    orders.put(None)


def main() -> None:
    """Keep the protocol's channel apart from whatever native code prints, then serve."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    sys.setswitchinterval(_SWITCH_S)
    orders: Orders = queue.SimpleQueue()
    stdin = os.fdopen(os.dup(0), "r", encoding="utf-8", newline="\n")
    threading.Thread(target=_read, args=(stdin, orders), daemon=True).start()
    with suppress(BrokenPipeError):
        Worker(out).run(orders)
    os._exit(0)  # threads may still be inside llama.cpp, and nobody waits for them


if __name__ == "__main__":
    main()
