"""Measures a conversion beside llama.cpp's own script: time, memory, and whether the two files hold the same.

It knows nothing of how either converts: both are run as programs, in turns, from a warm page cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import EngineError, MissingFileError
from slm.native.process import child_environment, children_of, proportional_kb
from slm.weights.gguf_reader import GgufFile, read_gguf

PEER = "convert_hf_to_gguf.py"
_POLL_S = 0.02
_TORCH_SEEN = "torch was imported"
# Runs `slm ARGUMENTS` and says at its end whether torch came in.
_OURS = f"""
import atexit, runpy, sys
atexit.register(lambda: "torch" in sys.modules and print({_TORCH_SEEN!r}, file=sys.stderr))
runpy.run_module("slm_cli", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Measured:
    """One run. peak_rss_mb: of the largest process; peak_tree_mb: of all its processes together, shared pages
    counted once, sampled every 20 ms (Linux; 0 elsewhere)."""

    seconds: float
    cpu_seconds: float
    peak_rss_mb: float
    peak_tree_mb: float


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[Measured, str]:
    """Run a command to its end; its figures and what it said. Raises EngineError when it fails."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        tree = 0
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                tree = max(tree, sum(map(proportional_kb, [child.pid, *children_of(child.pid)])))
                time.sleep(_POLL_S)
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        words = said.read().decode("utf-8", "replace")
    if child.returncode:
        last = words.strip().splitlines()[-1:] or ["it said nothing"]
        raise EngineError(f"'{Path(command[1]).name}' failed (exit {child.returncode})", found=last[0][:300])
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return Measured(
        round(seconds, 2),
        round(usage.ru_utime + usage.ru_stime, 2),
        round(usage.ru_maxrss * unit / 1e6, 1),
        round(tree * 1024 / 1e6, 1),
    ), words


def find_peer(named: Path | None) -> Path | None:
    """llama.cpp's script: the named file, or in the named folder, or on PATH; None when it is nowhere."""
    if named is not None:
        script = named / PEER if named.is_dir() else named
        if not script.is_file():
            raise MissingFileError(f"there is no {PEER} at '{named}'", hint="Give a llama.cpp folder with --peer.")
        return script
    onpath = shutil.which(PEER)
    return Path(onpath) if onpath else None


def bench_conversion(checkpoint: Path, file_type: str, runs: int, peer: Path | None) -> dict[str, Any]:
    """The best of `runs` of ours and the peer's, taken in turns, and what the two files have in common.

    Returns {checkpoint, type, ours, peer, time_ratio, memory_ratio, torch_imported, largest_tensor_mb, same}; peer,
    the ratios and same are None without a peer.
    """
    environment = child_environment()
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as scratch:
        ours, theirs = Path(scratch) / "ours.gguf", Path(scratch) / "peer.gguf"
        run_ours = [sys.executable, "-c", _OURS, "-q", "convert", str(checkpoint), "-o", str(ours), "-t", file_type]
        run_peer = [sys.executable, str(peer), str(checkpoint), "--outfile", str(theirs), "--outtype", file_type]
        mine, other, torch_seen = [], [], False
        for _ in range(runs):
            figures, words = measure(run_ours, environment)
            mine.append(figures)
            torch_seen |= _TORCH_SEEN in words
            if peer is not None:
                other.append(measure(run_peer)[0])
        file = read_gguf(ours)
        best, best_other = _best(mine), _best(other) if other else None
        return {
            "checkpoint": checkpoint.name,
            "type": file_type,
            "runs": runs,
            "ours": asdict(best),
            "peer": None if best_other is None else asdict(best_other),
            "time_ratio": None if best_other is None else round(best.seconds / best_other.seconds, 3),
            "memory_ratio": None if best_other is None else round(_memory(best) / _memory(best_other), 3),
            "torch_imported": torch_seen,
            "largest_tensor_mb": round(max(t.nbytes for t in file.tensors.values()) / 1e6, 1),
            "same": None if best_other is None else compare_files(file, read_gguf(theirs)),
        }


def _memory(figures: Measured) -> float:
    return max(figures.peak_rss_mb, figures.peak_tree_mb)


def _best(runs: Iterable[Measured]) -> Measured:
    """The smallest of each figure: what the program needs when nothing disturbs it."""
    columns = zip(*((r.seconds, r.cpu_seconds, r.peak_rss_mb, r.peak_tree_mb) for r in runs), strict=True)
    return Measured(*map(min, columns))


def compare_files(one: GgufFile, other: GgufFile) -> dict[str, Any]:
    """What two GGUF files of one model have in common: tensors by bytes, and the vocabulary's tables.

    Returns {tensors_equal, tensors_different: [names], only_in_one: [names], tables: {key: equal?}, tokenizers: [one's,
    the other's]}; a table that only one has is left out.
    """
    shared = [name for name in one.tensors if name in other.tensors]
    different = [
        name
        for name in shared
        if (one.tensors[name].shape, one.tensors[name].type_name)
        != (other.tensors[name].shape, other.tensors[name].type_name)
        or not np.array_equal(one.raw(name), other.raw(name))
    ]
    tables = {}
    for key in ("model", "pre", "tokens", "token_type", "scores", "merges"):
        left, right = (file.metadata.get(f"tokenizer.ggml.{key}") for file in (one, other))
        if left is not None and right is not None:
            tables[key] = bool(np.array_equal(left, right)) if isinstance(left, np.ndarray) else left == right
    return {
        "tensors_equal": len(shared) - len(different),
        "tensors_different": different,
        "only_in_one": sorted(set(one.tensors) ^ set(other.tensors)),
        "tables": tables,
        "tokenizers": [
            f"{file.metadata.get('tokenizer.ggml.model')}/{file.metadata.get('tokenizer.ggml.pre', 'default')}"
            for file in (one, other)
        ],
    }
