"""Our kernels for rows of activations (slm/native/recipe/), beside plain references."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as Kind

from slm.native.llama import kernels_used
from tests.ggml_nodes import Floats, attention, gelu, product

Exact = npt.NDArray[np.float64]
KINDS = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]


def packed(kind: Kind, shape: tuple[int, int], seed: int, fill: int | None = None) -> npt.NDArray[np.uint8]:
    """Weights of a type: of random bytes, which use all that a block can hold, with scales of a usual size.

    fill: this byte instead of random ones."""
    random = np.random.default_rng(seed)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = random.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    if fill is not None:
        rows[:] = fill
    halves = {Kind.Q4_1: [0, 2], Kind.Q5_1: [0, 2], Kind.Q4_K: [0, 2], Kind.Q5_K: [0, 2], Kind.Q6_K: [size - 2]}
    for at in halves.get(kind, [0]):
        scales = random.uniform(0.01, 0.02, rows.shape[:2]).astype(np.float16)
        rows[:, :, at : at + 2] = scales[:, :, None].view(np.uint8)
    return rows.reshape(shape[0], -1)


def rounded(activations: Floats, together: int) -> Exact:
    """Activations as they are multiplied: in steps of a 127th of the largest of those that share a scale."""
    parts = activations.reshape(len(activations), -1, together)
    most = np.abs(parts).max(axis=2, keepdims=True)
    counts = np.rint(parts * np.divide(np.float32(127), most, where=most > 0, out=np.zeros_like(most)))
    step = most / np.float32(127)
    step = step.astype(np.float16) if together == 32 else step
    multiplied: Exact = (counts.astype(np.float64) * step).reshape(activations.shape)
    return multiplied


def in_tiles(rows: int) -> bool:
    """Whether so many rows are multiplied as bfloat16 (slm/native/recipe/rows/wide.h)."""
    return rows >= 64 and "tiles" in kernels_used()


def as_bfloat(values: Any) -> Exact:
    """Numbers to the nearest that bfloat16 has, of two as near the even one."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded_bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return rounded_bits.astype(np.uint32).view(np.float32).astype(np.float64)


def products_of(kind: Kind, weights: npt.NDArray[np.uint8], activations: Floats) -> Exact:
    """The products of weights written out and of activations as they are rounded, in double precision."""
    written = gguf.quants.dequantize(weights, kind)
    if in_tiles(len(activations)):
        in_bfloat: Exact = as_bfloat(activations) @ as_bfloat(written).T
        return in_bfloat
    in_bytes: Exact = rounded(activations, gguf.GGML_QUANT_SIZES[kind][0]) @ written.astype(np.float64).T
    return in_bytes


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize(
    ("columns", "blocks", "rows"),
    [(1, 1, 32), (40, 2, 9), (37, 3, 41), (64, 2, 96), (250, 5, 131), (1, 1, 64), (1300, 9, 70)],
)
def test_products_are_those_of_the_written_out_weights(kind: Kind, columns: int, blocks: int, rows: int) -> None:
    width = blocks * gguf.GGML_QUANT_SIZES[kind][0]
    weights = packed(kind, (columns, width), seed=columns)
    activations = np.random.default_rng(rows).standard_normal((rows, width), np.float32)
    activations[3, :32] = 0.0  # a block without a scale
    exact = products_of(kind, weights, activations)
    found = product(kind, weights, activations)
    # A value half way between two steps may be rounded either way: one step of one product. Types with a minimum
    # multiply it by a sum in half precision.
    near = 1e-3 if kind in (Kind.Q4_1, Kind.Q5_1) else 3e-4
    np.testing.assert_allclose(found, exact, rtol=0, atol=near * float(np.abs(exact).max()))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("rows", [4, 16, 64])
