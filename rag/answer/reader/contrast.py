"""A causal model at work as a reader: logit(yes) - logit(no) behind each line, with a reader's adapter.

It knows nothing of indexes or answers.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rag.answer.reader.form import MAX_ROW, ReadRow, rows_of
from rag.index.embedders.encoder import SideBySide
from slm.errors import UnsupportedError
from slm.joints import LineScores
from slm.native.llama import (
    ContextParams,
    contrasts_in,
    fast_attention,
    open_adapter,
    open_context,
    open_model,
    set_adapters,
    tokenize,
)

_YES, _NO = "yes", "no"


class CausalTokenizer:
    """Texts between the token that begins a sequence and that of a new line (rag.answer.reader.form.TextTokenizer).

    A document cannot write control tokens. Raises UnsupportedError for a vocabulary where these are not one token each.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._begin, self._end = self.one("", add_special=True), self.one("\n")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._begin, *self._ids(text), self._end] for text in texts]

    def one(self, text: str, *, add_special: bool = False) -> int:
        """The token of a text. Raises UnsupportedError where it is not one."""
        ids = self._ids(text, add_special=add_special)
        if len(ids) != 1:
            raise UnsupportedError(f"{text!r} is {len(ids)} tokens of this model, a reader needs it to be one")
        return ids[0]

    def _ids(self, text: str, *, add_special: bool = False) -> list[int]:
        return tokenize(self._model, text, add_special=add_special, parse_special=False)


class ContrastJudge:
    """A causal model with a reader's adapter (implements slm.joints.Judge).

    adapter: its GGUF file. scale, offset: from a difference of logits to a score. Raises UnsupportedError,
    DamagedFileError, MismatchError where it does not fit.
    """

    def __init__(self, base: Path, adapter: Path, scale: float = 1.0, offset: float = 0.0) -> None:
        self._scale, self._offset = scale, offset
        self._stack = ExitStack()
        weakref.finalize(self, self._stack.close)
        model = open_model(self._stack, base)
        self._tokenizer = CausalTokenizer(model)
        self._between = self._tokenizer.one(_YES), self._tokenizer.one(_NO)
        handle = open_adapter(self._stack, model, adapter)

        def opened(tokens: int, texts: int) -> Any:
            attention = True if fast_attention() else None
            context = open_context(
                self._stack, model, ContextParams(tokens, tokens, texts, n_threads=1, flash_attention=attention)
            )
            set_adapters(context, [(handle, 1.0)])
            return context

        self._contexts = SideBySide(opened, MAX_ROW)

    def __call__(self, question: str, passages: Sequence[Sequence[str]]) -> LineScores:
        """Raises InputError for a question that is no question, EngineError."""
        rows = rows_of(self._tokenizer, question, passages)
        flat = [row for of_passage in rows for row in of_passage]
        found = iter(self._contexts.computed(flat, [len(row.ids) for row in flat], self._judged))
        scale, offset = self._scale, self._offset
        scores = [[scale * one + offset for _ in of_passage for one in next(found)] for of_passage in rows]
        return LineScores(scores, sum(len(row.ids) for row in flat))

    def _judged(self, context: Any, rows: list[ReadRow]) -> list[list[float]]:
        """The scores of each row's lines, each at the token that ends it."""
        return contrasts_in(context, [(row.ids, [end - 1 for _, end in row.lines]) for row in rows], self._between)
