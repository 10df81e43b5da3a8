"""Which linear layers of a model an adapter changes, by preset, read from the family's own table of tensors.

GGUF has one name for a layer of one purpose in every family, so the table that conversion goes by says it all.
It knows nothing of PEFT.
"""

from __future__ import annotations

from collections import Counter

from slm.families.parts.base import Config, Family, Transposed, families
from slm.families.parts.encoder import Encoder

_INPUTS = ("attn_q", "attn_v", "attn_qkv")
_ATTENTION = (*_INPUTS, "attn_k", "attn_output")
PRESETS = {"qv": _INPUTS, "attention": _ATTENTION, "all": (*_ATTENTION, "ffn_gate", "ffn_up", "ffn_down")}
_LAYER, _BLOCK, _WEIGHT = "{i}.", "blk.{i}.", ".weight"


def decoder_families() -> dict[str, Family]:
    """`model_type` of config.json -> its family, for every decoder."""
    decoders = (family for family in families() if not isinstance(family, Encoder))
    return {model_type: family for family in decoders for model_type in family.model_types}


def encoder_families() -> dict[str, Family]:
    """`model_type` of config.json -> its family, for every encoder."""
    encoders = (family for family in families() if isinstance(family, Encoder))
    return {model_type: family for family in encoders for model_type in family.model_types}


def linear_layers(family: Family, config: Config, preset: str) -> list[str]:
    """The endings of the layers' module names, as short as tells them from the others of a decoder layer.

    preset: of PRESETS. Raises DamagedFileError for a configuration without what the table needs.
    """
    modules = {
        rule.gguf_name.removeprefix(_BLOCK).removesuffix(_WEIGHT): _in_layer(rule.checkpoint_name)
        for rule in family.rules(config)
        if rule.gguf_name.startswith(_BLOCK) and rule.gguf_name.endswith(_WEIGHT)
    }
    last = Counter(name.rpartition(".")[2] for name in modules.values())
    chosen = [name for role, name in modules.items() if role in PRESETS[preset]]
    return [end if last[end := name.rpartition(".")[2]] == 1 else name for name in chosen]


def keeps_columns_first(family: Family, config: Config) -> bool:
    """Whether the checkpoint keeps the weights of its linear layers as (in, out), as GPT-2's Conv1D does."""
    return any(isinstance(rule.transform, Transposed) for rule in family.rules(config))


def _in_layer(checkpoint_name: str) -> str:
    """`layers.{i}.mlp.up_proj.weight` -> `mlp.up_proj`."""
    return checkpoint_name.partition(_LAYER)[2].removesuffix(_WEIGHT)
