"""The files of a checkpoint folder: which weights are read, and what makes a folder unreadable, said before it is read.

transformers decides which weights those are, so that a conversion and a training see the same. Git LFS pointers and
quantized weights are named here for every room. It knows nothing of architectures.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from slm.artifacts import read_json
from slm.errors import DamagedFileError, MissingFileError, UnsupportedError

CONFIG, SINGLE = "config.json", "model.safetensors"
INDEX = SINGLE + ".index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_GGUF = "adapter.gguf"  # where an adapter comes converted, in a folder without PEFT's files
# Both spellings of the first line (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md; hawser is its old name).
_POINTERS = (b"version https://git-lfs", b"version https://hawser")
_HEAD = 1024  # the specification's own bound for pointers
# What git-annex leaves in place of a file: its key's path, or a link to it as a file system without links has it.
_ANNEX = re.compile(rb"(\.\./)*(\.git)?/?annex/objects/")
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S
)
_TEXTS = ("*.json", "*.jinja", "*.model", "*.txt", "*.bpe", "*.spm")
# Tensors that only quantized weights have beside them, by the end of their names.
_BESIDE = {
    "bitsandbytes": (".absmax", ".quant_map", ".SCB", ".weight_format"),
    "GPTQ or AWQ": (".qweight", ".qzeros"),
    "compressed-tensors": (".weight_packed", ".weight_zero_point"),
    "FP8": ("_scale_inv", ".weight_scale", ".input_scale"),
    "MXFP4": ("_proj_blocks", "_proj_scales"),
    "MLX": (".scales",),
    "HQQ": (".W_q",),
    "AQLM": (".codebooks",),
}
# What quantizers write beside the weights (AutoGPTQ, AutoAWQ, NVIDIA ModelOpt), and the method where it names none.
_SETTINGS = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ", "hf_quant_config.json": "ModelOpt"}
_FLOATS = ("F64", "F32", "F16", "BF16")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_MAX_HEADER = 100_000_000  # the reference implementation's own bound


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a checkpoint, and the tensors that its index promises (none without an index)."""

    files: tuple[Path, ...]
    promised: frozenset[str] = frozenset()


def weight_files(folder: Path) -> WeightFiles:
    """The safetensors files that transformers reads: those config.json names, else the single one, else the shards.

    So says transformers/modeling_utils.py, `_get_resolved_checkpoint_files`: an index that was left behind beside a
    newer `model.safetensors` counts for nothing. Raises MissingFileError or DamagedFileError (also a Git LFS pointer).
    """
    named = _named_weights(folder)
    if named is None and not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        raise _without_weights(folder)
    first = named or (SINGLE if (folder / SINGLE).is_file() else INDEX)
    if not first.endswith(".index.json"):
        return WeightFiles((_weight_file(folder, first),))
    weight_map = _json(_weight_file(folder, first)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedFileError(f"'{folder / first}' has no weight_map")
    shards = sorted({str(name) for name in weight_map.values()})
    return WeightFiles(tuple(_weight_file(folder, name) for name in shards), frozenset(map(str, weight_map)))


def _without_weights(folder: Path) -> MissingFileError:
    """The error for a folder without weights that are read: what is there instead, and what to do with it."""
    names = sorted(path.name for path in folder.iterdir())
    weights = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".safetensors", ".gguf"))]
    what, hint = _instead(folder, frozenset(names))
    return MissingFileError(
        what or f"'{folder}' has no .safetensors weights ({SINGLE}, or shards with their index)",
        found=", ".join(weights[:8]) or "no weights",
        hint=hint,
    )


def _instead(folder: Path, names: Collection[str]) -> tuple[str, str]:
    """(what is wrong, or "" for the plain absence of weights; what to do) by the names of the files there are."""
    endings = {ending: sorted(name for name in names if name.endswith(ending)) for ending in (".gguf", ".safetensors")}
    ggufs, tensors = endings.values()
    if ADAPTER_CONFIG in names:
        return f"'{folder}' is an adapter where a model is needed", (
            "Name its base here and give the adapter with --adapter, or fold it in: slm merge --base BASE "
            f"--adapter {folder} -o FOLDER"
        )
    if any(_SHARD.fullmatch(name) for name in tensors):
        return f"'{folder}' has shards without their index", (
            f"Copy or download {INDEX} into it, which says what the shards hold."
        )
    if "consolidated.safetensors" in tensors:
        return f"'{folder}' has its weights only under the names of Mistral's own programs", (
            f"Take the files of transformers' form from the same place: {SINGLE}, or shards with {INDEX}."
        )
    if variants := [name for name in tensors if name.startswith("model.")]:
        return f"'{folder}' has only a variant of the weights, under a name that is not read", (
            f"Rename it: mv {folder / variants[0]} {folder / SINGLE}"
        )
    if tensors:
        return "", f'Rename the file to {SINGLE}, or name it in {CONFIG}: "transformers_weights": "{tensors[0]}"'
    if ggufs:
        return "", f"Give the GGUF file itself: {folder / ggufs[0]}"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return "", "Pickled weights (.bin) are not read; save the model again with save_pretrained."
    return "", "Copy or download the checkpoint again."


