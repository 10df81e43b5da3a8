"""GGUF -> quantized GGUF by llama.cpp's quantizer, in a child process: it may abort on what it does not like.

It knows nothing of checkpoints. The child is this file run as a module; it is ended when its parent is interrupted.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from slm.artifacts import new_file, require_space
from slm.console import progress
from slm.errors import DamagedFileError, EngineError, InputError, UnknownNameError
from slm.gguf_reader import GgufFile, read_gguf

# llama.cpp include/llama.h, `llama_ftype`
QUANTIZED_TYPES = {
    "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
    "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30,
}  # fmt: skip
_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
FLOAT_TYPES = ("f32", "f16", "bf16")
_POLL_S = 0.1


def type_name(name: str) -> str:
    """The known type a user means, whatever the case. Raises UnknownNameError."""
    name = _ALIASES.get(name.lower(), name.lower())
    if name not in QUANTIZED_TYPES and name not in FLOAT_TYPES:
        raise UnknownNameError("type", name, [*FLOAT_TYPES, *QUANTIZED_TYPES])
    return name


def types_written(file: GgufFile) -> dict[str, int]:
    """How many tensors of each ggml type a file holds, most frequent first."""
    return dict(Counter(info.type_name for info in file.tensors.values()).most_common())


def quantize_file(source: Path | str, out: Path | str, type: str, *, threads: int = 0) -> dict[str, Any]:
    """Quantize a float GGUF model; returns {file, type, size_bytes, source_bytes, tensor_types, seconds}.

    tensor_types is read back from the file: rows that are no multiple of 256 get another type than the one asked
    for. Raises UnknownNameError, InputError (an adapter, an already quantized file), EngineError.
    """
    name = type_name(type)
    if name in FLOAT_TYPES:
        raise InputError(f"'{name}' is not a quantized type", hint="Write float types with: slm convert --type")
    model = read_gguf(source)
    if model.is_adapter:
        raise InputError(f"'{model.path}' is an adapter; adapters are kept in f32")
    quantized = sorted(set(types_written(model)) - {"F32", "F16", "BF16"})
    if quantized:
        raise InputError(
            f"'{model.path}' is already quantized",
            found=", ".join(quantized),
            hint="Quantize from an f32, f16 or bf16 file; quantizing twice adds both errors.",
        )
    _check_is_model(model)
    out = Path(out)
    if out.exists() and out.samefile(model.path):
        raise InputError(f"'{out}' is the input itself", hint="Choose another output with -o.")
    size = model.path.stat().st_size
    require_space(out.parent, size)
    started = time.monotonic()
    with new_file(out) as temporary:
        _run_child(model.path, temporary, QUANTIZED_TYPES[name], threads, name)
        written = read_gguf(temporary)
        if set(written.tensors) != set(model.tensors):
            raise EngineError("llama.cpp's quantizer lost tensors")
        types = types_written(written)
    return {
        "file": str(out),
        "type": name,
        "size_bytes": out.stat().st_size,
        "source_bytes": size,
        "tensor_types": types,
        "seconds": round(time.monotonic() - started, 2),
    }


def _check_is_model(model: GgufFile) -> None:
    if "token_embd.weight" not in model.tensors:
        raise DamagedFileError(f"'{model.path}' is not a model: it has no token embedding")


def _run_child(source: Path, target: Path, file_type: int, threads: int, name: str) -> None:
    here = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "SLM_LLAMA_LOG": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "convert.quantize", str(source), str(target), str(file_type), str(threads)]
    log = target.with_name(target.name + ".log")
    try:
        with log.open("wb") as sink, progress(f"quantizing to {name}", unit="MB") as done:
            child = subprocess.Popen(command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=environment)
            try:
                while child.poll() is None:
                    time.sleep(_POLL_S)
                    done(target.stat().st_size / 1e6)
                done(target.stat().st_size / 1e6)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if child.returncode:
            raise EngineError(f"llama.cpp cannot quantize '{source}' to {name}", found=_last_words(log))
    finally:
        log.unlink(missing_ok=True)


def _last_words(log: Path) -> str:
    lines = [
        line for line in log.read_text("utf-8", "replace").splitlines() if re.search(r"(?i)error|fail|abort", line)
    ]
    return lines[-1].strip()[:300] if lines else "it ended without a word"


def _child(arguments: list[str]) -> int:
    from slm.llama import library

    source, target, file_type, threads = arguments
    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype = int(file_type)
    params.nthread = int(threads)
    return int(lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(1 if _child(sys.argv[1:]) else 0)
