"""Keeps text that people and files bring from becoming control tokens: a prompt as segments of two kinds.

A tokenizer reads "<|im_end|>" as one token wherever it stands, so a document could end a turn and write the next one.
A chat template is a program and may trim, test and cut what it is given, so its pieces cannot be tokenized apart.
Therefore the conversation is rendered in disguise: the character that begins a marker (the text of a special token) is
replaced, in all text that is not the template's, by a private-use character that occurs nowhere in it. One character
stands for one, so lengths and cuts stay what they were. The markers in the rendered text are then the template's own;
between them the characters are put back, and that text is tokenized without special tokens. Where the contents add no
marker the prompt is one segment, read as ever. Pure; it knows nothing of template languages, models or tokenizers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from slm.joints import Message

# What a model writes inside its own answer. They stay tokens in the assistant's turns, where templates look for them.
ANSWER_MARKERS = ("<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>")
# What models and `slm.chat.tools` write whether or not the template names it.
_KNOWN = frozenset((*ANSWER_MARKERS, "<tool_response>", "</tool_response>", "<tools>", "</tools>"))
_ANSWER_FIELDS = ("content", "reasoning_content", "reasoning")
# Planes 15 and 16 of Unicode, which belong to nobody, from the end.
_STAND_INS = range(0x10FFFD, 0xF0000, -1)
_BARRED = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)

Tools = Sequence[Mapping[str, Any]]
Render = Callable[[Sequence[Message], Tools], str]


class Segment(NamedTuple):
    """Text for the tokenizer. special: markers in it are tokens; otherwise it is text and nothing else.

    A segment of text that follows another one directly continues it.
    """

    text: str
    special: bool


@dataclass(frozen=True, eq=False)
class Markers:
    """The texts of a vocabulary's special tokens.

    control: a tokenizer reads them as tokens only when it is told to. added: it reads them as tokens always
    (llama.cpp's user-defined tokens, Hugging Face's added tokens that are not special). pieces: ordinary tokens that
    look like markers, as which unigram models keep their user-defined symbols.
    """

    control: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Disguise:
    """A conversation with stand-ins in all its text, and how they are undone."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    characters: dict[str, str]  # stand-in -> what it stands for

    def unescaped(self, text: str) -> str:
        """The text with the stand-ins that a template wrote as JSON escapes as characters."""
        for stand_in in self.characters:
            text = text.replace(_escaped(stand_in), stand_in)
        return text

    def undone(self, text: str) -> str:
        """The text with its characters put back."""
        return self.unescaped(text).translate({ord(stand_in): c for stand_in, c in self.characters.items()})


