"""GGUF -> quantized GGUF by llama.cpp's quantizer, in a child process: it may abort on what it does not like.

It knows nothing of checkpoints. The child is this file run as a module; it is ended when its parent is interrupted,
which llama.cpp itself could not be.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.output.finite import refuse_not_finite
from convert.quantize.types import (
    FLOAT_TYPES,
    NEEDS_IMATRIX,
    QUANTIZED_TYPES,
    TENSOR_NEEDS_IMATRIX,
    block_of,
    fallbacks,
    file_type_of,
    tensor_type_id,
    type_name,
)  # fmt: skip
from slm.artifacts import new_file, require_space
from slm.errors import DamagedFileError, EngineError, InputError
from slm.native.process import child_environment
from slm.terminal.console import progress
from slm.weights.gguf_reader import GgufFile, read_gguf
from slm.weights.identity import FINGERPRINT, gguf_fingerprint

__all__ = ["FLOAT_TYPES", "QUANTIZED_TYPES", "QuantizeOptions", "ladder", "prepare", "quantize_file",
           "quantize_ladder", "type_name", "types_written"]  # fmt: skip
_POLL_S = 0.1
_BUFFER = 64 << 20  # rows in memory at a time; llama.cpp's default would hold a whole embedding in float32
_AT = re.compile(rb"\[\s*(\d+)/\s*(\d+)\]")  # llama.cpp's line for each tensor


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize, besides the type. tensor_types: (regex on GGUF names, ggml type) pairs, the first match wins."""

    imatrix: Path | None = None
    tensor_types: tuple[tuple[str, str], ...] = ()
    token_embedding: str | None = None
    output: str | None = None
    threads: int = 0

    @property
    def changes_types(self) -> bool:
        return bool(self.tensor_types or self.token_embedding or self.output)


_NO_OPTIONS = QuantizeOptions()


def types_written(file: GgufFile) -> dict[str, int]:
    """How many tensors of each ggml type a file holds, most frequent first."""
    return dict(Counter(info.type_name for info in file.tensors.values()).most_common())


def ladder(out: Path, stem: str, names: Sequence[str]) -> dict[str, Path]:
    """Where each type goes: one type, the file `out`; several, files in the folder `out`. Raises InputError."""
    if len(names) == 1:
        if out.is_dir():
            raise InputError(f"'{out}' is a folder", hint=f"Name the file, for example: -o {out}/model-{names[0]}.gguf")
        return {names[0]: out}
    if out.is_file() or out.suffix == ".gguf":
        raise InputError("with several types the output must be a folder", found=str(out))
    return {name: out / f"{stem}-{name}.gguf" for name in names}


def prepare(type: str, options: QuantizeOptions) -> str:
    """The type's known name, when it and the options are possible at all. Raises InputError, UnknownNameError."""
    name = type_name(type)
    if name in FLOAT_TYPES:
        raise InputError(f"'{name}' is not a quantized type", hint="Write float types with: slm convert --type")
    asked = [options.token_embedding, options.output, *(kind for _, kind in options.tensor_types)]
    for kind in filter(None, asked):
        tensor_type_id(kind)
    for pattern, _ in options.tensor_types:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"'{pattern}' is not a regular expression: {error}") from error
    if options.imatrix is None:
        overridden = [kind.lower() for kind in asked if kind and kind.lower() in TENSOR_NEEDS_IMATRIX]
        needy = [name] if name in NEEDS_IMATRIX else overridden
        if needy:
            raise InputError(
                f"the type '{needy[0]}' needs an importance matrix: without one the model would be useless",
                hint="Make one with: slm imatrix MODEL.gguf --text LANG=FILE -o OUT.gguf, and give it with --imatrix.",
            )
    return name


