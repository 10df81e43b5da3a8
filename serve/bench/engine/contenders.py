"""Who is measured: our engine by pipe and by HTTP, and its peers, each found where it is installed.

It knows how each is started, nothing of what it is asked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from serve.bench.engine.plan import AskEngine, EnginePlan
from serve.bench.engine.rigs import by_http, by_pipe
from serve.bench.peers import OURS, ours_launch
from serve.bench.process import free_port
from serve.upstream import LLAMA_SERVER, Launch, UpstreamOptions, find_llama_server, llama_server_launch
from slm import paths
from slm.errors import MissingFileError
from slm.models.caches import PEERS
from slm.native.llama import physical_cores
from slm.native.process import child_environment
from slm.terminal.console import note

LLAMA_CPP, OPENVINO, IK_LLAMA_CPP, VLLM = "llama.cpp", "openvino", "ik_llama.cpp", "vllm"
STOCK = f"{LLAMA_CPP} (llama-cpp-python, our kernels off)"
NAMES = (LLAMA_CPP, OPENVINO, IK_LLAMA_CPP, VLLM)
_PACKAGE = "openvino-genai"
_MODEL = "bench"  # what vLLM is told to call it
# What GNU OpenMP does by itself, where our library would settle for less (slm.native.threads).
_SPINS = {"GOMP_SPINCOUNT": "300000"}
StartedEngine = AbstractContextManager[tuple[int, AskEngine]]


@dataclass(frozen=True)
class EngineSetup:
    """How engines are started. context: what ours is told, as its commands are (others get what the plan needs).

    places: the program, or for openvino the interpreter, of peers that are not where they are looked for. checkpoint:
    makes the checkpoint folder of the model, for peers that read no GGUF.
    """

    model: Path
    plan: EnginePlan
    checkpoint: Callable[[], Path]
    context: int = 4096
    threads: int = 0
    places: Mapping[str, Path] = field(default_factory=dict)

    @property
    def cores(self) -> int:
        """Threads of every engine."""
        return self.threads or physical_cores()

    def upstream(self, context: int, model: Path | None = None) -> UpstreamOptions:
        """What a server is told; the port is a fresh one."""
        return UpstreamOptions(
            (model or self.model).resolve(), (), context, self.cores, self.plan.most, port=free_port()
        )

    def options(self) -> dict[str, Any]:
        """What an engine of `answering` is told."""
        return {
            "model": str(self.model.resolve()), "threads": self.cores, "context": self.context,
            "parallel": self.plan.most, "cells": self.plan.longest * self.plan.most,
        }  # fmt: skip


@dataclass(frozen=True)
class EngineContender:
    """An engine under test. open() starts it; http: a server, to be compared with ours over HTTP."""

    name: str
    http: bool
    open: Callable[[], StartedEngine]


def ours(setup: EngineSetup) -> list[EngineContender]:
    """Our engine as `slm generate` opens it, and behind `slm serve`; both without drafts."""
    environment = {"PYTHONPATH": child_environment()["PYTHONPATH"]}

    def served() -> StartedEngine:
        options = setup.upstream(setup.context)
        return by_http(ours_launch(options, ("--draft-max", "0")), options, {})

    return [
        EngineContender(OURS, False, lambda: by_pipe("slm", setup.options(), environment=environment)),
        EngineContender(f"{OURS}, HTTP", True, served),
    ]


def peers(setup: EngineSetup, wanted: Sequence[str]) -> tuple[list[EngineContender], list[str]]:
    """The wanted peers that are there, and of each other one why it is not measured and how to get it."""
    found: list[EngineContender] = []
    missing: list[str] = []
    finders = {LLAMA_CPP: _llama_cpp, OPENVINO: _openvino, IK_LLAMA_CPP: _ik_llama_cpp, VLLM: _vllm}
    for name in dict.fromkeys(wanted):
        try:
            found.append(finders[name](setup))
        except MissingFileError as error:
            missing.append(f"{name} is not measured: {error}")
    return found, missing


def environment_of(name: str) -> Path:
    """The folder of a peer's own environment, which `install` makes."""
    return paths.home() / PEERS / name


