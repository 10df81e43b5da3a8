"""How much of each language a tokenizer is trained on. Pure: it knows nothing of files or tokenizers.

Temperature sampling (mT5, arXiv 2010.11934, section 3.2): language l gets the share p_l ~ n_l^(1/T), n_l the UTF-8
bytes of its text. T = 1 takes the text as it is, a large T as much of each. Shares can also be searched for so that
two languages need equally many tokens for the same content.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping

from train.tokenizer.corpus import CorpusPassage

_LONGEST = 1000  # characters of a training sentence: SentencePiece leaves out those of more than 4,192 bytes


def temperature_shares(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """{language: share}, summing to 1, of sizes in bytes."""
    largest = max(sizes.values())
    weights = {lang: (size / largest) ** (1.0 / temperature) for lang, size in sizes.items()}
    return {lang: weight / sum(weights.values()) for lang, weight in weights.items()}


def copies(sizes: Mapping[str, int], shares: Mapping[str, float], budget: int) -> dict[str, float]:
    """How often each language's sentences are taken, so that their bytes stand in `shares` and sum to `budget`.

    The budget is lowered to the size of all text: nothing is gained by repeating everything.
    """
    total = min(budget, sum(sizes.values()))
    return {lang: shares[lang] * total / size for lang, size in sizes.items()}


def sentences(passages: Iterable[CorpusPassage], times: Mapping[str, float], seed: int) -> Iterator[str]:
    """Training sentences: each line `times[language]` times in the mean, whole times for sure and the rest by chance.

    SentencePiece refuses tabs and line breaks within a sentence; text is cut there. At encoding they are bytes.
    """
    chance = random.Random(seed)
    for passage in passages:
        whole, rest = divmod(times[passage.lang], 1.0)
        for line in passage.text.replace("\t", "\n").replace("\0", "\n").splitlines():
            for start in range(0, len(line), _LONGEST):
                for _ in range(int(whole) + (chance.random() < rest)):
                    yield line[start : start + _LONGEST]


def search_parity(
    measure: Callable[[dict[str, float]], dict[str, int]],
    shares: dict[str, float],
    *,
    tolerance: float = 0.02,
    attempts: int = 6,
) -> dict[str, float]:
    """The shares at which the two languages need equally many tokens for the same text, within `tolerance`.

    measure(shares) -> {language: tokens of the parallel text}, which falls as a language's share grows. Secant steps
    on the logarithms, within brackets; the best of `attempts` is returned.
    """
    one, other = shares
    low, high = -5.0, 5.0  # of the log odds of `one`
    odds = math.log(shares[one] / shares[other])
    best, least = shares, math.inf
    points: list[tuple[float, float]] = []
    for _ in range(attempts):
        share = 1.0 / (1.0 + math.exp(-odds))
        tried = {one: share, other: 1.0 - share}
        tokens = measure(tried)
        gap = math.log(tokens[one] / tokens[other])  # positive: `one` needs more, so it should get more
        if abs(gap) < least:
            best, least = tried, abs(gap)
        if abs(gap) <= tolerance:
            break
        low, high = (max(low, odds), high) if gap > 0 else (low, min(high, odds))
        points.append((odds, gap))
        odds = _next(points, low, high)
    return best


def _next(points: list[tuple[float, float]], low: float, high: float) -> float:
    at, gap = points[-1]
    if len(points) == 1:
        guess = at + 3.0 * gap
    else:
        before, earlier = points[-2]
        slope = (gap - earlier) / (at - before)
        guess = at - gap / slope if slope < 0 else (low + high) / 2
    return guess if low < guess < high else (low + high) / 2
