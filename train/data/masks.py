"""Turns examples into token ids and labels: which tokens are learned is computed here, for any chat template.

An answer's tokens are found by rendering the conversation with and without it, so a template needs no
special marks; where it has them (`{% generation %}`), they say what is learned. It knows nothing of files, models
or training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from slm.chat.generation_tag import has_tag, taken_out
from slm.chat.prompt import TEMPLATES, named_template, render, render_marked, template_name_for
from slm.chat.segments import Disguise, Segment, Tools, conversation, guard_for
from slm.chat.tools import as_plain_turns
from slm.errors import InputError
from slm.joints import Message
from train.data.examples import Example
from train.data.plain_text import SegmentTokenizer, markers_of, special_texts_as_text

IGNORE = -100  # the label of a token that is not learned, as PyTorch's cross-entropy has it
# So many examples go to the tokenizer at once.
_CHUNK = 256
_T = TypeVar("_T")
_Marked = tuple[str, list[tuple[int, int]]]  # a text, and what of it the template marks, in characters


@dataclass(frozen=True)
class Encoded:
    """Token ids and, of the same length, labels (-100 where nothing is learned), with the example they are from."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    example: Example

    @property
    def supervised(self) -> int:
        """How many tokens are predicted and learned (the first of a sequence never is)."""
        return max(0, len(self.labels) - 1) - self.labels[1:].count(IGNORE)


def choose_template(tokenizer: Any, name: str | None) -> tuple[str, str | None]:
    """(template text, its name or None): the named one, else the base's own, else the one its vocabulary suggests."""
    if name is not None:
        return named_template(name), name
    own = tokenizer.chat_template
    if isinstance(own, str) and own:
        return own, next((known for known, text in TEMPLATES.items() if text == own), None)
    suggested = template_name_for(tokenizer.get_vocab())
    return named_template(suggested), suggested


def end_of_turn_id(tokenizer: Any, template: str, *, use_tag: bool = False) -> int | None:
    """The special token that a chat template puts behind an answer, or None. use_tag: the one that is learned."""
    turns: tuple[Message, ...] = ({"role": "user", "content": "6 x 7?"}, {"role": "assistant", "content": "42."})
    encoder = ExampleEncoder(tokenizer, template, use_tag=use_tag)
    try:
        (encoded,) = encoder.conversation(Example(Path(), 0, "en", messages=turns))
    except InputError:
        return None  # a template for other conversations
    return encoded.ids[-1] if encoded.ids[-1] in encoder.special else None


class _Answer(NamedTuple):
    """A conversation up to an answer as text: as the answer is asked for, and with the answer up to its end marker.

    `answered[border:]` is what the model has to write itself. disguise: how it was rendered where contents
    name markers. gaps: what of it is not learned, as (start, end) in characters: between two of the template's marks.
    """

    asked: str
    answered: str
    border: int
    disguise: Disguise | None = None
    gaps: tuple[tuple[int, int], ...] = ()

    def cuts(self) -> list[str]:
        """The answer up to each end of a gap."""
        return [self.answered[:place] for gap in self.gaps for place in gap]


