"""llama.cpp handles with owners: model, context (with the types of its KV cache), adapter, tokens; the physical cores.
It knows nothing of requests or scheduling.

Every function that opens a handle registers its release with the ExitStack it is given, in the same
statement. A file should be vetted with `slm.weights.gguf_reader.read_gguf` before it is opened here: llama.cpp may
abort the process on a damaged one.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slm.errors import DamagedFileError, EngineError, MismatchError, UnknownNameError
from slm.native.process import cpu_fields
from slm.native.threads import settle_openmp

_ROWS_AT_ONCE = 640  # a prompt's longest chunk and what is decoded beside it are one graph (serve/child/schedule.py)
_KERNELS = {1: "products", 2: "attention", 4: "rotation", 8: "gelu", 16: "tiles", 32: "few"}
_log_callback: Any = None
_low_level: Any = None


def library() -> Any:
    """The low-level llama_cpp module, with the library's log silenced (SLM_LLAMA_LOG=1 keeps it)."""
    global _log_callback, _low_level
    if _low_level is None:
        _check_wanted_kernels()
        settle_openmp()
        _low_level = _bindings()
    lib = _low_level
    if _log_callback is None:
        if os.environ.get("SLM_LLAMA_LOG"):
            _log_callback = False
        else:
            _log_callback = lib.llama_log_callback(lambda *_: None)
            lib.llama_log_set(_log_callback, ctypes.c_void_p(0))
        lib.llama_backend_init()
    return lib


def _bindings() -> Any:
    """llama_cpp.llama_cpp without its package's own classes: jinja2, diskcache and more take as long again to import.

    The package itself stays as if it had not been imported, for whoever wants all of it.
    """
    spec = importlib.util.find_spec("llama_cpp") if "llama_cpp" not in sys.modules else None
    if spec is None:
        return importlib.import_module("llama_cpp.llama_cpp")
    sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        del sys.modules["llama_cpp"]


def has_our_kernels() -> bool:
    """Whether llama.cpp was built by slm/native/build.py for x86."""
    return hasattr(library()._lib, "slm_kernels")


def kernels_used() -> frozenset[str]:
    """Which of our kernels this process computes with: "products", "few" (of few rows), "tiles" (of many, by AMX),
    "attention", "rotation", "gelu" (slm/native/recipe/rows/hooks.cpp).

    None where llama.cpp was built otherwise, the processor lacks the instructions, or SLM_LLAMA_KERNELS names others.
    """
    lib = library()._lib
    bits = int(lib.slm_kernels_used()) if hasattr(lib, "slm_kernels_used") else 0
    return frozenset(name for bit, name in _KERNELS.items() if bits & bit)


def _check_wanted_kernels() -> None:
    """Raises UnknownNameError where SLM_LLAMA_KERNELS names what is no kernel: the library would not say so."""
    known = {*_KERNELS.values(), "none"}
    for name in sorted(set(os.environ.get("SLM_LLAMA_KERNELS", "").replace(",", " ").split()) - known):
        raise UnknownNameError("kernel in SLM_LLAMA_KERNELS", name, known)


def fast_attention() -> bool:
    """Whether attention is one node: our kernel is faster for any rows, llama.cpp's slower for few (decision 26)."""
    return "attention" in kernels_used()