def quantize_file(
    source: Path | str, out: Path | str, type: str, options: QuantizeOptions = _NO_OPTIONS, *, threads: int = 0
) -> dict[str, Any]:
    """Quantize a float GGUF model.

    Returns {file, type, size_bytes, source_bytes, tensor_types, fallbacks, overridden, imatrix_entries, seconds}.
    tensor_types is read back from the file; fallbacks counts by type the tensors whose rows are not whole blocks of
    the type meant for them. Raises UnknownNameError, InputError (an adapter, an already quantized file, a type that
    needs an importance matrix), DamagedFileError, MismatchError (another model's matrix), EngineError.
    """
    name = prepare(type, options)
    model = read_gguf(source)
    _check_source(model)
    refuse_not_finite(model)
    out = Path(out)
    if out.exists() and out.samefile(model.path):
        raise InputError(f"'{out}' is the input itself", hint="Choose another output with -o.")
    overrides = _overrides(model, options)
    _check_whole_blocks(model, "token_embd.weight", options.token_embedding)
    _check_whole_blocks(model, "output.weight", options.output)
    entries = 0
    if options.imatrix is not None:
        from convert.quantize.imatrix_file import fitting, read_imatrix

        entries = len(fitting(read_imatrix(options.imatrix), model))
    size = model.path.stat().st_size
    require_space(out.parent, size)
    started = time.monotonic()
    with new_file(out) as temporary:
        job = {
            "source": str(model.path), "target": str(temporary), "type": name, "overrides": overrides,
            **asdict(options), "imatrix": options.imatrix and str(options.imatrix),
            "threads": options.threads or threads, "fingerprint": gguf_fingerprint(model),
        }  # fmt: skip
        _run_child(job, temporary, len(model.tensors))
        written = read_gguf(temporary)
        if {n: t.shape for n, t in written.tensors.items()} != {n: t.shape for n, t in model.tensors.items()}:
            raise EngineError("llama.cpp's quantizer lost tensors")
    return {
        "file": str(out),
        "type": name,
        "size_bytes": out.stat().st_size,
        "source_bytes": size,
        "tensor_types": types_written(written),
        "fallbacks": fallbacks(name, overrides, model, written),
        "overridden": len(overrides),
        "imatrix_entries": entries,
        "seconds": round(time.monotonic() - started, 2),
    }


def quantize_ladder(
    source: Path | str, out: Path | str, types: Sequence[str], options: QuantizeOptions = _NO_OPTIONS
) -> list[dict[str, Any]]:
    """`quantize_file` to one type (`out` is the file) or several (`out` is a folder); what is impossible is refused
    before the first is begun. Files that were finished before a failure stay."""
    names = list(dict.fromkeys(prepare(name, options) for name in types))
    targets = ladder(Path(out), re.sub(r"[-.](f32|f16|bf16)$", "", Path(source).stem), names)
    return [quantize_file(source, target, name, options) for name, target in targets.items()]


def _check_source(model: GgufFile) -> None:
    if model.is_adapter:
        raise InputError(f"'{model.path}' is an adapter; adapters are kept in f32")
    quantized = sorted(set(types_written(model)) - {"F32", "F16", "BF16"})
    if quantized:
        raise InputError(
            f"'{model.path}' is already quantized",
            found=", ".join(quantized),
            hint="Quantize from an f32, f16 or bf16 file; quantizing twice adds both errors.",
        )
    if "token_embd.weight" not in model.tensors:
        raise DamagedFileError(f"'{model.path}' is not a model: it has no token embedding")


def _overrides(model: GgufFile, options: QuantizeOptions) -> dict[str, str]:
    """Tensor name -> type, for every matrix that a pattern matches. Raises InputError for one that matches none."""
    names = [n for n, t in model.tensors.items() if len(t.shape) > 1 and not n.endswith("_norm.weight")]
    chosen: dict[str, str] = {}
    for pattern, kind in options.tensor_types:
        matched = [n for n in names if re.search(pattern, n)]
        if not matched:
            examples = ", ".join(dict.fromkeys(re.sub(r"\d+", "0", n) for n in names))
            raise InputError(f"no matrix of the model has a name like '{pattern}'", found=examples[:400])
        for n in matched:
            chosen.setdefault(n, kind.upper())
    return chosen


def _check_whole_blocks(model: GgufFile, name: str, kind: str | None) -> None:
    if kind is not None and name in model.tensors and model.tensors[name].shape[-1] % block_of(kind):
        raise InputError(
            f"'{name}' cannot be {kind}: its rows are not whole blocks of {block_of(kind)}",
            found=f"{model.tensors[name].shape[-1]} values a row",
            hint="Types of 32 fit most models: q8_0, q5_0, q4_0, iq4_nl.",
        )


