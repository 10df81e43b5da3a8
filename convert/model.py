"""Checkpoint folder -> GGUF files, of one type or several from one reading, proven before they get their name.

It knows nothing of adapters or of serving.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, read_checkpoint
from convert.families import Encoder
from convert.pooling import pooling_metadata
from convert.proof import Source, prove_equal
from convert.quantize import FLOAT_TYPES, quantize_file, type_name, types_written
from convert.vocab_source import read_vocabulary
from convert.writer import FILE_TYPES, OutTensor, tensor_type, write_gguf
from slm.artifacts import checkpoint_fingerprint, new_file, require_space
from slm.console import note, progress
from slm.errors import InputError, VerificationError
from slm.gguf_reader import read_gguf
from slm.llama import open_model

DIRECT_TYPES = (*FLOAT_TYPES, "q8_0")


def convert_checkpoint(
    folder: Path | str, out: Path | str, types: str | Sequence[str] = "f16", verify: bool = True
) -> list[dict[str, Any]]:
    """Write one GGUF file (one type: `out` is the file) or several (`out` is a folder) from a checkpoint folder.

    Returns a list of {file, type, size_bytes, tensor_types, ...}. verify: prove that llama.cpp's token ids equal the
    source tokenizer's on mixed text and that llama.cpp loads the file, before anything gets its name. Raises
    InputError and its kinds, MismatchError, VerificationError; nothing is left behind then.
    """
    names = list(dict.fromkeys(type_name(t) for t in ([types] if isinstance(types, str) else types)))
    if not names:
        raise InputError("no type was given", hint="For example: --type f16")
    checkpoint = read_checkpoint(folder)
    plan = checkpoint.plan()
    embedder = isinstance(checkpoint.family, Encoder)
    source = read_vocabulary(checkpoint.folder, checkpoint.config, embedder=embedder)
    source.vocabulary.fitted(checkpoint.vocabulary_rows)
    metadata = _metadata(checkpoint, source)
    proven = _prove_vocabulary(metadata, source) if verify else 0
    for caveat in source.caveats:
        note(f"note: {caveat}")
    targets = _targets(Path(out), checkpoint, names)
    elements = sum(int(p.entry.nbytes) for p in plan)
    require_space(next(iter(targets.values())).parent, elements * len(names))
    results = []
    with tempfile.TemporaryDirectory(prefix=".slm-", dir=_existing(next(iter(targets.values())).parent)) as scratch:
        basis: Path | None = None
        for name, target in targets.items():
            if name in DIRECT_TYPES:
                result = _write(checkpoint, metadata, name, target, verify)
            else:
                if basis is None:
                    # The quantizer reads a GGUF; in the checkpoint's own precision nothing is rounded twice.
                    precision = {"F32": "f32", "F16": "f16", "BF16": "bf16"}.get(checkpoint.dtype, "f32")
                    basis = Path(scratch) / "basis.gguf"
                    _write(checkpoint, metadata, precision, basis, verify)
                result = quantize_file(basis, target, name)
            results.append({**result, "file": str(target), "type": name, "tokenizer_lines_proven": proven})
    return results


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _targets(out: Path, checkpoint: Checkpoint, names: list[str]) -> dict[str, Path]:
    if len(names) == 1:
        if out.is_dir():
            raise InputError(f"'{out}' is a folder", hint=f"Name the file, for example: -o {out}/model-{names[0]}.gguf")
        return {names[0]: out}
    if out.is_file() or out.suffix == ".gguf":
        raise InputError("with several types the output must be a folder", found=str(out))
    stem = checkpoint.folder.resolve().name
    return {name: out / f"{stem}-{name}.gguf" for name in names}


def _metadata(checkpoint: Checkpoint, source: Source) -> dict[str, Any]:
    pooling: dict[str, Any] = {}
    if isinstance(checkpoint.family, Encoder):
        pooling = pooling_metadata(checkpoint.folder, checkpoint.family.gguf_architecture)
        if not pooling:
            source.caveats.append("the folder names no pooling (modules.json), so the file names none either")
    return {
        "general.architecture": checkpoint.family.gguf_architecture,
        "general.type": "model",
        "general.name": checkpoint.folder.resolve().name,
        **checkpoint.family.to_metadata(checkpoint.config),
        **pooling,
        **source.vocabulary.to_metadata(),
        "slm.fingerprint": checkpoint_fingerprint(checkpoint.folder),
    }


def _prove_vocabulary(metadata: dict[str, Any], source: Source) -> int:
    """Prove the vocabulary on a file that holds nothing else, before any weights are written."""
    encode = source.encoder()
    with tempfile.TemporaryDirectory(prefix="slm-") as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        with path.open("wb") as file:
            for _ in write_gguf(file, metadata, []):
                pass
        return prove_equal(path, encode, lines=source.all_lines(), add_special=source.add_special)


def _write(checkpoint: Checkpoint, metadata: dict[str, Any], name: str, target: Path, verify: bool) -> dict[str, Any]:
    keys = {**metadata, "general.file_type": FILE_TYPES[name], "general.quantization_version": 2}
    tensors = [
        OutTensor(p.gguf_name, p.shape, tensor_type(name, p.gguf_name, p.shape), p.pieces()) for p in checkpoint.plan()
    ]
    for extra, values in checkpoint.family.extra_tensors(checkpoint.config).items():
        tensors.append(OutTensor(extra, values.shape, "F32", [values]))
    total = sum(tensor.nbytes for tensor in tensors) / 1e6
    with new_file(target) as temporary:
        with temporary.open("wb") as file, progress(f"writing {name}", total, "MB") as done:
            for written in write_gguf(file, keys, tensors):
                done(written / 1e6)
        written_file = read_gguf(temporary)
        if verify:
            with ExitStack() as stack:
                try:
                    open_model(stack, temporary)
                except InputError as error:
                    raise VerificationError(
                        f"llama.cpp does not load the converted '{checkpoint.folder}'",
                        hint="Nothing was written; set SLM_LLAMA_LOG=1 to see why.",
                    ) from error
        types = types_written(written_file)
    return {"file": str(target), "type": name, "size_bytes": target.stat().st_size, "tensor_types": types}
