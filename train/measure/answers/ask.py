"""Asks a model all items, each as a conversation of its own, and judges what it says.

It knows of the model what every room knows of it (`slm.joints.ChatEngine`): the same template, the same process and the
same files as `slm chat`. The likeliest token is always taken, so that a second run says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slm.errors import EngineError
from slm.joints import ChatEngine, Finish, SamplingOptions
from slm.terminal.console import note
from train.measure.answers.counts import JudgedAnswer, RightCount, count_of, counts_json, kinds_of
from train.measure.answers.items import ChatItem

Result = dict[str, Any]


def ask(
    engine: ChatEngine, items: Sequence[ChatItem], adapter: str | None, max_tokens: int, show: Callable[[int], None]
) -> list[JudgedAnswer]:
    """What a model says to each item. show: told how many are done.

    An item that cannot be asked (too long for the context, the process ended) is wrong and the others are asked; when
    none could be asked, the error of the last one is raised.
    """
    answers: list[JudgedAnswer] = []
    failed: EngineError | None = None
    for item in items:
        try:
            answer = _said(engine, item, adapter, max_tokens)
            answers.append(JudgedAnswer(item, answer, item.broken(answer)))
        except EngineError as error:
            failed = error
            note(f"'{item.id}' could not be asked: {error}")
            answers.append(JudgedAnswer(item, "", ("not asked",), str(error)))
        show(len(answers))
    if failed is not None and all(answer.error for answer in answers):
        raise failed
    return answers


def _said(engine: ChatEngine, item: ChatItem, adapter: str | None, max_tokens: int) -> str:
    pieces = engine.chat(item.messages, adapter=adapter, sampling=SamplingOptions(max_tokens=max_tokens))
    return "".join(str(piece) for piece in pieces if not isinstance(piece, Finish)).strip()


def result_of(
    name: str, file: Path, called: str, adapter: Path | None, answers: Sequence[JudgedAnswer], seconds: float
) -> Result:
    """A model's part of the JSON result. called: what the result calls the file."""
    return {
        "name": name, "file": called, "size_bytes": file.stat().st_size, "adapter": adapter and adapter.name,
        "seconds": round(seconds, 1), **counts_json(answers), "answers": [answer.as_json() for answer in answers],
    }  # fmt: skip


def rows(asked: Sequence[tuple[str, Sequence[JudgedAnswer]]]) -> list[list[str]]:
    """The rows of the table side by side: language, kind, then right/items of each (name, answers).

    A row `all` ends each language and the table; there the share stands with the range in which it really is.
    """
    kinds = kinds_of(asked[0][1])
    lines = []
    for lang in dict.fromkeys(lang for lang, _ in kinds):
        chosen = [[one for one in answers if one.item.lang == lang] for _, answers in asked]
        for kind in [kind for known, kind in kinds if known == lang]:
            counts = [count_of(one for one in part if one.item.kind == kind) for part in chosen]
            lines.append([lang, kind, *(f"{count.right}/{count.items}" for count in counts)])
        lines.append([lang, "all", *(_with_range(count_of(part)) for part in chosen)])
    lines.append(["all", "all", *(_with_range(count_of(answers)) for _, answers in asked)])
    return lines


def _with_range(count: RightCount) -> str:
    low, high = count.range95()
    return f"{count.right}/{count.items} ({100 * low:.0f}-{100 * high:.0f} %)"
