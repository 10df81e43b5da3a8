"""Measures a model: loss per token, perplexity and bits per byte, each language apart.

It knows nothing of training; adapters come as PEFT folders (checkpoints) or GGUF files (GGUF models).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.artifacts import require_file
from slm.console import progress
from slm.errors import InputError, MismatchError
from train.masks import Encoded

if TYPE_CHECKING:
    from train.batches import Collate

# Padded tokens in one forward pass; larger ones gain no speed on a CPU.
_BATCH_TOKENS = 2048
# One window of logits of a vocabulary of 262,144 takes 0.5 GB.
_CONTEXT = 512
_ROWS = 32


@dataclass(frozen=True)
class LossSum:
    """Summed cross-entropy in nats over `tokens` predicted tokens, and the UTF-8 bytes they stand for (0: unknown)."""

    nats: float
    tokens: int
    utf8_bytes: int = 0

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the text: comparable between models with different tokenizers."""
        return self.nats / math.log(2) / self.utf8_bytes

    def __add__(self, other: LossSum) -> LossSum:
        return LossSum(self.nats + other.nats, self.tokens + other.tokens, self.utf8_bytes + other.utf8_bytes)


@dataclass(frozen=True)
class LanguageFigures:
    """The figures of one language: loss in nats per token."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def held_out_batches(items: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """The groups in which held-out sequences are measured: of one language and of like length."""
    from train.batches import by_length

    by_language: dict[str, list[Encoded]] = defaultdict(list)
    for item in items:
        by_language[item.example.lang].append(item)
    for lang in sorted(by_language):
        yield from by_length(by_language[lang], _BATCH_TOKENS)


def held_out_loss(model: Any, items: Sequence[Encoded], collate: Collate, dtype: Any) -> dict[str, LossSum]:
    """Token-weighted loss over the supervised tokens of `items`, by language; `collate` makes batches of them."""
    import torch

    from train.loss import supervised_loss
    from train.precision import precision

    model.eval()
    sums: dict[str, LossSum] = defaultdict(lambda: LossSum(0.0, 0))
    done = 0
    with progress("held-out loss", total=len(items), unit="examples") as show, torch.no_grad():
        for batch in held_out_batches(items):
            with precision(dtype):
                total, count = supervised_loss(model, collate(batch))
            sums[batch[0].example.lang] += LossSum(float(total), count)
            done += len(batch)
            show(done)
    return dict(sums)


def total(sums: dict[str, LossSum]) -> LossSum:
    """All languages together."""
    whole = LossSum(0.0, 0)
    for part in sums.values():
        whole += part
    return whole


def evaluate_texts(
    model: Path, texts: dict[str, list[Path]], adapter: Path | None = None
) -> dict[str, LanguageFigures]:
    """Loss, perplexity and bits per byte of whole text files, by language.

    model: a checkpoint folder (adapter: a PEFT folder) or a GGUF file (adapter: a GGUF file). The text is
    read in windows of 512 tokens at most, each with a BOS where the tokenizer adds one; a window's first
    token is not predicted unless a BOS stands before it.
    """
    documents = {lang: [_read(path) for path in paths] for lang, paths in texts.items()}
    measure = _measure_gguf if model.is_file() else _measure_checkpoint
    sums = measure(model, documents, adapter)
    return {lang: LanguageFigures(s.loss, s.perplexity, s.bits_per_byte, s.tokens) for lang, s in sums.items()}


def _read(path: Path) -> str:
    from slm.errors import DamagedFileError

    try:
        text = require_file(path).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"'{path}' is not UTF-8 text") from error
    if not text:
        raise InputError(f"'{path}' is empty: there is nothing to measure")
    return text


def _windows(ids: list[int], bos: list[int], size: int) -> list[list[int]]:
    room = size - len(bos)
    windows = [bos + ids[start : start + room] for start in range(0, len(ids), room)]
    return [window for window in windows if len(window) > 1]


def _measure_checkpoint(model: Path, documents: dict[str, list[str]], adapter: Path | None) -> dict[str, LossSum]:
    import torch

    from train.adapter import load_with_adapter
    from train.checkpoint import load_tokenizer
    from train.loss import supervised_loss
    from train.masks import Encoder
    from train.precision import use_cores

    use_cores(0)
    tokenizer = load_tokenizer(model)
    loaded = load_with_adapter(model, adapter)
    encoder = Encoder(tokenizer)
    limit = min(_CONTEXT, int(getattr(loaded.config, "max_position_embeddings", _CONTEXT)))
    sums = {lang: LossSum(0.0, 0) for lang in documents}
    amount = sum(len(text) for texts in documents.values() for text in texts)
    done = 0.0
    with progress("evaluating", total=amount, unit="characters") as show, torch.no_grad():
        for lang, texts in documents.items():
            for text in texts:
                ids = tokenizer(text, add_special_tokens=False).input_ids
                windows = _windows(ids, encoder.bos, limit)
                for window in windows:
                    row = torch.tensor([window])
                    batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}
                    nats, count = supervised_loss(loaded, batch)
                    sums[lang] += LossSum(float(nats), count)
                    done += len(text) / len(windows)
                    show(done)
                sums[lang] += LossSum(0.0, 0, len(text.encode()))
    return sums


def _measure_gguf(model: Path, documents: dict[str, list[str]], adapter: Path | None) -> dict[str, LossSum]:
    from slm import llama
    from slm.gguf_reader import read_gguf

    base = read_gguf(model)
    if adapter is not None:
        mine, theirs = read_gguf(adapter).metadata.get("slm.base_fingerprint"), base.metadata.get("slm.fingerprint")
        if mine and theirs and mine != theirs:
            raise MismatchError(f"the adapter '{adapter}' was trained on another base than '{model}'")
    sums = {lang: LossSum(0.0, 0) for lang in documents}
    amount = sum(len(text) for texts in documents.values() for text in texts)
    done = 0.0
    with ExitStack() as stack:
        handle = llama.open_model(stack, model)
        context = llama.open_context(stack, handle, n_ctx=_CONTEXT, n_batch=_CONTEXT)
        if adapter is not None:
            llama.set_adapters(context, [(llama.open_adapter(stack, handle, adapter), 1.0)])
        lib = llama.library()
        vocab = lib.llama_model_get_vocab(handle)
        bos = [lib.llama_vocab_bos(vocab)] if lib.llama_vocab_get_add_bos(vocab) else []
        show = stack.enter_context(progress("evaluating", total=amount, unit="characters"))
        for lang, texts in documents.items():
            for text in texts:
                ids = llama.tokenize(handle, text, add_special=False, parse_special=False)
                windows = _windows(ids, bos, _CONTEXT)
                for window in windows:
                    nats = _nats(llama.all_logits(handle, context, window)[:-1], window[1:])
                    sums[lang] += LossSum(nats, len(window) - 1)
                    done += len(text) / len(windows)
                    show(done)
                sums[lang] += LossSum(0.0, 0, len(text.encode()))
    return sums


def _nats(logits: Any, wanted: list[int]) -> float:
    """Summed cross-entropy of logits (tokens, vocabulary), in double precision, some rows at a time."""
    import numpy as np

    nats = 0.0
    for start in range(0, len(wanted), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(len(rows)), wanted[start : start + _ROWS]]
        nats += float((np.log(np.exp(rows).sum(axis=1)) - chosen).sum())
    return nats
