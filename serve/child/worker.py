"""The engine's child process: one model, many adapters, JSON lines in and out (`python -m serve.child.worker`).

It knows adapters by the hash of their content, never by name, and nothing of HTTP, languages or chat templates.
llama.cpp may abort this process; the parent (`serve.engine.supervisor`) then starts another.

In:  {"op": "open", "id", "model", "threads", "context", "parallel", "hot", "draft", "ends": token ids,
      "identity", "cache_bytes", "cache_folder"}
     {"op": "load", "id", "content", "path"}   {"op": "unload", "id", "content"}   {"op": "stats", "id"}
     {"op": "tokenize", "id", "prompt": segments, "add_special"}   {"op": "detokenize", "id", "tokens"}
     {"op": "embed", "id", "text": text or token ids}
     {"op": "generate", "id", "prompt": segments or token ids, "add_special", "lora": [[content, scale], ...], "fit",
      "sampling": {...}}          segments: [[text, whether markers in it are tokens], ...] (`slm.chat.segments`)
     {"op": "cancel", "id"}
Out: {"id", "ok": {...}} | {"id", "begun": true} | {"id", "text"[, "score"]} | {"id", "finish": {...}}
     | {"id", "error": {"type", "what", "found", "hint"}}
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from serve.child.cells.store import PrefixStore
from serve.child.choice.sampling import Sampler, Vocabulary, vocabulary_of
from serve.child.contexts import HotContext, Piece
from serve.child.lanes import Lanes, key_of
from serve.child.pool import Team
from serve.child.slots import Request
from serve.child.tokens import prompt_tokens, segments_of
from slm.chat.segments import Segment
from slm.errors import ContextOverflowError, InputError, SlmError
from slm.joints import SamplingOptions, TokenScore
from slm.native.llama import embedding_of, library, open_adapter, open_model, physical_cores, token_bytes

Orders = queue.SimpleQueue[dict[str, Any]]
# The interpreter gives a waiting thread its turn after this long; the default of 5 ms is half a token's time.
_SWITCH_S = 0.0005


class Replies:
    """Lines for the parent, written with one flush a step (implements `serve.child.lanes.Sink`)."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._lock = out, threading.Lock()
        self._lines: list[str] = []

    def add(self, id: int, **fields: Any) -> None:
        line = json.dumps({"id": id, **fields}, ensure_ascii=False)
        with self._lock:
            self._lines.append(line)

    def begun(self, request: int) -> None:
        self.add(request, begun=True)

    def piece(self, piece: Piece) -> None:
        if piece.score:
            self.add(piece.request, text=piece.text, score=score_fields(piece.score))
        elif piece.text:
            self.add(piece.request, text=piece.text)
        if piece.finish:
            self.add(piece.request, finish=piece.finish)
        if piece.error:
            self.error(piece.request, piece.error)

    def error(self, request: int, error: SlmError) -> None:
        kind = type(error).__name__
        self.add(request, error={"type": kind, "what": error.what, "found": error.found, "hint": error.hint})

    def flush(self) -> None:
        with self._lock:
            if self._lines:
                self._out.write("\n".join(self._lines) + "\n")
                self._out.flush()
                self._lines.clear()


def score_fields(score: TokenScore) -> list[Any]:
    """A score as JSON: [token, bytes as Latin-1, logprob, [[token, bytes, logprob], ...]]."""
    top = [[token, piece.decode("latin-1"), logprob] for token, piece, logprob in score.top]
    return [score.token, score.piece.decode("latin-1"), score.logprob, top]


