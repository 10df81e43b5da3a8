"""Measures a model: loss per token, perplexity and bits per byte, each language apart.

It knows nothing of training; adapters come as PEFT folders (checkpoints) or GGUF files (GGUF models).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.artifacts import require_file
from slm.errors import InputError
from slm.terminal.console import progress
from train.data.masks import Encoded
from train.measure.strides import Window, pieces, windows

if TYPE_CHECKING:
    from train.batch.tensors import Collate

# Padded tokens in one forward pass; larger ones gain no speed on a CPU.
_BATCH_TOKENS = 2048
# Tokens of a window: its logits over a vocabulary of 262,144 take 0.5 GB in llama.cpp.
CONTEXT = 512
_LONGEST = 2048
# Windows of one forward pass of a checkpoint, and rows of logits that are worked on at a time.
_WINDOWS = 4
_ROWS = 16


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
    from train.batch.tensors import by_length

    by_language: dict[str, list[Encoded]] = defaultdict(list)
    for item in items:
        by_language[item.example.lang].append(item)
    for lang in sorted(by_language):
        yield from by_length(by_language[lang], _BATCH_TOKENS)


def held_out_loss(model: Any, items: Sequence[Encoded], collate: Collate) -> dict[str, LossSum]:
    """Token-weighted loss over the supervised tokens of `items`, by language; `collate` makes batches of them.

    Always in float32, in which the adapter is merged and compared with others.
    """
    import torch

    from train.batch.loss import supervised_loss
    from train.batch.precision import in_float32

    model.eval()
    sums: dict[str, LossSum] = defaultdict(lambda: LossSum(0.0, 0))
    done = 0
    shown = progress("held-out loss", total=len(items), unit="examples")
    with shown as show, torch.no_grad(), in_float32(model):
        for batch in held_out_batches(items):
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
    model: Path, texts: dict[str, list[Path]], adapter: Path | None = None, *, context: int = CONTEXT, stride: int = 0
) -> dict[str, LanguageFigures]:
    """Loss, perplexity and bits per byte of whole text files, by language.

    model: a checkpoint folder (adapter: a PEFT folder) or a GGUF file (adapter: a GGUF file). A text is read in windows
    of `context` tokens, or as many as the model holds (train.measure.strides), each with a BOS where the tokenizer
    adds one. Markers of special tokens in a text are text. Raises InputError when there is nothing to measure.
    """
    with ExitStack() as stack:
        opened = (_open_gguf if model.is_file() else _open_checkpoint)(stack, model, adapter)
        size = min(context, opened.longest)
        amount = sum(require_file(path).stat().st_size for paths in texts.values() for path in paths)
        show = stack.enter_context(progress("evaluating", total=amount, unit="bytes"))
        figures: dict[str, LanguageFigures] = {}
        done = 0
        for lang, paths in texts.items():
            whole = LossSum(0.0, 0)
            for path in paths:
                for part in _measured(opened, path, size, stride):
                    whole += part
                    show(done + whole.utf8_bytes)
            if not whole.tokens:
                raise InputError(f"the texts of '{lang}' are a single token: there is nothing to predict")
            done += whole.utf8_bytes
            figures[lang] = LanguageFigures(whole.loss, whole.perplexity, whole.bits_per_byte, whole.tokens)
    return figures


@dataclass(frozen=True)
class _Opened:
    """A model of either form: its tokenization without BOS, its BOS, its longest context, and a loss of windows.

    nats: summed cross-entropy over what the windows predict; it is given windows of one length, `batch` at most.
    """

    ids: Callable[[str], list[int]]
    bos: list[int]
    longest: int
    nats: Callable[[Sequence[Window]], float]
    batch: int


def _measured(opened: _Opened, path: Path, context: int, stride: int) -> Iterator[LossSum]:
    """Sums of a file: those of each batch of windows, and the bytes of each piece of its text."""
    sizes: list[int] = []

    def parts() -> Iterator[list[int]]:
        for text in pieces(path):
            sizes.append(len(text.encode()))
            yield opened.ids(text)

    batch: list[Window] = []
    for window in windows(parts(), opened.bos, context, stride):
        if batch and (len(batch) == opened.batch or len(window.ids) != len(batch[0].ids)):
            yield LossSum(opened.nats(batch), sum(one.predicted for one in batch), sum(sizes))
            batch.clear()
            sizes.clear()
        batch.append(window)
    if batch:
        yield LossSum(opened.nats(batch), sum(one.predicted for one in batch), sum(sizes))


def _open_checkpoint(stack: ExitStack, model: Path, adapter: Path | None) -> _Opened:
    import torch

    from train.adapter.opened import load_with_adapter
    from train.base import load_tokenizer
    from train.batch.loss import supervised_loss
    from train.batch.precision import use_cores
    from train.data.masks import IGNORE, ExampleEncoder

    use_cores(0)
    own = adapter is not None and (adapter / "tokenizer.json").exists()
    tokenizer = load_tokenizer(adapter if adapter is not None and own else model)
    loaded = load_with_adapter(model, adapter)

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return found

    def nats(batch: Sequence[Window]) -> float:
        rows = torch.tensor([window.ids for window in batch])
        labels = rows.clone()
        for number, window in enumerate(batch):
            labels[number, : window.first] = IGNORE
        with torch.no_grad():
            total, _ = supervised_loss(
                loaded, {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": labels}
            )
        return float(total)

    longest = int(getattr(loaded.config, "max_position_embeddings", 0) or CONTEXT)
    return _Opened(ids, ExampleEncoder(tokenizer).bos, longest, nats, _WINDOWS)


def _open_gguf(stack: ExitStack, model: Path, adapter: Path | None) -> _Opened:
    from slm.native import llama
    from slm.weights.gguf_reader import read_gguf
    from slm.weights.identity import belong, gguf_fingerprint, names_of, other_weights, tensors_hash, trained_on

    base = read_gguf(model)
    if adapter is not None:
        wanted = trained_on(read_gguf(adapter).metadata)
        if not belong(wanted, names_of(base.metadata), lambda: tensors_hash(base)):
            raise other_weights(adapter, model, wanted, gguf_fingerprint(base))
    handle = llama.open_model(stack, model)
    lib = llama.library()
    longest = int(lib.llama_model_n_ctx_train(handle))
    size = min(_LONGEST, longest)
    context = llama.open_context(stack, handle, llama.ContextParams(n_ctx=size, n_batch=size))
    if adapter is not None:
        llama.set_adapters(context, [(llama.open_adapter(stack, handle, adapter), 1.0)])
    vocab = lib.llama_model_get_vocab(handle)
    bos = [lib.llama_vocab_bos(vocab)] if lib.llama_vocab_get_add_bos(vocab) else []

    def nats(batch: Sequence[Window]) -> float:
        (window,) = batch
        logits = llama.viewed_logits(handle, context, window.ids)
        return _nats(logits[window.first - 1 : -1], window.ids[window.first :])

    def ids(text: str) -> list[int]:
        return llama.tokenize(handle, text, add_special=False, parse_special=False)

    return _Opened(ids, bos, min(_LONGEST, longest), nats, 1)


def _nats(logits: Any, wanted: list[int]) -> float:
    """Summed cross-entropy of logits (tokens, vocabulary) in float32, with sums in double precision; some at a time."""
    import numpy as np

    nats = 0.0
    for start in range(0, len(wanted), _ROWS):
        rows = logits[start : start + _ROWS]
        highest = rows.max(axis=1, keepdims=True)
        shares = rows - highest
        chosen = shares[np.arange(len(rows)), wanted[start : start + _ROWS]].astype(np.float64)
        totals = np.exp(shares, out=shares).sum(axis=1, dtype=np.float64)
        nats += float((np.log(totals) - chosen).sum())
    return nats
