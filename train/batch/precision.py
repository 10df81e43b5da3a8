"""Which number format and how many threads: probed on this machine, because bfloat16 is emulated on many.

It knows nothing of data or training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from slm.native.heap import give_back
from slm.native.llama import physical_cores
from train.batch.layers import causal_model

# Rounding to bfloat16 has to be paid for by speed; under emulation it is some hundred times slower instead.
_BF16_GAIN = 1.5


def use_cores(threads: int) -> None:
    """Let torch use `threads` threads (0: the physical cores)."""
    torch.set_num_threads(threads or physical_cores())


def choose_dtype(wanted: str) -> tuple[torch.dtype, str]:
    """(the dtype of matrix products, why in words): `auto` times both on this machine."""
    if wanted != "auto":
        return getattr(torch, wanted), "as asked"
    seconds = {dtype: _matmul_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    if gain >= _BF16_GAIN:
        return torch.bfloat16, f"products in bfloat16 are {gain:.1f} times faster here; weights stay float32"
    return torch.float32, f"bfloat16 would be {gain:.2g} times as fast here"


def _matmul_seconds(dtype: torch.dtype) -> float:
    """CPU seconds of one matrix product on one thread, the best of four: other processes hardly change it."""
    left, right = torch.ones(256, 640, dtype=dtype), torch.ones(640, 1024, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = float("inf")
        for _ in range(4):  # the first one warms up; an emulated bfloat16 takes about a second each
            started = time.thread_time()
            left @ right
            best = min(best, time.thread_time() - started)
            if best > 0.5:
                break
        return best
    finally:
        torch.set_num_threads(threads)


def precision(dtype: torch.dtype) -> Any:
    """The context in which forward passes run."""
    return torch.autocast("cpu", dtype=dtype) if dtype != torch.float32 else nullcontext()


def store_frozen(model: Any, dtype: torch.dtype) -> None:
    """Keep the frozen linear weights in `dtype`, so that autocast need not convert them again at every step.

    The products are the same ones. A head tied to the embedding gets a copy, because the embedding stays float32.
    """
    if dtype == torch.float32:
        return
    tied = causal_model(model).get_input_embeddings().weight
    for module in _frozen_linears(model):
        if module.weight is tied:
            module.frozen_weight = module.weight.detach().to(dtype)
        else:
            _cast(module, dtype)
    give_back()


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """While it lasts, frozen weights that `store_frozen` rounded are float32, and so are all products.

    For measuring: a trained model loses from 0.1 to 0.2 % by products in bfloat16, which its adapter does not.
    """
    linears = _frozen_linears(model)
    rounded = [(module, module.weight.dtype) for module in linears if module.weight.dtype != torch.float32]
    if rounded:
        give_back()  # what steps have used, before more is taken
    for module, _ in rounded:
        _cast(module, torch.float32)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        for module, dtype in rounded:  # back without a change: the values are rounded ones
            _cast(module, dtype)
        if rounded:
            give_back()


def _frozen_linears(model: Any) -> list[Any]:
    modules = causal_model(model).modules()
    return [module for module in modules if type(module) is torch.nn.Linear and not module.weight.requires_grad]


def _cast(module: Any, dtype: torch.dtype) -> None:
    module.weight.data = module.weight.data.to(dtype)
    if module.bias is not None:
        module.bias.data = module.bias.data.to(dtype)