class ExampleEncoder:
    """Text to token ids as the model sees them when it answers: BOS once if the tokenizer adds it, never EOS."""

    def __init__(self, tokenizer: Any, template: str = "", *, use_tag: bool = True) -> None:
        """use_tag: what is learned of an answer is what the template's `{% generation %}` holds, where it has one."""
        self._tokenizer = tokenizer
        self._template = template
        self._tagged = use_tag and has_tag(template)
        self._core = tokenizer.backend_tokenizer
        self._core.no_truncation()  # as transformers calls it; a tokenizer.json may say otherwise
        self._core.no_padding()
        bos = tokenizer.bos_token_id
        first = tokenizer("a").input_ids[:1]
        self.bos = [bos] if bos is not None and first == [bos] else []
        added = {token: str(text) for token, text in tokenizer.added_tokens_decoder.items() if text.special}
        self.special = (set(tokenizer.all_special_ids) | set(added)) - {tokenizer.unk_token_id}
        names = {*tokenizer.all_special_tokens, *added.values()} - {tokenizer.unk_token}
        markers = "|".join(re.escape(text) for text in sorted(names, key=len, reverse=True) if text.strip()) or "(?!)"
        self._guard = guard_for(markers_of(tokenizer), template)
        self._segments = SegmentTokenizer(self._core)
        self._marker, self._only_markers = re.compile(markers), re.compile(rf"(?:\s|{markers})*")

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that may hold special tokens as text, with exactly one BOS where one is due."""
        return self._all_ids([text])[0]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that ask for the next answer."""

        def asked(turns: Sequence[Message], _: Tools) -> str:
            return self._render(turns, ask=True)

        return self._with_bos(self._segments.ids(conversation(self._guard, messages, (), asked)))

    def encode(self, examples: Iterable[Example], max_length: int) -> Iterator[Encoded]:
        """Conversations with their answers as labels, plain texts with every token as a label, as they come."""
        for talks, group in groupby(examples, key=lambda example: bool(example.messages)):
            if talks:
                yield from self.conversations(group)
            else:
                yield from self.texts(group, max_length)

    def conversation(self, example: Example) -> list[Encoded]:
        """The sequences of one conversation; see `conversations`."""
        return list(self.conversations([example]))

    def conversations(self, examples: Iterable[Example]) -> Iterator[Encoded]:
        """Each example as sequences with labels on every answer and the marker that ends it.

        One sequence for the whole conversation where each beginning of it renders to the beginning of the
        whole; else one for each answer, which is what the model will see when it is asked. What the template
        itself puts between the question and the answer's words (Qwen3's empty thought) is learned with them
        where the model will have to write it. Raises InputError naming the line where a template hides where
        the answer begins, or shows nothing of it.
        """
        for chunk in _chunks(examples, _CHUNK):
            answers = [self._answers(example) for example in chunk]
            plain = [answer for talk in answers for answer in talk if answer.disguise is None]
            texts = list(dict.fromkeys(text for a in plain for text in (a.answered[: a.border], a.answered, *a.cuts())))
            ids = dict(zip(texts, self._all_ids(texts), strict=True))
            for example, talk in zip(chunk, answers, strict=True):
                yield from self._sequences(example, talk, ids)

    def texts(self, examples: Iterable[Example], max_length: int) -> Iterator[Encoded]:
        """Plain texts with every token a label: neighbouring lines of a file are joined up to `max_length` tokens.

        A longer line goes on in the next sequence, so no text is lost. JSONL texts are documents of their
        own and end with EOS; lines of a plain file follow one another, separated by line breaks, and EOS
        stands behind the last.
        """
        eos = self._tokenizer.eos_token_id
        end = [] if eos is None else [eos]
        room = max_length - len(self.bos)
        block: list[int] = []
        members: list[Example] = []

        def closed() -> Iterator[Encoded]:
            joined = replace(members[0], text="\n".join(member.text for member in members))
            for start in range(0, len(block), room):
                ids = (*self.bos, *block[start : start + room])
                if len(ids) > 1:
                    yield Encoded(ids, ids, joined)
            block.clear()
            members.clear()

        for example, ids in self._tokenized(examples):
            goes_on = members and not example.is_document and members[0].file == example.file
            if members and not goes_on:
                block += end
                yield from closed()
            elif members and len(block) + len(ids) > room:
                yield from closed()
            members.append(example)
            block += ids
        if members:
            block += end
            yield from closed()

    def _tokenized(self, examples: Iterable[Example]) -> Iterator[tuple[Example, list[int]]]:
        for chunk in _chunks(examples, _CHUNK):
            for is_document, group in groupby(chunk, key=lambda example: example.is_document):
                members = list(group)
                if is_document:
                    yield from zip(members, self._plain_ids([example.text for example in members]), strict=True)
                    continue
                with special_texts_as_text(self._core):
                    rows = self._plain_ids([example.text + "\n" for example in members])
                yield from zip(members, rows, strict=True)

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        """What `tokenizer(texts, add_special_tokens=False).input_ids` is, in half the time."""
        return [encoding.ids for encoding in self._core.encode_batch_fast(texts, add_special_tokens=False)]

    def _all_ids(self, texts: list[str]) -> list[list[int]]:
        return [self._with_bos(ids) for ids in self._plain_ids(texts)]

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if not self.bos or ids[:1] == self.bos else self.bos + ids

    def _ids_of(self, text: str, disguise: Disguise | None) -> list[int]:
        """Token ids of a rendered text, without a BOS of ours."""
        segments = [Segment(text, True)] if disguise is None else self._guard.segments(text, disguise)
        return self._segments.ids(segments)

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, ask: bool) -> str:
        """The text, with the tag's marks in an answer where it is used."""
        bos, eos = self._tokenizer.bos_token or "", self._tokenizer.eos_token or ""
        if self._tagged and not ask:
            return render_marked(self._template, messages, bos_token=bos, eos_token=eos, tools=tools)
        return render(self._template, messages, bos_token=bos, eos_token=eos, add_generation_prompt=ask, tools=tools)

    def _answers(self, example: Example) -> list[_Answer]:
        example, disguise = self._disguised(example)
        tagged = self._tagged and example.answers  # the tag may stand around the last answer alone
        whole = taken_out(self._shown(example, len(example.messages), ask=False)) if tagged else None
        found = [self._answer(example, turn, disguise, whole) for turn in example.answers]
        answers = [answer._replace(disguise=disguise) for answer in found if answer is not None]
        if found and not answers:
            raise _nothing_left(example)
        return answers

    def _disguised(self, example: Example) -> tuple[Example, Disguise | None]:
        """The example as it is to be rendered: in disguise where its text would add markers up to one of the turns."""
        disguise = self._guard.disguise(example.messages, example.tools)
        if disguise is None:
            return example, None
        hidden = replace(example, messages=tuple(disguise.messages), tools=tuple(disguise.tools))
        same = self._markers(example) == self._markers(hidden)
        return (example, None) if same else (hidden, disguise)

    def _markers(self, example: Example) -> list[list[str]]:
        """The markers in what is rendered for each answer; none where the template refuses it."""
        messages, tools, turns = example.messages, example.tools, example.answers
        try:
            texts = [self._render(messages[:turn], tools, ask=True) for turn in turns if turn]
            texts += [self._render(messages[: turn + 1], tools, ask=False) for turn in turns]
        except InputError:
            return []
        return [self._guard.markers_in(text) for text in texts]

    def _shown(self, example: Example, turns: int, *, ask: bool) -> str:
        """The first turns as text. Raises InputError with the line."""
        try:
            return self._render(example.messages[:turns], example.tools, ask=ask)
        except InputError as error:
            raise InputError(f"{example.where}: {error.what}", hint="Another template: --template chatml") from error

    def _answer(self, example: Example, turn: int, disguise: Disguise | None, whole: _Marked | None) -> _Answer | None:
        """None where the template's `{% generation %}` leaves the answer out."""
        asked = self._shown(example, turn, ask=True) if turn else ""
        answered = self._shown(example, turn + 1, ask=False)
        if whole is not None:
            return _tagged_answer(asked, answered, whole)
        (said,) = as_plain_turns(example.messages[turn : turn + 1], ())
        content = said["content"]
        if not turn:  # no template renders the question that nobody asked
            border = self._last_words(answered, 0, content.strip())
            border = border if border >= 0 else max(0, answered.find(content.strip()))
        else:
            border = len(asked) if answered.startswith(asked) else _common_length(asked, answered)
        if asked[border:].strip():
            raise InputError(
                f"the chat template renders the question differently once it is answered, so the answer's"
                f" tokens cannot be told apart ({example.where})",
                found=repr(_undone(asked[max(0, border - 20) : border + 40], disguise)),
                hint="Choose another template, for example: --template chatml",
            )
        return _Answer(asked, answered[: self._end(answered, border, content)], border, disguise)

    def _end(self, answered: str, border: int, content: str) -> int:
        """Where the marker that ends the answer ends, in characters; what stands behind it is never generated."""
        said = content.strip()
        for words in (said, said.splitlines()[-1].strip()):  # a template may change what stands before the last line
            place = self._last_words(answered, border, words)
            if place >= 0:
                marker = self._marker.search(answered, place + len(words))
                return marker.end() if marker else len(answered)
        whole = answered.rstrip()
        markers = [match.end() for match in self._marker.finditer(whole, border)]
        return len(whole) if markers and markers[-1] == len(whole) else len(answered)

    def _last_words(self, answered: str, start: int, words: str) -> int:
        """Where `words` stand with nothing but markers and white space behind them, from `start` on; -1 if nowhere.

        A short answer may also occur inside the template's own text: "l" in "<|channel|>".
        """
        place = answered.find(words, start)
        while place >= 0 and not self._only_markers.fullmatch(answered, place + len(words)):
            place = answered.find(words, place + 1)
        return place

    def _sequences(self, example: Example, talk: list[_Answer], ids: dict[str, list[int]]) -> Iterator[Encoded]:
        parts = [self._labelled(example, answer, ids) for answer in talk]
        if not parts:
            return
        whole = parts[-1][0]
        if all(whole[: len(part)] == part for part, _ in parts):
            labels = [IGNORE] * len(whole)
            for _, own in parts:
                labels[: len(own)] = [old if new == IGNORE else new for old, new in zip(labels, own, strict=False)]
            yield self._encoded(whole, labels, example)
            return
        for part, own in parts:
            yield self._encoded(part, own, example)

    def _labelled(self, example: Example, answer: _Answer, ids: dict[str, list[int]]) -> tuple[list[int], list[int]]:
        """(ids up to the end of the answer, their labels); a token that reaches over the end of a gap is learned."""
        part, start = self._span(example, answer, ids)
        labels = [IGNORE] * start + part[start:]
        cuts = [self._span(example, answer._replace(answered=text), ids)[0] for text in answer.cuts()]
        for before, behind in zip(cuts[::2], cuts[1::2], strict=True):
            left, right = _common_length(before, part), _common_length(behind, part)
            left = min(left + (left < len(before)), max(left, right))
            labels[left:right] = [IGNORE] * max(0, right - left)
        return part, labels

    def _span(self, example: Example, answer: _Answer, ids: dict[str, list[int]]) -> tuple[list[int], int]:
        """(ids up to the end of the answer, index of the first that is learned)."""
        asked, answered, disguise = answer.answered[: answer.border], answer.answered, answer.disguise
        if disguise is None:
            before, whole = ids[asked] if asked else list(self.bos), ids[answered]
        else:
            before, whole = (self._with_bos(self._ids_of(text, disguise)) for text in (asked, answered))
        if whole[: len(before)] != before:  # a token reaches over the border: keep the prompt as it will be asked
            whole = before + self._continuation(example, before, answer, whole)
        return whole, len(before)

    def _continuation(self, example: Example, before: list[int], answer: _Answer, whole: list[int]) -> list[int]:
        """Token ids of what the model writes that read, behind `before`, as `whole` does.

        Tokenizers that put a space before a text (SentencePiece's dummy prefix) would put one before the answer;
        tokens behind a line break have none.
        """
        text, rest = self._tokenizer.decode(whole), answer.answered[answer.border :]
        for lead in ("", "\n", "a"):
            first, both = (self._ids_of(part, answer.disguise) for part in (lead, lead + rest))
            part = both[len(first) :]
            if both[: len(first)] == first and self._tokenizer.decode(before + part) == text:
                return part
        raise InputError(
            f"the tokenizer merges the end of the question with the beginning of the answer ({example.where})",
            found=repr(_undone(rest[:40], answer.disguise)),
            hint="Choose a template that ends the question with a special token, for example: --template chatml",
        )

    def _encoded(self, ids: list[int], labels: list[int], example: Example) -> Encoded:
        if labels[1:].count(IGNORE) == len(labels) - 1:
            raise _nothing_left(example)
        return Encoded(tuple(ids), tuple(labels), example)


