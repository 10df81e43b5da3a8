"""Proves that llama.cpp and a source tokenizer give the same token ids. It knows nothing of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from slm.errors import VerificationError
from slm.llama import open_model, tokenize

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
    "",
    " ",
    "\n",
)

Encode = Callable[[str], list[int]]


def first_difference(lines: Sequence[str], expected: Encode, found: Encode) -> tuple[str, list[int], list[int]] | None:
    """The first line on which two tokenizers differ, with both lists of ids; None when all agree."""
    for line in lines:
        left, right = expected(line), found(line)
        if left != right:
            return line, left, right
    return None


def prove_equal(gguf: Path, expected: Encode, *, lines: Sequence[str] = MIXED_LINES, add_special: bool = False) -> int:
    """Compare the ids of a vetted GGUF's vocabulary with a source tokenizer's, line by line.

    add_special: whether `expected` adds BOS/EOS. Returns the number of lines compared; raises VerificationError
    that shows the first line that differs.
    """
    with ExitStack() as stack:
        model = open_model(stack, gguf, vocab_only=True)
        different = first_difference(
            lines, expected, lambda text: tokenize(model, text, add_special=add_special, parse_special=True)
        )
    if different is not None:
        line, left, right = different
        at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
        raise VerificationError(
            f"the tokenizer differs from its source on {line[:60]!r}",
            found=f"source ids {left[at : at + 6]}, llama.cpp {right[at : at + 6]}, from token {at + 1}",
            hint="Nothing was written.",
        )
    return len(lines)


def special_lines(tokens: Sequence[str], ids: Sequence[int]) -> list[str]:
    """Lines with each of a few special tokens inside text, so that their recognition is compared as well."""
    return [f"a {tokens[i]}b\n{tokens[i]}" for i in list(ids)[:40]]


def hf_encode(tokenizer: Any) -> Encode:
    """`Encode` of a `tokenizers.Tokenizer`, without BOS/EOS."""
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
