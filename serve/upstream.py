"""llama.cpp's own servers in place of ours (`slm serve --engine ...`): the same options, in their words.

It knows how llama-server and `python -m llama_cpp.server` are started and what they lack, not how they work. The
mapping is pure; `serve_upstream` runs the program, passes signals on to it and returns its exit code. An API key
goes by environment, never on the command line, where every user of the machine could read it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm.errors import InputError, MissingFileError, UnsupportedError, require_extra
from slm.terminal.console import note
from slm.text.address import with_port

LLAMA_SERVER, LLAMA_CPP_PYTHON = "llama-server", "llama-cpp-python"
ENGINES = (LLAMA_SERVER, LLAMA_CPP_PYTHON)
# What `llama-cpp-python[server]` brings and the package alone does not.
_SERVER_PACKAGES = ("llama_cpp", "sse_starlette", "starlette_context", "pydantic_settings")
_POLL_S = 0.1


@dataclass(frozen=True)
class UpstreamOptions:
    """What both servers are told. context: tokens of one request; threads 0: one for each physical core.

    name: of the model, "" for its file's.
    """

    model: Path
    adapters: tuple[tuple[str, Path], ...] = ()
    context: int = 4096
    threads: int = 0
    parallel: int = 8
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    name: str = ""

    @property
    def alias(self) -> str:
        """What the model is called."""
        return self.name or self.model.stem

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{with_port(self.host, self.port)}"


@dataclass(frozen=True)
class Launch:
    """A program to start: its arguments, what is added to its environment, and the files it wants written first."""

    argv: list[str]
    env: dict[str, str]
    ready_path: str
    files: dict[Path, str] = field(default_factory=dict)


def llama_server_launch(options: UpstreamOptions, binary: str = LLAMA_SERVER) -> Launch:
    """llama-server (llama.cpp, tools/server/README.md).

    Its --ctx-size is divided among the slots, ours is for each request. One adapter is applied to every request;
    several begin with scale 0, because otherwise a request that names none gets the sum of all
    (--lora-init-without-apply does not reach the slots: tools/server/server-context.cpp, `launch_slot_with_task`).
    """
    argv = [binary, "--model", str(options.model), "--alias", options.alias]
    argv += ["--ctx-size", str(options.context * options.parallel), "--parallel", str(options.parallel)]
    argv += ["--host", options.host, "--port", str(options.port)]
    if options.threads:
        argv += ["--threads", str(options.threads)]
    for _, path in options.adapters:
        if any(mark in str(path) for mark in ',:"'):
            raise InputError(f"llama-server cannot load '{path}': it separates files at ',', ':' and '\"'")
    if len(options.adapters) == 1:
        argv += ["--lora", str(options.adapters[0][1])]
    elif options.adapters:
        argv += ["--lora-scaled", ",".join(f"{path}:0" for _, path in options.adapters)]
    return Launch(argv, {"LLAMA_API_KEY": options.api_key} if options.api_key else {}, "/health")


def llama_cpp_python_launch(options: UpstreamOptions, config: Path, *, python: str, threads: int) -> Launch:
    """`python -m llama_cpp.server` (llama_cpp/server/settings.py), configured by the JSON file `config`.

    Every adapter is a model of its own, and so is the base; the first is what an unknown name gets. Requests wait
    for each other: by default a new one would cut off the one that is being answered. Without logits_all it keeps
    no logits of the prompt (of Gemma's vocabulary: a gigabyte for a thousand tokens).
    """
    shared: dict[str, Any] = {
        "model": str(options.model), "n_ctx": options.context, "n_threads": threads, "n_threads_batch": threads,
        "logits_all": False, "verbose": False,
    }  # fmt: skip
    models = [{**shared, "model_alias": options.alias}]
    models += [{**shared, "model_alias": name, "lora_path": str(path)} for name, path in options.adapters]
    settings = {"host": options.host, "port": options.port, "interrupt_requests": False, "models": models}
    # HOST and PORT of the environment would overrule the file (llama_cpp/server/__main__.py).
    env = {"HOST": options.host, "PORT": str(options.port)}
    if options.api_key:
        env["API_KEY"] = options.api_key
    argv = [python, "-m", "llama_cpp.server", "--config_file", str(config)]
    return Launch(argv, env, "/docs", {config: json.dumps(settings, ensure_ascii=False)})


def limits(engine: str, options: UpstreamOptions) -> list[str]:
    """What the engine cannot do that ours can, and how an adapter is asked for; one line each."""
    lines = [f"{engine} does not route by language, load adapters while it runs, or answer from an index"]
    lines.append("it reads the names of control tokens in any text as tokens, so a text can end its turn")
    names = [name for name, _ in options.adapters]
    if engine == LLAMA_CPP_PYTHON:
        lines.append("it answers one request at a time; the others wait")
        lines.append("no log-probabilities (they would take the memory of a whole prompt's logits)")
        if names:
            known = ", ".join([options.model.stem, *names])
            lines.append(f"models: {known}; when another one is asked for, it loads the model anew")
    elif len(names) == 1:
        lines.append(f"the adapter '{names[0]}' answers every request")
    elif names:
        numbers = ", ".join(f"{number} is {name}" for number, name in enumerate(names))
        lines.append(f'the base answers, unless a request says "lora": [{{"id": 0, "scale": 1}}] ({numbers})')
    if names:
        lines.append("an adapter's own chat template is not used, only the model's")
    return lines


def refuse(engine: str, given: list[str]) -> None:
    """Raise UnsupportedError for options that were given and that the engine has nothing for."""
    if given:
        raise UnsupportedError(
            f"--engine {engine} cannot do: {', '.join(given)}", hint="Leave them out, or use --engine slm."
        )


def find_llama_server(named: Path | None = None) -> str:
    """Absolute path of the named program, or of the one on PATH. Raises MissingFileError."""
    found = shutil.which(str(named or LLAMA_SERVER))
    if found is None:
        raise MissingFileError(
            f"there is no program '{named}'" if named else "llama.cpp's llama-server is not on PATH",
            hint="Install llama.cpp (brew install llama.cpp; or build its target llama-server with cmake).",
        )
    return str(Path(found).absolute())


def check_llama_cpp_server() -> None:
    """Raise MissingExtraError unless llama_cpp.server can be imported."""
    for package in _SERVER_PACKAGES:
        require_extra(package, "peers")


@contextmanager
def prepared(engine: str, options: UpstreamOptions, binary: Path | None = None) -> Iterator[Launch]:
    """The launch of an engine, its files written to a folder that lasts as long as the block.

    binary: llama-server's, default the one on PATH. Raises MissingFileError, MissingExtraError.
    """
    if engine == LLAMA_SERVER:
        yield llama_server_launch(options, find_llama_server(binary))
        return
    check_llama_cpp_server()
    from slm.native.llama import physical_cores

    with tempfile.TemporaryDirectory(prefix="slm-upstream-") as folder:
        config = Path(folder) / "config.json"
        threads = options.threads or physical_cores()
        launch = llama_cpp_python_launch(options, config, python=sys.executable, threads=threads)
        for path, text in launch.files.items():
            path.write_text(text, encoding="utf-8")
        yield launch


def is_ready(host: str, port: int, path: str) -> bool:
    """Whether a GET is answered with 200. An address for every interface is asked on the loopback one."""
    connection = http.client.HTTPConnection({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=2)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == 200
    return False


def serve_upstream(engine: str, options: UpstreamOptions) -> int:
    """Run the engine in the foreground until it ends; its exit code (128 + the signal that ended it).

    SIGINT, SIGTERM and SIGHUP are passed on to it. Raises MissingFileError, MissingExtraError, InputError.
    """
    from slm.weights.gguf_reader import read_gguf

    for _, path in options.adapters:
        read_gguf(path)  # a file that is missing or damaged has a clearer error here
    with ExitStack() as stack:
        launch = stack.enter_context(prepared(engine, options))
        for line in limits(engine, options):
            note(line)
        # A folder of its own: `-m` would import from the current one, which may hold files with the same names.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slm-upstream-"))
        process = subprocess.Popen(launch.argv, env={**os.environ, **launch.env}, cwd=folder, start_new_session=True)
        stack.callback(_end, process)
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                before = signal.signal(number, lambda passed_on, _: process.send_signal(passed_on))
                stack.callback(signal.signal, number, before)
        while process.poll() is None and not is_ready(options.host, options.port, launch.ready_path):
            time.sleep(_POLL_S)
        if process.poll() is None:
            note(f"listening on {options.url} ({engine}; API: {options.url}/v1, Ctrl-C stops)")
        code = process.wait()
        return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
