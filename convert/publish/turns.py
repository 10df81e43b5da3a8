"""What a chat template writes around each turn, found by rendering it, so that another template language can say it.

A template is taken to put fixed texts before and after each role's content; nearly all published ones do. What was
found is then proven by rendering conversations both ways. Pure; it knows nothing of GGUF or of Ollama.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slm.errors import InputError, UnsupportedError
from slm.joints import Message

RenderTurns = Callable[[Sequence[Message]], str]  # with the generation prompt, without BOS

_SYSTEM, _FIRST, _ANSWER, _SECOND = "SYSTEMTEXT", "FIRSTQUESTION", "FIRSTANSWER", "SECONDQUESTION"


@dataclass(frozen=True)
class Turns:
    """The fixed texts of a template.

    A conversation is: `start`, then with a system text `system[0] + text + system[1]` (in place of the first
    `user[0]` when `folded`: the system text then stands inside the first user turn), then each turn between its two
    texts, then `prompt`, after which the model answers. `default_system` is what stands there when none is given;
    `system` is None for a template that refuses one.
    """

    start: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    prompt: str
    folded: bool = False
    default_system: str = ""

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation's text, with the prompt for an answer at its end."""
        text, first = self.start, True
        given = next((m["content"] for m in messages if m["role"] == "system"), self.default_system)
        if given and self.system is not None and not self.folded:
            text += self.system[0] + given + self.system[1]
        for message in messages:
            if message["role"] == "user":
                before = self.user[0]
                if first and given and self.folded and self.system is not None:
                    before = self.system[0] + given + self.system[1]
                text += before + message["content"] + self.user[1]
                first = False
            elif message["role"] == "assistant":
                text += self.assistant[0] + message["content"] + self.assistant[1]
        return text + self.prompt

    def literals(self) -> list[str]:
        """Every fixed text."""
        texts = [self.start, *self.user, *self.assistant, self.prompt, self.default_system]
        return texts + list(self.system or ())


def turns_of(render: RenderTurns) -> Turns:
    """The fixed texts of a template. Raises UnsupportedError for one that is not made of them."""
    alone = _parts(render, _conversation(_FIRST), _FIRST)
    before, middle, between, after = _parts(
        render, _conversation(_FIRST, _ANSWER, _SECOND), _FIRST, _ANSWER, _SECOND
    )  # fmt: skip
    if alone != [before, after]:
        raise UnsupportedError("the chat template writes a first turn differently when others follow")
    user_start = _common_end(before, between)
    if user_start == between:
        # A default system text ends as an answer does; then a turn begins where answers and questions differ first.
        user_start = between[len(_before_tag(_common_start(middle, between))) :]
    answer_end = between[: len(between) - len(user_start)]
    user_end = _common_start(middle, answer_end, after)
    turns = Turns(
        start=before[: len(before) - len(user_start)],
        system=None,
        user=(user_start, user_end),
        assistant=(middle[len(user_end) :], answer_end),
        prompt=after[len(user_end) :],
    )
    turns = _with_system(render, turns, before)
    _prove(render, turns)
    return turns


def _with_system(render: RenderTurns, turns: Turns, before: str) -> Turns:
    """The turns with what stands around a system text; `before` is what precedes the first question without one."""
    try:
        start, joint, _ = _parts(render, _conversation(_FIRST, system=_SYSTEM), _SYSTEM, _FIRST)
    except (InputError, UnsupportedError):
        return turns  # the template refuses a system text or drops it
    user_start = turns.user[0]
    if joint.endswith(user_start) and user_start:
        # A turn of its own. Without a system text the template may put a text of its own there.
        own = before[len(start) : len(before) - len(joint)]
        if before.startswith(start) and before.endswith(joint) and len(before) >= len(start) + len(joint) and own:
            head, default = "", own
        else:
            head, default = _common_start(start, turns.start), ""
        return Turns(
            head, (start[len(head) :], joint[: len(joint) - len(user_start)]), turns.user, turns.assistant,
            turns.prompt, False, default,
        )  # fmt: skip
    head = turns.start
    if not start.startswith(head):
        raise UnsupportedError("the chat template writes another beginning before a system text")
    return Turns(head, (start[len(head) :], joint), turns.user, turns.assistant, turns.prompt, True)


def _conversation(*contents: str, system: str | None = None) -> list[Message]:
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def _parts(render: RenderTurns, messages: Sequence[Message], *contents: str) -> list[str]:
    """The rendered text cut at each content. Raises UnsupportedError unless each stands there once, in order."""
    text, parts = render(messages), []
    for content in contents:
        part, found, text = text.partition(content)
        if not found or content in text:
            raise UnsupportedError("the chat template does not write each turn's text once, in order")
        parts.append(part)
    return [*parts, text]


def _before_tag(text: str) -> str:
    """The text without the tag, whole or begun, at its end: `<|im_end|>` of `<|im_end|><|im_st`."""
    return re.sub(r"<[^<>\s]*>?$", "", text)


def _common_start(*texts: str) -> str:
    length = 0
    for letters in zip(*texts, strict=False):
        if len(set(letters)) > 1:
            break
        length += 1
    return texts[0][:length]


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _prove(render: RenderTurns, turns: Turns) -> None:
    """Raise UnsupportedError unless the template and what was found of it write the same conversations."""
    texts = (
        "How do I reset it?",
        "Hold the button.\n\n- red: wait\n- green: done",
        "今日の天気は？",
        "晴れです。",
        "Thanks!",
    )
    systems = [None] if turns.system is None else [None, "You are terse.", "敬語で答えてください。\nBe brief."]
    for count in (1, 3, 5):
        for system in systems:
            messages = _conversation(*texts[:count], system=system)
            if render(messages) != turns.render(messages):
                raise UnsupportedError("the chat template is not made of fixed texts around each turn")
