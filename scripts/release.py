"""Makes a release: the project's own model with its adapters, the packages, the notes, their checksums, and the tag.

    python scripts/release.py corpus --licence gpl-2.0
    python scripts/release.py --dry-run

corpus is a folder as scripts/manuals.py makes it. What comes out is in dist/VERSION:

    slm-SIZE/        the base, from scratch by scripts/from_scratch.py, with an adapter for each language (slm export)
    slm-SIZE-chat/   the same base taught to answer, with its answers to data/eval.jsonl counted
    *.whl, *.tar.gz  the packages, built from the commit and not from the folder
    NOTES.md         what CHANGELOG says of the version
    SHA256SUMS       of everything

Nothing leaves the machine, unless --upload OWNER is given: then the two models go to the hub. The tag is made by --tag
and never pushed. A run that was broken off goes on where it was. docs/releasing.md says when to run it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from convert.publish.checksums import sums_of, write_sums  # noqa: E402
from scripts.from_scratch import LANGUAGES, headline, slm  # noqa: E402
from scripts.release_notes import notes_of  # noqa: E402
from slm import __version__  # noqa: E402
from slm.artifacts import MANIFEST, new_file, require_file, require_folder  # noqa: E402
from slm.errors import InputError, SlmError  # noqa: E402

CHANGELOG, PROJECT = "CHANGELOG.md", "pyproject.toml"
EVAL = ROOT / "data/eval.jsonl"
# The folder is taken first: setuptools leaves words of its own in sys.argv.
_BUILD = "import sys; from setuptools import build_meta as b; o = sys.argv[1]; b.build_wheel(o); b.build_sdist(o)"


@dataclass(frozen=True)
class ReleasePlan:
    """How large the model is, how long it learns. steps: of each adapter, 0: two epochs. items: of each kind asked."""

    size: str = "15m"
    tokens: int = 5_000_000
    vocabulary: int = 8192
    steps: int = 0
    items: int = 0
    types: tuple[str, ...] = ("f16", "q8_0", "q4_k_m", "q4_0")


TINY = ReleasePlan("1m", 6_000, 1600, 2, 1, ("q8_0",))  # every step, in minutes; what comes out knows nothing


def faults(project: str, changelog: str, version: str, *, tag: bool) -> list[str]:
    """What keeps a version from being released: its number, its notes and, for a tag, its date. Pure."""
    found = []
    named = re.search(r'^version = "([^"]+)"', project, re.MULTILINE)
    if named is None or named[1] != version:
        found.append(f"{PROJECT} says version {named[1] if named else 'nothing'}, slm/__init__.py {version}")
    heading = re.search(r"^## +\[?([^\]\s]+)\]?(.*)$", changelog, re.MULTILINE)
    if heading is None or heading[1] != version:
        found.append(f"{CHANGELOG} begins with {heading[1] if heading else 'no version'}, not with {version}")
    elif not notes_of(changelog, version).strip():
        found.append(f"{CHANGELOG} says nothing of {version}")
    elif tag and not re.fullmatch(r"\s+-\s+\d{4}-\d{2}-\d{2}\s*", heading[2]):
        found.append(f"{CHANGELOG} has no date behind {version}: '## {version} - YYYY-MM-DD'")
    return found


def git(*words: str) -> str:
    """What git prints. Raises InputError with its complaint."""
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"git {words[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def check(version: str, *, tag: bool) -> None:
    """Raise InputError with everything that keeps the version from being released, before anything is made."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in (PROJECT, CHANGELOG)]
    found = faults(texts[0], texts[1], version, tag=tag)
    if tag:
        changed = git("status", "--porcelain").splitlines()
        found += [f"{len(changed)} files are not as committed, such as {changed[0][3:]}"] if changed else []
        found += [f"the tag v{version} is there already"] if git("tag", "--list", f"v{version}").strip() else []
    if found:
        raise InputError(f"{version} cannot be released: {'; '.join(found)}", hint="docs/releasing.md has the steps.")


def tiny_corpus(folder: Path) -> Path:
    """The repository's own prose in the form of a corpus, for a dry run."""
    for lang in LANGUAGES:
        text = (ROOT / f"data/{lang}.txt").read_text(encoding="utf-8")
        pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "data/handbook" / lang).glob("*.md"))]
        parts = [part for page in (text, *pages) for part in page.split("\n\n") if part.strip()]
        rows = "".join(json.dumps({"text": part}, ensure_ascii=False) + "\n" for part in parts)
        (folder / f"{lang}.jsonl").write_text(rows, encoding="utf-8")
        lines = [line for line in text.splitlines() if line.strip()]
        (folder / f"parallel-{lang}.txt").write_text("\n".join(lines[:8]) + "\n", encoding="utf-8")
    return folder


def make_models(corpus: Path, work: Path, plan: ReleasePlan) -> None:
    """The base and its chat by the recipe, then an adapter for each language on the base."""
    recipe = [ROOT / "scripts/from_scratch.py", corpus, "--work", work, "--sizes", plan.size]
    recipe += ["--tokens", plan.tokens, "--vocab-size", plan.vocabulary, "--answer-steps", plan.steps]
    done = subprocess.run([sys.executable, *map(str, recipe)], cwd=ROOT)
    if done.returncode:
        raise InputError("the recipe ended with an error, which stands above", hint="Run it again; it goes on there.")
    headline("5. An adapter for each language")
    for lang in LANGUAGES:
        if (work / "adapters" / lang / MANIFEST).exists():
            print(f"'{work / 'adapters' / lang}' is there already and is kept")
            continue
        long = ["--max-steps", str(plan.steps)] if plan.steps else ["--epochs", "2"]
        slm("train", "sft", "--base", work / plan.size, "--data", ROOT / "data/instruct.jsonl", "--lang", lang,
            "--drop-long", "--max-length", "512", "--rank", "32", "--lr", "0.002", "--batch-size", "8", *long,
            "-o", work / "adapters" / lang, "--json")  # fmt: skip