class Worker:
    """Obeys orders; what takes long runs on other threads, so that a cancellation is heard at once."""

    def __init__(self, out: IO[str]) -> None:
        self._replies = Replies(out)
        self._stack = ExitStack()
        self._model: Any = None
        self._vocabulary: Vocabulary | None = None
        self._context = 0
        self._lanes: Lanes | None = None
        self._embeddings: Orders = queue.SimpleQueue()

    def run(self, orders: Orders) -> None:
        """Serve until the order to end."""
        threading.Thread(target=self._embed_in_turn, daemon=True).start()
        while True:
            order = orders.get()
            if order["op"] == "end":
                if self._lanes:
                    self._lanes.finish()
                return
            self._obey(order)
            if orders.empty():
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

    @property
    def _known(self) -> Vocabulary:
        assert self._vocabulary is not None
        return self._vocabulary

    @property
    def _open_lanes(self) -> Lanes:
        assert self._lanes is not None
        return self._lanes

    def _do_open(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        self._model = open_model(self._stack, Path(order["model"]))
        vocabulary = self._vocabulary = vocabulary_of(self._model, order["ends"])
        trained = int(library().llama_model_n_ctx_train(self._model))
        self._context = min(int(order["context"]), trained) if trained > 0 else int(order["context"])
        folder = Path(order["cache_folder"]) if order["cache_folder"] else None
        store = PrefixStore(str(order["identity"]), budget=int(order["cache_bytes"]), folder=folder)
        parallel, cells, draft = int(order["parallel"]), self._context, int(order["draft"])

        def open_context(threads: int) -> HotContext:
            return HotContext(
                self._model, vocabulary, store, cells=cells, parallel=parallel, threads=threads, draft=draft
            )

        cores, hot = int(order["threads"]) or physical_cores(), int(order["hot"])
        self._lanes = Lanes(open_context, self._replies, store, lanes=hot, cores=cores, parallel=parallel)
        markers = vocabulary.markers
        return {
            "context": self._context, "trained_context": trained, "control": markers.control, "added": markers.added
        }  # fmt: skip

    def _do_load(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        path = Path(order["path"])
        self._open_lanes.load(order["content"], lambda stack: open_adapter(stack, self._model, path))
        return {}

    def _do_unload(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        self._open_lanes.unload(order["content"])
        return {}

    def _do_stats(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        return self._open_lanes.stats()

    def _do_tokenize(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": prompt_tokens(self._model, segments_of(order["prompt"]), bool(order["add_special"]))}

    def _do_detokenize(self, id: int, order: dict[str, Any]) -> dict[str, Any]:
        tokens = self._checked(order["tokens"])
        text = b"".join(token_bytes(self._model, token, special=True) for token in tokens)
        return {"text": text.decode("utf-8", "replace")}

    def _do_embed(self, id: int, order: dict[str, Any]) -> None:
        self._embeddings.put(order)

    def _embed_in_turn(self) -> None:
        while True:
            order = self._embeddings.get()
            try:
                self._replies.add(order["id"], ok=self._embedding(order["text"]))
            except SlmError as error:
                self._replies.error(order["id"], error)
            self._replies.flush()

    def _embedding(self, text: str | list[Any]) -> dict[str, Any]:
        if isinstance(text, str):
            tokens = prompt_tokens(self._model, [Segment(text, False)], True)
        else:
            tokens = self._checked(text)
        if not tokens:
            raise InputError("the text to embed is empty")
        if len(tokens) > self._context:
            raise ContextOverflowError(f"the text has {len(tokens):,} tokens; the context holds {self._context:,}")
        team = Team()
        with self._open_lanes.borrowed_cores() as cores:
            try:
                vector = team.run(lambda: embedding_of(self._model, tokens, n_threads=cores), cores=cores)
            finally:
                team.rest()
        return {"embedding": vector, "tokens": len(tokens)}

    def _do_generate(self, id: int, order: dict[str, Any]) -> None:
        given = order["prompt"]
        if given and isinstance(given[0], list):
            prompt = prompt_tokens(self._model, segments_of(given), bool(order["add_special"]))
        else:
            prompt = self._checked(given)
        options = options_of(order["sampling"])
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
        sampler = Sampler(options, prompt, self._known)
        key = key_of([(str(content), float(scale)) for content, scale in order["lora"]])
        self._open_lanes.submit(Request(id, key, prompt, options, sampler))

    def _do_cancel(self, id: int, order: dict[str, Any]) -> None:
        self._open_lanes.cancel(id)

    def _checked(self, tokens: list[Any]) -> list[int]:
        size = self._known.size
        for token in tokens:
            if not isinstance(token, int) or not 0 <= token < size:
                raise InputError(f"{token!r} is no token id; the vocabulary has {size:,}")
        return tokens


def options_of(fields: dict[str, Any]) -> SamplingOptions:
    """Sampling options from their JSON form."""
    bias = tuple((int(token), float(value)) for token, value in fields["logit_bias"])
    tuples = {"stop": tuple(fields["stop"]), "stop_tokens": tuple(fields.get("stop_tokens", ())), "logit_bias": bias}
    return SamplingOptions(**{**fields, **tuples})


def _read(stdin: IO[str], orders: Orders) -> None:
    for line in stdin:
        orders.put(json.loads(line))
    # The parent has closed the pipe or is gone: there is nobody left to answer, and no more than a moment to tidy up.
    threading.Timer(2.0, os._exit, [0]).start()
    orders.put({"op": "end", "id": 0})


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
