"""One file a model family: how its tensors and hyper-parameters are written in GGUF. Importing it registers all."""

from convert.families import (
    bert,
    gemma,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    modernbert,
    phi3,
    qwen2,
    qwen3,
)
from convert.families.base import Family, family_of_config, family_of_gguf, known_architectures, supported
from convert.families.encoder import Encoder

__all__ = [
    "Encoder",
    "Family",
    "bert",
    "family_of_config",
    "family_of_gguf",
    "gemma",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "known_architectures",
    "llama",
    "mistral",
    "modernbert",
    "phi3",
    "qwen2",
    "qwen3",
    "supported",
]
