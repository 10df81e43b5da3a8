"""How an embedder pools its tokens' outputs into one: from sentence-transformers' files to GGUF's pooling type.

It knows nothing of weights. Files: `modules.json` and `1_Pooling/config.json`,
https://sbert.net/docs/package_reference/sentence_transformer/modules.html; numbers: llama.cpp, include/llama.h,
`llama_pooling_type`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from slm.artifacts import read_json
from slm.errors import DamagedFileError, UnsupportedError

TYPES = {"mean": 1, "cls": 2, "lasttoken": 3}
_OLD_KEYS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
_KNOWN = ("Transformer", "Pooling", "Normalize")


def read_pooling(folder: Path) -> str | None:
    """mean, cls or lasttoken; None for a folder without sentence-transformers' files.

    Raises DamagedFileError, or UnsupportedError for a pooling or a further layer that GGUF cannot hold.
    """
    path = folder / "modules.json"
    if not path.exists():
        return None
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"'{path}' is not a list of modules: {error!r}") from error
    further = [kind for kind, _ in kinds if kind not in _KNOWN]
    if further:
        raise UnsupportedError(
            f"'{folder}' has a layer behind its encoder ({', '.join(further)}), which is not converted",
            hint="Its embeddings would be wrong; use the model with sentence-transformers.",
        )
    where = [place for kind, place in kinds if kind == "Pooling"]
    if not where:
        return None
    if PurePosixPath(where[0]).name != where[0] or where[0] in ("", ".", ".."):
        raise DamagedFileError(f"'{path}' names a folder outside its own", found=where[0][:120])
    return _mode(read_json(folder / where[0] / "config.json"), folder)


def _mode(config: Mapping[str, Any], folder: Path) -> str:
    modes = {mode for key, mode in _OLD_KEYS.items() if config.get(key)}
    other = [key for key, value in config.items() if key.startswith("pooling_mode_") and value and key not in _OLD_KEYS]
    named = config.get("pooling_mode")
    if isinstance(named, str):
        modes.add(named)
    elif isinstance(named, list):
        modes |= {str(mode) for mode in named}
    if len(modes) != 1 or other or not modes <= set(TYPES):
        found = ", ".join(sorted(modes) + other) or "none"
        raise UnsupportedError(
            f"the pooling of '{folder}' is not supported", found=found, hint="One of: mean, cls, last."
        )
    return modes.pop()


def pooling_metadata(folder: Path, architecture: str) -> dict[str, Any]:
    """The GGUF key of an embedder's pooling; empty where its folder names none."""
    mode = read_pooling(folder)
    return {} if mode is None else {f"{architecture}.pooling_type": TYPES[mode]}
