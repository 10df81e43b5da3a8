"""A fresh PEFT adapter on a loaded base, and the adapter folder made of it. It knows nothing of data or of the run.

PiSSA (Meng et al. 2024) begins at the principal singular vectors and takes them out of the base's weights, so its
factors alone do not fit the original base. What a run changed, B A - B0 A0, is a LoRA of twice the rank that does.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch

from slm.errors import DivergenceError, InputError
from slm.weights.checkpoint_files import ADAPTER_WEIGHTS
from train.adapter.opened import begin_with
from train.base import has_columns_first, not_finite, target_modules
from train.batch.layers import lowest_layer
from train.config import TrainOptions

# Rounds of the randomized singular value decomposition: what it leaves out stays in the base, so nothing is lost.
_PISSA = "pissa_niter_16"
_INITIAL = "initial/"


def add_adapter(model: Any, options: TrainOptions) -> Any:
    """The model with a fresh LoRA adapter (it changes nothing yet), seeded, or with `options.from_adapter`'s weights.

    That folder has been checked (`train.adapter.opened.check_adapter`). Raises InputError for unknown targets, and what
    `begin_with` raises.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(options.seed)
    layers = None
    if options.top_layers:
        lowest = lowest_layer(model, options.top_layers)
        layers = list(range(lowest, lowest + options.top_layers))
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=options.dora,
        init_lora_weights=_PISSA if options.pissa else True,
        target_modules=target_modules(model.config, options.targets),
        layers_to_transform=layers,
        fan_in_fan_out=has_columns_first(model.config),
        task_type="CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else "FEATURE_EXTRACTION",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        linear = {n.split(".")[-1] for n, m in model.named_modules() if getattr(m, "weight", None) is not None}
        raise InputError(
            f"--targets '{options.targets}' fits no layer of this model",
            hint=f"Presets: qv, attention, all. Layers: {', '.join(sorted(linear))}.",
        ) from error
    return begin_with(adapted, options.from_adapter, options.base) if options.from_adapter else adapted


def initial_factors(model: Any) -> dict[str, torch.Tensor]:
    """Copies of a fresh PiSSA adapter's factors, named for a checkpoint; empty for other adapters."""
    if model.peft_config["default"].init_lora_weights != _PISSA:
        return {}
    return {f"{_INITIAL}{n}": p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def return_to_initial(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give a fresh PiSSA model the beginning that a checkpoint's tensors name, and return their initial factors.

    The decomposition comes out the same on the same machine and threads; elsewhere it may differ in the last bits or
    in signs, so the base is put together again and split at the saved factors.
    """
    saved = {name: tensor for name, tensor in tensors.items() if name.startswith(_INITIAL)}
    if saved and any(not torch.equal(tensor, saved[name]) for name, tensor in initial_factors(model).items()):
        parameters = dict(model.named_parameters())
        for _, module in _layers(model):
            module.get_base_layer().weight.data += module.get_delta_weight("default")
        with torch.no_grad():
            for name, tensor in saved.items():
                parameters[name.removeprefix(_INITIAL)].copy_(tensor)
        for _, module in _layers(model):
            module.get_base_layer().weight.data -= module.get_delta_weight("default")
    return saved


def _layers(model: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if "default" in getattr(module, "lora_A", {})]


def save_adapter(model: Any, base: Path, folder: Path, initial: dict[str, torch.Tensor]) -> None:
    """Write the adapter in PEFT's format; one that began with PiSSA as a LoRA for the untouched base.

    Raises DivergenceError for weights that are no numbers.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    config = copy.deepcopy(model.peft_config["default"])
    config.base_model_name_or_path, config.inference_mode = str(base.resolve()), True
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    if initial:
        # B A - B0 A0 = [B, -B0] [A; A0]; the scale alpha / r (or alpha / sqrt(r)) stays what it was.
        start = {name.removeprefix(_INITIAL).replace(".default", ""): tensor for name, tensor in initial.items()}
        for name, tensor in tensors.items():
            first, axis = (start[name], 0) if "lora_A" in name else (-start[name], 1)
            tensors[name] = torch.cat([tensor, first], dim=axis)
        config.r *= 2
        config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
        config.init_lora_weights = True
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if name := not_finite(tensors.items()):
        raise DivergenceError(f"the adapter is not written: '{name}' holds NaN or infinite numbers")
    config.save_pretrained(folder)
    # In memory first: safetensors' own writing tells a full disk in another error than the system's.
    (folder / ADAPTER_WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
