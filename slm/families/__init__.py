"""One file a model family: how its tensors and hyper-parameters are written in GGUF. Importing it registers all.

Conversion writes and restores files by it, training finds the layers that an adapter changes.

A file in decoders/ or encoders/ is a family; nothing else has to name it.
"""

import importlib
import pkgutil

from slm.families import decoders, encoders
from slm.families.parts.base import Family, family_of_config, family_of_gguf, known_architectures, supported
from slm.families.parts.encoder import Encoder

__all__ = ["Encoder", "Family", "family_of_config", "family_of_gguf", "known_architectures", "supported"]

for _package in (decoders, encoders):
    for _module in pkgutil.iter_modules(_package.__path__):
        importlib.import_module(f"{_package.__name__}.{_module.name}")
