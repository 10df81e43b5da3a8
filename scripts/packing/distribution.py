"""The project as sdist and wheel, built the way an index would: the wheel from the sdist, not from the checkout.

So a file that the sdist lacks is missing at once, and nothing of an older build (build/, *.egg-info) gets in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from slm.errors import SlmError

ROOT = Path(__file__).resolve().parent.parent.parent


def run(command: list[str], *, doing: str) -> None:
    """Run a command whose output the user sees. Raises SlmError with what was being done."""
    try:
        subprocess.run(command, check=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise SlmError(f"{doing} failed: {error}", hint="The lines above say why.") from error


def build_both(out: Path) -> Path:
    """Build sdist and wheel into `out`; returns the wheel's path. Raises SlmError."""
    run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], doing="building sdist and wheel")
    return max(out.glob("slm_cpu-*.whl"), key=lambda wheel: wheel.stat().st_mtime)
