"""A fresh PEFT adapter on a loaded base. It knows nothing of data or of the run."""

from __future__ import annotations

from typing import Any

from slm.errors import InputError
from train.checkpoint import target_modules
from train.config import TrainOptions
from train.layers import lowest_layer


def add_adapter(model: Any, options: TrainOptions) -> Any:
    """The model with a fresh LoRA adapter (it changes nothing yet), seeded. Raises InputError for unknown targets."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    family = model.config.model_type
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
        target_modules=target_modules(family, options.targets),
        layers_to_transform=layers,
        fan_in_fan_out=family == "gpt2",  # GPT-2 keeps its weights as (in, out)
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = {n.split(".")[-1] for n, m in model.named_modules() if getattr(m, "weight", None) is not None}
        raise InputError(
            f"--targets '{options.targets}' fits no layer of this model",
            hint=f"Presets: qv, attention, all. Layers: {', '.join(sorted(linear))}.",
        ) from error
