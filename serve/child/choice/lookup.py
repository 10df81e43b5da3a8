"""What probably comes next in a sequence, found in what stands there already (prompt lookup decoding).

An answer that quotes its sources, repeats names or goes round in circles says again what its prompt or itself said
before: what followed there is a draft that costs nothing to make. Whether it is right, decoding shows. Pure, and
nothing of one sequence shows in another; it knows nothing of models, batches or sampling.

Source of the idea: A. Saxena, "Prompt Lookup Decoding", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence

# So many tokens must have stood together before. One meets by chance too often; three find a fifth fewer places.
GRAM = 2
# Share of drafted tokens that were right, by how many before them in the same place were: 0, 1, ... and more. Measured
# over 9,000 tokens of answers by SmolLM2-135M and Gemma 3 270m, greedy and at temperature 0.7.
_RIGHT = (0.60, 0.72, 0.82, 0.86, 0.89, 0.90, 0.91, 0.92, 0.95)
# As many of the sequence's own tokens weigh as much as these shares.
_WEIGHT = 8.0


class Lookup:
    """The tokens of one sequence, and the place that it repeats at present. Every token is judged against that place,
    also where no draft was asked for."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        # Where the token after a gram stands, for its last occurrence but the one at the end.
        self._after = {tuple(self._tokens[at - GRAM : at]): at for at in range(GRAM, len(self._tokens))}
        self._at = self._after.get(self._tail())
        self._run = 0  # how many tokens in a row were right in this place
        self._seen = [_WEIGHT] * len(_RIGHT)
        self._right = [_WEIGHT * share for share in _RIGHT]

    def append(self, token: int) -> None:
        """The next token is known."""
        if self._at is not None:
            right = self._tokens[self._at] == token
            run = min(self._run, len(_RIGHT) - 1)
            self._seen[run] += 1
            self._right[run] += right
            self._run, self._at = (self._run + 1, self._at + 1) if right else (0, None)
        self._after[self._tail()] = len(self._tokens)
        self._tokens.append(token)
        if self._at is None:
            self._at = self._after.get(self._tail())

    def draft(self, count: int) -> list[int]:
        """The next tokens, `count` or none."""
        if self._at is None:
            return []
        period = len(self._tokens) - self._at  # a place that runs into the end goes round
        return [self._tokens[self._at + index % period] for index in range(count)]

    def chances(self, count: int) -> list[float]:
        """Of each token of such a draft, that it and all before it are right."""
        if self._at is None:
            return []
        chance, chances = 1.0, []
        for run in range(self._run, self._run + count):
            row = min(run, len(_RIGHT) - 1)
            chance *= self._right[row] / self._seen[row]
            chances.append(chance)
        return chances

    def _tail(self) -> tuple[int, ...]:
        return tuple(self._tokens[-GRAM:])