def physical_cores() -> int:
    """Cores without hyper-threads, as far as the system tells and this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    pairs = set(zip(cpu_fields("physical id"), cpu_fields("core id"), strict=False))
    return max(1, min(allowed, len(pairs) or allowed))


def open_model(stack: ExitStack, path: Path, *, vocab_only: bool = False, without_data: bool = False) -> Any:
    """Load a GGUF model (memory-mapped). Raises DamagedFileError when llama.cpp refuses it.

    without_data: hyper-parameters, vocabulary, and every tensor's name and shape are checked, but no weights are
    read; the model tokenizes and no more.
    """
    lib = library()
    params = lib.llama_model_default_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = 0
    params.load_mode = lib.LLAMA_LOAD_MODE_NONE if without_data else lib.LLAMA_LOAD_MODE_MMAP
    params.no_alloc = without_data
    if not has_our_kernels() and "amx_int8" in next(iter(cpu_fields("flags")), "").split():
        # A build that knows AMX may end the process at the first product (recipe/build.cmake leaves AMX out).
        params.use_extra_bufts = False
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise DamagedFileError(
            f"llama.cpp cannot load '{path}'", hint="Set SLM_LLAMA_LOG=1 to see why, or look with: slm inspect FILE"
        )
    stack.callback(lib.llama_model_free, model)
    return model


@dataclass(frozen=True)
class ContextParams:
    """What a context is like (llama.h, `llama_context_params`, whose names these are where it has one).

    n_ctx: cells of KV cache, shared by n_seq_max sequences. n_batch: tokens of one decoding at most. n_threads: 0 for
    the physical cores. flash_attention: None leaves it to llama.cpp. exact_cache: keys and values in f32 instead of
    f16, for comparisons with a reference. on_node: called with a node's address, True before it is computed (is it
    wanted?) and False after a wanted one (go on?); ggml/include/ggml-backend.h, `ggml_backend_sched_eval_callback`.
    pooling: the context yields embeddings instead of logits, pooled so (llama.h, `llama_pooling_type`).
    """

    n_ctx: int
    n_batch: int = 512
    n_seq_max: int = 1
    n_threads: int = 0
    flash_attention: bool | None = None
    exact_cache: bool = False
    on_node: Callable[[int, bool, Any], bool] | None = None
    pooling: int | None = None


def open_context(stack: ExitStack, model: Any, wanted: ContextParams) -> Any:
    """A context of a model. Raises EngineError where llama.cpp makes none, mostly for want of memory."""
    lib = library()
    params = lib.llama_context_default_params()
    params.n_ctx = wanted.n_ctx
    params.n_batch = wanted.n_batch
    params.n_ubatch = min(wanted.n_batch, _ROWS_AT_ONCE)
    params.n_seq_max = wanted.n_seq_max
    params.n_threads = params.n_threads_batch = wanted.n_threads or physical_cores()
    params.kv_unified = True
    params.no_perf = True
    if wanted.exact_cache:
        params.type_k = params.type_v = 0
    if wanted.flash_attention is not None:
        params.flash_attn_type = 1 if wanted.flash_attention else 0
    if wanted.pooling is not None:
        params.embeddings, params.pooling_type, params.n_ubatch = True, wanted.pooling, wanted.n_batch
    if wanted.on_node is not None:
        params.cb_eval = lib.ggml_backend_sched_eval_callback(wanted.on_node)
        stack.callback(bool, params)  # the callback must outlive the context
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise EngineError(
            f"llama.cpp cannot make a context of {wanted.n_ctx} tokens",
            hint="Try a smaller --context; memory may be short.",
        )
    stack.callback(lib.llama_free, context)
    return context


def open_adapter(stack: ExitStack, model: Any, path: Path) -> Any:
    """Load a LoRA adapter for `model`. Raises MismatchError when llama.cpp refuses it."""
    lib = library()
    adapter = lib.llama_adapter_lora_init(model, str(path).encode())
    if not adapter:
        raise MismatchError(
            f"the adapter '{path}' does not fit the loaded model",
            hint="Its base must be this model; look with: slm inspect FILE",
        )
    stack.callback(lib.llama_adapter_lora_free, adapter)
    return adapter


def set_adapters(context: Any, adapters: list[tuple[Any, float]]) -> None:
    """Make exactly these (adapter, scale) pairs active on the context; an empty list is the bare base.

    It never touches the KV cache: whoever changes the set must not reuse cells computed with another one.
    """
    lib = library()
    count = len(adapters)
    handles = (lib.llama_adapter_lora_p_ctypes * count)(
        *(ctypes.cast(handle, lib.llama_adapter_lora_p_ctypes) for handle, _ in adapters)
    )
    scales = (ctypes.c_float * count)(*(scale for _, scale in adapters))
    if lib.llama_set_adapters_lora(context, handles if count else None, count, scales if count else None):
        raise EngineError("llama.cpp refused the set of adapters")


def tokenize(model: Any, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
    """Token ids of a text. add_special: BOS/EOS as the vocabulary says; parse_special: '<...>' markers as one token."""
    lib = library()
    vocab = lib.llama_model_get_vocab(model)
    raw = text.encode("utf-8", "replace")
    size = len(raw) + 8
    while True:
        buffer = (lib.llama_token * size)()
        count = lib.llama_tokenize(vocab, raw, len(raw), buffer, size, add_special, parse_special)
        if count >= 0:
            return list(buffer[:count])
        size = -count


def token_reader(model: Any) -> Callable[[int, bool], bytes]:
    """A function (token, special) -> the bytes it stands for; a character may be spread over several tokens.

    special: a control token by its name instead of nothing. The byte 0xC0, which no UTF-8 text holds, is dropped:
    `convert.vocabulary.kinds.unigram` marks tokens of lead bytes with it.
    """
    lib = library()
    vocab = lib.llama_model_get_vocab(model)

    def read(token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = lib.llama_token_to_piece(vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count].replace(b"\xc0", b"")
            size = -count

    return read


def token_bytes(model: Any, token: int, *, special: bool = False) -> bytes:
    """The bytes of one token, as `token_reader`."""
    return token_reader(model)(token, special)


def vocab_size(model: Any) -> int:
    """How many tokens the model knows."""
    lib = library()
    return int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))


def model_meta(model: Any, key: str) -> str | None:
    """A string value of the model file's metadata, or None."""
    lib = library()
    size = 1 << 16
    while True:
        buffer = ctypes.create_string_buffer(size)
        count = lib.llama_model_meta_val_str(model, key.encode(), buffer, size)
        if count < 0:
            return None
        if count < size:
            return buffer.raw[:count].decode("utf-8", "replace")
        size = count + 1


