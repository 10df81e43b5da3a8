"""What a tokenizer makes of text, each language apart, beside other tokenizers. It knows nothing of training.

bytes and characters per token: how much text a token carries. Fertility: tokens per word, words being what white space
separates; for languages written without spaces (Japanese, Chinese, Thai) tokens per character. Partial rate: the share
of tokens that are only a part of a character (byte fallback, or a byte-level piece that cuts one).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from slm.errors import InputError
from slm.terminal.console import progress
from train.base import load_tokenizer
from train.tokenizer.learn import TokenizerOptions, held_out_side

UNSPACED = frozenset({"ja", "zh", "th", "lo", "km", "my"})


_MOST = 1_000_000  # held-out characters of a language that are measured


@dataclass(frozen=True)
class TextFigures:
    """One tokenizer on one language's text; line breaks are not counted."""

    tokens: int
    bytes_per_token: float
    characters_per_token: float
    fertility: float
    fertility_unit: str
    unknown_rate: float
    partial_rate: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def text_figures(tokenizer: Any, lang: str, texts: Iterable[str]) -> TextFigures:
    """The figures of a transformers fast tokenizer on texts, line by line, in constant memory."""
    tokens = unknown = parts = size = characters = words = 0
    partial = partial_ids(tokenizer)
    for text in texts:
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            continue
        for ids in tokenizer(lines, add_special_tokens=False).input_ids:
            tokens += len(ids)
            unknown += sum(token == tokenizer.unk_token_id for token in ids)
            parts += sum(token in partial for token in ids)
        size += sum(len(line.encode()) for line in lines)
        characters += sum(map(len, lines))
        words += sum(len(line.split()) for line in lines)
    unit, units = ("character", characters) if lang in UNSPACED else ("word", words)
    return TextFigures(
        tokens, size / tokens, characters / tokens, tokens / units, unit, unknown / tokens, parts / tokens
    )  # fmt: skip


def partial_ids(tokenizer: Any) -> set[int]:
    """The tokens that stand for a part of a character, or for a single byte by fallback."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if all(f"<0x{value:02X}>" in vocabulary for value in range(256)):
        return {vocabulary[f"<0x{value:02X}>"] for value in range(256)}
    table = byte_table()
    ids = set()
    for piece, number in vocabulary.items():
        if all(character in table for character in piece):
            try:
                bytes(table[character] for character in piece).decode("utf-8")
            except UnicodeDecodeError:
                ids.add(number)
    return ids


def byte_table() -> dict[str, int]:
    """{character: byte} of byte-level BPE: printable Latin-1 stands for itself, the rest from U+0100 on in order.

    Source: GPT-2's encoder, `bytes_to_unicode`; the alphabet is the `tokenizers` library's.
    """
    alphabet = set(ByteLevel.alphabet())
    own = {chr(value): value for value in range(256) if chr(value) in alphabet}
    rest = [value for value in range(256) if value not in own.values()]
    return own | {chr(256 + number): value for number, value in enumerate(rest)}


def parallel_tokens(tokenizer: Any, parallel: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Tokens per sentence of parallel text, by language."""
    return {
        lang: sum(map(len, tokenizer(list(lines), add_special_tokens=False).input_ids)) / len(lines)
        for lang, lines in parallel.items()
    }


def report(
    tokenizer: Any, options: TokenizerOptions, beside: Mapping[str, Path], parallel: Mapping[str, Sequence[str]] | None
) -> dict[str, Any]:
    """The figures of a new tokenizer on its held-out text and on parallel text, beside those of other folders by name.

    {"tokenizers": {name: {"vocabulary", "by_language": {lang: figures}, "tokens_per_parallel_sentence": {lang: n}}}}
    """
    texts: dict[str, list[str]] = {lang: [] for lang in options.text}
    sizes = dict.fromkeys(texts, 0)
    for passage in held_out_side(options):
        if sizes[passage.lang] < _MOST:
            texts[passage.lang].append(passage.text)
            sizes[passage.lang] += len(passage.text)
    if empty := [lang for lang, size in sizes.items() if not size]:
        raise InputError(
            f"no text of '{empty[0]}' is held out to measure on: it has too few passages",
            hint="Raise --eval-fraction, or give more text.",
        )
    result: dict[str, Any] = {}
    with progress("measuring", total=1 + len(beside)) as show:
        for number, (name, one) in enumerate(_all(tokenizer, options.output, beside)):
            result[name] = {
                "vocabulary": len(one),
                "by_language": {lang: text_figures(one, lang, some).as_json() for lang, some in texts.items()},
                "tokens_per_parallel_sentence": parallel_tokens(one, parallel) if parallel else {},
            }
            show(number + 1)
    return {"tokenizers": result, "held_out_characters": sizes}


def _all(tokenizer: Any, output: Path, beside: Mapping[str, Path]) -> Iterable[tuple[str, Any]]:
    yield output.name, tokenizer
    for name, folder in beside.items():
        yield name, load_tokenizer(folder)
