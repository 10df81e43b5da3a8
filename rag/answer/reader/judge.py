"""A reader at work: passages in, a score of every line out. It knows nothing of indexes or answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rag.answer.reader.card import COSINE, RELEASED, ReaderCard, read_card
from rag.answer.reader.contrast import ContrastJudge
from rag.answer.reader.form import MAX_ROW, ReadRow, TextTokenizer, rows_of
from rag.answer.reader.twice import ReadTwice
from rag.answer.reader.weights import base_file, base_fingerprint, reader_gguf, reader_tokenizer
from rag.index.embedders.base import Vectors
from rag.index.embedders.encoder import GgufEncoder
from slm.errors import MismatchError
from slm.joints import Judge, LineScores, Reader
from slm.weights.gguf_reader import read_gguf
from slm.weights.identity import gguf_fingerprint


class LineJudge:
    """An encoder with a reader's weights (implements slm.joints.Judge)."""

    def __init__(self, tokenizer: TextTokenizer, encoder: GgufEncoder, card: ReaderCard) -> None:
        self._tokenizer, self._encoder, self._card = tokenizer, encoder, card

    def __call__(self, question: str, passages: Sequence[Sequence[str]]) -> LineScores:
        """Raises InputError for a question that is no question, EngineError."""
        rows = rows_of(self._tokenizer, question, passages)
        flat = [row for of_passage in rows for row in of_passage]
        states = iter(self._encoder.states([row.ids for row in flat]) if flat else [])
        scores = [[score for row in of_passage for score in self._scores(row, next(states))] for of_passage in rows]
        return LineScores(scores, sum(len(row.ids) for row in flat))

    def _scores(self, row: ReadRow, states: Vectors) -> list[float]:
        """The cosine of each line's mean state and the question's, scaled as it was in training (train.run.reader)."""
        sums = np.concatenate([np.zeros((1, states.shape[1])), states.cumsum(axis=0, dtype=np.float64)])
        asked = _unit(sums[row.question])
        card = self._card
        return [card.scale * float(_unit(sums[end] - sums[start]) @ asked) + card.offset for start, end in row.lines]


def _unit(vector: Vectors) -> Vectors:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def open_reader(folder: Path, causal: Callable[[Path], tuple[Path, Path]] | None = None) -> Reader:
    """The reader in a folder, its weights in memory; one that reads after another with the released one before it.

    causal: for a reader's folder whose base is a causal model the GGUF files of its base and of itself. Raises
    MissingFileError where it is none or its base is not pulled, DamagedFileError, MismatchError for a reader of
    another form or another base.
    """
    card = read_card(folder)
    if card.kind == COSINE:
        judge: Judge = _encoder(folder, card)
    elif causal is None:
        raise MismatchError(f"the reader '{folder}' is of a causal model, an encoder's is needed here")
    else:
        base, adapter = causal(folder)
        _require_base(folder, card, gguf_fingerprint(read_gguf(base)))
        judge = ContrastJudge(base, adapter, card.scale, card.offset)
    if card.before:
        judge = ReadTwice(_encoder(RELEASED, read_card(RELEASED)), judge, card.before)
    name = folder.resolve().name
    return Reader(name if "reader" in name else f"{name}-reader", judge, card.refuse_at)


def _encoder(folder: Path, card: ReaderCard) -> LineJudge:
    base = base_file()
    fingerprint = base_fingerprint(base)
    _require_base(folder, card, fingerprint)
    encoder = GgufEncoder(reader_gguf(folder, base, fingerprint), MAX_ROW, pooled=False)
    return LineJudge(reader_tokenizer(base), encoder, card)


def _require_base(folder: Path, card: ReaderCard, fingerprint: str) -> None:
    if fingerprint not in card.base:
        raise MismatchError(
            f"the reader '{folder}' was trained on another base than the one that is here",
            hint="Make one for it with: make reader (or make second-reader)",
        )
