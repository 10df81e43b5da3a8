"""Mistral: Llama's graph in GGUF, where it has no sliding window. It knows nothing of files."""

from __future__ import annotations

from slm.families.decoders.llama import Llama
from slm.families.parts.base import Config, positive, register
from slm.families.parts.gated import window_caveat


@register
class Mistral(Llama):
    """MistralForCausalLM. A GGUF of it is a `llama` file, so it is restored as Llama."""

    model_types = ("mistral",)
    architectures = ("MistralForCausalLM",)

    def caveats(self, config: Config) -> list[str]:
        # Absent means 4,096 (transformers, MistralConfig); null means none.
        window, context = config.get("sliding_window", 4096), positive(config, "max_position_embeddings")
        return super().caveats(config) + window_caveat(window, context, self.gguf_architecture)
