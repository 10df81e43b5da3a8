"""Whether models can be fetched: from the hub, and from the package registry that pip is set to.

Both are asked at once, each with a few seconds. Nothing is downloaded; addresses with passwords are not shown.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

from slm.doctor.check import Check
from slm.models import hub
from slm.models.catalog import CATALOG
from slm.terminal.console import shorten

_TIMEOUT_S = 3.0
_PIP_S = 10.0  # with Python's and pip's own start


@dataclass
class Reach:
    """What was reached; None while it is not known. Asked in threads, so that the other checks need not wait."""

    hub: bool | None = None
    registry: str | None = None  # "" when it answered, else why it did not

    def ask(self) -> list[threading.Thread]:
        """Begin to ask both."""
        threads = [threading.Thread(target=one, daemon=True) for one in (self._ask_hub, self._ask_registry)]
        for thread in threads:
            thread.start()
        return threads

    def _ask_hub(self) -> None:
        self.hub = hub.is_reachable(_TIMEOUT_S)

    def _ask_registry(self) -> None:
        self.registry = registry_problem()


def registry_problem() -> str:
    """ "" when pip's registry answers for a package of the catalog, else why not, in pip's words."""
    if importlib.util.find_spec("pip") is None:
        return "pip is not installed"
    package = next(entry.package for entry in CATALOG.values() if entry.package).requirements[0].split("==")[0]
    command = [
        sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check", "--no-input",
        "--quiet", "--timeout", str(int(_TIMEOUT_S)), "--retries", "0",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PIP_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_PIP_S:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip found no registry"]
    return shorten(lines[-1].removeprefix("ERROR: "), 120)


def reach_checks(reach: Reach, *, any_pulled: bool) -> list[Check]:
    """Being without a network is no fault where the models are here; without both there is nothing to begin with."""
    host = urlsplit(hub.endpoint()).hostname or hub.endpoint()
    offline = hub.is_offline()
    why = "not asked, HF_HUB_OFFLINE is set" if offline else f"not reached ({host})"
    mirror = "unset HF_HUB_OFFLINE" if offline else "HF_ENDPOINT=URL names a mirror, HTTPS_PROXY=URL a proxy"
    registry_answers = reach.registry == ""
    checks = [
        Check("hub", True, f"answers ({host})") if reach.hub else Check("hub", None, why, mirror),
        Check("package registry", True, "answers") if registry_answers
        else Check("package registry", None, f"not reached: {reach.registry}", f"{sys.executable} -m pip config list"),
    ]  # fmt: skip
    if not (reach.hub or registry_answers or any_pulled):
        fix = f"{mirror}; or copy the folder 'models' of another machine's data folder here"
        checks.append(Check("models", False, "none is here, and neither hub nor registry answers", fix))
    return checks