def _undone(text: str, disguise: Disguise | None) -> str:
    return text if disguise is None else disguise.undone(text)


def _tagged_answer(asked: str, marked: str, whole: _Marked) -> _Answer | None:
    """The answer as the template marks it in the whole conversation, or up to it where that reads otherwise.

    It goes from what nobody asked for to the end of the last mark.
    """
    answered, spans = taken_out(marked)
    known = len(asked) if answered.startswith(asked) else _common_length(asked, answered)
    # A template that writes the question otherwise once it is answered has marked earlier answers behind `known` too.
    own = [span for span in spans if span[1] > known] if answered.startswith(asked) else spans[-1:]
    end = len(answered) if whole[0].startswith(answered) else own[-1][1] if own else 0
    if whole[0].startswith(answered[:end]):
        if answered.startswith(asked):
            own = [(left, min(right, end)) for left, right in whole[1] if left < end and right > known]
        else:
            own = [span for span in own if span in whole[1]]
    if not own:
        return None
    gaps = tuple((one[1], two[0]) for one, two in pairwise(own) if one[1] < two[0])
    return _Answer(asked, answered[: own[-1][1]], max(own[0][0], known), gaps=gaps)


def _nothing_left(example: Example) -> InputError:
    return InputError(f"{example.where}: no token of the answer is left to learn under this chat template")


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk


def _common_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length
