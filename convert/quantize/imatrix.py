"""Collects an importance matrix with llama.cpp: how much each input channel of each weight matters, by language.

It knows nothing of quantization. What is summed is what llama-imatrix sums (tools/imatrix/imatrix.cpp): the squares
of the inputs of every matrix product with a `blk.` weight, over chunks of text of one context's length.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.quantize.ggml_nodes import GgmlNode, is_float32, matrix_products, values
from convert.quantize.imatrix_file import ImportanceMatrix, write_imatrix
from slm.errors import DamagedFileError, EngineError, InputError, UnknownNameError
from slm.native.llama import ContextParams, library, open_context, open_model, tokenize
from slm.terminal.console import progress
from slm.terminal.text_file import read_text
from slm.weights.gguf_reader import read_gguf

_FEWEST_ROWS = 16  # llama-imatrix ignores products of fewer tokens
_BATCH = 256  # tokens at a time; the logits of Gemma's vocabulary take 1 MB a token


@dataclass
class Collector:
    """Sums of squares by weight, (experts, width) float64, and counts of tokens, (experts,) float64.

    `on_node` is llama.cpp's evaluation callback: asked before a node is computed whether it is wanted, told after.
    Products that share an input (Q, K and V) are summed once. An exception inside the callback ends the computation
    and is kept in `failure`.
    """

    sums: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    failure: BaseException | None = None
    last: str | None = None  # the weight after whose product the rest of the graph (the head) is not needed
    _seen: tuple[int, npt.NDArray[np.float64], int] | None = None
    _final: str = ""

    def on_node(self, pointer: int, asked: bool, _: Any = None) -> bool:
        if self.failure is not None:
            return asked  # wanted, then told to stop
        try:
            return self._asked(GgmlNode.from_address(pointer)) if asked else self._told(GgmlNode.from_address(pointer))
        except BaseException as error:  # an interrupt too: ctypes would swallow it
            self.failure = error
            return asked

    def next_batch(self) -> None:
        """Forget the input seen last: the graph's memory is used anew."""
        self._seen = None

    def whole_graph_seen(self) -> None:
        """From now on stop after the weight that came last."""
        self.last = self._final

    def _asked(self, node: GgmlNode) -> bool:
        dense, by_expert = matrix_products()
        if node.op == by_expert:
            return bool(node.src[0].contents.name.startswith(b"blk."))
        if node.op != dense:
            return False
        weight, inputs = node.src[0].contents, node.src[1].contents
        if not weight.name.startswith(b"blk.") or inputs.ne[1] < _FEWEST_ROWS or not is_float32(inputs):
            return False
        name = weight.name.decode()
        if self._seen is not None and self._seen[0] == ctypes.addressof(inputs) and name != self.last:
            self._add(name, self._seen[1], self._seen[2])
            return False
        return True

    def _told(self, node: GgmlNode) -> bool:
        weight, inputs = node.src[0].contents, node.src[1].contents
        name = weight.name.decode()
        if node.op == matrix_products()[1]:
            self._by_expert(name, weight, inputs, node.src[2].contents)
        else:
            rows = values(inputs)
            experts = weight.ne[2] * weight.ne[3]
            squares = np.zeros((experts, rows.shape[-1]), dtype=np.float64)
            for outer in range(rows.shape[0]):
                for inner in range(rows.shape[1]):
                    part = rows[outer, inner]
                    at = (outer % weight.ne[3]) * weight.ne[2] + inner % weight.ne[2]
                    squares[at] += np.einsum("ij,ij->j", part, part)
            count = rows.shape[0] * rows.shape[1] * rows.shape[2] // experts
            self._seen = (ctypes.addressof(inputs), squares, count)
            self._add(name, squares, count)
        return bool(name != self.last)

    def _add(self, name: str, squares: npt.NDArray[np.float64], count: int) -> None:
        if name not in self.sums:
            self.sums[name] = np.zeros_like(squares)
            self.counts[name] = np.zeros(1)
        self.sums[name] += squares
        self.counts[name] += count
        self._final = name

    def _by_expert(self, name: str, weight: GgmlNode, inputs: GgmlNode, chosen: GgmlNode) -> None:
        rows, ids = values(inputs)[0], values(chosen, np.int32)[0, 0]  # (tokens, used or 1, width), (tokens, used)
        experts = weight.ne[2]
        if name not in self.sums:
            self.sums[name] = np.zeros((experts, rows.shape[-1]))
            self.counts[name] = np.zeros(experts)
        for used in range(ids.shape[1]):
            part = rows[:, used % rows.shape[1]].astype(np.float64) ** 2
            np.add.at(self.sums[name], ids[:, used], part)
            np.add.at(self.counts[name], ids[:, used], 1.0)
        self._final = name


def shares_of(languages: Sequence[str], asked: Mapping[str, float]) -> dict[str, float]:
    """What part of the whole each language has: as asked, the others sharing the rest equally; the sum is 1."""
    unknown = [lang for lang in asked if lang not in languages]
    if unknown:
        raise UnknownNameError("language of a share", unknown[0], languages, hint="Give its text with --text.")
    rest = 1.0 - sum(asked.values())
    others = [lang for lang in languages if lang not in asked]
    sound = all(0 < share <= 1 for share in asked.values()) and (rest > 1e-9 if others else abs(rest) < 1e-6)
    if not sound:
        raise InputError(
            "the shares must be above 0 and make 1 together",
            found=", ".join(f"{lang}={share:g}" for lang, share in asked.items()),
            hint="Languages without a share get equal parts of the rest.",
        )
    return {lang: asked[lang] if lang in asked else rest / len(others) for lang in languages}


