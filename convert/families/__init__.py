"""One file a model family: how its tensors and hyper-parameters are written in GGUF. Importing it registers all."""

from convert.families import gemma3, gpt2, llama
from convert.families.base import Family, family_of_config, family_of_gguf, supported

__all__ = ["Family", "family_of_config", "family_of_gguf", "gemma3", "gpt2", "llama", "supported"]
