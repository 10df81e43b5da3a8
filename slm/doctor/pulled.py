"""The models that are here: whether each has the files of its manifest, and whether it fits into memory."""

from __future__ import annotations

import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from slm.artifacts import MANIFEST, sha256_file
from slm.doctor.check import Check, amount, guarded
from slm.errors import DamagedFileError
from slm.models.catalog import CATALOG, KIND, Pulled, is_hub_id, manifest_of, name_of_folder
from slm.models.packages import is_installed
from slm.native.process import memory_bytes
from slm.paths import models_dir

# The context of `slm chat` and `slm serve` if nobody says otherwise, and about what llama.cpp computes in.
_CONTEXT, _COMPUTING = 4096, 150 * 10**6


def model_checks() -> list[Check]:
    """A line for every model with a name, and for every other one that is here; a broken one does not hide the rest."""
    total, available = memory_bytes()
    checks = []
    if total is not None:
        free = f", {amount(available)} available" if available is not None else ""
        checks.append(Check("memory", None, f"{amount(total)}{free}"))
    there = {}
    if models_dir().is_dir():
        for folder in sorted(models_dir().iterdir()):
            name = name_of_folder(folder.name)
            if not folder.name.startswith(".") and (folder.is_dir() or name in CATALOG):
                there[name] = folder
    for name in [*CATALOG, *(name for name in there if name not in CATALOG)]:
        if name not in there:
            checks.append(Check(f"model {name}", None, f"not pulled (slm pull {name})"))
            continue
        checks += guarded(f"model {name}", partial(_checked, name, there[name], total))
    return checks


def _checked(name: str, folder: Path, total: int | None) -> list[Check]:
    return [_of(name, folder, total)]


def _of(name: str, folder: Path, total: int | None) -> Check:
    title, anew = f"model {name}", f"rm -r {shlex.quote(str(folder))} && slm pull {name}"
    if not folder.is_dir():
        what = "a link to nowhere" if folder.is_symlink() else "a file"
        return Check(title, False, f"'{folder}' is {what} where its folder belongs", f"rm {shlex.quote(str(folder))}")
    if name not in CATALOG and not is_hub_id(name):
        return Check(title, None, f"'{folder}' is not from slm pull; it is left alone")
    if not (folder / MANIFEST).exists():
        return Check(title, False, f"'{folder}' has no {MANIFEST}: it is not complete, or not one of ours", anew)
    try:
        manifest = manifest_of(folder)
    except DamagedFileError as error:
        return Check(title, False, error.what, anew)
    if manifest.get("kind") != KIND or "files" not in manifest:
        return Check(title, False, f"'{folder / MANIFEST}' is not the manifest of a model", anew)
    for file, known in manifest["files"].items():
        path = folder / file
        if not path.is_file():
            return Check(title, False, f"its file '{file}' is missing", f"slm pull {name}")
        if not os.access(path, os.R_OK):
            return Check(title, False, f"'{path}' cannot be read", f"chmod u+r {shlex.quote(str(path))}")
        if path.stat().st_size != known["size_bytes"]:
            found = f"its file '{file}' has {path.stat().st_size:,} bytes instead of {known['size_bytes']:,}"
            return Check(title, False, found, f"slm pull {name}")
    package = manifest.get("installed_package")
    if package is not None and not is_installed(str(package)):
        return Check(title, False, f"the package {package} that holds it is not installed any more", f"slm pull {name}")
    pulled = Pulled(name, folder, manifest)
    if pulled.path.suffix != ".gguf":
        return _as_pulled(title, pulled, str(pulled.path))
    try:
        needed = needed_bytes(pulled.path)
    except DamagedFileError as error:
        found = f" (found: {error.found})" if error.found else ""
        return Check(title, False, f"{error.what}{found}", f"slm pull {name}")
    found = f"{pulled.path}, needs about {amount(needed)} of memory"
    if total is not None and needed > total:
        fix = f"slm rm {name} && slm pull smollm2-135m-instruct, or a machine with more memory"
        return Check(title, False, f"{found}, and this machine has {amount(total)}", fix)
    return _as_pulled(title, pulled, found)


def _as_pulled(title: str, pulled: Pulled, found: str) -> Check:
    """Whether every byte is what was pulled. It comes last: the whole model is read, a gigabyte or two a second."""
    for file, known in pulled.manifest["files"].items():
        if known.get("sha256") != sha256_file(pulled.folder / file):
            wrong = f"its file '{file}' is not what was pulled: another SHA-256"
            return Check(title, False, wrong, f"slm pull {pulled.name}")
    return Check(title, True, found)


def needed_bytes(file: Path) -> int:
    """Weights, keys and values of a context of 4,096 tokens in f16, and room to compute. Raises DamagedFileError."""
    from slm.weights.gguf_reader import read_gguf

    return file.stat().st_size + _kv_bytes(read_gguf(file).metadata) + _COMPUTING


def _kv_bytes(metadata: dict[str, Any]) -> int:
    """For every layer: 2 bytes x tokens x KV heads x (key length + value length); 0 where the file does not say."""
    kind = metadata.get("general.architecture", "")

    def figure(key: str, default: int = 0) -> int:
        value = metadata.get(f"{kind}.{key}", default)
        return int(max(value)) if hasattr(value, "__len__") and len(value) else int(value)

    heads = figure("attention.head_count")
    length = figure("embedding_length") // heads if heads else 0
    both = figure("attention.key_length", length) + figure("attention.value_length", length)
    context = min(_CONTEXT, figure("context_length", _CONTEXT))
    return 2 * context * figure("block_count") * figure("attention.head_count_kv", heads) * both