def balanced(
    collected: Mapping[str, Collector], tokens: Mapping[str, int], shares: Mapping[str, float]
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, npt.NDArray[np.float32]]]:
    """Sums and counts of all languages, each token weighed so that a language has its share whatever its length.

    With one language the sums and counts are its own.
    """
    total = sum(tokens.values())
    weights = {lang: shares[lang] * total / tokens[lang] for lang in collected}
    names = list(dict.fromkeys(name for collector in collected.values() for name in collector.sums))
    sums, counts = {}, {}
    for name in names:
        having = [lang for lang in collected if name in collected[lang].sums]
        sums[name] = np.sum([weights[lang] * collected[lang].sums[name] for lang in having], axis=0).astype(np.float32)
        counts[name] = np.sum([weights[lang] * collected[lang].counts[name] for lang in having], axis=0).astype(
            np.float32
        )
    return sums, counts


def collect_imatrix(
    gguf: Path | str,
    texts: Mapping[str, Sequence[Path]],
    out: Path | str,
    *,
    shares: Mapping[str, float] | None = None,
    chunks: int | None = None,
    context: int = 512,
    threads: int = 0,
) -> dict[str, Any]:
    """Run a model over texts by language and write its importance matrix; returns what was collected.

    chunks: at most so many of `context` tokens a language. shares: see `shares_of`. Returns {file, weights, chunks,
    context, by_language: {lang: {tokens, chunks, share}}}. Raises InputError and its kinds, EngineError.
    """
    shares = shares_of(list(texts), shares or {})
    model_file = read_gguf(gguf)
    if model_file.is_adapter or "token_embd.weight" not in model_file.tensors:
        raise InputError(f"'{gguf}' is not a model", hint="Give the f16, f32 or q8_0 file that will be quantized.")
    if context < _FEWEST_ROWS:
        raise InputError(f"a context of {context} tokens is too short", hint=f"At least {_FEWEST_ROWS}; usual is 512.")
    read = {lang: [read_text(path) for path in paths] for lang, paths in texts.items()}
    collected: dict[str, Collector] = {}
    by_language: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        model = open_model(stack, model_file.path)
        pieces = {lang: _chunks(model, lang, parts, context, chunks) for lang, parts in read.items()}
        total = sum(map(len, pieces.values()))
        with progress("collecting the importance matrix", total, "chunks") as done:
            before = 0
            for lang, parts in pieces.items():
                collected[lang] = Collector()
                for number in _run(model, parts, context, threads, collected[lang]):
                    done(before + number, lang)
                before += len(parts)
                by_language[lang] = {"tokens": len(parts) * context, "chunks": len(parts), "share": shares[lang]}
    if not all(collector.sums for collector in collected.values()):
        raise EngineError(f"llama.cpp computed no matrix product of '{gguf}' that could be watched")
    sums, counts = balanced(collected, {lang: len(p) * context for lang, p in pieces.items()}, shares)
    if not all(np.isfinite(array).all() for array in sums.values()):
        raise DamagedFileError(f"'{gguf}' computes values that are not finite", hint="Is the model damaged?")
    datasets = tuple(f"{lang}={path.name}" for lang, paths in texts.items() for path in map(Path, paths))
    write_imatrix(out, ImportanceMatrix(sums, counts, datasets, total, context))
    return {"file": str(out), "weights": len(sums), "chunks": total, "context": context, "by_language": by_language}


def _chunks(model: Any, lang: str, texts: Sequence[str], context: int, most: int | None) -> list[list[int]]:
    """Whole chunks of `context` tokens, each beginning with BOS where the model wants it, as llama-imatrix has them."""
    lib = library()
    vocab = lib.llama_model_get_vocab(model)
    found, tokens = [], 0
    for text in texts:
        ids = tokenize(model, text, add_special=True, parse_special=False)
        tokens += len(ids)
        found += [ids[at : at + context] for at in range(0, len(ids) - context + 1, context)]
    if not found:
        raise InputError(
            f"the text of '{lang}' is too short", found=f"{tokens:,} tokens, a chunk takes {context}",
            hint="Give more text, or a smaller --context.",
        )  # fmt: skip
    if lib.llama_vocab_get_add_bos(vocab):
        found = [[lib.llama_vocab_bos(vocab), *ids[1:]] for ids in found]
    return found[:most]


def _run(model: Any, parts: Sequence[list[int]], context: int, threads: int, collector: Collector) -> Iterator[int]:
    """Compute every chunk; yields how many are done."""
    lib = library()
    matrix_products()
    size = -(-context // -(-context // _BATCH))  # equal batches: none shorter than _FEWEST_ROWS
    with ExitStack() as stack:
        handle = open_context(
            stack, model, ContextParams(n_ctx=context, n_batch=size, n_threads=threads, on_node=collector.on_node)
        )
        for number, ids in enumerate(parts, start=1):
            lib.llama_memory_clear(lib.llama_get_memory(handle), True)
            for start in range(0, context, size):
                collector.next_batch()
                _decode(handle, ids[start : start + size], start)
                if collector.failure is not None:
                    raise collector.failure
            collector.whole_graph_seen()
            yield number


def _decode(context: Any, ids: Sequence[int], start: int) -> None:
    """Run a piece of a sequence. Every token asks for logits, else the last layer would be computed for one only."""
    lib = library()
    batch = lib.llama_batch_init(len(ids), 0, 1)
    try:
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, start + index
            batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, 1
        if lib.llama_decode(context, batch):
            raise EngineError("llama.cpp could not decode the text")
    finally:
        lib.llama_batch_free(batch)
