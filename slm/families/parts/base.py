"""What a model family is: a table of tensor names with invertible transforms, and its hyper-parameters.

It knows nothing of files. The same table serves conversion (checkpoint -> GGUF), restoring (GGUF -> checkpoint),
adapters and their training, so that the four cannot disagree.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from slm.errors import DamagedFileError, MismatchError, UnsupportedError

FloatArray = npt.NDArray[np.float32]
Config = Mapping[str, Any]
Metadata = dict[str, Any]
HEAD = "output.weight"
EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class Transform:
    """How a tensor changes between a checkpoint and GGUF. The base class changes nothing."""

    row_wise = True  # a piece of whole rows may be transformed on its own, so that a big tensor is streamed

    def to_gguf(self, tensor: FloatArray) -> FloatArray:
        return tensor

    def to_checkpoint(self, tensor: FloatArray) -> FloatArray:
        return tensor

    def gguf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def lora_b(self, b: FloatArray) -> FloatArray:
        """The LoRA factor B, (out, r), in the row order of the GGUF weight."""
        return b

    def lora_b_to_checkpoint(self, b: FloatArray) -> FloatArray:
        """The inverse of `lora_b`: B in the row order of the checkpoint's weight."""
        return b


class Transposed(Transform):
    """GPT-2's Conv1D keeps (in, out); GGUF keeps (out, in). PEFT's A (r, in) and B (out, r) are already oriented."""

    row_wise = False

    def to_gguf(self, tensor: FloatArray) -> FloatArray:
        return np.ascontiguousarray(tensor.T)

    def to_checkpoint(self, tensor: FloatArray) -> FloatArray:
        return np.ascontiguousarray(tensor.T)

    def gguf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(reversed(shape))


@dataclass(frozen=True)
class RopePermuted(Transform):
    """Rows of Q or K: transformers rotates halves of a head, ggml's `llama` rotates neighbouring pairs.

    Within each head row h of half p goes to row 2h + p.
    """

    heads: int
    row_wise = False

    def to_gguf(self, tensor: FloatArray) -> FloatArray:
        parts = tensor.reshape(self.heads, 2, -1, *tensor.shape[1:])
        return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(tensor.shape)

    def to_checkpoint(self, tensor: FloatArray) -> FloatArray:
        parts = tensor.reshape(self.heads, -1, 2, *tensor.shape[1:])
        return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(tensor.shape)

    def lora_b(self, b: FloatArray) -> FloatArray:
        return self.to_gguf(b)

    def lora_b_to_checkpoint(self, b: FloatArray) -> FloatArray:
        return self.to_checkpoint(b)


@dataclass(frozen=True)
class HeadsApart(Transform):
    """Rows of a fused QKV: GPT-NeoX keeps q, k, v of a head together; GGUF keeps all of Q, then all of K, all of V."""

    heads: int
    row_wise = False

    def to_gguf(self, tensor: FloatArray) -> FloatArray:
        parts = tensor.reshape(self.heads, 3, -1, *tensor.shape[1:])
        return np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(tensor.shape)

    def to_checkpoint(self, tensor: FloatArray) -> FloatArray:
        parts = tensor.reshape(3, self.heads, -1, *tensor.shape[1:])
        return np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(tensor.shape)

    def lora_b(self, b: FloatArray) -> FloatArray:
        return self.to_gguf(b)

    def lora_b_to_checkpoint(self, b: FloatArray) -> FloatArray:
        return self.to_checkpoint(b)


class PlusOne(Transform):
    """Gemma's RMSNorm multiplies by (1 + weight); GGUF keeps the sum."""

    def to_gguf(self, tensor: FloatArray) -> FloatArray:
        more: FloatArray = tensor + np.float32(1)
        return more

    def to_checkpoint(self, tensor: FloatArray) -> FloatArray:
        less: FloatArray = tensor - np.float32(1)
        return less


@dataclass(frozen=True)
class TensorRule:
    """One kind of tensor. `{i}` in the names stands for the layer; `required` in every sound model."""

    checkpoint_name: str
    gguf_name: str
    transform: Transform = Transform()
    required: bool = True


