"""Puts a trained adapter folder onto its base, after checking that the two belong together.

It knows nothing of training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slm.artifacts import MANIFEST, read_manifest, require_folder
from slm.checkpoint_files import refuse_pointer
from slm.errors import DamagedFileError, MismatchError, MissingFileError, UnsupportedError
from slm.identity import check_same_base
from train.checkpoint import load_model


def check_adapter(adapter: Path, base: Path) -> dict[str, Any]:
    """The adapter's manifest (empty if it is not one of ours), once it is known to be trained on `base`.

    Raises MissingFileError, DamagedFileError, or MismatchError when the manifest names other weights.
    """
    require_folder(adapter, hint="Give an adapter folder as `slm train` writes it.")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).exists():
            raise MissingFileError(
                f"'{adapter}' is not an adapter folder: it has no {name}",
                found=", ".join(sorted(p.name for p in adapter.iterdir())[:6]) or "an empty folder",
            )
        refuse_pointer(adapter / name)
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"'{adapter / 'adapter_config.json'}' is not readable JSON: {error}") from error
    if isinstance(config, dict) and str(config.get("init_lora_weights")).startswith("pissa_niter"):
        raise UnsupportedError(
            f"the adapter '{adapter}' began with a randomized PiSSA and was not turned into a LoRA for its base",
            found="the base's part of it is drawn anew at every loading, so the two would not fit",
            hint="Save it again with PEFT's path_initial_model_for_weight_conversion.",
        )
    if not (adapter / MANIFEST).exists():
        return {}
    manifest = read_manifest(adapter)
    check_same_base(adapter, manifest, base)
    return manifest


def load_with_adapter(base: Path, adapter: Path | None) -> Any:
    """The float32 model of `base`, wrapped by PEFT with the adapter if there is one, ready for inference.

    An adapter with tokens of its own keeps the whole embedding, so the base is given as many rows.
    Raises MismatchError when the adapter's tensors do not fit the base.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    if adapter is None:
        return load_model(base).eval()
    check_adapter(adapter, base)
    model = load_model(base)
    try:
        rows = _embedding_rows(adapter, model)
        if rows > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        wrapped = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    except SafetensorError as error:
        raise DamagedFileError(f"'{adapter / 'adapter_model.safetensors'}' cannot be read: {error}") from error
    except (RuntimeError, ValueError) as error:
        raise MismatchError(
            f"the adapter '{adapter}' does not fit the base '{base}'",
            found=str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__,
            hint="Give the base it was trained on.",
        ) from error
    return wrapped.eval()


def _embedding_rows(adapter: Path, model: Any) -> int:
    """How many rows the token embedding has that the adapter folder keeps whole; 0 if it keeps none."""
    from safetensors import safe_open

    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        kept = [key for key in file.keys() if f".{key}".endswith(f".{name}.weight")]  # noqa: SIM118 - no mapping
        return max((int(file.get_slice(key).get_shape()[0]) for key in kept), default=0)
