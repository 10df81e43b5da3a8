"""Whether a question asks for two things: "what is the fee, and when is it due", 「大人と子どもはそれぞれいくら」.

A logistic model over pieces of one to four words (letters, where a script has no blanks), each hashed to one of 32,768
weights. `scripts/twofold.py` learned them from the questions of data/reading/train. It knows nothing of passages.
"""

from __future__ import annotations

import math
import re
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slm.text.normal_form import nfkc

LEARNED = Path(__file__).parent / "twofold.npy"
WEIGHTS = 1 << 15
_LONGEST = 4
# Latin words are words; every other sign is one by itself, as Japanese has no blanks.
_WORD = re.compile(r"[a-z0-9']+|[^\sa-z0-9']")


def asks_for_two(question: str) -> float:
    """The probability that one line of a document is not enough for an answer."""
    places = pieces(question)
    weights = _weights()
    # Pieces count 1 / sqrt(their number) each, as the model was fitted.
    score = float(weights[-1]) + float(weights[list(places)].sum()) / math.sqrt(max(1, len(places)))
    return 1 / (1 + math.exp(-score))


def pieces(question: str) -> set[int]:
    """The weights of a question's pieces, by their places."""
    words = _WORD.findall(nfkc(question).lower())
    return {
        zlib.crc32("\x01".join(words[at : at + length]).encode("utf-8", "replace")) % WEIGHTS
        for length in range(1, _LONGEST + 1)
        for at in range(len(words) - length + 1)
    }


@cache
def _weights() -> NDArray[np.float32]:
    """(WEIGHTS + 1,): those of the pieces, and the constant."""
    return np.asarray(np.load(LEARNED, allow_pickle=False), np.float32)
