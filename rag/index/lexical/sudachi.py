"""Words by Sudachi (the extra `sudachi`), beside character pairs: what a dictionary knows to be one word is one term.

A word counts in its normalized form, so that 打合せ and 打ち合わせ, 定めた and 定める meet.
It knows nothing of indexes.
"""

from __future__ import annotations

import threading

import sudachipy

from rag.index.lexical.pairs import japanese_runs, terms_of
from slm.errors import ResourceError

# No other term has a control character, and with a form none is as short as a pair.
_MARK = "\x1fw"
_NO_CONTENT = ("助詞", "助動詞", "補助記号", "記号", "空白")
# SudachiPy takes 49,149 bytes at a time; a character has four at most, and may become several in its own reckoning.
_PIECE = 4_000


class SudachiTerms:
    """The terms of `rag.index.lexical.pairs`, and behind them words (a `rag.index.lexical.terms.Terms`).

    Threads take turns: a tokenizer serves one at a time.
    """

    def __init__(self) -> None:
        try:
            dictionary = sudachipy.Dictionary(dict="core")
            self._tokenizer = dictionary.tokenizer(sudachipy.SplitMode.A, fields={"pos", "normalized_form"})
        except Exception as error:  # of Rust, whatever it meets: a file cut short, one of another format
            raise ResourceError(
                "Sudachi cannot open its dictionary", found=str(error),
                hint="Install both anew: pip install --force-reinstall -c constraints.txt sudachipy sudachidict_core",
            ) from error  # fmt: skip
        self._without_content = dictionary.pos_matcher([(part,) for part in _NO_CONTENT])
        self._turn = threading.Lock()

    def __call__(self, text: str) -> list[str]:
        return [*terms_of(text), *(_MARK + word for word in self._words(text))]

    def _words(self, text: str) -> list[str]:
        """The content words of a text in their normalized forms, as short as the dictionary has them (A units)."""
        found = []
        with self._turn:
            for run in japanese_runs(text):
                for start in range(0, len(run), _PIECE):
                    for word in self._tokenizer.tokenize(run[start : start + _PIECE]):
                        if not self._without_content(word):
                            found.append(word.normalized_form())
        return found
