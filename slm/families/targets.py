"""Which linear layers of a model an adapter changes, by preset, read from the family's own table of tensors.

GGUF has one name for a layer of one purpose in every family, so the table that conversion goes by says it all.
It knows nothing of files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from slm.families.parts.base import Config, Family, Transposed, families
from slm.families.parts.encoder import Encoder

_INPUTS = ("attn_q", "attn_v", "attn_qkv")
_ATTENTION = (*_INPUTS, "attn_k", "attn_output")
PRESETS = {"qv": _INPUTS, "attention": _ATTENTION, "all": (*_ATTENTION, "ffn_gate", "ffn_up", "ffn_down")}
_LAYER, _BLOCK, _WEIGHT = "{i}.", "blk.{i}.", ".weight"
_IN_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_NUMBER = re.compile(r".*?\.[^.]*\.(\d+)\.")  # of the layer of a module, as PEFT finds it


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
    return [ending for role, ending in _endings(family, config).items() if role in PRESETS[preset]]


def adapted_layers(family: Family, config: Config, gguf_names: Collection[str]) -> tuple[list[str], list[int] | None]:
    """How PEFT is told of the weights that an adapter changes, by their GGUF names: (target modules, layers).

    Endings, as `linear_layers` has them, where these find no other weight, else whole names. layers: None for all.
    """
    modules = {gguf_name: module for gguf_name, (_, module) in family.modules(config).items()}
    inside = [match for name in gguf_names if (match := _IN_BLOCK.fullmatch(name))]
    roles, numbers = {match[2] for match in inside}, {int(match[1]) for match in inside}
    targets = [ending for role, ending in _endings(family, config).items() if role in roles]
    targets += [modules[name] for name in gguf_names if not _IN_BLOCK.fullmatch(name)]
    layers = None if len(numbers) == family.layers(config) else sorted(numbers)
    if {name for name, module in modules.items() if _is_target(module, targets, layers)} == set(gguf_names):
        return targets, layers
    return [modules[name] for name in gguf_names], None


def _is_target(module: str, targets: Collection[str], layers: Collection[int] | None) -> bool:
    """As peft/tuners/tuners_utils.py, `check_target_module_exists`, has it."""
    number = _NUMBER.match(module)
    if layers is not None and (number is None or int(number[1]) not in layers):
        return False
    return any(f".{module}".endswith(f".{target}") for target in targets)


def _endings(family: Family, config: Config) -> dict[str, str]:
    """What a layer's weight is called in GGUF -> the ending of its module's name."""
    modules = {
        rule.gguf_name.removeprefix(_BLOCK).removesuffix(_WEIGHT): _in_layer(rule.checkpoint_name)
        for rule in family.rules(config)
        if rule.gguf_name.startswith(_BLOCK) and rule.gguf_name.endswith(_WEIGHT)
    }
    last = Counter(name.rpartition(".")[2] for name in modules.values())
    return {role: end if last[end := name.rpartition(".")[2]] == 1 else name for role, name in modules.items()}


def keeps_columns_first(family: Family, config: Config) -> bool:
    """Whether the checkpoint keeps the weights of its linear layers as (in, out), as GPT-2's Conv1D does."""
    return any(isinstance(rule.transform, Transposed) for rule in family.rules(config))


def _in_layer(checkpoint_name: str) -> str:
    """`layers.{i}.mlp.up_proj.weight` -> `mlp.up_proj`."""
    return checkpoint_name.partition(_LAYER)[2].removesuffix(_WEIGHT)