def _run_child(job: dict[str, Any], target: Path, tensors: int) -> None:
    environment = {**child_environment(), "SLM_LLAMA_LOG": "1"}
    command = [sys.executable, "-m", "convert.quantize.quantize", json.dumps(job)]
    log = target.with_name(target.name + ".log")
    try:
        with log.open("wb") as sink, progress(f"quantizing to {job['type']}", tensors, "tensors") as done:
            child = subprocess.Popen(command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=environment)
            try:
                while child.poll() is None:
                    time.sleep(_POLL_S)
                    done(_tensors_begun(log))
                done(_tensors_begun(log))
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if child.returncode:
            raise EngineError(f"llama.cpp cannot quantize '{job['source']}' to {job['type']}", found=_last_words(log))
    finally:
        log.unlink(missing_ok=True)


def _tensors_begun(log: Path) -> int:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        found = _AT.findall(file.read())
    return int(found[-1][0]) if found else 0


def _last_words(log: Path) -> str:
    lines = [
        line for line in log.read_text("utf-8", "replace").splitlines() if re.search(r"(?i)error|fail|abort", line)
    ]
    return lines[-1].strip()[:300] if lines else "it ended without a word"


def _child(job: dict[str, Any]) -> int:
    """Call llama_model_quantize; every pointer it is given is kept alive here until it returns."""
    import ctypes

    from slm.native.llama import library

    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype = file_type_of(job["type"])
    params.nthread = int(job["threads"])
    params.max_buf_size = _BUFFER
    for field, kind in (("token_embedding_type", job["token_embedding"]), ("output_tensor_type", job["output"])):
        if kind:
            setattr(params, field, tensor_type_id(kind))
    if job["overrides"]:
        # Whole names: which tensors a pattern means was decided by Python's `re`, not by the C++ library's.
        exact = [(f"^{re.escape(name)}$".encode(), tensor_type_id(kind)) for name, kind in job["overrides"].items()]
        params.tt_overrides = (lib.llama_model_tensor_override * (len(exact) + 1))(*exact)
    kept: list[Any] = []
    notes: dict[str, str | int] = {FINGERPRINT: job["fingerprint"]}
    if job["imatrix"]:
        from convert.quantize.imatrix_file import fitting, read_imatrix

        matrix = read_imatrix(job["imatrix"])
        rows = fitting(matrix, read_gguf(job["source"]))
        array = (lib.llama_model_imatrix_data * (len(rows) + 1))()
        for slot, (name, values) in zip(array, rows.items(), strict=False):
            raw = (ctypes.c_float * values.size).from_buffer_copy(values.tobytes())
            kept.append(raw)
            slot.name, slot.data, slot.size = (
                name.encode(),
                ctypes.cast(raw, ctypes.POINTER(ctypes.c_float)),
                values.size,
            )
        params.imatrix = array
        # The keys by which llama-quantize notes an importance matrix (tools/quantize/quantize.cpp).
        notes |= {
            "quantize.imatrix.file": Path(job["imatrix"]).name,
            "quantize.imatrix.dataset": ", ".join(matrix.datasets),
            "quantize.imatrix.entries_count": len(rows),
            "quantize.imatrix.chunks_count": matrix.chunks,
        }
    params.kv_overrides = _noted(lib, notes)
    return int(lib.llama_model_quantize(job["source"].encode(), job["target"].encode(), ctypes.byref(params)))


def _noted(lib: Any, notes: Mapping[str, str | int]) -> Any:
    """Key-values for the quantized file, as llama.cpp takes them."""
    array = (lib.llama_model_kv_override * (len(notes) + 1))()
    for slot, (key, value) in zip(array, notes.items(), strict=False):
        slot.key = key.encode()
        if isinstance(value, int):
            slot.tag, slot.value.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            slot.tag = lib.LLAMA_KV_OVERRIDE_TYPE_STR
            slot.value.val_str = value.encode()[:127].decode("utf-8", "ignore").encode()
    return array


if __name__ == "__main__":
    sys.exit(1 if _child(json.loads(sys.argv[1])) else 0)
