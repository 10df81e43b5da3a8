"""What an adapter_config.json asks for: the scales of its modules, and whether a LoRA GGUF can hold it.

It knows nothing of files or of the base model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from slm.errors import DamagedFileError, UnsupportedError
from slm.weights.adapter_kinds import unmergeable

MERGE = "Merge it into its base instead: slm merge --base BASE --adapter DIR -o OUT, then convert OUT."
# Settings whose effect no pair of factors has.
_REASONS = {
    "use_dora": "DoRA rescales the base's weights",
    "modules_to_save": "it replaces whole modules",
    "trainable_token_indices": "it changes single tokens' embeddings",
    "lora_bias": "it trains biases",
    "layer_replication": "it repeats layers of the base",
    "target_parameters": "it adapts bare parameters",
    "use_bdlora": "its factors are block-diagonal",
    "use_qalora": "it pools its input",
    "kasa_config": "it changes the base's weights",
    "monteclora_config": "it samples its weights",
    "arrow_config": "it routes between adapters",
}
# Initializations that move the base's own weights, so that the adapter does not fit the original base.
_MOVED_BASE = ("pissa", "olora")


def check_kind(settings: Mapping[str, Any]) -> None:
    """Raise UnsupportedError, with the way out, for every kind of adapter that a LoRA GGUF cannot hold."""
    if refused := unmergeable(settings):
        raise UnsupportedError(f"the adapter {refused.what}", found=refused.why, hint=refused.hint)
    kind = str(settings.get("peft_type", "?"))
    if kind != "LORA":
        raise UnsupportedError(f"a '{kind}' adapter is not supported", hint=f"Supported: LORA. {MERGE}")
    for name, why in _REASONS.items():
        if settings.get(name):
            raise UnsupportedError(f"an adapter with '{name}' cannot be a LoRA file: {why}", hint=MERGE)
    if settings.get("bias", "none") != "none":
        raise UnsupportedError(f"an adapter with bias '{settings['bias']}' cannot be a LoRA file", hint=MERGE)
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVED_BASE):
        raise UnsupportedError(f"an adapter initialized by '{start}' does not fit the original base", hint=MERGE)


def invocation_tokens(settings: Mapping[str, Any], vocabulary: int) -> list[int]:
    """The tokens from which on an activated LoRA (aLoRA) acts; empty for an ordinary one. Raises DamagedFileError."""
    tokens = settings.get("alora_invocation_tokens") or []
    if not isinstance(tokens, list) or not all(type(t) is int and 0 <= t < vocabulary for t in tokens):
        raise DamagedFileError(
            f"'alora_invocation_tokens' of the adapter's configuration is not a list of token ids below {vocabulary:,}"
        )
    return tokens


def runtime_alpha(settings: Mapping[str, Any]) -> float:
    """The alpha of the file: such that alpha / r is PEFT's scale for the modules without a pattern of their own."""
    alpha = _number(settings, "lora_alpha")
    return alpha * math.sqrt(_number(settings, "r")) if settings.get("use_rslora") else alpha


def module_scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's scale of one module (peft/tuners/lora/layer.py, `update_layer`): alpha / r or alpha / sqrt(r)."""
    alphas = settings.get("alpha_pattern") or {}
    # peft/utils/other.py, `get_pattern_key`: a pattern matches a whole name or its end after a dot.
    try:
        key = next((k for k in alphas if re.match(rf"(.*\.)?({k})$", module)), None)
    except re.error as error:
        raise DamagedFileError(f"'alpha_pattern' of the adapter's configuration is not a pattern: {error}") from error
    alpha = _number(settings, "lora_alpha") if key is None else _number(alphas, key)
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _number(settings: Mapping[str, Any], name: str) -> float:
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0 or not math.isfinite(value):
        raise DamagedFileError(f"'{name}' of the adapter's configuration is {value!r}, not a positive number")
    return float(value)
