"""What encoders share: no causal mask, no head to predict tokens, a pooling of their output. It knows nothing of files.

The pooling itself is no part of config.json; conversion reads it beside that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from slm.errors import UnsupportedError
from slm.families.parts.base import Config, Family, Metadata, TensorRule


class Encoder(Family):
    """A model whose result is an embedding of the text. Heads for other tasks are left out."""

    heads: ClassVar[tuple[str, ...]]  # beginnings of tensor names, without the prefix

    def rule_for(self, checkpoint_name: str, config: Config) -> tuple[TensorRule, str] | None:
        name = checkpoint_name.removeprefix(self.prefix)
        if checkpoint_name.startswith(self.heads) or name.startswith(self.heads):
            return None
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):  # TensorFlow's names of a LayerNorm's parts
            name = name.removesuffix(old) + new if name.endswith(old) else name
        return super().rule_for(name, config)

    def modules(self, config: Config) -> dict[str, tuple[TensorRule, str]]:
        # What is trained is the encoder alone, outside the model that the prefix is of.
        return {
            gguf_name: (rule, name.removeprefix(self.prefix))
            for gguf_name, (rule, name) in super().modules(config).items()
        }

    def to_config(self, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        raise UnsupportedError(f"a {self.gguf_architecture} file is not restored: it is an encoder")
