"""A retriever over a few passages, and a reader without a model: what the server and the chat are handed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from rag.answer.cite import Citations
from rag.answer.point import Judged, point
from rag.answer.reader.form import rows_of, texts_of
from slm.joints import EVERYTHING, Filters, Grounded, LineScores, Message, Passage, PointedAnswer, Reader
from tests.path_joints import PathJoints
from tests.tiny_reader import Letters

PASSAGES = [
    Passage("Trips", "Hotels", "Ask first. 🍣\n\n| City | Night |\n|---|---|\n| Osaka | 13,000 yen |", "trips.md", 0.9),
    Passage("会議室", "取り消し", "予約は開始の30分前までに取り消します。鍵は総務にあります。", "rooms.md", 0.8),
]
LINES = 4  # in both passages together
ALWAYS, NEVER = {"": 1.0}, {"": 0.0}  # when it answers


@dataclass
class CountingJudge:
    """Implements slm.joints.Judge; lines get `scores` in their order, more of them -9. `before` is called at its start.

    calls: the passages of each time it was asked. A token is a character.
    """

    scores: Sequence[float] = ()
    calls: list[list[list[str]]] = field(default_factory=list)
    before: Callable[[], object] = lambda: None

    def __call__(self, question: str, passages: Sequence[Sequence[str]]) -> LineScores:
        rows = rows_of(Letters(), question, passages)
        done = sum(len(one) - 1 for call in self.calls for one in call)
        self.calls.append([list(one) for one in passages])
        self.before()
        left = iter(self.scores[done:])
        scores = [[next(left, -9.0) for _ in lines] for _, *lines in passages]
        return LineScores(scores, sum(len(row.ids) for of_passage in rows for row in of_passage))


def tiny_reader(scores: Sequence[float] = (), refuse_at: Mapping[str, float] = ALWAYS, name: str = "reader") -> Reader:
    """A reader that gives lines these scores."""
    return Reader(name, CountingJudge(scores), refuse_at)


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

    def pointed(self, question: str, reader: Reader, filters: Filters = EVERYTHING) -> PointedAnswer:
        self.asked.append((question, filters))
        if self.fault:
            raise self.fault
        read = [texts_of(passage) for passage in self.passages]
        found = reader.judge(question, [texts for texts, _ in read])
        rows = found.scores
        if self.scores is not None:
            left = iter(self.scores)
            rows = [[next(left) for _ in row] for row in rows]
        judged = [Judged(p, lines, row) for p, (_, lines), row in zip(self.passages, read, rows, strict=True)]
        return replace(point(question, judged, reader.refuse_at), tokens=found.tokens)


@dataclass
class ReadingJoints(PathJoints):
    """Joints of a house with one index and one reader."""

    reader: Reader | None
    index: LineIndex = field(default_factory=LineIndex)
    wanted: list[str] = field(default_factory=list)

    def open_retriever(self, index: str) -> AbstractContextManager[LineIndex]:
        return nullcontext(self.index)

    def reader_of(self, wanted: str) -> Reader | None:
        self.wanted.append(wanted)
        return None if wanted == "model" else self.reader
