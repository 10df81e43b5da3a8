"""Chat templates and the time they take: an endless one is ended, a busy machine is no fault of a sound one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serve.engine import templates
from serve.engine.templates import Renderer
from slm.errors import InputError
from slm.native.process import cpu_seconds

ENDLESS = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a * b %}{% endfor %}{% endfor %}"
SLOW = "{% for a in range(9000) %}{% for b in range(900) %}{% set c = a * b %}{% endfor %}{% endfor %}done"


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    one = Renderer(time_limit_s=0.05)
    yield one
    one.close()


def order(template: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": "Hi"}]
    return {"template": template, "messages": turns, "tools": [], "variables": {}, "bos_token": "", "eos_token": ""}


def test_the_processor_time_of_a_process_grows_as_it_works() -> None:
    begun = cpu_seconds(os.getpid())
    if begun is None:
        return  # elsewhere than on Linux
    worked = time.process_time() + 0.1
    while time.process_time() < worked:
        pass
    assert 0.05 < (cpu_seconds(os.getpid()) or 0) - begun < 5
    assert cpu_seconds(2**22 + 1) is None


def test_a_template_that_does_not_end_is_ended(renderer: Renderer) -> None:
    with pytest.raises(InputError, match="did not end"):
        renderer.render(order(ENDLESS))
    assert renderer.render(order("after")) == "after"


def test_a_template_that_hardly_gets_the_processor_has_the_time_it_needs(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_PATIENCE", 10_000)
    monkeypatch.setattr(templates, "cpu_seconds", lambda pid: 0.0)
    assert renderer.render(order(SLOW)) == "done"
    monkeypatch.setattr(templates, "cpu_seconds", lambda pid: None)  # where nothing tells, every second counts
    with pytest.raises(InputError, match="did not end"):
        renderer.render(order(SLOW))
