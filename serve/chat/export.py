"""A conversation as a document: Markdown for people, JSON for programs. It knows nothing of terminals or of SQLite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from serve.chat.conversation import Exchange, messages_of
from slm.text.visible import one_line


def as_markdown(title: str, model: str, system: str, exchanges: Sequence[Exchange]) -> str:
    """Each question under a heading, then the answer as it was written, then its sources."""
    parts = [f"# {one_line(title) or 'Conversation'}", f"Model: {model}"]
    if system:
        parts.append(f"System: {system}")
    for number, exchange in enumerate(exchanges, start=1):
        parts.append(f"## Question {number}\n\n{exchange.question}")
        answer = "(no answer)" if exchange.answer is None else exchange.answer.strip()
        who = exchange.facts.get("adapter")
        parts.append(f"### Answer{f' ({who})' if who else ''}\n\n{answer}")
        if exchange.facts.get("stopped"):
            parts.append("(stopped)")
        if sources := exchange.facts.get("sources"):
            parts.append(
                "\n".join(f"- [{s['number']}] {one_line(s['place'])} ({one_line(s['source'])})" for s in sources)
            )
    return "\n\n".join(parts) + "\n"


def as_json(title: str, model: str, system: str, exchanges: Sequence[Exchange]) -> str:
    """{"title", "model", "messages": as OpenAI's API has them, "exchanges": with figures and sources}."""
    rows: list[dict[str, Any]] = [
        {"question": one.question, "answer": one.answer, **one.facts} for one in exchanges
    ]  # fmt: skip
    body = {
        "title": title, "model": model, "messages": messages_of(system, exchanges, []), "exchanges": rows,
    }  # fmt: skip
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"
