"""What identifies weights: which ones they are (a fingerprint that survives conversions), and their exact bytes.

A fingerprint says what weights a file came from: of a checkpoint it is a hash of its tensors, the same in other shards
and beside other metadata. It goes with them into GGUF files of every type, back into a restored checkpoint and on, so
that an adapter fits all of them. The exact bytes differ from one to the next; caches of what was computed from them
are keyed by those. It knows nothing of what a file is used for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from slm.artifacts import MANIFEST, read_manifest, sha256_files
from slm.errors import MismatchError
from slm.native.background import in_background
from slm.weights.adapter_origin import named_base, told_weights
from slm.weights.checkpoint_files import ADAPTER_CONFIG, weight_files
from slm.weights.gguf_reader import GgufFile
from slm.weights.tensor_hash import hash_of, tensor_hashes

# Keys of GGUF files: of a model what it came from, of an adapter what it was trained on.
FINGERPRINT, WEIGHTS = "slm.fingerprint", "slm.source_weights"
BASE_FINGERPRINT, BASE_WEIGHTS = "slm.base_fingerprint", "slm.base_weights"
# Fingerprints of files that name none (somebody else's) are made of their tensors: this, a hash of the vectors, which
# quantization leaves as they are, one of all tensors' types, and one of everything, with colons between.
_OF_TENSORS = "gguf:"
_BLOCK = 1 << 20
# (path, size, time of change) -> hash: a server asks for it with every adapter.
_TENSORS_HASHED: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True)
class WeightsIdentity:
    """fingerprint: which weights these are. weights: SHA-256 of the exact files, by which older adapters know them."""

    fingerprint: str
    weights: str

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.fingerprint, self.weights))

    def keys(self, fingerprint: str, weights: str) -> dict[str, str]:
        """As key-values under two names; the second only where it says something of its own."""
        exact = {weights: self.weights} if self.weights != self.fingerprint else {}
        return {fingerprint: self.fingerprint, **exact}


def identity_of(folder: Path) -> WeightsIdentity:
    """The identity of a checkpoint's weights; all of them are read.

    The manifest's fingerprint counts as long as its `weights` are those that are there: after a training in place it
    speaks of others. Raises MissingFileError or DamagedFileError.
    """
    files = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(folder).files)
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    known = manifest.get("fingerprint")
    if isinstance(known, str) and manifest.get("weights") == _exact(files):
        return WeightsIdentity(known, _exact(files))
    # Two hashes of gigabytes: each thread has a core of its own, and what one reads the other finds in memory.
    tensors = in_background(lambda: _tensors(files))
    exact = _exact(files)
    return WeightsIdentity(tensors() or exact, exact)


_Files = tuple[tuple[Path, int, int], ...]  # path, size, time of change: what a cached hash is known by


@lru_cache(maxsize=8)  # one command may ask several times
def _exact(files: _Files) -> str:
    """As `sha256_files` has it."""
    return sha256_files([path for path, _, _ in files])


@lru_cache(maxsize=8)
def _tensors(files: _Files) -> str:
    """The hash of all tensors; "" where a file is no sound safetensors file: it has only its bytes."""
    tensors: dict[str, str] = {}
    for path, _, _ in files:
        inside = tensor_hashes(path)
        if not inside:
            return ""
        tensors |= inside
    return hash_of(tensors)


def checkpoint_fingerprint(folder: Path) -> str:
    """Which weights a checkpoint has; see `identity_of`."""
    return identity_of(folder).fingerprint


def gguf_fingerprint(file: GgufFile) -> str:
    """Which weights a GGUF model has: what it names, else a hash of all its tensors, which are read then."""
    return text_of(file.metadata, FINGERPRINT) or tensors_hash(file)


def tensors_hash(file: GgufFile) -> str:
    """The fingerprint of a file that names none: names, shapes, types and bytes of its tensors, without its keys."""
    state = file.path.stat()
    key = str(file.path.resolve()), state.st_size, state.st_mtime_ns
    if key in _TENSORS_HASHED:
        return _TENSORS_HASHED[key]
    vectors, types, everything = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    with file.path.open("rb") as source:
        for name, info in sorted(file.tensors.items()):
            digests = (everything, vectors) if len(info.shape) == 1 else (everything,)
            for digest in (*digests, types):
                digest.update(f"{name}\0{info.shape}\0{info.type_name}\0".encode("utf-8", "surrogateescape"))
            source.seek(info.offset)
            left = info.nbytes
            while left and (block := source.read(min(left, _BLOCK))):
                for digest in digests:
                    digest.update(block)
                left -= len(block)
    name = f"{vectors.hexdigest()[:16]}:{types.hexdigest()[:16]}:{everything.hexdigest()}"
    return _TENSORS_HASHED.setdefault(key, _OF_TENSORS + name)


def trained_on(adapter: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the weights that an adapter file's key-values say it was trained on; none where it does not.

    The fingerprint is the first of them: it is what every message calls the weights.
    """
    return tuple(filter(None, (text_of(adapter, BASE_FINGERPRINT), text_of(adapter, BASE_WEIGHTS))))