class Family(ABC):
    """One family of models. A subclass registers itself with `@register`."""

    model_types: ClassVar[tuple[str, ...]]
    architectures: ClassVar[tuple[str, ...]]
    gguf_architecture: ClassVar[str]
    prefix: ClassVar[str]  # of the base model inside the causal model: `model.` or `transformer.`
    ignored: ClassVar[tuple[str, ...]] = ()  # endings of tensors that hold no weights
    aliases: ClassVar[dict[str, str]] = {}

    @abstractmethod
    def rules(self, config: Config) -> list[TensorRule]:
        """The table of tensors, names without the prefix."""

    @abstractmethod
    def to_metadata(self, config: Config) -> Metadata:
        """GGUF key-values from config.json. Raises UnsupportedError for what the runtime would compute wrongly."""

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """config.json from GGUF key-values and the GGUF's tensor shapes; the inverse of `to_metadata`.

        A family without it converts but is not restored.
        """
        raise UnsupportedError(f"a {self.gguf_architecture} file is not restored")

    def sizes(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The part of `to_config` that is the same wherever config.json has these names (GPT-2 has others)."""

        def size(key: str) -> int:
            return int(scalar(metadata, f"{self.gguf_architecture}.{key}"))

        return {
            "architectures": [self.architectures[0]],
            "model_type": self.model_types[0],
            "vocab_size": shapes[EMBEDDING][0],
            "hidden_size": size("embedding_length"),
            "intermediate_size": size("feed_forward_length"),
            "num_hidden_layers": size("block_count"),
            "num_attention_heads": size("attention.head_count"),
            "max_position_embeddings": size("context_length"),
        }

    @abstractmethod
    def layers(self, config: Config) -> int:
        """The number of layers."""

    def is_tied(self, config: Config) -> bool:
        """Whether the head is the embedding itself."""
        return bool(config.get("tie_word_embeddings", False))

    def extra_tensors(self, config: Config) -> dict[str, FloatArray]:
        """GGUF tensors that no checkpoint tensor holds."""
        return {}

    def copies(self, config: Config) -> dict[str, str]:
        """GGUF tensors that the checkpoint need not have, and the GGUF tensor whose values they take."""
        return {}

    def caveats(self, config: Config) -> list[str]:
        """What the runtime computes otherwise than the checkpoint's own code, each with its limit."""
        return []

    def runtime_tensors(self) -> tuple[str, ...]:
        """GGUF tensors that restoring turns into configuration."""
        return ()

    def rule_for(self, checkpoint_name: str, config: Config) -> tuple[TensorRule, str] | None:
        """The rule of a checkpoint's tensor and its GGUF name; None for one that is left out.

        Raises UnsupportedError for a tensor that the family does not have.
        """
        bare = checkpoint_name.removeprefix(self.prefix)
        bare = self.aliases.get(bare, bare)
        if bare.endswith(self.ignored):
            return None
        layer = re.search(r"\.(\d+)\.", f".{bare}")
        generic = re.sub(r"(^|\.)\d+\.", r"\g<1>{i}.", bare, count=1)
        for rule in self.rules(config):
            if rule.checkpoint_name == generic:
                number = int(layer.group(1)) if layer and "{i}" in generic else 0
                if "{i}" in generic and number >= self.layers(config):
                    break
                if rule.gguf_name == HEAD and self.is_tied(config):
                    return None
                return rule, rule.gguf_name.replace("{i}", str(number))
        raise UnsupportedError(
            f"the tensor '{checkpoint_name}' is not part of a {self.gguf_architecture} model",
            hint="Its config.json and its weights do not belong together, or it is a variant that is not handled.",
        )

    def expanded(self, config: Config) -> list[tuple[TensorRule, str, str]]:
        """Every (rule, checkpoint name with prefix, GGUF name) of a whole model."""
        listed = []
        for rule in self.rules(config):
            if rule.gguf_name == HEAD and self.is_tied(config):
                continue
            numbers = range(self.layers(config)) if "{i}" in rule.checkpoint_name else range(1)
            for number in numbers:
                name = rule.checkpoint_name.replace("{i}", str(number))
                full = name if rule.gguf_name == HEAD else self.prefix + name
                listed.append((rule, full, rule.gguf_name.replace("{i}", str(number))))
        return listed

    def modules(self, config: Config) -> dict[str, tuple[TensorRule, str]]:
        """GGUF name of each weight -> its rule, and the module that has it in the model that training opens."""
        todays = {old: new for new, old in self.aliases.items()}
        return {
            gguf_name: (rule, todays.get(name, name).removesuffix(".weight"))
            for rule, name, gguf_name in self.expanded(config)
            if name.endswith(".weight")
        }


_FAMILIES: list[Family] = []
_Class = TypeVar("_Class", bound=type[Family])


def register(cls: _Class) -> _Class:
    """Class decorator: make a family findable by its model types and architectures."""
    _FAMILIES.append(cls())
    return cls


def families() -> tuple[Family, ...]:
    """Every family that is registered."""
    return tuple(_FAMILIES)


def supported() -> str:
    """The supported model types, for messages."""
    return ", ".join(sorted(name for family in _FAMILIES for name in family.model_types))


def family_of_config(config: Config) -> Family:
    """The family of a config.json. Raises UnsupportedError that names the supported ones."""
    model_type = config.get("model_type")
    architectures = [str(a) for a in config.get("architectures") or []]
    for family in _FAMILIES:
        # A causal model's architecture decides; without one the model type does.
        if any(a in family.architectures for a in architectures):
            return family
        if not architectures and model_type in family.model_types:
            return family
    raise UnsupportedError(
        f"a model of type '{model_type}' ({', '.join(architectures) or 'no architecture named'}) is not supported",
        hint=f"Supported: {supported()}.",
    )


def family_of_gguf(architecture: str) -> Family:
    """The family that restores a GGUF of this general.architecture. Raises UnsupportedError that lists them."""
    restorable = {f.gguf_architecture: f for f in reversed(_FAMILIES) if type(f).to_config is not Family.to_config}
    if architecture in restorable:
        return restorable[architecture]
    known = ", ".join(sorted(restorable))
    raise UnsupportedError(f"GGUF architecture '{architecture}' is not restored", hint=f"Supported: {known}.")


def known_architectures() -> set[str]:
    """`general.architecture` of every family."""
    return {family.gguf_architecture for family in _FAMILIES}


def need(config: Config, *names: str) -> Any:
    """The first of several names for one value. Raises DamagedFileError when none is there."""
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise DamagedFileError(f"the configuration lacks '{names[0]}'")


def positive(config: Config, *names: str) -> int:
    """A positive integer of a configuration. Raises DamagedFileError."""
    value = need(config, *names)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise DamagedFileError(f"the configuration's '{names[0]}' is {value!r}, not a positive number")
    return value


def refuse(config: Config, name: str, allowed: Callable[[Any], bool], why: str) -> None:
    """Raise UnsupportedError when a setting has a value the runtime does not compute."""
    if not allowed(config.get(name)):
        raise UnsupportedError(f"'{name}': {config.get(name)!r} is not supported: {why}")


def scalar(metadata: Metadata, key: str, default: Any = None) -> Any:
    """A key-value as a plain Python number. Raises DamagedFileError when absent without default."""
    value = metadata.get(key, default)
    if value is None:
        raise DamagedFileError(f"the GGUF file lacks the key '{key}'")
    if isinstance(value, np.ndarray):
        values = set(value.tolist())
        if len(values) != 1:
            raise UnsupportedError(f"'{key}' differs from layer to layer, which is not handled")
        return values.pop()
    return value


def check_shapes(expected: tuple[int, ...], found: tuple[int, ...], name: str) -> None:
    """Raise MismatchError unless the shapes are equal."""
    if expected != found:
        raise MismatchError(f"'{name}' has the shape {found} where {expected} is needed")
