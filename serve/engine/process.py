"""A child process that is spoken to in lines, with a reader thread. It knows nothing of models or of what is said."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable

from slm.errors import SlmError
from slm.native.process import ROOT, child_environment

# Conversations' cells come and go in megabytes and on many threads: glibc's malloc kept the holes they left, and the
# process grew. Blocks from a megabyte on go back to the system at once, and few arenas have few holes (mallopt(3)).
_GLIBC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_ARENA_MAX": "2"}


def engine_environment() -> dict[str, str]:
    """The environment of a child that holds a model; what the user has set is kept."""
    return child_environment({**_GLIBC, **os.environ})


class ChildProcess:
    """`python -m <module>` with its stdin and stdout as a channel.

    on_line(child, line) is called for every line, on_exit(child) once after the last one, both on the child's reader
    thread. An SlmError from on_line ends the child: nobody knows what it means by the next line. The child sees
    end-of-file on its stdin when this process dies in any way.
    """

    def __init__(
        self,
        module: str,
        on_line: Callable[[ChildProcess, bytes], None],
        on_exit: Callable[[ChildProcess], None],
    ) -> None:
        keep_log = bool(os.environ.get("SLM_LLAMA_LOG"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if keep_log else subprocess.PIPE,
            cwd=ROOT,  # `-m` puts the current folder first on the path; a user's folder may hold the same names
            env={**engine_environment(), "GGML_NO_BACKTRACE": "1"},
            start_new_session=True,  # Ctrl-C in the terminal is for this process; the child is told what to do
        )
        assert self._process.stdin and self._process.stdout  # pipes, as was asked for
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._on_line, self._on_exit = on_line, on_exit
        self._words: deque[str] = deque(maxlen=20)
        self._log_reader = threading.Thread(target=self._read_log, daemon=True)
        self._log_reader.start()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, line: str) -> None:
        """Write one line. When the child is gone nothing happens here: on_exit tells."""
        try:
            self._stdin.write(line.encode() + b"\n")
            self._stdin.flush()
        except (BrokenPipeError, ValueError):  # ValueError: closed by close()
            return

    def close(self, *, patience_s: float = 3.0) -> None:
        """Close its stdin, which ends the child; kill it if it does not listen."""
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            self._stdin.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def epitaph(self) -> str:
        """How the ended child ended: its exit code or signal, and the line of its log that says most."""
        code = self._process.wait()
        self._log_reader.join(1.0)
        telling = [line for line in self._words if "GGML_ASSERT" in line or "Error" in line or "error" in line]
        word = (telling or list(self._words) or [""])[-1].strip()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{how}: {word[:300]}" if word else how

    def _read(self) -> None:
        try:
            for line in self._stdout:
                self._on_line(self, line)
        except SlmError as error:
            self._words.append(f"Error: {error}")
            self._process.kill()
        self._on_exit(self)

    def _read_log(self) -> None:
        if self._process.stderr is not None:
            for line in self._process.stderr:
                self._words.append(line.decode("utf-8", "replace"))
