"""An engine under test, by pipe or by HTTP: started, asked, and ended. It knows nothing of what is measured."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from serve.bench.engine import answering
from serve.bench.engine.plan import AskEngine, TimedStream
from serve.bench.load import Outcome, ask, new_client
from serve.bench.process import end, last_line, running
from serve.upstream import Launch, UpstreamOptions
from slm.errors import EngineError
from slm.native.threads import without_settling

_PATIENCE_S = 600.0


@contextmanager
def by_pipe(
    engine: str,
    options: Mapping[str, Any],
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, AskEngine]]:
    """(process id, how it is asked) of an engine of `answering`. Whatever goes wrong is an EngineError.

    environment: what is added to the user's own.
    """
    with tempfile.TemporaryDirectory(prefix="slm-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                [python, str(Path(answering.__file__)), engine, json.dumps(options)],
                env={**without_settling(os.environ), **(environment or {})}, cwd=folder, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8",
            )  # fmt: skip

        def answered(prompts: Sequence[Sequence[int]], tokens: int) -> list[TimedStream]:
            order = json.dumps({"prompts": [list(ids) for ids in prompts], "tokens": tokens})
            late = threading.Timer(_PATIENCE_S, process.kill)
            late.start()
            try:
                reply = _exchanged(process, order)
            finally:
                late.cancel()
            if not reply:
                process.wait()
                raise EngineError(f"'{engine}' ended with code {process.returncode}", found=last_line(log)[:300])
            told = json.loads(reply)
            if "error" in told:
                raise EngineError(f"'{engine}' did not answer", found=str(told["error"])[:300])
            return [TimedStream(tuple(times), count) for times, count in told["streams"]]

        try:
            yield process.pid, answered
        finally:
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
            with suppress(subprocess.TimeoutExpired):  # no more orders: it ends by itself, its children first
                process.wait(10)
            end(process)
            process.stdout.close()  # type: ignore[union-attr]


def _exchanged(process: subprocess.Popen[str], order: str) -> str:
    """The line that answers an order; "" where the process has ended."""
    assert process.stdin and process.stdout
    try:
        process.stdin.write(order + "\n")
        process.stdin.flush()
    except OSError:
        return ""
    return process.stdout.readline()


@contextmanager
def by_http(launch: Launch, options: UpstreamOptions, fields: Mapping[str, Any]) -> Iterator[tuple[int, AskEngine]]:
    """(process id, how it is asked) of a server with OpenAI's completions that takes token ids.

    fields: what every request says besides. Raises EngineError when it does not start.
    """
    with running(launch, options) as server:

        def answered(prompts: Sequence[Sequence[int]], tokens: int) -> list[TimedStream]:
            bodies = [
                {"prompt": list(ids), "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **fields}
                for ids in prompts
            ]
            outcomes = asyncio.run(_asked(server.url, bodies))
            failed = next((one.error for one in outcomes if one.error), "")
            if failed:
                raise EngineError("a request failed", found=failed)
            begun = min(one.started for one in outcomes)
            return [TimedStream(tuple(at - begun for at in one.times or (one.ended,)), one.tokens) for one in outcomes]

        yield server.pid, answered


async def _asked(url: str, bodies: Sequence[dict[str, Any]]) -> list[Outcome]:
    async with new_client(url, len(bodies)) as client:
        return list(await asyncio.gather(*(ask(client, body, path="/v1/completions") for body in bodies)))
