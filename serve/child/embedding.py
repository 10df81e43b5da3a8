"""Embeddings: orders one after another on a thread of their own, many short texts in a batch.

Opening a context takes longer than embedding a short text: one is kept while orders come. Each text is a
sequence of the batch. It knows nothing of HTTP, and of the lanes only that they lend cores and that answers go where
theirs go.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

from serve.child.lanes import AnswerSink
from serve.child.messages import Answer, Embed, Embeddings, Failed
from serve.child.pool import Team, vital
from serve.child.spelling.tokens import checked, prompt_tokens
from slm.chat.segments import Segment
from slm.errors import ContextOverflowError, InputError, SlmError
from slm.native.batches import batches
from slm.native.llama import embeddings_in, library, open_embedder

# Tokens and texts of a batch. A longer text has a context of its own, whose size is the text's.
_TOKENS, _TEXTS = 512, 64
# The context is closed after so long without an order: its buffers are as large as a lane's.
_KEPT_S = 5.0
_FOREIGN_TOKENS = (
    "Token ids have to be of this model's vocabulary; send texts (LangChain: check_embedding_ctx_length=False)."
)

Vector = tuple[float, ...]


class EmbeddingWorker:
    """Answers orders into `sink`. `submit` and `cancel` may be called from any thread.

    borrow: gives a number of cores to compute on. size: of the vocabulary. context: the longest text, in tokens.
    """

    def __init__(
        self,
        model: Any,
        sink: AnswerSink,
        borrow: Callable[[], AbstractContextManager[int]],
        *,
        size: int,
        context: int,
    ) -> None:
        self._model, self._sink, self._borrow = model, sink, borrow
        self._size, self._context = size, context
        self._shared: Any = None
        self._team = Team()
        self._orders: queue.SimpleQueue[tuple[int, Embed]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._wanted: set[int] = set()
        self._current = 0
        # As in `serve.child.contexts`: strlen of a text that is empty until somebody writes a character into it.
        self._stop = ctypes.create_string_buffer(2)
        self._strlen = ctypes.cast(ctypes.CDLL(None).strlen, library().ggml_abort_callback)
        threading.Thread(target=self._run, daemon=True, name="embeddings").start()

    def submit(self, id: int, order: Embed) -> None:
        """Queue an order."""
        with self._lock:
            self._wanted.add(id)
        self._orders.put((id, order))

    def cancel(self, id: int) -> None:
        """Drop an order that waits or end the one that is computed; it is not answered."""
        with self._lock:
            self._wanted.discard(id)
            if id == self._current:
                self._stop[0] = b"x"

    def _run(self) -> None:
        with vital():
            while True:
                with ExitStack() as kept:
                    self._obey(kept, *self._orders.get())
                    with suppress(queue.Empty):
                        while True:
                            self._obey(kept, *self._orders.get(timeout=_KEPT_S))

    def _obey(self, kept: ExitStack, id: int, order: Embed) -> None:
        """Answer an order. kept: closed when no order has come for a while."""
        with self._lock:
            if id not in self._wanted:
                return
            self._current, self._stop[0] = id, b"\0"
        try:
            answer: Answer = self._answered(kept, id, order)
        except SlmError as error:
            answer = Failed(error)
        with self._lock:
            self._current = 0
            wanted = id in self._wanted
            self._wanted.discard(id)
        if wanted:
            self._sink.add(id, answer)
            self._sink.flush()

    def _answered(self, kept: ExitStack, id: int, order: Embed) -> Embeddings:
        texts = [self._tokens(text, order.first + number) for number, text in enumerate(order.texts)]
        vectors: list[Vector] = [()] * len(texts)
        for batch in batches([len(tokens) for tokens in texts], _TOKENS, _TEXTS, longest_first=False):
            if id not in self._wanted:
                break
            for number, vector in zip(batch, self._computed(kept, [texts[n] for n in batch]), strict=True):
                vectors[number] = tuple(vector)
        return Embeddings(tuple(vectors), sum(map(len, texts)))

    def _tokens(self, text: str | Sequence[int], number: int) -> list[int]:
        """Raises InputError or ContextOverflowError that name the text."""
        if isinstance(text, str):
            tokens = prompt_tokens(self._model, [Segment(text, False)], True)
        else:
            try:
                tokens = checked(text, self._size)
            except InputError as error:
                raise InputError(f"input[{number}]: {error.what}", hint=_FOREIGN_TOKENS) from error
        if not tokens:
            raise InputError(f"input[{number}]: the text to embed is empty")
        if len(tokens) > self._context:
            raise ContextOverflowError(
                f"input[{number}]: the text has {len(tokens):,} tokens; the context holds {self._context:,}"
            )
        return tokens

    def _computed(self, kept: ExitStack, texts: list[list[int]]) -> list[list[float]]:
        with self._borrow() as cores, ExitStack() as own:
            if len(texts[0]) > _TOKENS:
                context = self._opened(own, len(texts[0]), 1)
            else:
                context = self._shared = self._shared or self._kept(kept)
            library().llama_set_n_threads(context, cores, cores)
            try:
                return self._team.run(lambda: embeddings_in(self._model, context, texts), cores=cores)
            finally:
                self._team.rest()

    def _kept(self, kept: ExitStack) -> Any:
        kept.callback(setattr, self, "_shared", None)
        return self._opened(kept, _TOKENS, _TEXTS)

    def _opened(self, stack: ExitStack, tokens: int, texts: int) -> Any:
        context = open_embedder(stack, self._model, n_ctx=tokens, n_seq_max=texts)
        # A cancellation ends a decoding in its middle.
        library().llama_set_abort_callback(context, self._strlen, ctypes.cast(self._stop, ctypes.c_void_p))
        return context
