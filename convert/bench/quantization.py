"""Measures what an importance matrix does for each language: none, one language's, all languages' in equal parts, and
the peer's over the joined texts. It knows nothing of how figures are shown.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from convert.quality.sample_text import read_texts
from convert.quality.verify import by_language, gguf_runner, measure
from convert.quantize.imatrix import collect_imatrix
from convert.quantize.quantize import QuantizeOptions, quantize_file
from slm.errors import EngineError, InputError, MissingFileError
from slm.terminal.console import note

PEER = "llama-imatrix"


def find_peer(named: Path | None) -> Path | None:
    """llama.cpp's llama-imatrix: the named file, or the one on PATH; None when it is nowhere."""
    if named is not None and not named.is_file():
        raise MissingFileError(f"there is no file '{named}'", hint=f"Name llama.cpp's {PEER} with --peer.")
    found = named or shutil.which(PEER)
    return Path(found) if found else None


def bench_quantization(
    gguf: Path,
    calibration: Mapping[str, Sequence[Path]],
    held_out: Mapping[str, Path],
    types: Sequence[str],
    *,
    chunks: int | None = None,
    max_tokens: int = 2048,
    peer: Path | None = None,
) -> dict[str, Any]:
    """Quantize a float model to each type with each matrix and compare it with the float model.

    Returns {model, rows: [{type, matrix, size_bytes, by_language}]}; matrix is "none", a language, "balanced", or the
    peer's name. held_out: {language: file}, none for the built-in texts; at most `max_tokens` of each. chunks of 512
    tokens a language. Raises InputError when fewer than two languages are given.
    """
    if len(calibration) < 2:
        raise InputError("a balance needs texts of two languages or more", hint="--text en=FILE --text ja=FILE")
    texts = read_texts(held_out)
    rows = []
    with tempfile.TemporaryDirectory(prefix="slm-bench-", dir=gguf.resolve().parent) as scratch:
        for name, matrix in _matrices(gguf, calibration, Path(scratch), chunks, peer):
            for kind in types:
                made = Path(scratch) / "candidate.gguf"
                note(f"{kind}, importance matrix: {name}")
                result = quantize_file(gguf, made, kind, QuantizeOptions(matrix))
                with ExitStack() as stack:
                    tallies = measure(gguf_runner(stack, made), gguf_runner(stack, gguf), texts, max_tokens)
                made.unlink()
                size = result["size_bytes"]
                rows.append({"type": kind, "matrix": name, "size_bytes": size, "by_language": by_language(tallies)})
    return {"model": gguf.name, "rows": rows}


def _matrices(
    gguf: Path, calibration: Mapping[str, Sequence[Path]], scratch: Path, chunks: int | None, peer: Path | None
) -> Iterator[tuple[str, Path | None]]:
    yield "none", None
    for name, texts in [*((lang, {lang: files}) for lang, files in calibration.items()), ("balanced", calibration)]:
        out = scratch / f"{name}.imatrix.gguf"
        collect_imatrix(gguf, texts, out, chunks=chunks)
        yield name, out
    if peer is not None:
        yield PEER, _peers_matrix(gguf, calibration, scratch, chunks, peer)


def _peers_matrix(
    gguf: Path, calibration: Mapping[str, Sequence[Path]], scratch: Path, chunks: int | None, peer: Path
) -> Path:
    """The peer's own way: one file of all texts, one after the other; as many chunks as ours read in all."""
    joined, out = scratch / "joined.txt", scratch / "peer.imatrix.gguf"
    joined.write_text("".join(p.read_text(encoding="utf-8") for ps in calibration.values() for p in ps), "utf-8")
    most = ["--chunks", str(chunks * len(calibration))] if chunks else []
    command = [str(peer), "-m", str(gguf), "-f", str(joined), "-o", str(out), "-c", "512", *most]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if run.returncode or not out.is_file():
        last = run.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise EngineError(f"'{peer.name}' failed (exit {run.returncode})", found=last[0][:300])
    return out
