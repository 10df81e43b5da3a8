"""Proves that llama.cpp and a source tokenizer give the same token ids. It knows nothing of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.vocabulary.base.vocab import GgufVocabulary
from slm.chat.prompt import render
from slm.errors import InputError, VerificationError
from slm.joints import Message
from slm.native.llama import open_model, tokenize

# Two languages, symbols outside the basic plane, white space, numbers, code: where tokenizers differ.
MIXED_LINES: tuple[str, ...] = (
    "The quick brown fox doesn't jump over 1234567 lazy dogs; it's 3.14 o'clock, I'LL see!",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "カタカナとひらがな、漢字とＡＢＣ１２３ｱｲｳ、「括弧」・句読点！？",
    "今日は emoji 😀👍🏽 と 👨‍👩‍👧 と flags 🇯🇵 を使います。",
    "mixed: 東京 Tokyo, naïve café — “quotes” … €5 ½ ² ﬁ",
    "    def f(x):\n\treturn {'a': x ** 2, \"b\": [1, 2]}  # コメント\n\n\n\treturn None\n",
    "  leading and trailing spaces   \n  two\n\n three\t\ttabs ",
    "<b>html</b> <table><tr><td>x</td></tr></table> & C:\\path\\file_name.txt https://example.org/?q=1&r=%20",
    "e\u0301 か\u3099 한국어 Привет, мир! Ελληνικά العربية हिन्दी ไทย",
    "AaBbCc XYZ ÄÖÜ ÉÈ ΑΒΓ",
    "1 22 333 4444 55555 ١٢٣ 一二三",
    "ｶﾞｷﾞｸﾞ ﾊﾟﾋﾟﾌﾟ ｱｲｳｴｵ､｡｢｣ ﾃｷｽﾄ",
    "０１２３４５６７８９年１２月、ＡＢＣ（ａｂｃ）＃＠",
    "𠮷野家の𩸽定食、髙﨑さんと鷗外、龘 靁 𪚲 彅 ㍿ ㈱ ①②③",
    "一行目\r\n二行目\r\n\r\n\t字下げ　全角空白\u3000\u3000終わり",
    "",
    " ",
    "\n",
    "\t",
    "😀\n👍",
)
_SHOWN = 3  # of the lines that differ

Encode = Callable[[str], list[int]]


@dataclass
class VocabularySource:
    """A vocabulary, how the source tokenizer encodes (loaded on first use), and the lines on which to compare them.

    add_special: `encoder` and the runtime add the special tokens around a text, as an embedder needs them.
    `caveats` are known differences of the runtime that the lines leave out; they are told to the user. `ids_of` gives
    what `encoder` gives, for known lines and for much less memory; it holds the content of the source's files.
    """

    vocabulary: GgufVocabulary
    encoder: Callable[[], Encode]
    lines: list[str] = field(default_factory=lambda: list(MIXED_LINES))
    special_ids: list[int] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    add_special: bool = False
    ids_of: Callable[[Sequence[str]], list[list[int]]] | None = None

    def all_lines(self) -> list[str]:
        """The lines to compare, with those that hold special tokens and a conversation under the chat template."""
        ids = [i for i in self.special_ids if i < len(self.vocabulary.tokens)]
        chat = conversation(self.vocabulary) if ids else None
        return [*self.lines, *special_lines(self.vocabulary.tokens, ids), *([] if chat is None else [chat])]


class Proof:
    """The source tokenizer's ids of the lines, compared with llama.cpp's; of the source it keeps no more."""

    def __init__(self, source: VocabularySource) -> None:
        self._lines, self._encoder, self._add_special = source.all_lines(), source.encoder, source.add_special
        self._expected = self._by_encoder() if source.ids_of is None else source.ids_of(self._lines)
        self.lines_proven = 0

    def _by_encoder(self) -> list[list[int]]:
        encode = self._encoder()
        return [encode(line) for line in self._lines]

    def compare(self, model: Any) -> None:
        """Raise VerificationError unless llama.cpp's loaded vocabulary gives the same ids. The first time only."""
        if self.lines_proven:
            return
        try:
            self._compare(model)
        except VerificationError:
            # What is shown to the user comes from the whole tokenizer, not from one cut down to the lines.
            self._expected = self._by_encoder()
            self._compare(model)

    def _compare(self, model: Any) -> None:
        expected = dict(zip(self._lines, self._expected, strict=True))
        self.lines_proven = compare_ids(model, expected.__getitem__, lines=self._lines, add_special=self._add_special)


def differences(lines: Sequence[str], expected: Encode, found: Encode) -> list[tuple[str, list[int], list[int]]]:
    """Every line on which two tokenizers differ, with both lists of ids."""
    pairs = ((line, expected(line), found(line)) for line in lines)
    return [(line, left, right) for line, left, right in pairs if left != right]


def prove_equal(gguf: Path, expected: Encode, *, lines: Sequence[str] = MIXED_LINES, add_special: bool = False) -> int:
    """`compare_ids` for a vetted GGUF file, of which only the vocabulary is loaded."""
    with ExitStack() as stack:
        model = open_model(stack, gguf, vocab_only=True)
        return compare_ids(model, expected, lines=lines, add_special=add_special)


def compare_ids(model: Any, expected: Encode, *, lines: Sequence[str], add_special: bool = False) -> int:
    """Compare the ids of llama.cpp's loaded vocabulary with a source tokenizer's, line by line.

    add_special: whether `expected` adds BOS/EOS. Returns the number of lines compared; raises VerificationError
    that shows the first lines that differ.
    """
    different = differences(
        lines, expected, lambda text: tokenize(model, text, add_special=add_special, parse_special=True)
    )
    if different:
        shown = [_described(line, left, right) for line, left, right in different[:_SHOWN]]
        raise VerificationError(
            f"the tokenizer differs from its source on {len(different)} of {len(lines)} lines",
            found="; ".join(shown),
            hint="Nothing was written.",
        )
    return len(lines)


def _described(line: str, left: list[int], right: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return f"{line[:60]!r}: source ids {left[at : at + 6]}, llama.cpp {right[at : at + 6]} from token {at + 1}"


def special_lines(tokens: Sequence[str], ids: Sequence[int]) -> list[str]:
    """Lines with each of a few special tokens inside text, so that their recognition is compared as well."""
    return [f"a {tokens[i]}b\n{tokens[i]}" for i in list(ids)[:40]]


def conversation(vocabulary: GgufVocabulary) -> str | None:
    """A conversation under the vocabulary's chat template; None without one, or where it refuses an ordinary one.

    It is compared without adding a BOS: a template that wants one writes it, and two are a classic fault.
    """
    if not vocabulary.chat_template:
        return None
    special = {name: vocabulary.tokens[id_] for name, id_ in vocabulary.specials.items()}
    turns = [("user", "こんにちは。What is 2 + 2?"), ("assistant", "4です。"), ("user", "ありがとう 😀\n\nThanks!")]
    messages = [Message(role=role, content=content) for role, content in turns]
    try:
        return render(
            vocabulary.chat_template,
            messages,
            bos_token=special.get("bos", ""),
            eos_token=special.get("eos", ""),
        )
    except InputError:
        return None


def hf_encode(tokenizer: Any, *, add_special: bool = False) -> Encode:
    """`Encode` of a `tokenizers.Tokenizer`, without BOS/EOS unless asked for."""
    return lambda text: list(tokenizer.encode(text, add_special_tokens=add_special).ids)
