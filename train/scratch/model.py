"""Makes the model of a run from scratch, its optimizers and its loss. It knows nothing of data or of the run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from slm.artifacts import read_json, require_file
from slm.errors import InputError
from train.base import hush, load_model
from train.data.masks import IGNORE
from train.scratch.config import NO_SHAPE, ScratchOptions
from train.scratch.muon import Muon
from train.scratch.sizes import SIZES

# Logits of so many positions at a time: 512 rows of 8,192 fit into the processor's cache, which is 10 % faster than
# all at once (SIZES 5m, 8 x 512 tokens), and takes a tenth of the memory.
_ROWS = 512
_BETAS = (0.9, 0.95)
_ADAMW_SHARE = 0.15  # AdamW's rate beside Muon's, for embeddings and vectors


def new_model(options: ScratchOptions, tokenizer: Any) -> Any:
    """A random llama of the size or configuration asked for, or the model of `init`. Raises InputError."""
    if options.init is not None:
        return load_model(options.init)
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    hush()
    if options.size is not None:
        settings = asdict(SIZES[options.size][0])
    elif options.config is not None:
        settings = _read_settings(options.config)
    else:
        raise InputError(NO_SHAPE)
    try:
        config = LlamaConfig(
            **{"tie_word_embeddings": True, "max_position_embeddings": options.context, "rms_norm_eps": 1e-5}
            | settings
            | {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
            | {"pad_token_id": tokenizer.pad_token_id}
        )
        set_seed(options.seed)
        model = LlamaForCausalLM(config)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"the configuration makes no llama model: {str(error).splitlines()[0]}") from error
    # What is added to the residual stream begins smaller the more layers add to it (GPT-2).
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.div_((2 * config.num_hidden_layers) ** 0.5)
    return model


def _read_settings(path: Path) -> dict[str, Any]:
    settings = read_json(require_file(path))
    if settings.get("model_type", "llama") != "llama":
        raise InputError(f"'{path}' has the settings of a {settings['model_type']}, a llama's are needed")
    return {name: value for name, value in settings.items() if name not in ("model_type", "architectures", "dtype")}


def new_optimizers(model: Any, options: ScratchOptions) -> dict[str, torch.optim.Optimizer]:
    """By name: Muon for the hidden matrices and AdamW for the rest, or AdamW for all. Vectors do not decay."""
    embeddings = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    parameters = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for p in parameters if p.ndim == 2 and id(p) not in embeddings]
    tables = [p for p in parameters if id(p) in embeddings]
    rest = [p for p in parameters if p.ndim != 2 and id(p) not in embeddings]
    rate, decay = options.peak_rate, options.weight_decay
    groups: list[dict[str, Any]] = [{"params": tables + rest, "weight_decay": 0.0}]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if options.optimizer == "muon":
        optimizers["muon"] = Muon(hidden, lr=rate, weight_decay=decay)
        rate *= _ADAMW_SHARE
    else:
        groups.append({"params": hidden, "weight_decay": decay})
    optimizers["adamw"] = torch.optim.AdamW(groups, lr=rate, betas=_BETAS, eps=1e-8)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def window_loss(model: Any, ids: torch.Tensor, labels: torch.Tensor, *, scale: float | None = None) -> float:
    """Summed cross-entropy in nats of windows: ids and labels (windows, tokens), -100 where nothing is asked.

    With `scale` the gradients of scale * sum are added to the parameters'. The logits exist only for some positions
    at a time.
    """
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    wanted = labels.flatten()
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    states = hidden.detach().requires_grad_(scale is not None)
    total = 0.0
    for start in range(0, len(wanted), _ROWS):
        logits = head(states[start : start + _ROWS]).float()
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        nats = F.cross_entropy(logits, wanted[start : start + _ROWS], ignore_index=IGNORE, reduction="sum")
        total += float(nats.detach())
        if scale is not None:
            (scale * nats).backward()  # type: ignore[no-untyped-call]
    if scale is not None:
        hidden.backward(states.grad)
    return total
