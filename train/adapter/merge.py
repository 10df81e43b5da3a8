"""Folds adapters into their base: a checkpoint folder that needs no PEFT.

It knows nothing of training. Merging is done in float32; W + scale * B @ A in bfloat16 loses most of a
small update (peft#1978).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.artifacts import new_folder, read_json, require_space, sha256_files
from slm.errors import DamagedFileError, InputError, MismatchError
from slm.terminal.console import note
from slm.weights.adapter_origin import assumed_base
from slm.weights.checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, weight_files
from slm.weights.identity import checkpoint_fingerprint
from train.adapter.combine import combine, untie_adapted
from train.adapter.opened import check_adapter, folded, has_words, load_with_adapter, tokenizer_with
from train.adapter.sample import end_of_turn_ids
from train.base import load_tokenizer, not_finite, read_config


@dataclass(frozen=True)
class MergeResult:
    """The checkpoint folder made, the fingerprint of its weights, its parameters and size."""

    output: Path
    fingerprint: str
    parameters: int
    size_bytes: int


def merge(base: Path, adapters: Path | Sequence[Path], output: Path, weights: Sequence[float] = ()) -> MergeResult:
    """Write base + adapters as a checkpoint folder in float32, with tokenizer, chat template and manifest.

    adapters: one, or several whose updates are added, each times its weight (1 where none is given). One adapter
    with the weight 1 gives exactly what PEFT's own merge does.
    Raises InputError for weights that do not fit, and MismatchError when an adapter was trained on another base, does
    not fit it, or gives a token id to other text than another adapter does. DamagedFileError: NaN in what is merged.
    """
    chosen = [adapters] if isinstance(adapters, Path) else list(adapters)
    shares = list(weights) or [1.0] * len(chosen)
    _check_weights(chosen, shares)
    read_config(base)
    for adapter in chosen:
        check_adapter(adapter, base)
        if assumed := assumed_base(adapter, base):
            note(assumed)
    require_space(output.parent, 2 * sum(file.stat().st_size for file in weight_files(base).files))
    tokenizer = _tokenizer_of(base, chosen)
    with new_folder(output, "checkpoint") as (folder, manifest):
        if len(chosen) == 1 and shares[0] == 1.0:
            wrapped = load_with_adapter(base, chosen[0])
            untie_adapted(wrapped)
            merged = folded(wrapped, chosen[0])
        else:
            merged = combine(base, list(zip(chosen, shares, strict=True)))
        if len(tokenizer) > merged.get_input_embeddings().weight.shape[0]:
            names = ", ".join(f"'{adapter}'" for adapter in chosen)
            raise MismatchError(f"the tokenizer of {names} has more tokens than the base '{base}' has rows")
        ends = end_of_turn_ids(tokenizer, merged)
        if ends:
            merged.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
        if name := not_finite(merged.state_dict().items()):
            raise DamagedFileError(
                f"what is merged is not written: '{name}' holds NaN or infinite numbers",
                hint="Look at the adapters (slm inspect), at --weight, and at the base.",
            )
        merged.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        if (base / "spiece.model").exists():  # the source of the tokenizer, for converters that read it
            shutil.copy(base / "spiece.model", folder / "spiece.model")
        fingerprint = checkpoint_fingerprint(folder)
        manifest.update(
            {
                "fingerprint": fingerprint,
                "made_by": "merge",
                "base": {"path": str(base.resolve()), "fingerprint": checkpoint_fingerprint(base)},
                "adapters": [_described(adapter, share) for adapter, share in zip(chosen, shares, strict=True)],
            }
        )
        size = sum(file.stat().st_size for file in weight_files(folder).files)
        parameters = sum(parameter.numel() for parameter in merged.parameters())
    return MergeResult(output, fingerprint, parameters, size)


def _check_weights(adapters: Sequence[Path], weights: Sequence[float]) -> None:
    if not adapters:
        raise InputError("no adapter is named")
    if len(weights) != len(adapters):
        raise InputError(
            f"{len(adapters)} adapters and {len(weights)} weights",
            hint="Give --weight once for each --adapter, or never.",
        )
    if any(not abs(weight) < float("inf") for weight in weights):
        raise InputError(f"a weight is not a number (found: {', '.join(map(str, weights))})")
    same = {adapter.resolve() for adapter in adapters}
    if len(same) < len(adapters):
        raise InputError("an adapter is named twice", hint="Give it one larger --weight.")


def _described(adapter: Path, weight: float) -> dict[str, Any]:
    return {
        "path": str(adapter.resolve()),
        "sha256": sha256_files([adapter / ADAPTER_WEIGHTS]),
        "rank": read_json(adapter / ADAPTER_CONFIG).get("r"),
        "weight": weight,
    }


def _tokenizer_of(base: Path, adapters: Sequence[Path]) -> Any:
    """The adapters' tokenizer: the one with the most tokens, with the first one's chat template; else the base's.

    Raises MismatchError when two of them give an id to different tokens.
    """
    own = [adapter for adapter in adapters if has_words(adapter)]
    if not own:
        return load_tokenizer(base)
    loaded = [tokenizer_with(base, adapter) for adapter in own]
    largest = max(loaded, key=len)
    known = {token: text for text, token in largest.get_vocab().items()}
    for adapter, tokenizer in zip(own, loaded, strict=True):
        other = next((text for text, token in tokenizer.get_vocab().items() if known.get(token) != text), None)
        if other is not None:
            raise MismatchError(
                f"the adapters have different tokens: {other!r} of '{adapter}' is another token in another one",
                hint="Only adapters trained with the same tokenizer can be merged into one model.",
            )
    if len({tokenizer.chat_template for tokenizer in loaded}) > 1:
        note(f"the adapters were trained with different chat templates: that of '{own[0]}' is kept")
    largest.chat_template = loaded[0].chat_template
    return largest