def install(wanted: Sequence[str]) -> list[str]:
    """Make the environments of wanted peers that pip can fill (OpenVINO's), unless they are there.

    Returns why one could not be made.
    """
    folder = environment_of(OPENVINO)
    if OPENVINO not in wanted or _has(folder, _PACKAGE):
        return []
    note(f"installing {_PACKAGE} into {folder}")
    venv.create(folder, with_pip=True)
    command = [str(_python(folder)), "-m", "pip", "install", "-q", "--disable-pip-version-check", _PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    return [f"pip could not install {_PACKAGE}: {last[0][:300]}"] if done.returncode else []


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _has(folder: Path, package: str) -> bool:
    return _python(folder).exists() and any(folder.rglob(f"{package.replace('-', '_')}-*.dist-info"))


def _server(setup: EngineSetup, name: str, program: str) -> EngineContender:
    """llama.cpp's server, or that of a program with the same options."""

    def served() -> StartedEngine:
        options = setup.upstream(setup.plan.longest)
        return by_http(llama_server_launch(options, program), options, {})

    return EngineContender(name, True, served)


def _llama_cpp(setup: EngineSetup) -> EngineContender:
    named = setup.places.get(LLAMA_CPP)
    if named is not None or shutil.which(LLAMA_SERVER):
        return _server(setup, f"{LLAMA_CPP} (llama-server, HTTP)", find_llama_server(named))
    environment = {"PYTHONPATH": child_environment()["PYTHONPATH"], "SLM_LLAMA_KERNELS": "none", **_SPINS}
    return EngineContender(
        STOCK, False,
        lambda: by_pipe("llama.cpp", setup.options(), environment=environment),
    )  # fmt: skip


def _ik_llama_cpp(setup: EngineSetup) -> EngineContender:
    named = setup.places.get(IK_LLAMA_CPP)
    if named is None:
        raise MissingFileError(
            "it is found by its path only", hint=f"Build its llama-server and give --program {IK_LLAMA_CPP}=FILE."
        )
    return _server(setup, f"{IK_LLAMA_CPP} (llama-server, HTTP)", find_llama_server(named))


def _openvino(setup: EngineSetup) -> EngineContender:
    python = setup.places.get(OPENVINO)
    if python is None:
        if not _has(folder := environment_of(OPENVINO), _PACKAGE):
            raise MissingFileError(
                f"there is no {_PACKAGE} in '{folder}'",
                hint=f"--install-peers puts it there; or give --program {OPENVINO}=PYTHON with the Python that has it.",
            )
        python = _python(folder)
    elif not python.is_file():
        raise MissingFileError(f"there is no program '{python}'")
    command = str(python.absolute())
    # A path of ours would be a path of the other environment's interpreter too.
    return EngineContender(
        f"{OPENVINO} (GGUF)", False,
        lambda: by_pipe("openvino", setup.options(), python=command, environment={"PYTHONPATH": ""}),
    )  # fmt: skip


def _vllm(setup: EngineSetup) -> EngineContender:
    """vLLM's server on the checkpoint, in bfloat16: its CPU backend reads no GGUF by itself."""
    named = setup.places.get(VLLM)
    program = shutil.which(str(named)) if named else None
    if program is None:
        raise MissingFileError(
            f"there is no program '{named}'" if named else "it is found in an environment of its own only",
            hint=f"Install vllm for CPUs there and give --program {VLLM}=FOLDER/bin/vllm.",
        )
    served = partial(_vllm_served, setup, str(Path(program).absolute()))
    return EngineContender(f"{VLLM} (bf16 checkpoint, HTTP)", True, served)


def _vllm_served(setup: EngineSetup, program: str) -> StartedEngine:
    options = setup.upstream(setup.plan.longest, setup.checkpoint())
    argv = [program, "serve", str(options.model), "--served-model-name", _MODEL, "--dtype", "bfloat16"]
    argv += ["--host", options.host, "--port", str(options.port), "--max-model-len", str(options.context)]
    argv += ["--max-num-seqs", str(options.parallel)]
    launch = Launch(argv, {"OMP_NUM_THREADS": str(options.threads)}, "/health")
    return by_http(launch, options, {"model": _MODEL})
