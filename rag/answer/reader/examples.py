"""Examples for training a reader, from questions that name the place of their answer. It knows nothing of models.

An example is a question with passages as retrieval brings them: the right one in any place among its hardest
neighbours, and in some of them missing, so that no line answers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from rag.answer.reader.form import FORM, TextTokenizer, rows_of, texts_of
from rag.answer.reader.lines import lines_of
from rag.index.names import source_matches
from rag.questions import AnswerPlace, Question, bare
from slm.errors import DamagedFileError
from slm.joints import Passage

# How many passages an example has; the share of examples whose right passages are taken out; the share of passages
# in the question's own language.
PASSAGES, _MISSING, _OWN = 3, 0.12, 0.7


def right_lines(asked: Question, passage: Passage) -> list[int]:
    """Which lines of a passage are places of a question's answer."""
    lines = _bare_lines(passage)
    return sorted({n for place in asked.places if _is_there(place, passage) for n in _answering(place, lines)})


def require_places(asked: Sequence[Question], passages: Sequence[Passage]) -> None:
    """Raises DamagedFileError for a question one of whose places is on no passage of all there are.

    Such a question would teach a reader to refuse what it should answer.
    """
    lines = [(passage, _bare_lines(passage)) for passage in passages]
    for one in asked:
        for place in one.places:
            if not any(_answering(place, of_passage) for passage, of_passage in lines if _is_there(place, passage)):
                raise DamagedFileError(
                    f"'{one.question}' is answered nowhere: no line of '{place.page}' under '{place.heading}' has its "
                    "text",
                    found=place.text,
                )


def example_of(
    asked: Question,
    passages: Sequence[Passage],
    languages: Mapping[str, str],
    tokenizer: TextTokenizer,
    draw: random.Random,
) -> dict[str, Any] | None:
    """One example; None where there is nothing to read. languages: of each source.

    rows: of token ids, with the stretches of the lines in them (`form`). right: (row, line) that answer; every: all
    of them have to be found, else one is enough. ignored: (row, line) that answer as well, in the other language, and
    are neither right nor wrong.
    """
    right = {n: lines for n, passage in enumerate(passages) if (lines := right_lines(asked, passage))}
    own = [n for n, passage in enumerate(passages) if languages.get(passage.source) == asked.lang]
    preferred = [n for n in right if n in own] or list(right)
    chosen: list[int] = []
    if draw.random() >= _MISSING:
        chosen += preferred[:3]
        if len(preferred) < len(right) and draw.random() < 0.3:
            chosen.append(next(n for n in right if n not in preferred))
    wrong = [n for n in range(len(passages)) if n not in right]
    room = max(1, PASSAGES - len(chosen))
    count = round(room * _OWN) if draw.random() < 0.8 else room
    chosen += _drawn([n for n in wrong if n in own], count, count + 2, draw)
    chosen += _drawn([n for n in wrong if n not in own], room - count, room - count + 1, draw)
    draw.shuffle(chosen)
    marks: dict[str, list[list[int]]] = {"right": [], "ignored": []}
    rows: list[dict[str, Any]] = []
    for n, made in zip(
        chosen, rows_of(tokenizer, asked.question, [texts_of(passages[n])[0] for n in chosen]), strict=True
    ):
        kind, line = "right" if n in preferred else "ignored", 0
        for row in made:
            marks[kind] += [[len(rows), at - line] for at in right.get(n, ()) if line <= at < line + len(row.lines)]
            line += len(row.lines)
            rows.append({"ids": row.ids, "question": row.question, "lines": row.lines})
    if not rows:
        return None
    return {"form": FORM, "lang": asked.lang, "rows": rows, "every": asked.together, **marks}


def _drawn(numbers: Sequence[int], count: int, among: int, draw: random.Random) -> list[int]:
    """`count` of the first `among` numbers, which stand best first."""
    pool = numbers[:among]
    return draw.sample(list(pool), min(count, len(pool)))


def _answering(place: AnswerPlace, lines: Sequence[str]) -> list[int]:
    """Which lines, without blanks and marks, hold the text of a place or are a part of it."""
    wanted = bare(place.text)
    return [n for n, line in enumerate(lines) if wanted in line or (len(line) > 8 and line in wanted)]


def _is_there(place: AnswerPlace, passage: Passage) -> bool:
    return source_matches(passage.source, place.page) and (
        not place.heading or place.heading in passage.heading.split(" > ") or place.heading == passage.title
    )


def _bare_lines(passage: Passage) -> list[str]:
    return [bare(passage.text[line.start : line.end]) for line in lines_of(passage.text)]