@pytest.mark.parametrize("fill", [0, 127, 128, 255])
def test_products_of_the_largest_numbers_do_not_overflow(kind: Kind, fill: int, rows: int) -> None:
    width = 2 * gguf.GGML_QUANT_SIZES[kind][0]
    weights = packed(kind, (40, width), seed=1, fill=fill)
    signs = [np.resize(np.array(pattern, np.float32), width) for pattern in ([1], [-1], [1, -1], [1, 1, -1, -1])]
    activations = np.stack(signs * (rows // 4))
    exact = products_of(kind, weights, activations)
    found = product(kind, weights, activations)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-3 * float(np.abs(exact).max()) + 1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())
def test_products_are_equal_to_the_bit_on_any_number_of_threads_and_beside_any_rows(kind: Kind) -> None:
    width = 2 * gguf.GGML_QUANT_SIZES[kind][0]
    weights = packed(kind, (75, width), seed=1)
    activations = np.random.default_rng(2).standard_normal((145, width), np.float32)
    for count, begin, end in ((57, 5, 40), (145, 9, 90)):  # tiles take 64 rows and more
        first = product(kind, weights, activations[:count])
        assert (product(kind, weights, activations[:count], threads=2) == first).all()
        if "products" in kernels_used():
            assert (product(kind, weights, activations[begin:end]) == first[begin:end]).all()


# Rows few enough for the kernels that read weights as they lie (slm/native/recipe/rows/few.h), and a few more. For an
# odd number of blocks there is none, and llama.cpp's own are asked.
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize(("columns", "blocks"), [(1, 2), (7, 18), (40, 3), (301, 10)])
def test_products_of_few_rows_are_those_of_the_written_out_weights(
    kind: Kind, rows: int, columns: int, blocks: int
) -> None:
    width = blocks * gguf.GGML_QUANT_SIZES[kind][0]
    weights = packed(kind, (columns, width), seed=columns)
    activations = np.random.default_rng(rows).standard_normal((rows, width), np.float32)
    activations[-1, :32] = 0.0  # a block without a scale
    exact = products_of(kind, weights, activations)
    for threads in (1, 3):
        found = product(kind, weights, activations, threads=threads)
        near = 2e-3 if kind in (Kind.Q4_1, Kind.Q5_1) else 5e-4
        np.testing.assert_allclose(found, exact, rtol=0, atol=near * float(np.abs(exact).max()))


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_K], ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 13, 24, 25, 70])
@pytest.mark.parametrize(("columns", "blocks"), [(8, 2), (40, 3), (296, 10)])
def test_products_of_weights_laid_out_in_eights_are_the_same(kind: Kind, rows: int, columns: int, blocks: int) -> None:
    width = blocks * gguf.GGML_QUANT_SIZES[kind][0]
    weights = packed(kind, (columns, width), seed=columns)
    activations = np.random.default_rng(rows).standard_normal((rows, width), np.float32)
    exact = products_of(kind, weights, activations)
    for threads in (1, 3):
        found = product(kind, weights, activations, threads=threads, laid_out=True)
        np.testing.assert_allclose(found, exact, rtol=0, atol=5e-4 * float(np.abs(exact).max()))


@pytest.mark.skipif("few" not in kernels_used(), reason="this processor has no AVX-512 with VNNI")
@pytest.mark.parametrize(
    ("kind", "laid_out"),
    [*((kind, False) for kind in (Kind.Q4_0, Kind.Q5_0, Kind.Q8_0, Kind.Q6_K)), (Kind.Q4_0, True), (Kind.Q4_K, True)],
)
def test_a_row_is_the_same_to_the_bit_alone_and_among_few(kind: Kind, laid_out: bool) -> None:
    weights = packed(kind, (72, 768), seed=1)
    activations = np.random.default_rng(2).standard_normal((5, 768), np.float32)
    together = product(kind, weights, activations, laid_out=laid_out)
    for row in range(5):
        alone = product(kind, weights, activations[row : row + 1], threads=2, laid_out=laid_out)
        assert (alone[0] == together[row]).all()


@pytest.mark.skipif("tiles" not in kernels_used(), reason="this processor has no AMX")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.lower())
def test_tiles_are_nearer_to_the_exact_product_than_bytes_are(kind: Kind) -> None:
    width = 4 * 256
    weights = packed(kind, (96, width), seed=3)
    activations = np.random.default_rng(4).standard_normal((64, width), np.float32)
    exact = activations.astype(np.float64) @ gguf.quants.dequantize(weights, kind).astype(np.float64).T
    of_tiles = np.abs(product(kind, weights, activations) - exact)
    of_bytes = np.abs(product(kind, weights, activations[:32]) - exact[:32])
    assert float(of_tiles.mean()) < 0.5 * float(of_bytes.mean())


@dataclass(frozen=True)
class Case:
    """Attention of so many tokens over so many cells."""

    tokens: int
    cells: int
    heads: int = 3
    key_heads: int = 1
    width: int = 32
    value_width: int = 32
    kind: str = "float16"
    mask: str = "causal"
    bias: float = 0.0
    cap: float = 0.0
    sinks: bool = False


CASES = [
    Case(1, 1), Case(1, 64), Case(1, 700, heads=4), Case(3, 65), Case(16, 1000, heads=9, key_heads=3, mask="several"),
    Case(40, 40), Case(131, 300, heads=4, key_heads=2, width=64, value_width=64), Case(70, 200, mask="window"),
    Case(33, 100, width=80, value_width=96), Case(5, 77, width=256, value_width=256), Case(50, 90, mask="none"),
    Case(20, 130, heads=6, key_heads=2, bias=8.0), Case(20, 130, cap=5.0), Case(20, 130, sinks=True),
    Case(2, 600, sinks=True, mask="one"), Case(37, 111, kind="float32"), Case(2, 128, heads=100, key_heads=1),
]  # fmt: skip


def seen(case: Case) -> Any:
    """Which cells each token may see; None: all."""
    token, cell = np.indices((case.tokens, case.cells))
    last = token + case.cells - case.tokens
    if case.mask == "several":  # sequences whose cells lie among one another
        return (cell % 5 == token % 5) & (cell <= last)
    if case.mask == "one":
        return cell == case.cells // 2
    if case.mask == "window":
        return (cell <= last) & (cell > last - 30)
    return cell <= last if case.mask == "causal" else None


