"""Starts an installed `slm serve`, waits until it is healthy, asks one question, and ends it.

It knows nothing of how slm was installed: the command is given.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.errors import EngineDiedError, EngineError

_POLL_S = 0.5
_LAST_LINES = 15


@dataclass(frozen=True)
class Asked:
    """Where a server listens, and the key it wants ("" for none)."""

    url: str
    key: str = ""

    def get(self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 60) -> str:
        """The text that a path answers; a body makes it a POST. Raises urllib's errors."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return str(answer.read().decode("utf-8"))

    def chat(self, question: str) -> str:
        """What the model answers, greedily and briefly. Raises EngineError where it says nothing."""
        turns = [{"role": "user", "content": question}]
        text = self.get("/v1/chat/completions", {"messages": turns, "temperature": 0, "max_tokens": 16}, timeout_s=300)
        said = str(json.loads(text)["choices"][0]["message"]["content"]).strip()
        if not said:
            raise EngineError("the model answered nothing", found=text[:200])
        return said


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str],
    asked: Asked,
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    wait_s: float = 300,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server from its command until the block ends; SIGTERM ends it, as a container engine would.

    Raises EngineDiedError with its last lines where it ends before it is healthy, EngineError where it takes too long.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command), stdout=output, stderr=output, env=environment, cwd="/", start_new_session=True
        )
    try:
        _wait_healthy(process, asked, log, wait_s)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_healthy(process: subprocess.Popen[bytes], asked: Asked, log: Path, wait_s: float) -> None:
    started = time.monotonic()
    while time.monotonic() - started < wait_s:
        if process.poll() is not None:
            last = "\n".join(log.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:])
            raise EngineDiedError(f"the server ended with {process.returncode} before it was healthy", found=last)
        try:
            asked.get("/health", timeout_s=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    raise EngineError(f"the server was not healthy after {wait_s:.0f} s", found=str(log))
