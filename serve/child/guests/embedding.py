"""Embeddings: many short texts in a batch.

Opening a context takes longer than embedding a short text: one is kept while orders come. Each text is a
sequence of the batch. It knows nothing of HTTP, and of the lanes only that they lend cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from serve.child.guests.guest import Guest
from serve.child.lanes import Sink
from serve.child.messages import Embed, Embeddings
from serve.child.pool import Team
from serve.child.spelling.tokens import checked, prompt_tokens
from slm.chat.segments import Segment
from slm.errors import ContextOverflowError, InputError
from slm.native.batches import batches
from slm.native.llama import embeddings_in, library, open_embedder

# Tokens and texts of a batch. A longer text has a context of its own, whose size is the text's.
_TOKENS, _TEXTS = 512, 64
_FOREIGN_TOKENS = (
    "Token ids have to be of this model's vocabulary; send texts (LangChain: check_embedding_ctx_length=False)."
)

Vector = tuple[float, ...]


class EmbeddingWorker(Guest[Embed]):
    """Answers orders into `sink`. `submit` and `cancel` may be called from any thread.

    borrow: gives a number of cores to compute on. size: of the vocabulary. context: the longest text, in tokens.
    """

    def __init__(
        self,
        model: Any,
        sink: Sink,
        borrow: Callable[[], AbstractContextManager[int]],
        *,
        size: int,
        context: int,
    ) -> None:
        self._model, self._borrow = model, borrow
        self._size, self._context = size, context
        self._shared: Any = None
        self._team = Team()
        super().__init__("embeddings", sink)

    def submit(self, id: int, order: Embed) -> None:
        """Queue an order."""
        self._enqueue(id, order, ExitStack())

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
        self._stoppable(context)
        return context
