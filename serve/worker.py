"""The engine's child process: one model, many adapters, JSON lines in and out (`python -m serve.worker`).

It knows adapters by a key (content hash and scale), never by name or path, and nothing of HTTP, languages or
chat templates. llama.cpp may abort this process; the parent (`serve.engine`) then starts another.

In:  {"op": "open", "id", "model", "threads", "context", "parallel", "hot"}
     {"op": "load", "id", "key", "path", "scale"}   {"op": "unload", "id", "key"}   {"op": "stats", "id"}
     {"op": "tokenize", "id", "prompt", "add_special"}   {"op": "detokenize", "id", "tokens"}
     {"op": "embed", "id", "text"}
     {"op": "generate", "id", "prompt", "add_special", "adapter": key or "", "fit", "sampling": {...}}
     {"op": "cancel", "id"}
Out: {"id", "ok": {...}} | {"id", "text"} | {"id", "finish": {...}} | {"id", "error": {"type", "what", "found", "hint"}}
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from serve import batch
from serve.contexts import HotContext
from serve.sampling import Vocabulary, vocabulary_of
from slm.errors import ContextOverflowError, EngineError, InputError, SlmError
from slm.joints import SamplingOptions, TokenScore
from slm.llama import embedding_of, library, open_adapter, open_model, token_bytes, tokenize

BASE = ""


@dataclass
class _Adapter:
    handle: Any
    scale: float
    stack: ExitStack
    retired: bool = False


@dataclass
class _Request:
    id: int
    key: str
    prompt: list[int]
    options: SamplingOptions


@dataclass
class _Replies:
    """What one round of the loop has to say, written with one flush."""

    out: IO[str]
    lines: list[str] = field(default_factory=list)

    def add(self, id: int, **fields: Any) -> None:
        self.lines.append(json.dumps({"id": id, **fields}, ensure_ascii=False))

    def error(self, id: int, error: SlmError) -> None:
        kind = type(error).__name__
        self.add(id, error={"type": kind, "what": error.what, "found": error.found, "hint": error.hint})

    def flush(self) -> None:
        if self.lines:
            self.out.write("\n".join(self.lines) + "\n")
            self.out.flush()
            self.lines.clear()


class Worker:
    """The loop: take orders, admit waiting requests, give one context its step."""

    def __init__(self, out: IO[str]) -> None:
        self._replies = _Replies(out)
        self._stack = ExitStack()
        self._model: Any = None
        self._vocabulary: Vocabulary
        self._context = self._parallel = self._hot = self._threads = 0
        self._adapters: dict[str, _Adapter] = {}
        self._contexts: dict[str, HotContext] = {}
        self._waiting: list[_Request] = []
        self._turn: str | None = None
        self._clock = 0

    def run(self, orders: queue.SimpleQueue[dict[str, Any]]) -> None:
        """Serve until the process ends (the reader of stdin ends it)."""
        while True:
            idle = not self._waiting and not any(context.busy for context in self._contexts.values())
            if idle:
                self._obey(orders.get())
            while not orders.empty():
                self._obey(orders.get())
            self._admit()
            self._step()
            self._free_retired()
            self._replies.flush()

    def _obey(self, order: dict[str, Any]) -> None:
        id = int(order["id"])
        try:
            answer = getattr(self, f"_do_{order['op']}")(id, order)
        except SlmError as error:
            self._replies.error(id, error)
            return
        if answer is not None:
            self._replies.add(id, ok=answer)

    def _do_open(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        self._model = open_model(self._stack, Path(order["model"]))
        self._vocabulary = vocabulary_of(self._model)
        trained = int(library().llama_model_n_ctx_train(self._model))
        self._context = min(int(order["context"]), trained) if trained > 0 else int(order["context"])
        self._parallel, self._hot = int(order["parallel"]), int(order["hot"])
        self._threads = int(order["threads"])
        self._open_context(BASE)
        return {"context": self._context, "trained_context": trained}

    def _do_load(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        known = self._adapters.get(order["key"])
        if known:
            known.retired = False
            return {}
        with ExitStack() as stack:
            handle = open_adapter(stack, self._model, Path(order["path"]))
            self._adapters[order["key"]] = _Adapter(handle, float(order["scale"]), stack.pop_all())
        return {}

    def _do_unload(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        if order["key"] in self._adapters:
            self._adapters[order["key"]].retired = True
        return {}

    def _do_stats(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        return {
            "parallel": self._parallel,
            "running": sum(len(context.busy) for context in self._contexts.values()),
            "waiting": len(self._waiting),
            "contexts": sorted(self._contexts),
            "adapters": sorted(self._adapters),
        }

    def _do_tokenize(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": self._tokens(order["prompt"], bool(order["add_special"]))}

    def _do_detokenize(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        tokens = self._known(order["tokens"])
        text = b"".join(token_bytes(self._model, token, special=True) for token in tokens)
        return {"text": text.decode("utf-8", "replace")}

    def _do_embed(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        tokens = self._tokens(order["text"], True)
        if not tokens:
            raise InputError("the text to embed is empty")
        if len(tokens) > self._context:
            raise ContextOverflowError(f"the text has {len(tokens):,} tokens; the context holds {self._context:,}")
        return {"embedding": embedding_of(self._model, tokens, n_threads=self._threads), "tokens": len(tokens)}

    def _do_generate(self, id: int, order: dict[str, Any]) -> None:
        if order["adapter"] != BASE and order["adapter"] not in self._adapters:
            raise EngineError("the adapter of this request is not loaded")
        prompt = self._tokens(order["prompt"], bool(order["add_special"]))
        sampling = dict(order["sampling"])
        options = SamplingOptions(**{**sampling, "stop": tuple(sampling["stop"])})
        room = self._context - len(prompt)
        if not prompt:
            raise InputError("the prompt is empty")
        if room < 1 or (options.max_tokens > room and not order["fit"]):
            answer = "" if order["fit"] else f" and the answer may take {options.max_tokens:,}"
            raise ContextOverflowError(
                f"the prompt has {len(prompt):,} tokens{answer}; the context holds {self._context:,}",
                hint="Shorten the conversation, ask for fewer tokens, or start with a larger --context.",
            )
        options = replace(options, max_tokens=max(1, min(options.max_tokens, room)))
        self._waiting.append(_Request(id, order["adapter"], prompt, options))

    def _do_cancel(self, id: int, order: dict[str, Any]) -> None:
        for context in self._contexts.values():
            finish = context.cancel(id)
            if finish:
                self._replies.add(id, finish=finish)
        self._waiting = [request for request in self._waiting if request.id != id]

    def _tokens(self, text: str | list[int], add_special: bool) -> list[int]:
        if isinstance(text, list):
            return self._known(text)
        tokens = tokenize(self._model, text, add_special=add_special, parse_special=True)
        lib = library()
        vocab = lib.llama_model_get_vocab(self._model)
        # A vocabulary may ask for an end token too; a prompt that is to be continued must not have it.
        if add_special and lib.llama_vocab_get_add_eos(vocab) and tokens and tokens[-1] == lib.llama_vocab_eos(vocab):
            tokens.pop()
        return tokens

    def _known(self, tokens: list[int]) -> list[int]:
        """The ids, if all are of this vocabulary; llama.cpp aborts on others."""
        for token in tokens:
            if not 0 <= token < self._vocabulary.size:
                raise InputError(f"{token} is no token id; the vocabulary has {self._vocabulary.size:,}")
        return tokens

    def _admit(self) -> None:
        """Give slots to waiting requests, oldest first; one that must wait holds back only its own adapter's."""
        held: set[str] = set()
        still: list[_Request] = []
        for request in self._waiting:
            admitted = False
            if request.key not in held:
                try:
                    context = self._contexts.get(request.key) or self._open_context(request.key, held)
                    admitted = context is not None and context.admit(request.id, request.prompt, request.options)
                except SlmError as error:
                    self._replies.error(request.id, error)
                    continue
            if not admitted:
                held.add(request.key)
                still.append(request)
        self._waiting = still

    def _open_context(self, key: str, held: set[str] | None = None) -> HotContext | None:
        loads = {name: context.load() for name, context in self._contexts.items()}
        close, drain = batch.make_room(loads, hot=self._hot)
        if drain is not None:
            if held is not None:
                held.add(drain)
            return None
        if close is not None:
            self._contexts.pop(close).close()
        adapter = None if key == BASE else self._adapters[key]
        context = HotContext(
            self._model,
            self._vocabulary,
            (adapter.handle, adapter.scale) if adapter else None,
            cells=self._context,
            parallel=self._parallel,
            threads=self._threads,
        )
        self._contexts[key] = context
        return context

    def _step(self) -> None:
        self._turn = batch.next_in_turn([key for key, c in self._contexts.items() if c.busy], self._turn)
        if self._turn is None:
            return
        context = self._contexts[self._turn]
        self._clock += 1
        context.last_used = self._clock
        try:
            for piece in context.step():
                if piece.scores:
                    self._replies.add(piece.request, text=piece.text, scores=[_plain(s) for s in piece.scores])
                elif piece.text:
                    self._replies.add(piece.request, text=piece.text)
                if piece.error:
                    self._replies.error(piece.request, piece.error)
                if piece.finish:
                    self._replies.add(piece.request, finish=piece.finish)
        except EngineError as error:
            for request in context.fail():
                self._replies.error(request, error)

    def _free_retired(self) -> None:
        """Free unloaded adapters that no request uses any more; those under way end with what they began with."""
        for key in [key for key, adapter in self._adapters.items() if adapter.retired]:
            context = self._contexts.get(key)
            if (context and context.busy) or any(request.key == key for request in self._waiting):
                continue
            if context:
                self._contexts.pop(key).close()
            self._adapters.pop(key).stack.close()


def _plain(score: TokenScore) -> list[Any]:
    """JSON has no bytes: a character for each byte."""
    top = [(token, piece.decode("latin-1"), logprob) for token, piece, logprob in score.top]
    return [score.token, score.piece.decode("latin-1"), score.logprob, top]


def _read(stdin: IO[str], orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in stdin:
        orders.put(json.loads(line))
    os._exit(0)  # the parent has closed the pipe or is gone; there is nobody left to answer


def main() -> None:
    """Keep the protocol's channel apart from whatever native code prints, then serve."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    stdin = os.fdopen(os.dup(0), "r", encoding="utf-8", newline="\n")
    threading.Thread(target=_read, args=(stdin, orders), daemon=True).start()
    try:
        Worker(out).run(orders)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
