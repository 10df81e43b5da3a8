"""Random LoRA adapters for a model, for benchmarks without trained ones. It knows nothing of training or of servers.

Speed depends on an adapter's rank and on the matrices it acts on, not on its values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slm.artifacts import new_file
from slm.errors import InputError
from slm.weights.gguf_reader import read_gguf

RANK = 16


def random_adapters(model: Path, folder: Path, count: int = 2) -> dict[str, Path]:
    """So many adapters, the first two called by the languages of the prompts, written into a folder."""
    names = ["en", "ja", *(f"adapter-{n}" for n in range(3, count + 1))][:count]
    files = {name: folder / f"{name}.gguf" for name in names}
    for seed, path in enumerate(files.values()):
        write_random_adapter(model, path, seed=seed)
    return files


def write_random_adapter(model: Path, out: Path, *, seed: int, rank: int = RANK) -> int:
    """Write a LoRA on every linear layer of the model's blocks as an adapter GGUF (float32); how many layers.

    A is (rank, in), B is (out, rank), as llama.cpp's llama-adapter.cpp wants them; B is small, so that the answers
    stay text. Raises InputError for a model without such layers.
    """
    import gguf

    base = read_gguf(model)
    shapes = {
        name: info.shape for name, info in base.tensors.items() if name.startswith("blk.") and len(info.shape) == 2
    }
    if not shapes:
        raise InputError(f"'{model}' has no linear layers to put an adapter on")
    random = np.random.default_rng(seed)
    with new_file(out) as temporary:
        writer = gguf.GGUFWriter(temporary, base.architecture)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(rank))
        for name, (rows, columns) in shapes.items():
            a = random.standard_normal((rank, columns)) / np.sqrt(columns)
            writer.add_tensor(f"{name}.lora_a", a.astype(np.float32))
            writer.add_tensor(f"{name}.lora_b", (random.standard_normal((rows, rank)) * 0.01).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return len(shapes)
