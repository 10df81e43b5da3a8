"""What this processor can do, and what that means for quantized types and for the number format of training.

What instruction sets are there is read, what a format gains is measured: once, and kept in SLM_HOME/measured.json.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from slm.artifacts import new_file, read_json
from slm.doctor.check import Check
from slm.doctor.installed import REBUILD
from slm.errors import SlmError
from slm.models.caches import measured_file
from slm.native.process import cpu_fields, cpu_name

# As /proc/cpuinfo names it -> as llama.cpp's build does (ggml/src/ggml-cpu/ggml-cpu.cpp, its features).
_BUILT_AS = {
    "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16", "avx_vnni": "AVX_VNNI", "amx_bf16": "", "asimd": "NEON",
    "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8", "bf16": "",
}  # fmt: skip
_DOTS = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")
_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
# Below this gain rounding to bfloat16 is not worth it; train/batch/precision.py decides by the same.
_WORTH = 1.5


def cpu_flags() -> list[str]:
    """Those instruction sets of this CPU that matter for inference and training (Linux only; empty elsewhere)."""
    present = set(next(iter(cpu_fields("flags") + cpu_fields("Features")), "").split())
    return [flag for flag in _BUILT_AS if flag in present]


def meaning_for_types(flags: Collection[str], machine: str) -> str:
    """What a processor's instruction sets mean for the type of a GGUF file, in words."""
    if not flags:
        return "not known here; q4_k_m and q8_0 are safe choices"
    if machine in ("x86_64", "AMD64") and "avx2" not in flags:
        return "no AVX2: every type is several times slower, the small ones (q4_k_m) least"
    dots = next((flag for flag in _DOTS if flag in flags), "")
    quantized = f"q4 and q8 types multiply bytes in hardware ({dots})" if dots else "q4 and q8 types by AVX2"
    if "asimd" in flags and not dots:
        quantized = "q4 and q8 types by NEON"
    wide = "bf16 files are computed as they are" if any(flag in flags for flag in _BF16) else "bf16 files are widened"
    return f"{quantized}; {wide}"


def missing_in_build(flags: Collection[str], built: str) -> list[str]:
    """Instruction sets that the processor has and llama.cpp was built without. built: "CPU : AVX2 = 1 | ..."."""
    has = {part.split("=")[0].split(":")[-1].strip() for part in built.split("|") if part.strip().endswith("= 1")}
    return [flag for flag in flags if _BUILT_AS[flag] and _BUILT_AS[flag] not in has] if has else []


def measure() -> dict[str, float]:
    """Matrix products in GFLOP/s by number format, on all cores: (256, 512) @ (512, 512)."""
    import torch

    result = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = torch.randn(256, 512).to(dtype), torch.randn(512, 512).to(dtype)
        left @ right
        started, runs = time.perf_counter(), 0
        while time.perf_counter() - started < 0.2:
            left @ right
            runs += 1
        result[name] = round(runs * 2 * 256 * 512 * 512 / (time.perf_counter() - started) / 1e9, 1)
    return result


def measured(take: Callable[[], dict[str, float]] = measure) -> dict[str, Any] | None:
    """{"f32", "bf16": GFLOP/s, "on": date} of this processor and this torch: kept, or taken now. None without torch."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    key = f"{cpu_name()}, {' '.join(cpu_flags())}, {os.cpu_count()} threads, torch {torch}"
    with suppress(SlmError, OSError):  # not there, or damaged: it is taken again
        kept: dict[str, Any] = read_json(measured_file())
        if kept.get("of") == key and all(isinstance(kept.get(name), (int, float)) for name in ("f32", "bf16")):
            return kept
    found = {"of": key, **take(), "on": time.strftime("%Y-%m-%d")}
    with (
        suppress(SlmError, OSError),
        new_file(measured_file()) as file,
    ):  # where nothing can be written is said elsewhere
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def processor_checks(built: str) -> list[Check]:
    """Cores, instruction sets, and what they mean for types and number formats. built: of llama.cpp, "" if unknown."""
    from slm.native.llama import physical_cores

    flags = cpu_flags()
    checks = [
        Check("cores", None, f"{physical_cores()} physical, {cpu_name()}"),
        Check("instruction sets", None, ", ".join(flags) or "unknown"),
        Check("types", None, meaning_for_types(flags, platform.machine())),
    ]
    if lacking := missing_in_build(flags, built):
        found = f"llama.cpp was built without {', '.join(lacking)}, which this processor has"
        checks.append(Check("llama.cpp build", None, found, REBUILD))
    speed = measured()
    if speed is not None:
        gain = speed["bf16"] / speed["f32"] if speed["f32"] else 0.0
        choice = "bf16 is worth it" if gain >= _WORTH else "train in f32, as --dtype auto does"
        found = f"f32 {speed['f32']} GFLOP/s, bf16 {speed['bf16']} GFLOP/s, measured {speed['on']}: {choice}"
        checks.append(Check("dtypes", None, found))
    return checks