class Guard:
    """Finds what must not be read as a marker under one template. Build it with `guard_for`."""

    def __init__(self, markers: Markers, template: str) -> None:
        # Added tokens may be plain words or runs of spaces: those are nobody's markers and are read as ever.
        control = {text for text in markers.control if text.strip()}
        added = {text for text in markers.added if _is_marker(text, template)} - control
        pieces = {text for text in markers.pieces if _is_marker(text, template)} - control - added
        self._tokens = control | added
        self._all = self._tokens | pieces
        self._others = frozenset(text for text in markers.added if text.strip()) - self._all
        # Which character of a marker gets a stand-in; None for a marker that is a plain word.
        signs = {text: next((c for c in text if _is_sign(c)), None) for text in self._all}
        self._signs = frozenset(sign for sign in signs.values() if sign)
        self._words = _any_of([text for text, sign in signs.items() if sign is None])
        self._suspect = _one_of(self._signs)
        self._last_signs = frozenset(text[-1] for text in self._all if _is_sign(text[-1]))
        self._joined = "\0".join(("", *self._all, ""))
        self._longest = max(map(len, self._all), default=0)
        self._answer = _any_of([text for text in ANSWER_MARKERS if text in self._all])
        self._lengths: dict[str, set[int]] = {}
        for text in self._all | self._others:
            self._lengths.setdefault(text[:2], set()).add(len(text))
        self._first = _one_of({beginning[0] for beginning in self._lengths})
        self._parting = _any_of(added | pieces)

    def disguise(self, messages: Sequence[Message], tools: Tools = ()) -> Disguise | None:
        """The conversation in disguise, or None where nothing in it could be or become a part of a marker."""
        texts = list(_texts([messages, tools]))
        if not any(self._is_suspect(text) for text in texts):
            return None
        everything = "\0".join(texts)
        free = (chr(code) for code in _STAND_INS if _is_free(chr(code), everything))
        table: dict[str, str] = {}

        def hide(character: str) -> str:
            if character not in table:
                table[character] = next(free)
            return table[character]

        hidden = [self._in_turn(message, hide) for message in messages]
        functions = [self._in_value(tool, hide) for tool in tools]
        return Disguise(hidden, functions, {stand_in: character for character, stand_in in table.items()})

    def split(self, text: str) -> list[Segment]:
        """The text cut at its special tokens, the longest first, as llama.cpp cuts it (`tokenizer_st_partition`)."""
        return self._split(text, self._tokens)

    def _split(self, text: str, markers: Set[str]) -> list[Segment]:
        pieces = [Segment(text, False)]
        for marker in sorted(self._present(text, markers), key=lambda m: (-len(m.encode()), m)):
            found: list[Segment] = []
            for piece in pieces:
                if piece.special or marker not in piece.text:
                    found.append(piece)
                    continue
                for number, part in enumerate(piece.text.split(marker)):
                    found += [Segment(marker, True)] if number else []
                    found += [Segment(part, False)] if part else []
            pieces = found
        return pieces

    def markers_in(self, text: str) -> list[str]:
        """The markers that a tokenizer would read as tokens, in order."""
        return [piece.text for piece in self._split(text, self._all) if piece.special]

    def segments(self, text: str, disguise: Disguise) -> list[Segment]:
        """A text rendered in disguise as segments: its markers as tokens, all else as it was written."""
        found = []
        for piece in self.split(text):
            if piece.special:
                found.append(piece)
            else:
                for part in self._parted(piece.text, disguise):
                    found += self._split(part, self._others)
        return found

    def _parted(self, disguised: str, disguise: Disguise) -> Iterator[str]:
        """The text put back, cut behind the first character of what would be read as one token even so."""
        disguised = disguise.unescaped(disguised)
        text, start, at = disguise.undone(disguised), 0, 0
        while match := self._parting.search(text, at):
            at = match.start() + 1
            if disguised[match.start() : match.end()] != match.group():  # otherwise the template wrote it
                yield text[start:at]
                start = at
        if start < len(text):
            yield text[start:]

    def _present(self, text: str, markers: Set[str]) -> set[str]:
        found = set()
        for match in self._first.finditer(text):
            start = match.start()
            for length in (*self._lengths.get(text[start : start + 2], ()), 1):
                if (part := text[start : start + length]) in markers:
                    found.add(part)
        return found

    def _is_suspect(self, text: str) -> bool:
        return bool(self._suspect.search(text) or self._words.search(text)) or self._loose_end(text) is not None

    def _loose_end(self, text: str) -> int | None:
        """Where a sign stands that would complete a marker which the template's own text before it has begun."""
        bare = text.strip()
        if not bare:
            return None
        start = text.index(bare)
        for length in range(min(len(bare), self._longest - 1), 0, -1):
            if bare[length - 1] in self._last_signs and self._ends_a_marker(bare[:length]):
                return start + length - 1
        signs = [n for n, character in enumerate(bare) if _is_sign(character)] if len(bare) < self._longest else []
        return start + signs[-1] if signs and bare in self._joined and self._is_inside(bare) else None

    def _ends_a_marker(self, part: str) -> bool:
        """Whether it is the end of a marker, and not a whole one."""
        place = self._joined.find(f"{part}\0", 1)
        while place > 0 and self._joined[place - 1] == "\0":
            place = self._joined.find(f"{part}\0", place + 1)
        return place > 0

    def _is_inside(self, part: str) -> bool:
        return any(part in marker != part for marker in self._all)

    def _in_turn(self, message: Message, hide: Callable[[str], str]) -> Message:
        """A turn in disguise; its role is checked by whoever renders it."""
        answer = message.get("role") == "assistant"
        hidden: dict[str, Any] = {}
        for field, value in message.items():
            if field == "role":
                hidden[field] = value
            elif isinstance(value, str) and field in _ANSWER_FIELDS:
                hidden[field] = self._in_text(value, hide, answer=answer, words=True)
            else:
                hidden[field] = self._in_value(value, hide)
        return hidden  # type: ignore[return-value]

    def _in_value(self, value: Any, hide: Callable[[str], str]) -> Any:
        """JSON data in disguise. Plain words stay, because templates look for them: "type": "function"."""
        if isinstance(value, str):
            return self._in_text(value, hide)
        if isinstance(value, Mapping):
            return {self._in_value(key, hide): self._in_value(item, hide) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._in_value(item, hide) for item in value]
        return value

    def _in_text(self, text: str, hide: Callable[[str], str], *, answer: bool = False, words: bool = False) -> str:
        end = self._loose_end(text)
        if end is not None:
            text = text[:end] + hide(text[end]) + text[end + 1 :]
        found, start = [], 0
        kept = [match.span() for match in self._answer.finditer(text)] if answer else []
        for left, right in [*kept, (len(text), len(text))]:
            part = self._suspect.sub(lambda match: hide(match.group()), text[start:left])
            if words:
                part = self._words.sub(lambda match: hide(match.group()[0]) + match.group()[1:], part)
            found += [part, text[left:right]]
            start = right
        return "".join(found)


