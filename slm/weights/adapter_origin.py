"""The base that an adapter folder names in its own files. It knows nothing of what weights are in it.

The manifest that our training writes is asked first, then PEFT's adapter_config.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.artifacts import MANIFEST, read_json, read_manifest
from slm.errors import SlmError
from slm.weights.checkpoint_files import ADAPTER_CONFIG, CONFIG, check_checkpoint, weight_files


@dataclass(frozen=True)
class NamedBase:
    """The base of an adapter: `name` as the adapter has it, and its folder, or why there is none that can be read."""

    name: str
    folder: Path | None
    fault: str = ""


def named_base(adapter: Path) -> NamedBase:
    """The first base that an adapter folder names and that can be read here.

    Raises DamagedFileError for a manifest or an adapter_config.json that is no JSON.
    """
    names = list(dict.fromkeys(_names(adapter)))
    fault = ""
    for name in names:
        if not (Path(name) / CONFIG).is_file():
            continue
        try:
            check_checkpoint(Path(name))
            weight_files(Path(name))
        except SlmError as error:  # the 4-bit copy that a QLoRA was trained on, for one
            fault = error.what
            continue
        return NamedBase(name, Path(name))
    named = names[-1] if names else ""
    return NamedBase(named, None, fault or named or "no name")


def told_weights(manifest: Mapping[str, Any]) -> list[str]:
    """What an adapter's manifest calls the weights it was trained on, the fingerprint first."""
    said = manifest.get("base")
    said = said if isinstance(said, dict) else {}
    return [said[key] for key in ("fingerprint", "weights") if isinstance(said.get(key), str)]


def _manifest(adapter: Path) -> Mapping[str, Any]:
    return read_manifest(adapter) if (adapter / MANIFEST).exists() else {}


def _names(adapter: Path) -> Iterator[str]:
    said = _manifest(adapter).get("base")
    settings = read_json(adapter / ADAPTER_CONFIG) if (adapter / ADAPTER_CONFIG).exists() else {}
    for name in ((said if isinstance(said, dict) else {}).get("path"), settings.get("base_model_name_or_path")):
        if isinstance(name, str) and name:
            yield name


def assumed_base(adapter: Path, base: Path | str) -> str:
    """What to say of a base that was given for an adapter whose own cannot be looked at; "" where it can.

    A manifest that tells the weights themselves was compared with the base, wherever that lies by now.
    """
    if told_weights(_manifest(adapter)):
        return ""
    named = named_base(adapter)
    return taken_as_base(adapter, base, named.fault) if named.folder is None else ""


def taken_as_base(adapter: Path, base: Path | str, why: str) -> str:
    """The note that a base was taken on the user's word alone."""
    return f"taking {base} as the base of '{adapter.name}': the one it names cannot be asked ({why})"
