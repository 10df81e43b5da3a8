"""Runs `slm` over a folder of inputs that went wrong once, and prints a line for each: what is right, or what came.

    python scripts/check_cases.py DIR [--only documents|serving|training|checkpoints] [--match WORD]

DIR holds documents/, serving/, training/ and checkpoints/ (its two scripts build small checkpoints and adapters).
Everything is done as a user does it, by the commands and over HTTP. It knows nothing of how they work.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Each of these adds its checks to CHECKS.
from scripts.cases import checkpoints, documents, requests, training  # noqa: F401
from scripts.cases.doing import CHECKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=["documents", "serving", "training", "checkpoints"])
    parser.add_argument("--match", default="")
    options = parser.parse_args()
    failed = 0
    for part, name, function in CHECKS:
        if options.only not in (None, part) or options.match not in name:
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                function((options.folder / part).resolve(), Path(work))
                print(f"ok    {part:12} {name}", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"FAIL  {part:12} {name}: {str(error)[:700]}", flush=True)
    print(f"{failed} failed" if failed else "all right")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
