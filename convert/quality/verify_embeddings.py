"""Compares an embedder's GGUF with its reference: token ids and embeddings, by language.

The reference is a checkpoint folder (run by transformers) or another GGUF. A text is a line; its embedding is pooled
as the candidate says (the mean where it says nothing) and scaled to length 1, as embeddings are used. It knows nothing
of next-token distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.output.vet import vet_model
from convert.quality.sample_text import read_texts
from convert.quality.verify import MAX_TOKENS, bounds_for, is_language_model
from convert.source.pooling import TYPES
from convert.vocabulary.base.proof import MIXED_LINES
from slm.artifacts import require_file
from slm.errors import InputError, MismatchError, VerificationError
from slm.native import llama
from slm.terminal.console import progress
from slm.weights.gguf_reader import GgufFile, read_gguf

Vector = npt.NDArray[np.float64]
_LONGEST = 256  # tokens of a text
_SHORTEST = 3  # tokens: a text between its two special ones
_MEAN = TYPES["mean"]


@dataclass(frozen=True)
class EmbeddingBounds:
    """What may at most be lost: the smallest cosine, and max |difference| / max |reference| of unit vectors."""

    cosine: float
    relative: float


# By the kind of `convert.quality.verify.bounds_for`. A float file differs by rounding alone; the others have room for
# the tiny random encoders of the tests, which lose more than trained ones.
_BOUNDS = {
    "f32": EmbeddingBounds(0.9999, 0.01), "f16": EmbeddingBounds(0.9995, 0.02), "bf16": EmbeddingBounds(0.995, 0.1),
    "q8_0": EmbeddingBounds(0.99, 0.15), "q6": EmbeddingBounds(0.98, 0.25), "q5": EmbeddingBounds(0.95, 0.4),
    "q4": EmbeddingBounds(0.90, 0.6), "low": EmbeddingBounds(0.70, 1.0),
}  # fmt: skip


def default_bounds(file: GgufFile) -> tuple[str, EmbeddingBounds]:
    """The kind of file by its coarsest types, and the bounds for it."""
    kind = bounds_for(file)[0]
    return kind, _BOUNDS[kind]


@dataclass(frozen=True)
class EmbeddingRunner:
    """Something that gives ids for a text, special tokens included, and an embedding for ids."""

    encode: Callable[[str], list[int]]
    embed: Callable[[list[int]], Vector]
    context: int


def gguf_embedder(stack: ExitStack, path: Path) -> EmbeddingRunner:
    """Run a GGUF embedder by llama.cpp. Raises InputError for a model that predicts tokens."""
    file = read_gguf(path)
    vet_model(file)
    if is_language_model(file):
        raise InputError(f"'{path}' is no embedder: it predicts tokens")
    model = llama.open_model(stack, path)
    return EmbeddingRunner(
        lambda text: llama.tokenize(model, text, add_special=True, parse_special=True),
        lambda ids: np.array(llama.embedding_of(model, ids)),
        int(llama.library().llama_model_n_ctx_train(model)),
    )


def _checkpoint_embedder(folder: Path, pooling: int) -> EmbeddingRunner:
    import torch
    import transformers

    from convert.source.checkpoint import read_checkpoint
    from convert.vocabulary.vocab_source import read_vocabulary

    encode = read_vocabulary(folder, read_checkpoint(folder).config, embedder=True).encoder()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    def embed(ids: list[int]) -> Vector:
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
        pooled: Vector = states.mean(axis=0) if pooling == _MEAN else states[0 if pooling == TYPES["cls"] else -1]
        return pooled / max(float(np.linalg.norm(pooled)), 1e-12)

    positions = getattr(model.config, "max_position_embeddings", _LONGEST)
    return EmbeddingRunner(encode, embed, int(positions))


def verify_embedder(
    candidate: Path | str,
    against: Path | str,
    *,
    texts: Mapping[str, Path] | None = None,
    bounds: EmbeddingBounds | None = None,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Any]:
    """Compare a GGUF embedder with a checkpoint folder or a GGUF, on at most `max_tokens` (0: all) of each language.

    Returns {ok, broken, bounds, token_ids, by_language: {lang: {texts, tokens, min_cosine, mean_cosine,
    max_relative_difference}}, overall, ...}. Raises InputError, MismatchError (embeddings of different widths) and
    VerificationError (embeddings that are not finite).
    """
    file, reference = read_gguf(candidate), Path(against)
    kind, default = default_bounds(file)
    bounds = bounds or default
    prose = read_texts(texts)
    with ExitStack() as stack:
        found = gguf_embedder(stack, file.path)
        if reference.is_dir():
            expected = _checkpoint_embedder(reference, pooling_of(file))
        else:
            expected = gguf_embedder(stack, read_gguf(require_file(reference)).path)
        lines = {lang: _lines(text, expected, max_tokens) for lang, text in prose.items()}
        every = [*MIXED_LINES, *(line for of_lang in lines.values() for line in of_lang)]
        different = [line for line in every if found.encode(line) != expected.encode(line)]
        by_language = {lang: _compare(of_lang, found, expected, lang) for lang, of_lang in lines.items()}
    overall = {
        "texts": sum(one["texts"] for one in by_language.values()),
        "tokens": sum(one["tokens"] for one in by_language.values()),
        "min_cosine": min(one["min_cosine"] for one in by_language.values()),
        "mean_cosine": float(np.average([one["mean_cosine"] for one in by_language.values()],
                                        weights=[one["texts"] for one in by_language.values()])),
        "max_relative_difference": max(one["max_relative_difference"] for one in by_language.values()),
    }  # fmt: skip
    broken = []
    if different:
        broken.append(f"token ids differ on {len(different)} of {len(every)} lines")
    if not overall["min_cosine"] >= bounds.cosine:
        broken.append(f"smallest cosine {overall['min_cosine']:.5f} < {bounds.cosine:g}")
    if not overall["max_relative_difference"] <= bounds.relative:
        broken.append(f"max relative difference {overall['max_relative_difference']:.4g} > {bounds.relative:g}")
    return {
        "candidate": str(candidate),
        "against": str(against),
        "bounds_for": kind,
        "bounds": asdict(bounds),
        "token_ids": {
            "lines": len(every),
            "lines_different": len(different),
            "first_different": different[0][:120] if different else None,
        },
        "by_language": by_language,
        "overall": overall,
        "ok": not broken,
        "broken": broken,
    }


def pooling_of(file: GgufFile) -> int:
    """The pooling that llama.cpp does for this file when embeddings are asked for: its own, or the mean."""
    return int(file.metadata.get(f"{file.architecture}.pooling_type") or _MEAN)


def _lines(text: str, expected: EmbeddingRunner, most: int) -> list[str]:
    """The lines that have a token between special ones, until `most` tokens are reached. Raises InputError for none."""
    chosen, tokens = [], 0
    for line in text.splitlines():
        size = len(expected.encode(line))
        if size >= _SHORTEST and (not most or tokens < most):
            chosen.append(line)
            tokens += size
    if not chosen:
        raise InputError("the text has no line with a token", found=repr(text[:40]))
    return chosen


def _compare(lines: Sequence[str], found: EmbeddingRunner, expected: EmbeddingRunner, lang: str) -> dict[str, Any]:
    cosines, worst, tokens = [], 0.0, 0
    longest = min(_LONGEST, found.context, expected.context)
    with progress(f"comparing {lang}", len(lines), "texts") as show:
        for done, line in enumerate(lines, 1):
            ids, own = _cut(expected.encode(line), longest), _cut(found.encode(line), longest)
            left, right = expected.embed(ids), found.embed(own)
            if left.shape != right.shape:
                raise MismatchError("the two embedders differ in width", found=f"{right.size} and {left.size}")
            if not (np.isfinite(left).all() and np.isfinite(right).all()):
                raise VerificationError("an embedding is NaN or infinite", hint="The weights are damaged.")
            cosines.append(float(left @ right))
            worst = max(worst, float(np.abs(left - right).max() / np.abs(left).max()))
            tokens += len(ids)
            show(done)
    return {
        "texts": len(lines),
        "tokens": tokens,
        "min_cosine": min(cosines),
        "mean_cosine": float(np.mean(cosines)),
        "max_relative_difference": worst,
    }


def _cut(ids: list[int], longest: int) -> list[int]:
    """At most `longest` ids, the special token at the end among them."""
    return ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]
