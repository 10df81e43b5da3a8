"""What every check of a case does: runs `slm`, reads, searches, serves, and says what is missing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKS: list[tuple[str, str, Callable[[Path, Path], None]]] = []
CHAT, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"


def check(part: str, name: str) -> Callable[[Callable[[Path, Path], None]], Callable[[Path, Path], None]]:
    """A check is called with the part's folder and an empty folder; it fails by an AssertionError."""

    def keep(function: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        CHECKS.append((part, name, function))
        return function

    return keep


def slm(*arguments: str | Path, ok: bool | None = True, stdin: bytes | None = None, cwd: Path | None = None,
        **environment: str) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    """Run the command; ok says whether it must succeed (None: either). There is never a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "slm_cli", *map(str, arguments)], input=stdin, capture_output=True, timeout=900,
        cwd=cwd or ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    shown = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert "Traceback" not in shown, shown[-600:]
    assert ok is None or (done.returncode == 0) is ok, f"exit {done.returncode}: {shown[-500:]}"
    return done


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def read(*paths: Path) -> str:
    """The text that files are read as."""
    answer = json.loads(slm("rag", "read", *paths, "--json").stdout)
    return "\n\n".join(document["text"] for document in answer["documents"])


def has(text: str, *wanted: str) -> None:
    for word in wanted:
        assert word in text, f"{word!r} is missing in {text[:400]!r}"


def lacks(text: str, *unwanted: str) -> None:
    for word in unwanted:
        assert word not in text, f"{word!r} is in {text[max(0, text.find(word) - 100) : text.find(word) + 200]!r}"


def first(index: Path, query: str) -> str:
    """The best passage of a search."""
    results = json.loads(slm("rag", "search", index, query, "--json").stdout)["results"]
    return f"{results[0]['title']} {results[0]['heading']} {results[0]['text']}" if results else ""


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Callable[[str, Any], tuple[int, Any]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "slm_cli", "serve", *map(str, arguments), "--port", str(port)], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def post(path: str, body: Any) -> tuple[int, Any]:
        raw = json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", raw, {"Content-Type": "application/json"}
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.25)
        yield post
    finally:
        process.terminate()
        process.wait(20)
