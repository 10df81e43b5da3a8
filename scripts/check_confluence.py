"""Reads every sample of a folder with `slm rag read`, and compares what came out with the sample's expectation.

    python scripts/check_confluence.py ../shared/confluence

A sample is a folder with an expect.json; the folder's check.py has the rules. Samples are read where they are. Each way
in of a sample is a case: the page as a file, and the same page as an answer of the API.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_PAGES = (".xhtml", ".xml", ".html", ".mraw", ".json", ".zip")


def rules(folder: Path) -> ModuleType:
    """The check.py of a folder of samples."""
    spec = importlib.util.spec_from_file_location("confluence_rules", folder / "check.py")
    assert spec is not None and spec.loader is not None, f"'{folder}' has no check.py"
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)
    return module


def cases(sample: Path) -> Iterator[tuple[str, list[Path]]]:
    """The ways into a sample: (name, paths)."""
    files = [file for file in sorted(sample.iterdir()) if file.suffix in _PAGES and file.name != "expect.json"]
    api = [file for file in files if file.name.startswith("wrapped.")]
    rest = [file for file in files if file not in api]
    if (sample / "entities.xml").exists():
        rest = [sample]
    if rest:
        yield "files", rest
    if api:
        yield "api", api


def read(paths: list[Path], comments: bool) -> dict[str, Any]:
    """What `slm rag read --json` says of paths."""
    command = [sys.executable, "-m", "slm_cli", "rag", "read", *map(str, paths), "--json"]
    run = subprocess.run([*command, *(["--comments"] if comments else [])], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"slm rag read {' '.join(map(str, paths))}: {run.stderr}")
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--comments", action="store_true", help="with the comments on pages")
    parser.add_argument("--notes", action="store_true", help="also what would be better, and is no failure")
    arguments = parser.parse_args()
    check = rules(arguments.folder).check
    failed = total = 0
    for sample in sorted(path.parent for path in arguments.folder.glob("*/expect.json")):
        expected = json.loads((sample / "expect.json").read_text(encoding="utf-8"))
        for name, paths in cases(sample):
            begun = time.perf_counter()
            documents = read(paths, arguments.comments)["documents"]
            text = "\n".join(document["text"] for document in documents)
            bad, soft = check(expected, text)
            titles = [document["title"] for document in documents]
            bad += [("no page", title) for title in expected.get("pages", []) if title not in titles]
            total += 1
            failed += bool(bad)
            seconds = time.perf_counter() - begun
            print(f"{'FAILED' if bad else 'ok':7}{sample.name} ({name}): {len(documents)} documents, {seconds:.1f} s")
            for line in [*bad, *(soft if arguments.notes else [])]:
                print("       ", *line)
    print(f"{failed} failed of {total}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
