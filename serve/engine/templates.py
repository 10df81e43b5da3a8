"""Chat templates of model files rendered in a process of their own, which is killed when it takes too long.

A template is a program from a stranger: the sandbox keeps it from the system, but not from looping for ever or from
filling the memory, and inside one process neither can be stopped. Templates of ours are rendered where they are.
It knows nothing of tokens or of HTTP.

In:  {"template", "messages", "tools", "bos_token", "eos_token", "add_generation_prompt", "variables"}
Out: {"text"} | {"error"}, a line of JSON each.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from slm.chat.prompt import NO_VARIABLES, TEMPLATES, TemplateVariables, render
from slm.errors import EngineError, InputError
from slm.joints import Message
from slm.native.process import ROOT, child_environment, cpu_seconds

TIME_LIMIT_S = 2.0
MEMORY_LIMIT = 1 << 29  # bytes of address space
_START_LIMIT_S = 30.0
# A process that hardly gets the processor has so many times the limit: a busy machine is no fault of a template.
_PATIENCE = 15
_ALONE_LIMIT_S = 60  # when the process that watches is gone, the system's alarm ends this one
_OURS = frozenset(TEMPLATES.values())


def render_guarded(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] = (),
    add_generation_prompt: bool = True,
    variables: TemplateVariables = NO_VARIABLES,
) -> str:
    """As `slm.chat.prompt.render`. Raises InputError also when the template runs too long or wants too much memory."""
    told: dict[str, Any] = {
        "tools": list(tools), "bos_token": bos_token, "eos_token": eos_token,
        "add_generation_prompt": add_generation_prompt,
    }  # fmt: skip
    if template in _OURS:
        return render(template, messages, variables=variables, **told)
    order = {"template": template, "messages": list(messages), "variables": asdict(variables), **told}
    return _renderer.render(order)


class Renderer:
    """The process that renders: started when it is needed, and again after it had to be killed. Thread-safe."""

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self.time_limit_s = time_limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, order: dict[str, Any]) -> str:
        """The rendered text. Raises InputError, and EngineError where the process cannot be started."""
        with self._lock:
            process = self._running()
            answer = self._ask(process, json.dumps(order).encode() + b"\n", self.time_limit_s, _PATIENCE)
        if answer is None:
            raise InputError(
                "the model's chat template did not end",
                found=f"more than {self.time_limit_s:g} s or {MEMORY_LIMIT >> 20} MB for one conversation",
                hint="Its file may be broken or hostile; look with: slm inspect FILE",
            )
        if "error" in answer:
            raise InputError(answer["error"])
        return str(answer["text"])

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", "serve.engine.templates"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
            env=child_environment(), start_new_session=True,
        )  # fmt: skip
        # The time that Python itself needs to start is not the template's.
        order = {"template": "", "messages": [Message(role="user", content="")], "tools": [], "variables": {}}
        line = json.dumps({**order, "bos_token": "", "eos_token": ""}).encode() + b"\n"
        if self._ask(process, line, _START_LIMIT_S) is None:  # the machine is at fault, and no template
            raise EngineError(
                "the process that renders chat templates did not start", found=f"nothing within {_START_LIMIT_S:g} s",
                hint="This machine is very busy or out of memory; ask again.",
            )  # fmt: skip
        return process

    def _ask(
        self, process: subprocess.Popen[bytes], line: bytes, limit_s: float, patience: int = 1
    ) -> dict[str, Any] | None:
        """The answer to one line; None when there is none in time, and then the process is gone (`_end_late`)."""
        assert process.stdin is not None and process.stdout is not None
        answered = threading.Event()
        threading.Thread(target=_end_late, args=(process, answered, limit_s, patience), daemon=True).start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # it has ended
            answer = b""
        finally:
            answered.set()
        if not answer.endswith(b"\n"):
            self._end()
            return None
        return dict(json.loads(answer))

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _end_late(process: subprocess.Popen[bytes], answered: threading.Event, limit_s: float, patience: int) -> None:
    """Kill a process that has not answered within so many seconds of the processor's time, or `patience` times as many.

    Where it is not known how much of the processor it had, every second counts.
    """
    begun = cpu_seconds(process.pid)
    for _ in range(patience):
        if answered.wait(limit_s):
            return
        used = cpu_seconds(process.pid)
        if used is None or begun is None or used - begun >= 0.8 * limit_s:
            break
    process.kill()


_renderer = Renderer()
atexit.register(_renderer.close)


def main() -> None:
    """Answer line by line until stdin ends."""
    out = os.fdopen(os.dup(1), "wb")
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    for line in sys.stdin.buffer:
        order = json.loads(line)
        template, messages = order.pop("template"), order.pop("messages")
        variables = TemplateVariables(**order.pop("variables"))
        if sys.platform != "win32":
            signal.alarm(_ALONE_LIMIT_S)
        try:
            answer = {"text": render(template, messages, variables=variables, **order)}
        except InputError as error:
            answer = {"error": str(error)}
        except (MemoryError, RecursionError) as error:
            answer = {"error": f"the model's chat template fails: {type(error).__name__}"}
        if sys.platform != "win32":
            signal.alarm(0)
        out.write(json.dumps(answer).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