def forget(context: Any) -> None:
    """Empty the context's KV cache."""
    lib = library()
    lib.llama_memory_clear(lib.llama_get_memory(context), True)


def decode_tokens(context: Any, tokens: list[int], start: int, *, every: bool = False) -> None:
    """Run `tokens` at positions start, start + 1, ... of sequence 0; logits are kept for the last or for every one.

    Raises EngineError when they do not fit into the context or its batch.
    """
    lib = library()
    count = len(tokens)
    if start + count > lib.llama_n_ctx(context) or count > lib.llama_n_batch(context):
        raise EngineError(f"{start + count} tokens do not fit into this context")
    decode_rows(context, [(token, start + n, 0, every or n == count - 1) for n, token in enumerate(tokens)])


def decode_rows(context: Any, rows: Sequence[tuple[int, int, int, bool]]) -> None:
    """Run one batch of (token, position, sequence, whether its output is kept). Raises EngineError, also when told to
    stop."""
    lib = library()
    batch = lib.llama_batch_init(len(rows), 0, 1)
    try:
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, kept) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = kept
        if lib.llama_decode(context, batch):
            raise EngineError("llama.cpp could not decode the text")
    finally:
        lib.llama_batch_free(batch)


def logits_at(model: Any, context: Any, index: int) -> npt.NDArray[np.float32]:
    """Logits of the last batch's token `index` (-1: its last one), (vocabulary,) float32, copied."""
    row = library().llama_get_logits_ith(context, index)
    logits: npt.NDArray[np.float32] = np.ctypeslib.as_array(row, shape=(vocab_size(model),)).copy()
    return logits


def viewed_logits(model: Any, context: Any, tokens: list[int]) -> npt.NDArray[np.float32]:
    """Logits at every position of one sequence, (len(tokens), vocabulary) float32; clears the context first.

    They are in the context's own memory, and change with the next decoding.
    """
    forget(context)
    decode_tokens(context, tokens, 0, every=True)
    return np.ctypeslib.as_array(library().llama_get_logits(context), shape=(len(tokens), vocab_size(model)))


