"""Questions with known answers: the lines of a questions file. It knows nothing of retrieval, answers or models."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.errors import DamagedFileError, InputError
from slm.terminal.text_file import read_text

_NUMBERED = re.compile(r"\A\s*\d+[.)]\s+")


@dataclass(frozen=True)
class AnswerPlace:
    """Where an answer stands: a page, its heading ("": anywhere on it), and the sentence or row word for word."""

    page: str
    heading: str
    text: str


@dataclass(frozen=True)
class Question:
    """One line of a questions file. `answer`: words any of which a right answer holds, such as "13,000"; all of them
    where it says `together`. kind: what kind of question it is, in the file's own words. places: where the answer
    stands, which readers are trained on; with `together` it takes several of them."""

    question: str
    lang: str
    relevant: tuple[str, ...]
    answerable: bool
    answer: tuple[str, ...] = ()
    together: bool = False
    kind: str = ""
    places: tuple[AnswerPlace, ...] = ()


def read_questions(path: Path | str) -> list[Question]:
    """Read a questions file (JSON Lines). Raises MissingFileError, DamagedFileError with the line's number."""
    questions: list[Question] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # JSON may hold other line separators
        if not line.strip():
            continue
        try:
            question = _question(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedFileError(
                f"'{path}', line {number} is no question: {error}",
                hint='A line is {"question": ..., "lang": "en", "relevant": ["page.md"], "answerable": true}.',
            ) from error
        if question.answerable and not question.relevant:
            raise DamagedFileError(f"'{path}', line {number}: an answerable question names no relevant document")
        questions.append(question)
    if not any(question.answerable for question in questions):
        raise InputError(f"'{path}' holds no answerable question", found=f"{len(questions)} questions")
    return questions


def bare(text: str) -> str:
    """A text without blanks and a table's or list's marks and numbers, as places are compared with lines."""
    return "".join(_NUMBERED.sub("", text).split()).strip("|-*")


def _question(row: dict[str, Any]) -> Question:
    answerable, together = bool(row.get("answerable", True)), bool(row.get("together"))
    names, facts = _texts(row, "relevant"), _texts(row, "answer")
    places = tuple(AnswerPlace(one["page"], one.get("heading", ""), one["text"]) for one in row.get("places", ()))
    if not all(bare(place.text) for place in places):
        raise ValueError("a place has no text")
    lang, kind = str(row["lang"]), str(row.get("kind", ""))
    return Question(str(row["question"]), lang, names, answerable, facts, together, kind, places)


def _texts(row: dict[str, Any], name: str) -> tuple[str, ...]:
    values = row.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"'{name}' is no list of texts")
    return tuple(values)
