"""A retriever over a few passages, and a reader for tiny models: what the server and the chat are handed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rag.answer.cite import Citations
from rag.answer.point import Judged, point
from rag.answer.reader.form import pieces_of
from slm.joints import EVERYTHING, Filters, Grounded, Judge, Message, Passage, PointedAnswer, Reader
from tests.path_joints import PathJoints

PASSAGES = [
    Passage("Trips", "Hotels", "Ask first. 🍣\n\n| City | Night |\n|---|---|\n| Osaka | 13,000 yen |", "trips.md", 0.9),
    Passage("会議室", "取り消し", "予約は開始の30分前までに取り消します。鍵は総務にあります。", "rooms.md", 0.8),
]
LINES = 4  # in both passages together
ALWAYS, NEVER = {"": 1.0}, {"": 0.0}  # when it answers


def tiny_reader(adapter: Path, refuse_at: dict[str, float] = ALWAYS, name: str = "reader") -> Reader:
    """A reader of a model from tests.tiny_gguf, whose vocabulary has letters only."""
    return Reader(name, adapter, ("y", "n"), refuse_at)


@dataclass
class LineIndex:
    """Implements slm.joints.Retriever. scores: of all lines in order, in place of the judge's. asked: what it got."""

    passages: Sequence[Passage] = tuple(PASSAGES)
    scores: Sequence[float] | None = None
    asked: list[tuple[str, Filters]] = field(default_factory=list)
    fault: Exception | None = None

    def search(self, query: str, k: int = 5, filters: Filters = EVERYTHING) -> list[Passage]:
        return list(self.passages[:k])

    def grounded(self, question: str, k: int = 3, filters: Filters = EVERYTHING) -> Grounded:
        passages = self.search(question, k)
        prompt = [Message(role="user", content=f"[1] Ten days. {question}")]
        return Grounded(prompt, passages, Citations(passages), lambda: ["" for _ in passages])

    def pointed(self, question: str, reader: Reader, judge: Judge, filters: Filters = EVERYTHING) -> PointedAnswer:
        self.asked.append((question, filters))
        if self.fault:
            raise self.fault
        read = [pieces_of(question, passage) for passage in self.passages]
        rows = [row[1:] for row in judge([pieces for pieces, _ in read])]
        if self.scores is not None:
            left = iter(self.scores)
            rows = [[next(left) for _ in row] for row in rows]
        judged = [Judged(p, lines, row) for p, (_, lines), row in zip(self.passages, read, rows, strict=True)]
        return point(question, judged, reader.refuse_at)


@dataclass
class ReadingJoints(PathJoints):
    """Joints of a house with one index and one reader."""

    reader: Reader | None
    index: LineIndex = field(default_factory=LineIndex)
    wanted: list[str] = field(default_factory=list)

    def open_retriever(self, index: str) -> AbstractContextManager[LineIndex]:
        return nullcontext(self.index)

    def reader_of(self, model: str, wanted: str) -> Reader | None:
        self.wanted.append(wanted)
        return None if wanted == "model" else self.reader
