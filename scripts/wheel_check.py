"""Installs a wheel of slm in an empty environment at the laptop size and uses it as its new owner would.

Run: python scripts/wheel_check.py FILE --python python3.12

Nothing of the checkout is in reach: the commands run in another folder. llama.cpp comes from the wheel that
`python -m slm.native.build` keeps, so nothing is compiled twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402

from scripts.packing.asking import Asked, free_port, serving  # noqa: E402
from scripts.packing.distribution import run  # noqa: E402
from slm import __version__, paths  # noqa: E402
from slm.errors import MissingFileError, SlmError, VerificationError  # noqa: E402
from slm.native import build  # noqa: E402
from slm.terminal import console  # noqa: E402

# What the laptop size must not bring along: torch and its company weigh more than all the rest.
_HEAVY = ("torch", "transformers", "peft", "sentence-transformers", "datasets")
_EVERY_HELP = """
import click, slm_cli
def show(command, parent):
    context = click.Context(command, parent=parent)
    command.get_help(context)
    for name in command.list_commands(context) if isinstance(command, click.Group) else ():
        show(command.get_command(context, name), context)
show(slm_cli.cli, None)
"""
_QUESTION = "What is the capital of France?"


def own_environment(home: Path) -> dict[str, str]:
    """This process's environment without what would let the checkout, or the user's settings, in."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SLM_", "VIRTUAL_ENV"))}
    return {**ours, "SLM_HOME": str(home), "SLM_CONFIG": os.devnull}


def said(command: list[str], environment: dict[str, str], folder: Path, *, codes: Iterable[int] = (0,)) -> str:
    """A command's standard output. Raises VerificationError where its exit code is none of `codes`."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode not in codes:
        raise VerificationError(f"'{' '.join(command)}' ended with {done.returncode}", found=done.stderr.strip()[-800:])
    return done.stdout


def judge_doctor(report: str) -> None:
    """Raise VerificationError unless a `slm doctor --json` tells of a laptop size: llama.cpp, nothing heavy."""
    checks = {check["name"]: check for check in json.loads(report)["checks"]}
    if checks["llama.cpp loads"]["ok"] is not True:
        raise VerificationError("llama.cpp does not load", found=checks["llama.cpp loads"]["found"])
    if checks["slm"]["found"] != __version__:
        raise VerificationError(f"another version was installed than {__version__}", found=checks["slm"]["found"])
    heavy = [name for name in _HEAVY if name in checks and checks[name]["ok"]]
    if heavy:
        raise VerificationError("the laptop size brought along what belongs to an extra", found=", ".join(heavy))


def install(python: str, wheel: Path, folder: Path) -> Path:
    """Make an environment with the wheel in it; returns its folder of programs. Raises SlmError."""
    run([python, "-m", "venv", str(folder)], doing=f"making an environment with {python}")
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    try:
        llama = build.wheel(os.environ)
    except subprocess.CalledProcessError as error:
        raise SlmError("building llama.cpp failed", hint="The lines above say why.") from error
    pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    run([*pip, "-c", str(ROOT / "constraints.txt"), str(llama), str(wheel.resolve())], doing="installing the wheel")
    return programs


def check(programs: Path, home: Path, model: str, folder: Path) -> None:
    """Use what was installed: version, every help, doctor, and with a model the server's page and an answer."""
    environment = own_environment(home)
    slm = str(programs / "slm")
    if __version__ not in (version := said([slm, "--version"], environment, folder)):
        raise VerificationError(f"'slm --version' does not say {__version__}", found=version.strip())
    said([str(programs / "python"), "-c", _EVERY_HELP], environment, folder)
    judge_doctor(said([slm, "doctor", "--json"], environment, folder, codes=(0, 1)))  # 1: extras are missing
    if model:
        asked = Asked(f"http://127.0.0.1:{(port := free_port())}")
        command = [slm, "serve", model, "--port", str(port), "--context", "512"]
        with serving(command, asked, folder / "serve.log", environment=environment):
            if "<html" not in asked.get("/"):
                raise VerificationError("the server has no page: the wheel lacks its files")
            click.echo(f"      {_QUESTION} {asked.chat(_QUESTION)}", err=True)


@click.command()
@click.argument("wheel", type=click.Path(path_type=Path))
@click.option("--python", default=sys.executable, help="The Python to install for. [default: the one that runs this]")
@click.option("--model", default="", metavar="MODEL", help="Also serve this model and ask it something.")
def main(wheel: Path, python: str, model: str) -> None:
    """Install WHEEL in an empty environment and use it there.

    \b
    Example:
      python scripts/wheel_check.py FILE --model smollm2-135m-instruct
    """
    if not wheel.is_file():
        raise MissingFileError(f"there is no wheel '{wheel}'", hint="Make one with: make wheel")
    with tempfile.TemporaryDirectory(prefix="slm-wheel-") as name:
        folder = Path(name)
        programs = install(python, wheel, folder / "environment")
        (folder / "empty").mkdir()
        check(programs, paths.home().resolve(), model, folder / "empty")
        version = said([str(programs / "python"), "--version"], own_environment(folder), folder).strip()
    click.echo(f"{wheel.name} works on {version}: laptop size, {'an answer' if model else 'no model asked'}")


if __name__ == "__main__":
    console.run(main)