def converted_adapter(path: Path) -> Path | None:
    """The GGUF file of an adapter that is given as one: a file, or a folder that holds it without PEFT's files."""
    if path.is_file():
        return path
    inside = path / ADAPTER_GGUF
    return inside if inside.is_file() and not (path / ADAPTER_CONFIG).exists() else None


def refuse_adapted(folder: Path) -> None:
    """Raise UnsupportedError for a folder with a model's weights and with an adapter's configuration.

    transformers loads such a model with the adapter on it, every other reader without: it is two things in one place.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    of_model = [p.name for p in sorted(folder.iterdir()) if p.name in (SINGLE, INDEX) or _SHARD.fullmatch(p.name)]
    named = _named_weights(folder)
    if named and (folder / named).is_file() and named != ADAPTER_WEIGHTS:
        of_model.append(named)
    if of_model:
        of_adapter = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if (folder / name).is_file()]
        raise UnsupportedError(
            f"'{folder}' is a model and an adapter at once",
            found=f"of a model: {', '.join(dict.fromkeys(of_model[:4]))}; of an adapter: {', '.join(of_adapter)}",
            hint=f"Move {' and '.join(of_adapter)} into a folder of their own, and say then which of the two is meant.",
        )


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder whose files are Git LFS pointers, whose weights are quantized, or that is an adapter as well.

    Raises DamagedFileError or UnsupportedError. Weights that are missing are left to `weight_files`.
    """
    refuse_pointers(folder)
    refuse_adapted(folder)
    try:
        files = weight_files(folder).files
    except MissingFileError:
        files = ()
    dtypes = {name: dtype for file in files for name, dtype in _dtypes(file).items()}
    config = _json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    told, shown = _told(config) or _left_beside(folder), _shown(dtypes)
    faults = [one for one in (told, shown) if one is not None]
    if not faults:
        return
    hint = "Take the checkpoint it was made from, in float32, float16 or bfloat16."
    if told and dtypes and not shown:
        hint += f" If these weights are no longer quantized, remove {told[1]}."
    raise UnsupportedError(f"the weights in '{folder}' are quantized ({faults[0][0]})", found=faults[-1][1], hint=hint)


def refuse_pointers(folder: Path) -> None:
    """Raise DamagedFileError when a configuration or tokenizer file of the folder is a Git LFS pointer."""
    for pattern in _TEXTS:
        for path in sorted(folder.glob(pattern)):
            refuse_pointer(path)


def pointer_of(head: bytes) -> str:
    """What left a pointer in a file's place, as its first bytes tell: "Git LFS", "git-annex", or ""."""
    if head.startswith(_POINTERS):
        return "Git LFS"
    return "git-annex" if _ANNEX.match(head) else ""


def refuse_pointer(path: Path) -> None:
    """Raise DamagedFileError when a file is only what stands in its place: a pointer of Git LFS or git-annex, a page
    of a web server, or other text where weights are needed."""
    if not path.is_file():
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
    again = "Download the file again, and look at the address: a page comes where one has to sign in, for one."
    if pointer_of(head) == "Git LFS" and size <= _HEAD:
        named = next((line[5:] for line in head.split(b"\n") if line.startswith(b"size ")), b"").strip()
        stands_for = f" for {int(named):,} bytes" if named.isdigit() else ""
        raise DamagedFileError(
            f"'{path}' is a Git LFS pointer, not the file itself",
            found=f"{size} bytes of text that stand{stands_for}",
            hint="Fetch the files with 'git lfs pull' in that repository, or download them again.",
        )
    if pointer_of(head) == "git-annex":
        raise DamagedFileError(
            f"'{path}' is a git-annex pointer, not the file itself",
            found=_shortened(head),
            hint="Fetch the files with 'git annex get' in that repository, or download them again.",
        )
    if _PAGE.match(head):
        raise DamagedFileError(f"'{path}' is an HTML page, not the file itself", found=_shortened(head), hint=again)
    if path.suffix == ".safetensors" and _is_text(head):
        raise DamagedFileError(f"'{path}' is text, not weights", found=_shortened(head), hint=again)


