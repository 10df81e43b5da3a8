"""Sees to it that every system text of a conversation reaches the model, whatever the chat template makes of it.

Templates of many models know one system turn at the beginning: others they drop, or refuse. What a template drops
is found by rendering, not by reading it. It knows nothing of Jinja.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable, Sequence

from slm.errors import InputError
from slm.joints import Message

Write = Callable[[Sequence[Message]], str]

_NONCE = secrets.token_hex(8)
# (template and its options, shape of a conversation) -> whether all system texts are written.
_VERDICTS: dict[Hashable, bool] = {}
_MOST_VERDICTS = 512


def write_all(messages: Sequence[Message], write: Write, template: Hashable) -> str:
    """What `write` makes of the messages, with every system text in it.

    As they are, where nothing is lost. Else with the system texts at the beginning as one turn and later ones in the
    user's turn beside them; where a template drops that one too, it goes to the first user turn. template: what
    `write` depends on beside the messages. Raises the InputError of `write` where the template refuses all of these,
    and one of its own where the template drops the text there as well, as one that keeps no earlier turn does.
    """
    if not any(message["role"] == "system" for message in messages):
        return write(messages)
    ways = [messages]
    if (joined := fold(messages, keep_first=True)) != list(messages):
        ways.append(joined)
    refusal, dropped = None, False
    for turns in ways:
        try:
            text = write(turns)
            if _writes_all(turns, write, (template, "as they are")):
                return text
            dropped = True
        except InputError as error:
            refusal = refusal or error
    if refusal and not dropped:
        raise refusal

    def folded(turns: Sequence[Message]) -> str:
        return write(fold(turns, keep_first=False))

    text = folded(messages)
    if not _writes_all(messages, folded, (template, "folded")):
        raise InputError(
            "the model's chat template drops the system text of this conversation, wherever it stands",
            hint="The template keeps no earlier turn: write the text into the last question, or use another template.",
        )
    return text


def fold(messages: Sequence[Message], *, keep_first: bool) -> list[Message]:
    """The conversation with system texts only at its beginning, in one turn (`keep_first`), or nowhere.

    A system text goes to the front of the user's turn after it; where the assistant speaks first or nobody speaks any
    more, behind the user's turn before it; without one it becomes a user's turn.
    """
    turns: list[Message] = []
    waiting: list[str] = []
    rest = list(messages)
    if keep_first:
        first = next((n for n, message in enumerate(rest) if message["role"] != "system"), len(rest))
        texts = [message["content"] for message in rest[:first] if message["content"].strip()]
        if texts:
            turns.append(Message(role="system", content="\n\n".join(texts)))
        rest = rest[first:]

    def settle() -> None:
        if waiting and turns and turns[-1]["role"] == "user":
            turns[-1] = _with(turns[-1], [turns[-1]["content"], *waiting])
        elif waiting:
            turns.append(Message(role="user", content="\n\n".join(waiting)))
        waiting.clear()

    for message in rest:
        if message["role"] == "system":
            waiting += [message["content"]] if message["content"].strip() else []
            continue
        if message["role"] == "user":
            message = _with(message, [*waiting, message["content"]])
            waiting.clear()
        elif message["role"] == "assistant":
            settle()
        turns.append(message)  # a tool's result stays behind its call: what waits goes on waiting
    settle()
    return turns or [Message(role="user", content="")]


def _with(message: Message, texts: Sequence[str]) -> Message:
    changed = message.copy()
    changed["content"] = "\n\n".join(text for text in texts if text)
    return changed


def _writes_all(messages: Sequence[Message], write: Write, template: Hashable) -> bool:
    """Whether a word that nobody says, put into each system text, stands in what is written; known by the shape."""
    shape = tuple((m["role"], bool(m["content"].strip()), len(m.get("tool_calls", ()))) for m in messages)
    key = (template, shape)
    if key not in _VERDICTS:
        words, marked = [], []
        for number, message in enumerate(messages):
            if message["role"] == "system" and message["content"].strip():
                words.append(f"{_NONCE}x{number}x")
                message = _with(message, [f"{message['content'].rstrip()} {words[-1]}"])
            marked.append(message)
        text = write(marked).lower()  # some templates change the case
        if len(_VERDICTS) >= _MOST_VERDICTS:
            _VERDICTS.clear()
        _VERDICTS[key] = all(word in text for word in words)
    return _VERDICTS[key]