def embedding_of(model: Any, tokens: list[int], *, n_threads: int = 0) -> list[float]:
    """One text's embedding, as `embeddings_in`, in a context of its own. Raises EngineError."""
    size = len(tokens)
    with ExitStack() as stack:
        context = open_embedder(stack, model, n_ctx=size, n_threads=n_threads)
        return embeddings_in(model, context, [tokens])[0]


def open_embedder(
    stack: ExitStack, model: Any, *, n_ctx: int, n_seq_max: int = 1, n_threads: int = 0, pooled: bool = True
) -> Any:
    """A context for `embeddings_in`, or `states_in` (not pooled): up to `n_seq_max` texts, `n_ctx` tokens in all."""
    lib = library()
    if not pooled:
        none = lib.LLAMA_POOLING_TYPE_NONE
        return open_context(stack, model, ContextParams(n_ctx, n_ctx, n_seq_max, n_threads, pooling=none))
    # llama.cpp tells its own choice only of an open context, so the file is asked.
    named = model_meta(model, f"{model_meta(model, 'general.architecture')}.pooling_type")
    pooling = lib.LLAMA_POOLING_TYPE_MEAN if named in (None, "0") else lib.LLAMA_POOLING_TYPE_UNSPECIFIED
    return open_context(stack, model, ContextParams(n_ctx, n_ctx, n_seq_max, n_threads, pooling=pooling))


def states_in(model: Any, context: Any, texts: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
    """The last hidden states of each text's tokens, (tokens, width) float32, by a context that pools nothing.

    All texts are one batch, a sequence each. Raises EngineError, also when the context is told to stop.
    """
    lib = library()
    forget(context)
    decode_rows(
        context, [(token, at, number, True) for number, ids in enumerate(texts) for at, token in enumerate(ids)]
    )
    size, width = sum(map(len, texts)), lib.llama_model_n_embd_out(model)
    states: npt.NDArray[np.float32] = np.ctypeslib.as_array(lib.llama_get_embeddings(context), shape=(size, width))
    return [part.copy() for part in np.split(states, np.cumsum([len(ids) for ids in texts])[:-1])]


def contrasts_in(
    context: Any, texts: Sequence[tuple[Sequence[int], Sequence[int]]], between: tuple[int, int]
) -> list[list[float]]:
    """How much likelier one token is than another (a difference of logits) behind some places of texts.

    texts: token ids, and the places: 0 is behind the first token. between: the two tokens. All texts are
    one batch, a sequence each. Raises EngineError, also when the context is told to stop.
    """
    lib = library()
    forget(context)
    rows = [
        (token, at, number, at in wanted)
        for number, (ids, places) in enumerate(texts)
        for wanted in (frozenset(places),)
        for at, token in enumerate(ids)
    ]
    decode_rows(context, rows)
    index = {(number, at): row for row, (_, at, number, _) in enumerate(rows)}
    yes, no = between

    def difference(number: int, at: int) -> float:
        logits = lib.llama_get_logits_ith(context, index[number, at])
        return float(logits[yes]) - float(logits[no])

    return [[difference(number, at) for at in places] for number, (_, places) in enumerate(texts)]


def embeddings_in(model: Any, context: Any, texts: Sequence[list[int]]) -> list[list[float]]:
    """Each text's embedding, scaled to length 1: pooled as the model says, else the mean of its last hidden states.

    All texts are one batch, a sequence each. Raises EngineError, also when the context is told to stop.
    """
    lib = library()
    forget(context)
    rows = [(token, at, number) for number, tokens in enumerate(texts) for at, token in enumerate(tokens)]
    decode_rows(context, [(*row, True) for row in rows])
    vectors = []
    for number in range(len(texts)):
        row = lib.llama_get_embeddings_seq(context, number)
        if not row:
            raise EngineError("llama.cpp gave no embedding for this text")
        vector = np.ctypeslib.as_array(row, shape=(lib.llama_model_n_embd_out(model),)).astype(np.float64)
        vectors.append([float(value) for value in vector / max(float(np.linalg.norm(vector)), 1e-12)])
    return vectors
