"""Parts of a decoder layer computed with fewer passes over memory, equal to what they stand for.

Linear layers on the same input (query, key and value; gate and up) are computed together, LoRA's factors included; the
gated activation and RMSNorm keep only what their gradients need. A module is replaced when it is built as expected and,
where its formula could differ, gives the same on random rows; what is not recognised stays as it is.
It knows nothing of data or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from train.batch.layers import decoder_layers, with_forward
from train.batch.precision import precision

_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("o_proj",))
_NORM_OFFSETS = (0.0, 1.0)  # Llama's RMSNorm multiplies by the weight, Gemma's by 1 + weight
_SAMPLE_ROWS = 4
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.02}
_Forward = Callable[[Tensor], Tensor]


@contextmanager
def fused_layers(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """While it lasts, the layers of a model compute as described above; their weights stay where they are.

    dtype: of matrix products and of the frozen weights (train.batch.precision.store_frozen), float32 or bfloat16.
    To be entered before `packed_attention`, which narrows what it finds.
    """
    with ExitStack() as stack:
        for layer in decoder_layers(model):
            for module in layer.modules():
                for part, forward in _replaced(module, dtype):
                    stack.enter_context(with_forward(part, forward))
        yield


def _replaced(module: Any, dtype: torch.dtype) -> Iterator[tuple[Any, _Forward]]:
    """What of a module and of its direct parts is computed otherwise, and how."""
    if forward := _norm(module) or _gated_network(module, dtype):
        yield module, forward
    for names in _SAME_INPUT:
        parts = [getattr(module, name, None) for name in names]
        if all(_is_linear(part, dtype) for part in parts):
            together = _Together(parts)
            for place, part in enumerate(parts):
                yield part, partial(together.forward, place)


# Linear layers


class _Linears(torch.autograd.Function):
    """x @ weight.T + bias of several frozen layers; where one is adapted, + scale * (x @ A.T) @ B.T (LoRA)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        scales: Sequence[float | None],
        *factors: Tensor,
    ) -> tuple[Tensor, ...]:
        """x: (rows, in); weights: (out, in) each; scales: None where there is no adapter.

        factors: A (rank, in) and B (out, rank) of each adapted layer in turn. All products are in the weights' dtype.
        """
        ctx.weights, ctx.scales = weights, scales
        dtype = weights[0].dtype
        x = x.to(dtype)
        outs = [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        if factors:
            ups = [up.to(dtype) for up in factors[1::2]]
            down = torch.cat(factors[::2]).to(dtype)
            small = x @ down.T
            adapted = [(out, scale) for out, scale in zip(outs, scales, strict=True) if scale is not None]
            for (out, scale), up, narrow in zip(adapted, ups, _split(small, ups), strict=True):
                out.addmm_(narrow, up.T, alpha=scale)
            ctx.save_for_backward(x, small, down, *ups)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        back: Tensor | None = None
        if ctx.needs_input_grad[0]:
            for grad, weight in zip(grads, ctx.weights, strict=True):
                back = grad @ weight if back is None else back.addmm_(grad, weight)
        if len(ctx.needs_input_grad) == 4:
            return back, None, None, None
        x, small, down, *ups = ctx.saved_tensors
        pull = torch.empty_like(small)  # the gradient of x @ A.T
        for_ups = list[Tensor]()
        adapted = [(grad, scale) for grad, scale in zip(grads, ctx.scales, strict=True) if scale is not None]
        for (grad, scale), up, narrow, own in zip(adapted, ups, _split(small, ups), _split(pull, ups), strict=True):
            own.copy_(grad @ up).mul_(scale)
            for_ups.append((grad.T @ narrow).mul_(scale))
        if back is not None:
            back.addmm_(pull, down)
        for_downs = torch.split(pull.T @ x, [up.shape[1] for up in ups])
        pairs = [one for pair in zip(for_downs, for_ups, strict=True) for one in pair]
        return back, None, None, None, *pairs


def _split(small: Tensor, ups: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The columns of (rows, all ranks) that belong to each B (out, rank)."""
    return torch.split(small, [up.shape[1] for up in ups], dim=1)


def _linears(modules: Sequence[Any], x: Tensor) -> list[Tensor]:
    """The outputs (..., out) of some linear layers, plain or with a LoRA adapter, on the same input (..., in)."""
    scales, factors = list[float | None](), list[Tensor]()
    for module in modules:
        if hasattr(module, "base_layer") and not module.disable_adapters:
            (name,) = module.active_adapters
            scales.append(module.scaling[name])
            factors += module.lora_A[name].weight, module.lora_B[name].weight
        else:
            scales.append(None)
    bases = [_base(module) for module in modules]
    apply: Any = _Linears.apply
    rows = x.reshape(-1, x.shape[-1])
    outs = apply(rows, [base.weight for base in bases], [base.bias for base in bases], scales, *factors)
    return [out.view(*x.shape[:-1], -1) for out in outs]


def _base(module: Any) -> Any:
    return getattr(module, "base_layer", module)


def _is_linear(module: Any, dtype: torch.dtype) -> bool:
    """Whether it is a frozen nn.Linear in the dtype, or one with PEFT's plain LoRA without dropout."""
    base = _base(module)
    if type(base) is not torch.nn.Linear or base.weight.requires_grad or base.weight.dtype != dtype:
        return False
    if base is module:
        return True
    from peft.tuners.lora.layer import Linear

    if type(module) is not Linear or module.lora_variant or module.merged or len(module.active_adapters) != 1:
        return False
    (name,) = module.active_adapters
    plain = isinstance(module.lora_dropout[name], torch.nn.Identity)
    return plain and not module.fan_in_fan_out and module.lora_B[name].bias is None


class _Together:
    """Linear layers that get the same input: the first one called computes for all, the others take theirs."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._modules = modules
        self._input: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}  # outputs of this input by the place of their module

    def forward(self, place: int, x: Tensor) -> Tensor:
        """The output of one of them."""
        if x is not self._input or place not in self._waiting:
            self._input, self._waiting = x, dict(enumerate(_linears(self._modules, x)))
        out = self._waiting.pop(place)
        if not self._waiting:
            self._input = None
        return out


# The gated feed-forward network


class _Gated(torch.autograd.Function):
    """activation(gate) * up; the activation is computed again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: str) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(gate, up)
        return _ACTIVATIONS[kind][0](gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        gate, up = ctx.saved_tensors
        activation, slope = _ACTIVATIONS[ctx.kind]
        return slope(grad * up, gate), activation(gate).mul_(grad), None


_ACTIVATIONS: dict[str, tuple[_Forward, Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, torch.ops.aten.silu_backward),
    "gelu_tanh": (partial(F.gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward, approximate="tanh")),
    "gelu": (F.gelu, torch.ops.aten.gelu_backward),
}


def _gated_network(module: Any, dtype: torch.dtype) -> _Forward | None:
    """The forward function of down(activation(gate(x)) * up(x)), None for another module."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    kind = _activation(getattr(module, "act_fn", None))
    if kind is None or not all(_is_linear(part, dtype) for part in parts):
        return None
    gated: Any = _Gated.apply

    def forward(x: Tensor) -> Tensor:
        (out,) = _linears(parts[2:], gated(*_linears(parts[:2], x), kind))
        return out

    with precision(dtype):
        return forward if _equal(module, forward, _base(parts[0]).in_features) else None


def _activation(function: Any) -> str | None:
    """Which of the known activations a function is."""
    if function is None:
        return None
    sample = torch.linspace(-4.0, 4.0, 33)
    with torch.no_grad():
        wanted = function(sample)
        return next((k for k, (known, _) in _ACTIVATIONS.items() if torch.allclose(known(sample), wanted)), None)


# RMSNorm


class _Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467); the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        x, weight, scale = ctx.saved_tensors
        x, back = x.float(), grad * weight
        along = torch.linalg.vecdot(back, x)[..., None].mul_(scale.square()).div_(-x.shape[-1])
        return back.addcmul_(x, along).mul_(scale), None, None


def _norm(module: Any) -> _Forward | None:
    """The forward function of an RMSNorm with a frozen weight, None for another module."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or weight is None or weight.requires_grad or eps is None:
        return None
    apply: Any = _Norm.apply

    def forward(factor: Tensor, x: Tensor) -> Tensor:
        out: Tensor = apply(x, factor, eps)
        return out

    choices = [partial(forward, weight.detach() + offset) for offset in _NORM_OFFSETS]
    return next((choice for choice in choices if _equal(module, choice, weight.shape[0])), None)


def _equal(module: Any, forward: _Forward, size: int) -> bool:
    """Whether a function gives what the module does, on random rows."""
    x = 2.0 * torch.randn(_SAMPLE_ROWS, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted: Tensor = module(x)
        close = _CLOSE[wanted.dtype]
        return torch.allclose(forward(x), wanted, rtol=close, atol=0.1 * close * float(wanted.abs().max()))
