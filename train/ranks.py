"""The processes of one run when torchrun or accelerate started several: who is who, sums, and agreement.

It knows nothing of models or training. In a run of one process every function is trivial and torch.distributed is
left alone. The environment variables are those of torchrun (docs.pytorch.org/docs/stable/elastic/run.html).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0; only process 0 writes and reports."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world() -> int:
    """How many of them share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def connect() -> None:
    """Join the other processes over gloo, the transport of CPUs; again and again is the same as once."""
    if world() > 1:
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo")


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum of a tensor over all processes, in place."""
    if world() > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values


def gathered(value: T) -> list[T]:
    """The value of every process, in their order."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    values: list[T] = [value] * world()
    dist.all_gather_object(values, value)
    return values


def first_then_others(action: Callable[[], T]) -> T:
    """Let each machine's first process do what writes files once, then the others, who find it done."""
    if world() == 1:
        return action()
    import torch.distributed as dist

    connect()
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        result = action()
        dist.barrier()
        return result
    dist.barrier()
    return action()