def names_of(model: Mapping[str, Any]) -> frozenset[str]:
    """The names of a model file's weights by its key-values; none in somebody else's file."""
    return frozenset(filter(None, (text_of(model, FINGERPRINT), text_of(model, WEIGHTS))))


def belong(wanted: Collection[str], known: Collection[str], tensors: Callable[[], str]) -> bool:
    """Whether an adapter trained on weights called `wanted` fits a model called `known`; True where nothing tells.

    A model without a name is known by its tensors. Two of somebody else's files with the same vectors (norms, biases)
    in different types may be one model quantized twice, so the adapter fits; in the same types they are two models.
    """
    if not known:
        of_files = [name for name in wanted if name.startswith(_OF_TENSORS)]
        return not of_files or any(_may_be_one(name, tensors()) for name in of_files)
    return not wanted or not set(wanted).isdisjoint(known)


def _may_be_one(left: str, right: str) -> bool:
    (vectors, types, _), (theirs, their_types, _) = (
        name.removeprefix(_OF_TENSORS).split(":") for name in (left, right)
    )
    return left == right or (vectors == theirs and types != their_types)


def other_weights(adapter: Path, model: Path, wanted: Sequence[str], given: str) -> MismatchError:
    """The error for an adapter trained on weights called `wanted`, beside a model whose weights are called `given`.

    Somebody else's files of the same types and vectors are one model quantized by two programs, or a model and a
    fine-tuned copy of it; only who made them knows, so the error says how to tell us.
    """
    hint = "Load it with the model it was trained on."
    if any(_share_vectors(name, given) for name in wanted):
        hint = (
            "Their norms and biases are equal, so this may be the same model quantized by another program, or a "
            "fine-tuned copy, which no file tells. If you know that it is the same: copy the adapter's folder without "
            f"its {MANIFEST}, and run: slm convert COPY --base {model} -o FILE.gguf"
        )
    return MismatchError(
        f"the adapter '{adapter}' was trained on other weights than those of '{model}'",
        found=f"base {short(wanted[0])}, model {short(given)}",
        hint=hint,
    )


def _share_vectors(left: str, right: str) -> bool:
    names = [name.removeprefix(_OF_TENSORS).split(":") for name in (left, right) if name.startswith(_OF_TENSORS)]
    return len(names) == 2 and names[0][0] == names[1][0]


def check_same_base(adapter: Path, manifest: Mapping[str, Any], base: Path) -> WeightsIdentity:
    """The identity of `base`, once the adapter folder's manifest (which may be empty) is known to mean it.

    Raises MismatchError when the adapter was trained on other weights.
    """
    known, wanted = identity_of(base), told_weights(manifest)
    if wanted and known.names.isdisjoint(wanted):
        raise MismatchError(
            f"the adapter '{adapter}' was trained on another base than '{base}'",
            found=f"trained on {short(wanted[0])}, given {short(known.fingerprint)}",
            hint=f"Its base was: {was}" if (was := manifest["base"].get("path")) else "Give the one it was trained on.",
        )
    return known


def check_named_base(adapter: Path, manifest: Mapping[str, Any], base: Path, known: WeightsIdentity) -> None:
    """Raise MismatchError where the base that an adapter folder names is here and holds other weights than `base`.

    A manifest that tells the weights themselves says more than a place does, so that nothing is asked then.
    """
    if told_weights(manifest):
        return
    named = named_base(adapter)
    if named.folder is None or named.folder.resolve() == base.resolve():
        return
    own = identity_of(named.folder)
    if _are_others(own, known):
        raise MismatchError(
            f"the adapter '{adapter}' names another base than '{base}'",
            found=f"'{named.name}' is {short(own.fingerprint)}, given {short(known.fingerprint)}",
            hint="Give the one it names. If you know that the weights are the same in another form, put this one's "
            f"path into its {ADAPTER_CONFIG} (base_model_name_or_path).",
        )


def _are_others(left: WeightsIdentity, right: WeightsIdentity) -> bool:
    """Whether two weights are known to be different ones; of somebody else's GGUF files that is not always told."""
    names = left.fingerprint, right.fingerprint
    of_files = [name.startswith(_OF_TENSORS) for name in names]
    if left.names & right.names or any(of_files) != all(of_files):
        return False
    return not all(of_files) or not _share_vectors(*names)


def short(fingerprint: str) -> str:
    """The beginning of a fingerprint, enough to tell two apart."""
    return fingerprint.rpartition(":")[2][:12]


def text_of(metadata: Mapping[str, Any], key: str) -> str | None:
    """A key's text, or None where it has none."""
    value = metadata.get(key)
    return value if isinstance(value, str) and value else None