def export_models(corpus: Path, work: Path, out: Path, plan: ReleasePlan, licence: str) -> list[Path]:
    """Both models as folders for a hub, with what was measured."""
    headline("6. Measured and exported")
    chat = work / f"{plan.size}-chat"
    asked = slm("evaluate", chat, "--chat", EVAL, "--items", str(plan.items), "--max-tokens", "96", "--json")
    with new_file(work / "answers.json") as path:
        path.write_text(json.dumps(asked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shared: list[str | Path] = ["--licence", licence, "--max-tokens", "4096", "--json"]
    for lang in LANGUAGES:
        shared += ["--text", f"{lang}={corpus / f'parallel-{lang}.txt'}", "--lang", lang]
    for kind in plan.types:
        shared += ["--type", kind]
    adapters = [word for lang in LANGUAGES for word in ("--adapter", f"{lang}={work / 'adapters' / lang}")]
    made = [out / f"slm-{plan.size}", out / f"slm-{plan.size}-chat"]
    slm("export", made[0], "--model", work / plan.size, *adapters, *shared)
    slm("export", made[1], "--model", chat, "--answers", work / "answers.json", *shared)
    return made


def build_packages(out: Path) -> list[str]:
    """Wheel and source package of the commit; what is not committed is not in them. Their names."""
    headline("7. The packages")
    archive = subprocess.run(
        ["git", "archive", "--format=zip", "HEAD"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    for old in (*out.glob("*.whl"), *out.glob("*.tar.gz")):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(BytesIO(archive)) as packed:
        packed.extractall(folder)
        done = subprocess.run([sys.executable, "-c", _BUILD, str(out)], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"the packages were not built: {done.stderr.strip().splitlines()[-1]}")
    return sorted(path.name for path in (*out.glob("*.whl"), *out.glob("*.tar.gz")))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, nargs="?", help="en.jsonl, ja.jsonl and their parallel texts")
    parser.add_argument("--out", type=Path, help="folder of the release  [default: dist/VERSION]")
    parser.add_argument("--work", type=Path, help="folder of the steps between  [default: exports/release-VERSION]")
    parser.add_argument("--size", default=ReleasePlan.size, help="of the model  [default: %(default)s]")
    parser.add_argument("--tokens", type=int, default=ReleasePlan.tokens, help="it learns from  [default: %(default)s]")
    parser.add_argument("--licence", help="of the models, as the hub names it: the corpus decides it")
    parser.add_argument("--tag", action="store_true", help="make the tag vVERSION; it is not pushed")
    parser.add_argument("--upload", metavar="OWNER", help="send the models to OWNER's repositories on the hub")
    parser.add_argument("--dry-run", action="store_true", help="every step on tiny sizes; no tag, no upload")
    asked = parser.parse_args(words)
    if asked.dry_run and (asked.tag or asked.upload or asked.corpus):
        parser.error("a dry run has a corpus of its own, and makes no tag and no upload")
    if not asked.dry_run and not (asked.corpus and asked.licence):
        parser.error("name the corpus and --licence, which its texts decide (docs/releasing.md); or try --dry-run")
    name = f"{__version__}-dry-run" if asked.dry_run else __version__
    out = (asked.out or ROOT / "dist" / name).resolve()
    work = (asked.work or ROOT / f"exports/release-{name}").resolve()
    check(__version__, tag=asked.tag)
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    if asked.dry_run:
        plan, licence = TINY, "cc0-1.0"
        corpus = work / "corpus"
        corpus.mkdir(exist_ok=True)
        tiny_corpus(corpus)
    else:
        plan, licence = ReleasePlan(asked.size, asked.tokens), asked.licence
        corpus = require_folder(asked.corpus).resolve()
    for lang in LANGUAGES:
        for file in (f"{lang}.jsonl", f"parallel-{lang}.txt"):
            require_file(corpus / file, hint="scripts/manuals.py makes a corpus of Debian's manuals.")
    make_models(corpus, work, plan)
    models = export_models(corpus, work, out, plan, licence)
    packages = build_packages(out)
    with new_file(out / "NOTES.md") as path:
        path.write_text(notes_of((ROOT / CHANGELOG).read_text(encoding="utf-8"), __version__), encoding="utf-8")
    write_sums(out, sums_of(out))
    headline(f"{name} is in {out}")
    print("\n".join([*(model.name for model in models), *packages, "NOTES.md", "SHA256SUMS"]))
    if asked.upload:
        for model in models:
            slm("export", model, "--upload", f"{asked.upload}/{model.name}", "--public")
    if asked.tag:
        git("tag", "-a", f"v{__version__}", "-m", f"Version {__version__}")
        print(f"tagged; push it with: git push origin v{__version__}")


if __name__ == "__main__":
    try:
        main()
    except SlmError as error:
        sys.exit(f"error: {error}")
