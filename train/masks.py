"""Turns examples into token ids and labels: which tokens are learned is computed here, for any chat template.

An answer's tokens are found by rendering the conversation with and without it, so a template needs no
special marks. It knows nothing of files, models or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from slm.errors import InputError
from slm.joints import Message
from slm.prompt import TEMPLATES, named_template, render, template_name_for
from train.data import JSONL, Example
from train.loss import IGNORE


@dataclass(frozen=True)
class Encoded:
    """Token ids and, of the same length, labels (-100 where nothing is learned), with the example they are from."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    example: Example

    @property
    def supervised(self) -> int:
        """How many tokens are predicted and learned (the first of a sequence never is)."""
        return sum(label != IGNORE for label in self.labels[1:])


def choose_template(tokenizer: Any, name: str | None) -> tuple[str, str | None]:
    """(template text, its name or None): the named one, else the base's own, else the one its vocabulary suggests."""
    if name is not None:
        return named_template(name), name
    own = tokenizer.chat_template
    if isinstance(own, str) and own:
        return own, next((known for known, text in TEMPLATES.items() if text == own), None)
    suggested = template_name_for(tokenizer.get_vocab())
    return named_template(suggested), suggested


def end_of_turn_id(tokenizer: Any, template: str) -> int | None:
    """The special token that a chat template puts behind an answer, or None."""
    names: dict[str, Any] = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
    turns: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = render(template, turns, add_generation_prompt=False, **names)
    except InputError:
        return None  # a template for other conversations
    encoder = Encoder(tokenizer, template)
    ids = encoder.ids(text.rstrip())
    return ids[-1] if ids and ids[-1] in encoder.special else None


class Encoder:
    """Text to token ids as the model sees them when it answers: BOS once if the tokenizer adds it, never EOS."""

    def __init__(self, tokenizer: Any, template: str = "") -> None:
        self._tokenizer = tokenizer
        self._template = template
        bos = tokenizer.bos_token_id
        first = tokenizer("a").input_ids[:1]
        self.bos = [bos] if bos is not None and first == [bos] else []
        self.special = set(tokenizer.all_special_ids) | {
            token for token, added in tokenizer.added_tokens_decoder.items() if added.special
        }

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that may hold special tokens as text, with exactly one BOS where one is due."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids if not self.bos or ids[:1] == self.bos else self.bos + ids

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that ask for the next answer."""
        return self.ids(self._render(messages, ask=True))

    def conversation(self, example: Example) -> list[Encoded]:
        """The example as sequences with labels on every answer and the marker that ends it.

        One sequence for the whole conversation where each beginning of it renders to the beginning of the
        whole; else one for each answer, which is what the model will see when it is asked.
        Raises InputError naming the line where a template hides where the answer begins.
        """
        turns = [n for n, m in enumerate(example.messages) if m["role"] == "assistant" and m["content"].strip()]
        spans = [self._answer(example, turn) for turn in turns]
        whole = spans[-1][0]
        if all(whole[: len(ids)] == ids[: len(whole)] for ids, _, _ in spans):
            labels = [IGNORE] * len(whole)
            for ids, start, end in spans:
                labels[start:end] = ids[start:end]
            return [self._encoded(whole, labels, example)]
        return [
            self._encoded(ids, [IGNORE] * start + ids[start:end] + [IGNORE] * (len(ids) - end), example)
            for ids, start, end in spans
        ]

    def texts(self, examples: Sequence[Example], max_length: int) -> list[Encoded]:
        """Plain texts with every token a label: neighbouring lines of a file are joined up to `max_length` tokens.

        A longer line goes on in the next sequence, so no text is lost. JSONL texts are documents of their
        own and end with EOS; lines of a plain file follow one another, separated by line breaks.
        """
        eos = self._tokenizer.eos_token_id
        end = [eos] if eos is not None else []
        room = max_length - len(self.bos)
        encoded: list[Encoded] = []
        block: list[int] = []
        members: list[Example] = []

        def close() -> None:
            if members:
                joined = replace(members[0], text="\n".join(member.text for member in members))
                for start in range(0, len(block), room):
                    ids = (*self.bos, *block[start : start + room])
                    if len(ids) > 1:
                        encoded.append(Encoded(ids, ids, joined))
            block.clear()
            members.clear()

        for example in examples:
            document = example.file.suffix in JSONL
            ids = self._tokenizer(example.text if document else example.text + "\n", add_special_tokens=False).input_ids
            ids = ids + end if document else ids
            joins = bool(members) and (members[0].file, members[0].lang) == (example.file, example.lang)
            if document or not joins or len(block) + len(ids) > room:
                close()
            members.append(example)
            block += ids
        close()
        return encoded

    def _render(self, messages: Sequence[Message], *, ask: bool) -> str:
        return render(
            self._template,
            messages,
            bos_token=self._tokenizer.bos_token or "",
            eos_token=self._tokenizer.eos_token or "",
            add_generation_prompt=ask,
        )

    def _answer(self, example: Example, turn: int) -> tuple[list[int], int, int]:
        """(ids of the conversation up to this answer, index of its first learned token, index after its last)."""
        asked = self._render(example.messages[:turn], ask=True) if turn else ""
        answered = self._render(example.messages[: turn + 1], ask=False)
        common = _common_length(asked, answered)
        if asked[common:].strip():
            raise InputError(
                f"the chat template renders the question differently once it is answered, so the answer's"
                f" tokens cannot be told apart ({example.where})",
                found=repr(asked[max(0, common - 20) : common + 40]),
                hint="Choose another template, for example: --template chatml",
            )
        before, ids = self.ids(asked) if asked else list(self.bos), self.ids(answered)
        if common == len(asked) and ids[: len(before)] != before:
            # A token would reach over the border: keep the prompt as it will be asked.
            ids = before + self._tokenizer(answered[common:], add_special_tokens=False).input_ids
        start = _common_length(before, ids)
        return ids, start, self._end(answered, ids, start)

    def _end(self, answered: str, ids: list[int], start: int) -> int:
        """Index after the end-of-turn marker: white space behind a marker is never generated, so never learned."""
        stripped = self.ids(answered.rstrip())
        size = len(stripped)
        if start < size <= len(ids) and ids[:size] == stripped and ids[size - 1] in self.special:
            return size
        return len(ids)

    def _encoded(self, ids: list[int], labels: list[int], example: Example) -> Encoded:
        encoded = Encoded(tuple(ids), tuple(labels), example)
        if not encoded.supervised:
            raise InputError(f"{example.where}: no token of the answer is left to learn under this chat template")
        return encoded


def fit_length(encoded: Sequence[Encoded], max_length: int, *, drop_long: bool) -> tuple[list[Encoded], list[Encoded]]:
    """(sequences that fit, those dropped). Raises InputError when one is too long and `drop_long` is not set."""
    long = [item for item in encoded if len(item.ids) > max_length]
    if long and not drop_long:
        longest = max(long, key=lambda item: len(item.ids))
        raise InputError(
            f"{len(long)} of {len(encoded)} examples are longer than {max_length} tokens, and none is cut silently",
            found=f"the longest has {len(longest.ids)} tokens: {longest.example.where}",
            hint=f"Raise --max-length to {len(longest.ids)}, or leave them out with --drop-long.",
        )
    kept = [item for item in encoded if len(item.ids) <= max_length]
    if not kept:
        raise InputError(f"every example is longer than --max-length {max_length} tokens")
    return kept, long


def _common_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length