def reference(case: Case, q: Floats, k: Exact, v: Exact, sinks: Floats) -> Exact:
    """Softmax written out."""
    scale = case.width**-0.5
    allowed = seen(case)
    out = np.zeros((case.tokens, case.heads, case.value_width))
    for head in range(case.heads):
        key = head // (case.heads // case.key_heads)
        scores = q[head].astype(np.float64) @ k[key].T * scale
        if case.cap:
            scores = case.cap * np.tanh(scores / case.cap)
        if allowed is not None:
            slope = 2.0 ** (-case.bias * (head + 1) / 4) if head < 4 else 2.0 ** (-case.bias / 8 * (2 * (head - 4) + 1))
            distance = -np.abs(np.arange(case.cells)[None] - np.arange(case.tokens)[:, None]).astype(np.float16)
            scores = scores + (slope * distance if case.bias else 0.0)
            scores = np.where(allowed, scores, -np.inf)
        if case.sinks:
            scores = np.concatenate([scores, np.full((case.tokens, 1), sinks[head])], axis=1)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        out[:, head] = weights[:, : case.cells] @ v[key]
    return out


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(value) for value in vars(case).values()))
def test_attention_is_the_softmax_written_out(case: Case) -> None:
    random = np.random.default_rng(case.tokens + case.cells)
    q = random.standard_normal((case.heads, case.tokens, case.width), np.float32) * 2
    k = random.standard_normal((case.key_heads, case.cells, case.width), np.float32).astype(case.kind)
    v = random.standard_normal((case.key_heads, case.cells, case.value_width), np.float32).astype(case.kind)
    sinks = random.standard_normal(case.heads).astype(np.float32)
    allowed, mask = seen(case), None
    if allowed is not None:
        distance = -np.abs(np.arange(case.cells)[None] - np.arange(case.tokens)[:, None])
        mask = np.where(allowed, distance if case.bias else 0, -np.inf).astype(np.float16)
    numbers = (case.width**-0.5, case.bias, case.cap)
    given = sinks if case.sinks else None
    found = [attention(q, k, v, mask, sinks=given, numbers=numbers, threads=threads) for threads in (1, 2, 2)]
    exact = reference(case, q, k.astype(np.float64), v.astype(np.float64), sinks)
    # llama.cpp's own kernel for few rows sums in half precision.
    near = 2e-6 if "attention" in kernels_used() else 2e-2
    for one in found:
        np.testing.assert_allclose(one, exact, rtol=0, atol=near * float(np.abs(exact).max()) + near)
    assert (found[1] == found[2]).all()


def activated(values: Floats) -> Exact:
    x = values.astype(np.float64)
    exact: Exact = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return exact


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 7), (1, 640), (2, 33), (3, 2048), (65, 49)])
def test_gelu_is_the_formula_written_out(rows: int, width: int, threads: int) -> None:
    draw = np.random.default_rng(rows)
    values, gate = (3 * draw.standard_normal((rows, width)).astype(np.float32) for _ in range(2))
    values[0, 0] = -40.0
    # llama.cpp's own way is a table in half precision.
    near = 2e-6 if "gelu" in kernels_used() else 5e-3
    both = np.hstack([values, gate])
    for found, exact in (
        (gelu(values, threads=threads), activated(values)),
        (gelu(values, gate, threads=threads), activated(values) * gate),
        (gelu(both, "behind", threads=threads), activated(values) * gate),
        (gelu(both, "before", threads=threads), activated(gate) * values),
    ):
        np.testing.assert_allclose(found, exact, rtol=near, atol=near)


@pytest.mark.parametrize("value", [0.0, -0.0, 11.0, -11.0, 100.0, -100.0, 3e38, -3e38, np.inf, -np.inf])
def test_gelu_of_the_ends_is_what_it_tends_to(value: float) -> None:
    found = gelu(np.full((1, 19), value, np.float32))
    np.testing.assert_allclose(found, np.full((1, 19), max(value, 0.0)), atol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ("none", set()),
        ("products", {"products"}),
        ("products,tiles", {"products", "tiles"}),
        ("few, products", {"products", "few"}),
        ("few", set()),
        ("attention", {"attention"}),
        ("gelu", {"gelu"}),
    ],
)
def test_a_variable_leaves_kernels_to_llama_cpp(wanted: str, left: set[str]) -> None:
    def used(kernels: str) -> set[str]:
        program = "from slm.native.llama import kernels_used; print(*kernels_used())"
        environment = {**os.environ, "SLM_LLAMA_KERNELS": kernels}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert used(wanted) == left & used("")  # whatever this run of the tests is told to leave out


def test_a_kernel_that_does_not_exist_is_named() -> None:
    program = "from slm.native.llama import library; library()"
    environment = {**os.environ, "SLM_LLAMA_KERNELS": "products,tile"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "unknown kernel in SLM_LLAMA_KERNELS 'tile'; known: attention, few, gelu, none, products" in done.stderr
