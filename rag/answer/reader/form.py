"""How a question and a passage are put before a reader: one row of token ids, in which every line has its stretch.

Training and answering use the same rows: begin, question, end, place, end, line, end, line, end ... It knows nothing of
models but their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rag.answer.reader.length import about_tokens
from rag.answer.reader.lines import Line, lines_of
from slm.errors import InputError
from slm.joints import Passage
from slm.text.visible import one_line

# Raised whenever the rows change: a reader that was trained on others does not fit.
FORM = 2
# Longer questions are no questions. Characters; tokens; what an encoder reads at once, in tokens.
MAX_QUESTION, _MAX_ASKED, MAX_ROW = 2000, 192, 512
# A place and a line are judged by their beginnings. Characters, tokens.
_MAX_PLACE, _MAX_LINE, _PLACE_TOKENS, _LINE_TOKENS = 300, 600, 64, 192
# E5's own word before a question.
_ASKED = "query: "


class TextTokenizer(Protocol):
    """Texts to token ids, each between those of a beginning and an end."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class ReadRow:
    """What is read at once. ids[:question] are the question's; ids[start:end] of each span in `lines` are a line's.

    Both with the end token behind them.
    """

    ids: tuple[int, ...]
    question: int
    lines: tuple[tuple[int, int], ...]


def question_text(question: str) -> str:
    """A question as it is read. Raises InputError for one that is empty or far too long."""
    asked = one_line(question)
    if not asked:
        raise InputError("the question is empty")
    if len(asked) > MAX_QUESTION:
        raise _too_long(f"{len(asked):,} characters, at most {MAX_QUESTION:,}")
    return asked


def _too_long(found: str) -> InputError:
    return InputError(f"the question has {found} are read", hint="Ask in a few sentences.")


def texts_of(passage: Passage) -> tuple[list[str], list[Line]]:
    """(a passage's place and its lines as they are read; the lines)."""
    lines = lines_of(passage.text)
    return [one_line(passage.place)[:_MAX_PLACE], *(one_line(line.text)[:_MAX_LINE] for line in lines)], lines


def rows_of(tokenizer: TextTokenizer, question: str, texts: Sequence[Sequence[str]]) -> list[list[ReadRow]]:
    """For each passage (place, line, line ...) its rows: one, or more where its lines do not fit into one.

    All lines are there, in their order. Raises InputError for a question that is no question (`question_text`).
    """
    flat = [_ASKED + question_text(question), *(text for one in texts for text in one)]
    encoded = tokenizer.encode(flat)
    begin, end = encoded[0][0], encoded[0][-1]
    inner = [ids[1:-1] for ids in encoded]
    if len(inner[0]) > _MAX_ASKED:
        raise _too_long(f"{len(inner[0])} tokens, at most {_MAX_ASKED}")
    asked, at, rows = (begin, *inner[0], end), 1, []
    for one in texts:
        place, *lines = inner[at : at + len(one)]
        rows.append(_rows(asked, (*place[:_PLACE_TOKENS], end), [(*line[:_LINE_TOKENS], end) for line in lines]))
        at += len(one)
    return rows


def _rows(asked: tuple[int, ...], place: tuple[int, ...], lines: Sequence[tuple[int, ...]]) -> list[ReadRow]:
    """As few rows as hold the lines, each beginning with question and place."""
    rows: list[ReadRow] = []
    ids, spans = [*asked, *place], list[tuple[int, int]]()
    for line in lines:
        if spans and len(ids) + len(line) > MAX_ROW:
            rows.append(ReadRow(tuple(ids), len(asked), tuple(spans)))
            ids, spans = [*asked, *place], []
        spans.append((len(ids), len(ids) + len(line)))
        ids += line
    return [*rows, ReadRow(tuple(ids), len(asked), tuple(spans))] if spans else rows


def cost(passage: Passage) -> int:
    """About how many tokens of a passage are read, a question beginning anew with it."""
    texts, _ = texts_of(passage)
    return len(texts) + round(about_tokens("".join(texts)))
