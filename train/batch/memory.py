"""How much memory a training step will take, found without taking it.

The forward pass of the largest batch is run as in training, but what autograd would keep for the backward pass is
counted and let go (torch.autograd.graph.saved_tensors_hooks). So the count is that of the real batch, for any
architecture, and costs no more memory than measuring a loss. It knows nothing of data files or options.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from train.batch.layers import decoder_layers
from train.batch.loss import supervised_loss
from train.batch.precision import precision
from train.batch.tensors import Batch

# Part of the free memory that a run may plan with: the rest is for whatever else the machine does.
_PLANNED = 0.9
# Below this share of it no second look is needed.
_SURE = 0.4
_FLOAT = 4


@dataclass
class Saved:
    """What one forward pass leaves for the backward pass. Bytes; each storage is counted once, weights are not.

    layers: how many there are. states: bytes of one layer's input.
    """

    total: int = 0
    layers: int = 0
    states: int = 0
    _seen: set[Any] = field(default_factory=set, repr=False)

    def with_checkpointing(self) -> int:
        """Bytes kept when each layer keeps its input only, and one layer at a time is computed again."""
        return self.layers * self.states + self.total // max(1, self.layers)


@dataclass(frozen=True)
class Memory:
    """A prediction of the largest resident memory of a run, in bytes, by what it is for.

    process: what the process has taken after a forward pass that kept nothing. It holds the weights and what the
    allocator does not get together again (slm.native.heap), which is as much in training as when nothing is kept.
    loading: the peak until then.
    """

    process: int
    optimizer: int
    activations: int
    loading: int

    @property
    def peak(self) -> int:
        """Bytes: the step's needs, or those of loading where they are larger."""
        return max(self.loading, self.process + self.optimizer + self.activations)


def saved_for_backward(model: Any, batch: Batch, dtype: torch.dtype) -> Saved:
    """Count what autograd keeps of a batch (train.batch.tensors), while the model is in training mode."""
    from torch.multiprocessing.reductions import StorageWeakRef

    saved = Saved(layers=len(decoder_layers(model)))
    fixed = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def count(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            # The weak reference keeps the storage's identity, not its memory: another one cannot be taken for it.
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            if reference not in saved._seen:
                saved._seen.add(reference)
                saved.total += storage.nbytes()
        return tensor.shape, tensor.dtype

    def gone(_: Any) -> torch.Tensor:
        raise RuntimeError("nothing was kept for a backward pass")

    hooks = torch.autograd.graph.saved_tensors_hooks(count, gone)
    with hooks, precision(dtype), torch.random.fork_rng(devices=[]):  # dropout's numbers stay what they would be
        supervised_loss(model, batch)
    saved._seen.clear()
    rows = batch["input_ids"].numel()
    saved.states = rows * model.get_input_embeddings().weight.shape[1] * _FLOAT
    return saved


def predict(model: Any, saved: Saved, *, process: int, loading: int, checkpointing: bool) -> Memory:
    """The memory of a run whose largest batch leaves `saved`; process and loading in bytes, measured after counting."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept = saved.with_checkpointing() if checkpointing else saved.total
    return Memory(process, 3 * trained * _FLOAT, kept, loading)  # 3: the gradient and Adam's two moments


def needs_checkpointing(model: Any, small: Batch, largest: Batch, dtype: torch.dtype) -> tuple[bool, str]:
    """(whether the memory that is free asks for gradient checkpointing, why in words).

    The model is loaded and in training mode. The largest batch of the run is counted only when a small one says that
    it may be too large.
    """
    free = available_bytes()
    rows = [batch["input_ids"].numel() for batch in (small, largest)]
    kept = saved_for_backward(model, small, dtype).total * rows[1] / rows[0]
    if kept > _SURE * free:
        kept, free = saved_for_backward(model, largest, dtype).total, available_bytes()
    return kept > _PLANNED * free, f"the largest batch keeps {kept / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free"


def resident_bytes() -> int:
    """The memory that this process takes now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


def available_bytes() -> int:
    """Memory that can be had without swapping, within the limit of a container (cgroup v2) where there is one."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_left_in_group(Path("/sys/fs/cgroup"))])


def _left_in_group(group: Path) -> Iterator[int]:
    """https://docs.kernel.org/admin-guide/cgroup-v2.html: memory.max is a number or "max"."""
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        reclaimable = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if limit.isdigit():
        yield int(limit) - int(used) + int(reclaimable.get("inactive_file", 0))
