"""Folds an adapter into its base: a checkpoint folder that needs no PEFT.

It knows nothing of training. Merging is done in float32; W + scale * B @ A in bfloat16 loses most of a
small update (peft#1978).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.artifacts import checkpoint_fingerprint, new_folder, require_space, sha256_files
from slm.errors import MismatchError
from train.adapter import check_adapter, load_with_adapter
from train.checkpoint import load_tokenizer, read_config
from train.generate import end_of_turn_ids


@dataclass(frozen=True)
class MergeResult:
    """The checkpoint folder made, the fingerprint of its weights, its parameters and size."""

    output: Path
    fingerprint: str
    parameters: int
    size_bytes: int


def merge(base: Path, adapter: Path, output: Path) -> MergeResult:
    """Write base + adapter as a checkpoint folder in float32, with tokenizer, chat template and manifest.

    Raises MismatchError when the adapter was trained on another base or does not fit it.
    """
    read_config(base)
    check_adapter(adapter, base)
    require_space(output.parent, 2 * sum(file.stat().st_size for file in base.glob("*.safetensors")))
    has_tokenizer = any((adapter / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = load_tokenizer(adapter if has_tokenizer else base)
    with new_folder(output, "checkpoint") as (folder, manifest):
        wrapped = load_with_adapter(base, adapter)
        _untie_adapted(wrapped)
        merged = wrapped.merge_and_unload()
        if len(tokenizer) > merged.get_input_embeddings().weight.shape[0]:
            raise MismatchError(f"the tokenizer of '{adapter}' has more tokens than the base '{base}' has rows")
        ends = end_of_turn_ids(tokenizer)
        if ends:
            merged.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
        merged.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        if (base / "spiece.model").exists():  # the source of the tokenizer, for converters that read it
            shutil.copy(base / "spiece.model", folder / "spiece.model")
        fingerprint = sha256_files(sorted(folder.glob("*.safetensors")))
        manifest.update(
            {
                "fingerprint": fingerprint,
                "made_by": "merge",
                "base": {"path": str(base.resolve()), "fingerprint": checkpoint_fingerprint(base)},
                "adapter": {
                    "path": str(adapter.resolve()),
                    "sha256": sha256_files([adapter / "adapter_model.safetensors"]),
                    "rank": json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("r"),
                },
            }
        )
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        parameters = sum(parameter.numel() for parameter in merged.parameters())
    return MergeResult(output, fingerprint, parameters, size)


def _untie_adapted(model: Any) -> None:
    """Give the head of a tied model a weight of its own when the adapter changes only one of the two.

    PEFT adds to the embedding's output or to the head's, not to both; folded into the shared weight, the update would
    act twice.
    """
    import torch

    if any(config.ensure_weight_tying for config in model.peft_config.values()):
        return  # PEFT then adapts both alike
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    table, matrix = (getattr(module, "base_layer", module) for module in (embedding, head))
    if (table is embedding and matrix is head) or table.weight is not matrix.weight:
        return
    matrix.weight = torch.nn.Parameter(matrix.weight.detach().clone())
    model.config.tie_word_embeddings = False
