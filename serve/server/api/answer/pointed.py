"""How an answer that a reader points at is written: chat's shape, with the lines it came from. It knows no engine.

Nothing of it is known before all of it is: a stream begins with the citations, and has the text in one event.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from serve.engine.pointing import PointedRun
from serve.server.api.answer.objects import Choice, Completion
from serve.server.api.answer.writer import ChatWriter
from slm.joints import Finish, PointedAnswer, Scored


def pointed_citations(pointed: PointedAnswer) -> dict[str, Any]:
    """What is said beside the text: the passages, whether it refuses, and the probability that no line answers.

    Of each passage quote, start and end are its likeliest line, text[start:end] in characters (code points); lines are
    all of it that were said, or came near.
    """
    rows = []
    for number, passage in enumerate(pointed.passages, start=1):
        lines = [one for one in pointed.nearest if one.passage == number]
        first = lines[0]
        rows.append({
            "number": number,
            "cited": any(one.passage == number for one in pointed.said),
            **asdict(passage),
            "quote": first.text,
            "start": first.start,
            "end": first.end,
            "lines": [{"start": one.start, "end": one.end, "said": one in pointed.said} for one in lines],
        })  # fmt: skip
    return {"citations": rows, "refused": not pointed.said, "doubt": pointed.doubt}


class PointedWriter(ChatWriter):
    """The answer of one run (a `serve.server.api.answer.writer.Writer`)."""

    def __init__(self, answer: Completion, run: PointedRun, *, with_usage: bool = False) -> None:
        super().__init__(answer, [Choice(0, chat=True)], with_usage=with_usage)
        self._run = run

    def opening(self) -> Iterator[dict[str, Any]]:
        """Nothing: the first event has the citations, which come with the text."""
        yield from ()

    def take(self, number: int, event: str | Scored | Finish) -> Iterator[dict[str, Any]]:
        choice = self._choices[number]
        if isinstance(event, str):
            yield self._answer.chunk(choice.first(), self._told())
        for part in choice.take(event):
            yield self._answer.chunk(part, self._told() if part["finish_reason"] else None)

    def whole(self) -> dict[str, Any]:
        return self._answer.whole(self._choices, self._prompts, self._told())

    def _told(self) -> dict[str, Any]:
        if self._run.answer is None:
            raise RuntimeError("the answer is not known yet")
        return pointed_citations(self._run.answer)
