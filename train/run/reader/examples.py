"""Examples for a reader: prompts in pieces, and which pieces answer. It knows no model and no documents.

A line of the data is {"form", "lang", "prompts": [[piece, ...], ...], "right": [[prompt, piece], ...], "ignored": ...,
"every": bool}: what the prompts mean is known to whoever made them, and `form` is their number for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.errors import DamagedFileError, InputError, MismatchError
from slm.terminal.console import note
from train.data.examples import Example
from train.data.lines import json_objects
from train.data.masks import IGNORE, Encoded
from train.data.plain_text import special_texts_as_text

# The pieces before a prompt's lines: the question, and where the passage stands.
HEAD = 2


@dataclass(frozen=True)
class ReaderExample:
    """A question with its passages, encoded.

    sequences: a prompt each, with a label behind the last token of every line. right, ignored: of all lines in order,
    which answer, and which are neither right nor wrong. every: all right ones have to be found, else one is enough.
    """

    sequences: tuple[Encoded, ...]
    right: tuple[bool, ...]
    ignored: tuple[bool, ...]
    every: bool
    example: Example

    supervised: int = 1

    @property
    def tokens(self) -> int:
        return sum(len(sequence.ids) for sequence in self.sequences)


def read_examples(
    paths: Sequence[Path], tokenizer: Any, max_length: int
) -> tuple[list[ReaderExample], int, dict[Path, int]]:
    """(the examples, the form of their prompts, how many each file has). Prompts are cut at `max_length` tokens.

    A question whose answer is cut off is left out, which is noted: it would teach that nothing answers. Raises
    DamagedFileError naming the line, MismatchError for files of different forms.
    """
    encode = piece_encoder(tokenizer)
    examples: list[ReaderExample] = []
    forms: dict[int, Path] = {}
    counts: dict[Path, int] = {}
    left_out = 0
    for path in paths:
        for line, row in json_objects(path):
            where = f"'{path}', line {line}"
            try:
                forms.setdefault(int(row["form"]), path)
                example = _encoded(row, Example(path, line, str(row["lang"])), encode, max_length)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise DamagedFileError(f"{where} is no example for a reader", found=repr(error)) from error
            if example is None:
                left_out += 1
                continue
            examples.append(example)
            counts[path] = counts.get(path, 0) + 1
    if left_out:
        note(f"{left_out} questions are left out: their answer stands behind --max-length {max_length}")
    if not examples:
        raise InputError("the data hold no example", found=", ".join(map(str, paths)))
    if len(forms) > 1:
        names = ", ".join(f"{form} ('{path}')" for form, path in forms.items())
        raise MismatchError("the examples were made for readers of different forms", found=names)
    return examples, next(iter(forms)), counts


def piece_encoder(tokenizer: Any) -> tuple[list[int], Callable[[list[str]], list[list[int]]]]:
    """(BOS where one is due, what turns pieces into token ids, each by itself and special tokens' names as text)."""
    core = tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    bos = tokenizer.bos_token_id
    first = tokenizer("a").input_ids[:1]

    def encode(pieces: list[str]) -> list[list[int]]:
        with special_texts_as_text(core):
            return [encoding.ids for encoding in core.encode_batch_fast(pieces, add_special_tokens=False)]

    return [bos] if bos is not None and first == [bos] else [], encode


def _encoded(
    row: dict[str, Any],
    example: Example,
    encoder: tuple[list[int], Callable[[list[str]], list[list[int]]]],
    max_length: int,
) -> ReaderExample | None:
    """The example; None where what answers was cut off."""
    bos, encode = encoder
    marks = {name: {(int(p), int(n)) for p, n in row[name]} for name in ("right", "ignored")}
    sequences: list[Encoded] = []
    right: list[bool] = []
    ignored: list[bool] = []
    for prompt, pieces in enumerate(row["prompts"]):
        ids, labels, before = list(bos), [IGNORE] * len(bos), len(right)
        for number, piece in enumerate(encode(pieces)):
            if len(ids) + len(piece) >= max_length:  # one place is left for the last label
                break
            ids += piece
            # Of a line the label stands behind its last token, whose state is what is judged.
            labels += [IGNORE] * (len(ids) - len(labels))
            if number >= HEAD:
                labels.append(1)
                right.append((prompt, number) in marks["right"])
                ignored.append((prompt, number) in marks["ignored"])
        if len(right) > before:
            sequences.append(Encoded((*ids, ids[-1]), tuple(labels), example))
    known = {(p, n) for p, pieces in enumerate(row["prompts"]) for n in range(HEAD, len(pieces))}
    if not marks["right"] | marks["ignored"] <= known:
        raise ValueError("a piece that is marked is no line")
    if marks["right"] & marks["ignored"]:
        raise ValueError("a piece is marked as right and as ignored")
    if not known:
        raise ValueError("its prompts have no lines")
    if not right or sum(right) < (len(marks["right"]) if row["every"] else min(1, len(marks["right"]))):
        return None
    return ReaderExample(tuple(sequences), tuple(right), tuple(ignored), bool(row["every"]), example)
