"""Checkpoint folder -> GGUF files, of one type or several from one reading, proven before they get their name.

It knows nothing of adapters or of serving.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, read_checkpoint
from convert.proof import prove_equal, special_lines
from convert.quantize import FLOAT_TYPES, quantize_file, type_name, types_written
from convert.vocab_source import Source, read_json, read_vocabulary
from convert.writer import FILE_TYPES, OutTensor, tensor_type, write_gguf
from slm.artifacts import checkpoint_fingerprint, new_file, require_space
from slm.console import note, progress
from slm.errors import InputError, VerificationError
from slm.gguf_reader import read_gguf
from slm.llama import open_model

DIRECT_TYPES = (*FLOAT_TYPES, "q8_0")
_PHI3_NAME = re.compile(r"phi-?3", re.IGNORECASE)
_PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}


def convert_checkpoint(
    folder: Path | str, out: Path | str, types: str | Sequence[str] = "f16", verify: bool = True
) -> list[dict[str, Any]]:
    """Write one GGUF file (one type: `out` is the file) or several (`out` is a folder) from a checkpoint folder.

    Returns a list of {file, type, size_bytes, tensor_types, caveats, ...}. verify: prove that llama.cpp's token ids
    equal the source tokenizer's on mixed text and that llama.cpp loads the file, before anything gets its name.
    Raises InputError and its kinds, MismatchError, VerificationError; nothing is left behind then.
    """
    names = list(dict.fromkeys(type_name(t) for t in ([types] if isinstance(types, str) else types)))
    if not names:
        raise InputError("no type was given", hint="For example: --type f16")
    checkpoint = read_checkpoint(folder)
    plan = checkpoint.plan()
    source = read_vocabulary(checkpoint.folder, checkpoint.config)
    source.vocabulary.fitted(checkpoint.vocabulary_rows)
    metadata = _metadata(checkpoint, source)
    proven = _prove_vocabulary(metadata, source) if verify else 0
    caveats = [*source.caveats, *checkpoint.family.caveats(checkpoint.config)]
    for caveat in caveats:
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
            results.append(
                {**result, "file": str(target), "type": name, "tokenizer_lines_proven": proven, "caveats": caveats}
            )
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
    return {
        "general.architecture": checkpoint.family.gguf_architecture,
        "general.type": "model",
        "general.name": _runtime_name(checkpoint, source),
        **checkpoint.family.to_metadata(checkpoint.config),
        **source.vocabulary.to_metadata(),
        "slm.fingerprint": checkpoint_fingerprint(checkpoint.folder),
    }


def _runtime_name(checkpoint: Checkpoint, source: Source) -> str:
    """The model's name, with "phi-3" in it exactly when its special tokens swallow the white space after them.

    llama.cpp takes that rule from the name (src/llama-vocab.cpp, `llama_vocab::impl::load`), and refuses a file so
    named whose vocabulary lacks Phi-3's own tokens.
    """
    name = checkpoint.folder.resolve().name
    path = checkpoint.folder / "tokenizer.json"
    swallows = False
    if (
        checkpoint.family.gguf_architecture == "phi3"
        and path.exists()
        and set(source.vocabulary.tokens) >= _PHI3_TOKENS
    ):
        added = read_json(path).get("added_tokens") or []
        own = [bool(t.get("rstrip")) for t in added if t.get("content") not in _PHI3_TOKENS]
        swallows = bool(own) and all(own)
    if swallows:
        return name if _PHI3_NAME.search(name) else f"Phi-3 {name}"
    return _PHI3_NAME.sub("Phi 3", name)


def _prove_vocabulary(metadata: dict[str, Any], source: Source) -> int:
    """Prove the vocabulary on a file that holds nothing else, before any weights are written."""
    vocabulary = source.vocabulary
    ids = [i for i in source.special_ids if i < len(vocabulary.tokens)]
    lines = [*source.lines, *special_lines(vocabulary.tokens, ids)]
    encode = source.encoder()
    with tempfile.TemporaryDirectory(prefix="slm-") as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        with path.open("wb") as file:
            for _ in write_gguf(file, metadata, []):
                pass
        return prove_equal(path, encode, lines=lines)


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
