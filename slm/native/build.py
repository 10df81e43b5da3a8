"""Builds llama.cpp for this machine as recipe/ says, and installs it for the Python that runs this.

    python -m slm.native.build

The wheel is kept (~/.cache/slm-cpu, or below XDG_CACHE_HOME) under all that shapes it: version, recipe, options, Python
and processor. pip's own cache knows only the version, and would hand out what was built otherwise. CMAKE_ARGS
are passed on. It needs nothing but Python, pip and a compiler, so a checkout runs it before anything is installed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

RECIPE = Path(__file__).resolve().parent / "recipe"
CONSTRAINTS = RECIPE.parent.parent.parent / "constraints.txt"  # in a checkout; an installed package has none
_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
_TICK_S = 15


def requirement(lines: str, where: str) -> str:
    """The exact llama-cpp-python among requirements, one a line. Raises SystemExit where there is none.

    where: what the lines are of, for the message.
    """
    found = re.search(r"^llama[-_]cpp[-_]python==[^\s;]+", lines, re.MULTILINE)
    if not found:
        raise SystemExit(f"error: {where} names no version of llama-cpp-python")
    return found[0].replace("-", "_")  # spelled one way, so that checkouts and installed packages share their wheels


def wanted() -> str:
    """The llama-cpp-python that belongs here: of a checkout's constraints, or what the installed package requires."""
    if CONSTRAINTS.exists():
        return requirement(CONSTRAINTS.read_text("utf-8"), f"'{CONSTRAINTS}'")
    try:
        lines = importlib.metadata.requires("slm-cpu") or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    return requirement("\n".join(lines), "the installed package slm-cpu")


def _constrained() -> list[str]:
    """pip's options for the versions of a checkout."""
    return ["-c", str(CONSTRAINTS)] if CONSTRAINTS.exists() else []


def processor() -> str:
    """What the compiler's -march=native follows: the processor's instruction sets, or at least its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {flags.partition(':')[2].strip() or platform.processor()}"


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the build: the library alone (no multimodal part, no tools), and the user's own CMAKE_ARGS."""
    ours = f"-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE={RECIPE / 'build.cmake'}"
    asked = f"{ours} {environment.get('CMAKE_ARGS', '')}".strip()
    return {**environment, "CMAKE_ARGS": asked, "SKBUILD_BUILD_TARGETS": "llama"}


def wheel_folder(what: str, environment: Mapping[str, str]) -> Path:
    """Where the wheel of exactly this build belongs."""
    shaped_by = [environment.get(name, "") for name in ("CMAKE_ARGS", "CC", "CXX", "CFLAGS", "CXXFLAGS")]
    shaped_by += [file.read_text("utf-8") for file in sorted(RECIPE.rglob("*.*"))]
    shaped_by += [processor(), sys.version]
    key = hashlib.sha256("\0".join(shaped_by).encode()).hexdigest()[:16]
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slm-cpu"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
    except OSError as error:
        cache = Path(sys.prefix) / "wheels"
        print(f"      the wheel is kept in '{cache}': nothing can be written in a cache ({error})", file=sys.stderr)
    return cache / f"{what}-{key}"


@contextmanager
def ticking(started: float) -> Iterator[None]:
    """Says every quarter of a minute that it is still building."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(_TICK_S):
            print(f"      still building, {time.monotonic() - started:.0f} s", flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def build(what: str, folder: Path, environment: Mapping[str, str]) -> None:
    """Build the wheel into its folder, which is there only when the build went well. Raises CalledProcessError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    command = [*_PIP, "wheel", "-q", "--no-deps", "--no-cache-dir", *_constrained(), "-w", str(temporary), what]
    try:
        subprocess.run(command, env=build_environment(environment), check=True)
        if not folder.exists():  # another build may have been faster
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def wheel(environment: Mapping[str, str]) -> Path:
    """The wheel for this machine, built unless that was done before. Raises CalledProcessError."""
    what = wanted()
    folder = wheel_folder(what, environment)
    if not folder.exists():
        with ticking(time.monotonic()):
            build(what, folder, environment)
    return next(folder.glob("*.whl"))


def main() -> int:
    """Build unless that was done before, then install."""
    started = time.monotonic()
    try:
        install = [*_PIP, "install", "-q", *_constrained(), str(wheel(os.environ))]
        subprocess.run([*install, "--force-reinstall", "--no-deps"], check=True)  # in place of one of the same version
        subprocess.run(install, check=True)
    except subprocess.CalledProcessError as error:
        print("error: llama.cpp could not be built or installed; the lines above say why", file=sys.stderr)
        return error.returncode
    print(f"      done in {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
