"""What a candidate's logits lose against a reference's: KL divergence, top-1 agreement, perplexity, bits per byte.

Pure numpy, in double precision. It knows nothing of models, of tokenizers or of where logits come from, and keeps a
few numbers a token, never logits.

Formulas: KL(P || Q) = sum p (log p - log q) in nats, P the reference's and Q the candidate's softmax (Kullback and
Leibler 1951; llama.cpp's tools/perplexity reports the same); perplexity = exp(mean -log q(next token)); bits per byte
= summed -log2 q(next token) / UTF-8 bytes predicted, comparable between tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from slm.errors import MismatchError, VerificationError

Logits = npt.NDArray[np.float32]
_ROWS = 8  # rows in double precision at a time: 17 MB an array for a vocabulary of 262,144
_MAX_PADDING = 1024  # rows that a padded vocabulary may have more than the other
NO_TARGET = -1


@dataclass(frozen=True)
class Figures:
    """What one language's text showed. Divergences in nats a token; perplexities are None without a next token.

    max_relative_difference: max |difference of logits| / max |reference logit|.
    """

    tokens: int
    max_relative_difference: float
    top1_agreement: float
    mean_kl_divergence: float
    p99_kl_divergence: float
    perplexity: float | None
    reference_perplexity: float | None
    bits_per_byte: float | None
    reference_bits_per_byte: float | None


@dataclass
class Tally:
    """The running sums of one text; `add` takes logits block by block, `figures` says what came of it."""

    divergences: list[npt.NDArray[np.float64]] = field(default_factory=list)
    same_top: int = 0
    nats: float = 0.0
    reference_nats: float = 0.0
    predicted: int = 0
    utf8_bytes: int = 0
    largest_difference: float = 0.0
    largest_logit: float = 0.0

    def add(self, reference: Logits, candidate: Logits, targets: Sequence[int]) -> None:
        """Compare two (rows, vocabulary) blocks; targets[i] is the token after row i, NO_TARGET if unknown.

        A vocabulary padded to a round number is compared on the part that both have. Raises MismatchError for
        different vocabularies, VerificationError for logits that are not finite.
        """
        if abs(reference.shape[1] - candidate.shape[1]) > _MAX_PADDING:
            raise MismatchError(
                "the two models have different vocabularies",
                found=f"{candidate.shape[1]:,} and {reference.shape[1]:,} tokens",
            )
        width = min(reference.shape[1], candidate.shape[1])
        if not len(reference) == len(candidate) == len(targets) or max(targets, default=NO_TARGET) >= width:
            raise MismatchError("logits and tokens do not belong together")
        for start in range(0, len(targets), _ROWS):
            rows = slice(start, start + _ROWS)
            self._add(reference[rows, :width], candidate[rows, :width], np.asarray(targets[rows], dtype=np.int64))

    def _add(self, reference: Logits, candidate: Logits, targets: npt.NDArray[np.int64]) -> None:
        left, right = reference.astype(np.float64), candidate.astype(np.float64)
        for whose, values in (("reference", left), ("candidate", right)):
            if not np.isfinite(values).all():
                raise VerificationError(
                    f"the {whose} computes logits that are NaN or infinite", hint="Its weights are damaged."
                )
        self.largest_difference = max(self.largest_difference, float(np.abs(left - right).max()))
        self.largest_logit = max(self.largest_logit, float(np.abs(left).max()))
        self.same_top += int((left.argmax(axis=1) == right.argmax(axis=1)).sum())
        log_p, log_q = log_softmax(left), log_softmax(right)
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
        self.divergences.append(np.maximum(divergence, 0.0))  # rounding may leave -1e-17
        known = np.flatnonzero(targets != NO_TARGET)
        self.nats -= float(log_q[known, targets[known]].sum())
        self.reference_nats -= float(log_p[known, targets[known]].sum())
        self.predicted += len(known)

    @property
    def tokens(self) -> int:
        return sum(len(part) for part in self.divergences)

    def figures(self) -> Figures:
        """The figures of everything added so far. Raises ValueError before the first token."""
        divergences = np.concatenate(self.divergences)
        return Figures(
            tokens=len(divergences),
            max_relative_difference=self.largest_difference / (self.largest_logit or 1.0),
            top1_agreement=self.same_top / len(divergences),
            mean_kl_divergence=float(divergences.mean()),
            p99_kl_divergence=float(np.quantile(divergences, 0.99)),
            perplexity=self._perplexity(self.nats),
            reference_perplexity=self._perplexity(self.reference_nats),
            bits_per_byte=self._bits_per_byte(self.nats),
            reference_bits_per_byte=self._bits_per_byte(self.reference_nats),
        )

    def _perplexity(self, nats: float) -> float | None:
        return math.exp(min(nats / self.predicted, 700.0)) if self.predicted else None

    def _bits_per_byte(self, nats: float) -> float | None:
        return nats / math.log(2) / self.utf8_bytes if self.predicted and self.utf8_bytes > 0 else None


def pooled(tallies: Iterable[Tally]) -> Tally:
    """All texts together, each token weighing the same."""
    whole = Tally()
    for one in tallies:
        whole.divergences += one.divergences
        whole.same_top += one.same_top
        whole.nats += one.nats
        whole.reference_nats += one.reference_nats
        whole.predicted += one.predicted
        whole.utf8_bytes += one.utf8_bytes
        whole.largest_difference = max(whole.largest_difference, one.largest_difference)
        whole.largest_logit = max(whole.largest_logit, one.largest_logit)
    return whole


def log_softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Logarithm of the softmax over the last axis."""
    shifted = values - values.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