@lru_cache(maxsize=16)
def guard_for(markers: Markers, template: str) -> Guard:
    """The guard for a vocabulary's markers (by identity) under a chat template."""
    return Guard(markers, template)


def conversation(guard: Guard, messages: Sequence[Message], tools: Tools, render: Render) -> list[Segment]:
    """A rendered conversation as segments in which only the template's own markers are tokens.

    render: the chat template; it is called a second time where text of the conversation might form markers.
    Raises what it raises.
    """
    plain = render(messages, tools)
    disguise = guard.disguise(messages, tools)
    if disguise is None:
        return [Segment(plain, True)]
    disguised = render(disguise.messages, disguise.tools)
    if guard.markers_in(disguised) == guard.markers_in(plain):  # the tokenizer's own reading, to the bit
        return [Segment(plain, True)]
    return guard.segments(disguised, disguise)


def looks_like_marker(text: str) -> bool:
    """Whether a token's text has the form of a marker: signs at both ends."""
    return len(text) > 2 and _is_sign(text[0]) and _is_sign(text[-1])


def marker_like(vocabulary: Iterable[str]) -> tuple[str, ...]:
    """The tokens of a vocabulary that look like markers, whatever kind they are said to be."""
    return tuple(t for t in vocabulary if t[:1] in ("<", "[") and t[-1:] in (">", "]") and looks_like_marker(t))


def _is_sign(character: str) -> bool:
    return not character.isalnum() and not character.isspace()


def _is_marker(text: str, template: str) -> bool:
    """Whether an added token structures conversations: it looks so, and the template or `slm.chat.tools` writes it."""
    bare = text.strip()
    if not looks_like_marker(bare):
        return False
    return text in template or text in _KNOWN or bool(_BARRED.fullmatch(bare))


def _one_of(characters: Set[str]) -> re.Pattern[str]:
    return re.compile(f"[{re.escape(''.join(sorted(characters)))}]" if characters else "(?!)")


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)")


def _escaped(stand_in: str) -> str:
    return json.dumps(stand_in)[1:-1]


def _is_free(stand_in: str, text: str) -> bool:
    return stand_in not in text and _escaped(stand_in) not in text


def _texts(value: Any) -> Iterator[str]:
    """Every text in JSON data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)
