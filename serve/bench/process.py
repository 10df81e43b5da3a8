"""Servers as child processes: started, waited for, watched and ended. It knows nothing of what they are asked."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.upstream import Launch, UpstreamOptions, is_ready
from slm.errors import EngineError
from slm.native.process import children_of, status_mb
from slm.native.threads import without_settling

_POLL_S = 0.05


@dataclass(frozen=True)
class Server:
    """A server that answers: where, its process, how long it took to get there, and what it says (a growing file).

    exit_code() is None while it runs, and minus the signal's number when one has ended it.
    """

    url: str
    pid: int
    start_s: float
    log: Path
    exit_code: Callable[[], int | None]

    def last_words(self) -> str:
        """The last line that it has said."""
        return last_line(self.log)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(launch: Launch, options: UpstreamOptions, *, patience_s: float = 180.0) -> Iterator[Server]:
    """Start a server and wait until it is ready; it is ended with the block. Raises EngineError with its last words.

    Its environment is the user's: how threads wait is each program's own choice.
    """
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as folder:
        log = Path(folder) / "log"
        started = time.perf_counter()
        with log.open("wb") as said:
            process = subprocess.Popen(
                launch.argv, env={**without_settling(os.environ), **launch.env}, cwd=folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            while not is_ready(options.host, options.port, launch.ready_path):
                waited = time.perf_counter() - started
                if process.poll() is not None or waited > patience_s:
                    how = "is not ready" if process.returncode is None else f"ended with code {process.returncode}"
                    what = f"'{Path(launch.argv[0]).name}' {how} after {waited:.0f} s"
                    raise EngineError(what, found=last_line(log)[:300])
                time.sleep(_POLL_S)
            yield Server(options.url, process.pid, time.perf_counter() - started, log, process.poll)
        finally:
            end(process)


def last_line(log: Path) -> str:
    """The last line of what a process has said."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def end(process: subprocess.Popen[Any]) -> None:
    """End a process, by force where it does not go."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def peak_rss_mb(pid: int) -> float | None:
    """The sum of the largest resident sizes that the processes of a family had; None outside of Linux."""
    return _of_family(pid, "VmHWM")


def resident_mb(pid: int) -> float | None:
    """The sum of the resident sizes of a family's processes now; None outside of Linux."""
    return _of_family(pid, "VmRSS")


def _of_family(pid: int, field: str) -> float | None:
    sizes = [size for one in [pid, *children_of(pid)] if (size := status_mb(one, field)) is not None]
    return sum(sizes) if sizes else None
