"""What the tests share: real models, pulled once into SLM_HOME, and command-line runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from slm.native.threads import settle_openmp
from tests import no_network
from tests.page_browser import Open, launched
from tests.page_server import Script, listening

ROOT = Path(__file__).parent.parent
os.environ.setdefault("SLM_HOME", str(ROOT / ".slm"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
settle_openmp()
no_network.block()
# How long an example takes says something of the machine and its other work, nothing of what is proven.
hypothesis.settings.register_profile("search", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
# The same tree gives the same result: new examples are looked for with `--hypothesis-profile search`.
hypothesis.settings.register_profile("same", hypothesis.settings.get_profile("search"), derandomize=True)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def pulled_model() -> Callable[[str], Path]:
    """The GGUF file or folder of a catalog model, pulled on first use (its licence terms are accepted by the run)."""

    def get(name: str) -> Path:
        from slm.errors import SlmError
        from slm.models.catalog import model_path
        from slm.models.fetch import pull

        try:
            return model_path(name)
        except SlmError:
            pull(name, accept_license=True)
            return model_path(name)

    return get


@pytest.fixture
def slm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the `slm` command as a user does, in a process of its own."""

    def call(*args: str, stdin: str | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "slm_cli", *args],
            capture_output=True, text=True, input=stdin or "", timeout=timeout, cwd=ROOT,
        )  # fmt: skip

    return call


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running Chromium; the test fails when there is none."""
    with launched() as running:
        yield running


@pytest.fixture
def script() -> Iterator[Script]:
    """A server with the page that answers what the test says."""
    script = Script()
    with listening(script.app()) as url:
        script.url = url
        yield script
        script.release()


@pytest.fixture
def visit(browser: Any, script: Script) -> Iterator[Open]:
    """Opens the page; it stays without console errors, policy violations and requests to others."""
    opener = Open(browser, script)
    yield opener
    for context in opener.contexts:
        context.close()
    assert opener.faults == []