def _is_text(head: bytes) -> bool:
    """Whether bytes are text; safetensors files begin with the length of their header, which has zeros."""
    return bool(head.strip()) and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head[:64])


def _shortened(head: bytes) -> str:
    text = " ".join(head.decode("utf-8", "replace").split())
    return text if len(text) <= 60 else text[:59] + "…"


def _named_weights(folder: Path) -> str | None:
    config = _json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    named = config.get("transformers_weights")
    return named if isinstance(named, str) and named.endswith((".safetensors", ".safetensors.index.json")) else None


def _weight_file(folder: Path, name: str) -> Path:
    """A file that the folder or its index names, which must lie in the folder itself."""
    if PurePosixPath(name).name != name or {"\\", "\0"} & set(name) or name in ("", ".", "..") or len(name) > 255:
        raise DamagedFileError(f"the index of '{folder}' names a shard outside the folder", found=name[:120])
    if not (folder / name).exists():
        raise MissingFileError(f"'{folder}' lacks the shard '{name}'", hint="Copy or download the checkpoint again.")
    refuse_pointer(folder / name)
    return folder / name


def _json(path: Path) -> dict[str, Any]:
    refuse_pointer(path)
    return read_json(path)


def _dtypes(path: Path) -> dict[str, str]:
    """{tensor: dtype} of a safetensors file; {} for a damaged one, which its reader describes better."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        raw = file.read(length) if 0 < length <= min(_MAX_HEADER, path.stat().st_size) else b""
    try:
        header = json.loads(raw or b"{}")
        return {name: str(info["dtype"]) for name, info in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _told(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """(the method, where that is said) of a configuration that calls its weights quantized."""
    parts = [config, *(config[name] for name in ("text_config", "llm_config") if isinstance(config.get(name), dict))]
    for part in parts:
        for key in ("quantization_config", "compression_config", "quantization"):
            settings = part.get(key)
            if settings:  # whatever it is: a plain name says the same as an object
                return _described(settings, "MLX" if key == "quantization" else ""), f"the key '{key}' in {CONFIG}"
    return None


def _left_beside(folder: Path) -> tuple[str, str] | None:
    """(the method, the file) where a quantizer left its own settings beside the weights."""
    for name, method in _SETTINGS.items():
        if (folder / name).is_file():
            settings = _json(folder / name)
            inner = settings.get("quantization")  # NVIDIA's has them one level down
            return _described(inner if isinstance(inner, dict) else settings, method), f"the file {name}"
    return None


def _described(settings: Any, fallback: str) -> str:
    if not isinstance(settings, dict):
        return _shortened(settings.encode()) if isinstance(settings, str) else fallback or "by an unnamed method"
    method = str(settings.get("quant_method") or settings.get("quant_algo") or fallback or "by an unnamed method")
    bits = settings.get("bits") or settings.get("w_bit")
    if method == "bitsandbytes":
        bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else bits
    kind = settings.get("bnb_4bit_quant_type") if bits == 4 else None
    return ", ".join(map(str, filter(None, [method, bits and f"{bits} bits", kind])))


def _shown(dtypes: Mapping[str, str]) -> tuple[str, str] | None:
    """(the method, an example) where the tensors themselves are those of quantized weights."""
    for name in sorted(dtypes):
        for method, endings in _BESIDE.items():
            if name.endswith(endings) or (method == "bitsandbytes" and ".quant_state." in name):
                return method, f"the tensor '{name}'"
    for name, dtype in sorted(dtypes.items()):
        if name.endswith("weight") and dtype not in _FLOATS:
            return f"stored as {dtype}", f"the tensor '{name}'"
    return None


def shaping_files(folder: Path) -> Iterable[Path]:
    """The files beside the weights that shape what is made of a checkpoint: configuration, tokenizer, template."""
    pooling = "*/config.json"  # of an embedder
    return sorted({path for pattern in (*_TEXTS, pooling) for path in folder.glob(pattern) if path.is_file()})
