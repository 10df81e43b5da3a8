"""Checkpoint folder -> GGUF files, of one type or several from one reading, proven before they get their name.

It knows nothing of adapters or of serving.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from convert.output.writer import FILE_TYPES, Ledger, OutTensor, tensor_type, write_gguf
from convert.quantize.quantize import FLOAT_TYPES, QuantizeOptions, ladder, prepare, quantize_file, type_name
from convert.source.checkpoint import Checkpoint, read_checkpoint
from convert.source.pooling import pooling_metadata
from convert.vocabulary.base.proof import Proof
from convert.vocabulary.base.swallowing import name_for
from convert.vocabulary.files.ends import end_ids, ends_to_metadata
from convert.vocabulary.vocab_source import read_vocabulary
from slm.artifacts import new_file, require_space
from slm.errors import InputError, VerificationError
from slm.families import Encoder
from slm.native.background import in_background
from slm.native.llama import open_model
from slm.terminal.console import note, progress
from slm.weights.identity import FINGERPRINT, WEIGHTS, identity_of

DIRECT_TYPES = (*FLOAT_TYPES, "q8_0")
_NO_OPTIONS = QuantizeOptions()
_FLOAT_BITS = {"f32": 32, "f16": 16, "bf16": 16}
_QUANTIZED_BITS = 9  # a weight, at most


def convert_checkpoint(
    folder: Path | str,
    out: Path | str,
    types: str | Sequence[str] = "f16",
    verify: bool = True,
    options: QuantizeOptions = _NO_OPTIONS,
) -> list[dict[str, Any]]:
    """Write one GGUF file (one type: `out` is the file) or several (`out` is a folder) from a checkpoint folder.

    Returns a list of {file, type, size_bytes, tensor_types, fallbacks, caveats, ...}. verify: prove that llama.cpp's
    token ids equal the source tokenizer's on mixed text, that llama.cpp accepts every tensor, and that the disk gives
    back what was written, before anything gets its name. options: for the quantized types.
    Memory: the tokenizer, then one piece of a tensor at a time, whatever the model's size. Raises InputError and its
    kinds, MismatchError, VerificationError; no half of a file is left behind then.
    """
    names = list(dict.fromkeys(type_name(t) for t in ([types] if isinstance(types, str) else types)))
    if not names:
        raise InputError("no type was given", hint="For example: --type f16")
    _check_options(names, options)
    checkpoint = read_checkpoint(folder)
    plan = checkpoint.plan()
    with _no_garbage_collection():
        metadata, proof, caveats = _prepared(checkpoint, verify)
    for caveat in caveats:
        note(f"note: {caveat}")
    targets = ladder(Path(out), checkpoint.folder.resolve().name, names)
    parent = next(iter(targets.values())).parent
    weights = sum(math.prod(p.shape) for p in plan)
    require_space(parent, sum(weights * _FLOAT_BITS.get(name, _QUANTIZED_BITS) // 8 for name in names))
    results = []
    with ExitStack() as stack:
        writer = _Writer(checkpoint, metadata, proof)
        basis: Path | None = None
        for name, target in targets.items():
            if name in DIRECT_TYPES and not (name == "q8_0" and options.changes_types):
                result = writer.write(name, target)
                if name == checkpoint.own_type:
                    basis = target
            else:
                if basis is None:
                    # The quantizer reads a GGUF; in the checkpoint's own precision nothing is rounded twice.
                    parent.mkdir(parents=True, exist_ok=True)
                    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".slm-", dir=parent))
                    basis = Path(scratch) / "basis.gguf"
                    writer.write(checkpoint.own_type, basis)
                result = quantize_file(basis, target, name, options)
            results.append({
                **result, "file": str(target), "type": name, "tokenizer_lines_proven": writer.lines_proven,
                "caveats": caveats,
            })  # fmt: skip
    return results


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause the search for cycles while hundreds of thousands of objects without cycles are made."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _check_options(names: list[str], options: QuantizeOptions) -> None:
    """Refuse before anything is read what the quantizer would refuse at the end."""
    quantized = [name for name in names if name not in FLOAT_TYPES]
    if not quantized and options != _NO_OPTIONS:
        raise InputError(
            "an importance matrix and overrides are for quantized types",
            found=", ".join(names),
            hint="Name one, for example: --type q4_k_m",
        )
    for name in quantized:
        prepare(name, options)


def _prepared(checkpoint: Checkpoint, verify: bool) -> tuple[dict[str, Any], Proof | None, list[str]]:
    """The file's keys, the proof of its tokenizer, and what the runtime does otherwise.

    The source tokenizer, hundreds of MB for a large vocabulary, ends with this function; the proof has taken its ids.
    """
    # This hashes all weights; the tokenizer is read meanwhile.
    identity = in_background(lambda: identity_of(checkpoint.folder))
    embedder = isinstance(checkpoint.family, Encoder)
    source = read_vocabulary(checkpoint.folder, checkpoint.config, embedder=embedder)
    vocabulary, caveats = source.vocabulary, list(source.caveats)
    if not embedder:
        vocabulary.ends = end_ids(checkpoint.folder, checkpoint.config, vocabulary)
    vocabulary.fitted(checkpoint.vocabulary_rows)
    proof = Proof(source) if verify else None
    pooling: dict[str, Any] = {}
    if embedder:
        pooling = pooling_metadata(checkpoint.folder, checkpoint.family.gguf_architecture)
        if not pooling:
            caveats.append("the folder names no pooling (modules.json), so the file names none either")
    metadata = {
        "general.architecture": checkpoint.family.gguf_architecture,
        "general.type": "model",
        "general.name": name_for(checkpoint.folder.resolve().name, vocabulary.swallowing),
        **checkpoint.metadata(),
        **pooling,
        **vocabulary.to_metadata(),
        **ends_to_metadata(vocabulary),
        **identity().keys(FINGERPRINT, WEIGHTS),
    }
    return metadata, proof, [*caveats, *checkpoint.family.caveats(checkpoint.config)]


class _Writer:
    """Writes float files of one checkpoint, proven before they get their names."""

    def __init__(self, checkpoint: Checkpoint, metadata: dict[str, Any], proof: Proof | None) -> None:
        self._checkpoint, self._metadata, self._proof = checkpoint, metadata, proof

    @property
    def lines_proven(self) -> int:
        return self._proof.lines_proven if self._proof is not None else 0

    def write(self, name: str, target: Path) -> dict[str, Any]:
        keys = {**self._metadata, "general.file_type": FILE_TYPES[name], "general.quantization_version": 2}
        tensors = [
            OutTensor(p.gguf_name, p.shape, tensor_type(name, p.gguf_name, p.shape), p.pieces())
            for p in self._checkpoint.plan()
        ]
        for extra, values in self._checkpoint.extra_tensors().items():
            tensors.append(OutTensor(extra, values.shape, "F32", [values]))
        total, ledger = sum(t.nbytes for t in tensors) / 1e6, Ledger()
        with new_file(target) as temporary:
            with temporary.open("wb") as file, progress(f"writing {name}", total, "MB") as done:
                stream = write_gguf(file, keys, tensors, ledger)
                next(stream)  # the header, at the file's full length
                if self._proof is not None:
                    # Before the weights: what is wrong with a tokenizer or a shape should not cost their writing.
                    self._check_header(temporary, self._proof)
                for written in stream:
                    done(written / 1e6)
            if self._proof is not None:
                ledger.check(temporary)
        asked = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}[name]
        fallbacks = sum(len(t.shape) > 1 and t.type_name not in (asked, "F32") for t in tensors)
        return {
            "file": str(target),
            "type": name,
            "size_bytes": target.stat().st_size,
            "tensor_types": dict(Counter(t.type_name for t in tensors).most_common()),
            "fallbacks": {"F16": fallbacks} if fallbacks else {},
        }

    def _check_header(self, path: Path, proof: Proof) -> None:
        """On a file without its weights: llama.cpp knows every tensor and its shape, and its token ids are right."""
        with ExitStack() as stack:
            try:
                model = open_model(stack, path, without_data=True)
            except InputError as error:
                raise VerificationError(
                    f"llama.cpp does not load the converted '{self._checkpoint.folder}'",
                    hint="Nothing was written; set SLM_LLAMA_LOG=1 to see why.",
                ) from error
            proof.compare(model)
