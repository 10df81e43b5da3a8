"""Builds the Dockerfile's steps without a container engine and starts the image: health, and an answer of a model.

Run: python scripts/container_check.py --build-arg WHEELS=wheelhouse --model smollm2-135m-instruct

Each stage is a Debian unpacked by debootstrap, each RUN a chroot into it. Needs root, debootstrap and util-linux; about
2 GB in the work folder. docs/container.md says what it proves and what only a container engine can.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402

from scripts.packing.contained import Orders  # noqa: E402
from scripts.packing.dockerfile import Stage, stages  # noqa: E402
from scripts.packing.root import build  # noqa: E402
from slm.errors import ResourceError, VerificationError  # noqa: E402
from slm.models.catalog import folder_name, model_path  # noqa: E402
from slm.paths import models_dir  # noqa: E402
from slm.terminal import console  # noqa: E402

_TOOLS = ("debootstrap", "chroot", "unshare", "mount", "ip", "setpriv")
_KEY = "a-key-for-the-check"


def require_tools() -> None:
    """Raise ResourceError unless this process is root and has what unpacking and entering a root takes."""
    missing = [tool for tool in _TOOLS if not shutil.which(tool)]
    if missing:
        raise ResourceError(f"{', '.join(missing)} cannot be found", hint="Debian: apt install debootstrap iproute2")
    if os.geteuid() != 0:
        raise ResourceError("only root may enter another root", hint="Run the same with sudo.")


def orders_for(image: Stage, root: Path, volume: Path, model: str) -> Orders:
    """What is started of an image: its own command, with the model's name in place of the default one."""
    if not image.user or not image.health or len(image.volumes) != 1 or len(image.ports) != 1:
        raise VerificationError("the image needs a user, a health check, one volume and one port")
    command = [*image.entrypoint, *image.command]
    command[command.index("serve") + 1] = model
    variable = command[command.index("--api-key-env") + 1]
    environment = {**image.environment, variable: _KEY}
    return Orders(
        str(root), image.user, image.folder, environment, command, image.health, image.ports[0], _KEY, str(volume),
        image.volumes[0],
    )  # fmt: skip


def fill_volume(volume: Path, model: str, user: str) -> None:
    """A volume that holds one pulled model and belongs to the image's user. Raises MissingFileError."""
    model_path(model)
    shutil.rmtree(volume, ignore_errors=True)
    shutil.copytree(models_dir() / folder_name(model), volume / "models" / folder_name(model))
    uid, _, gid = user.partition(":")
    for path in (volume, *volume.rglob("*")):
        os.chown(path, int(uid), int(gid))


@click.command()
@click.option("--build-arg", "pairs", multiple=True, metavar="NAME=VALUE", help="As docker build takes it.")
@click.option("--model", default="smollm2-135m-instruct", show_default=True, metavar="NAME", help="A pulled model.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/var/tmp/slm-container"), show_default=True)
@click.option("--keep-built", is_flag=True, help="Start what the last run built.")
def main(pairs: tuple[str, ...], model: str, work: Path, keep_built: bool) -> None:
    """Build the Dockerfile's stages in folders, start the last one and ask it.

    \b
    Example:
      python scripts/container_check.py --build-arg WHEELS=wheelhouse
    """
    require_tools()
    built = stages((ROOT / "Dockerfile").read_text("utf-8"), dict(pair.split("=", 1) for pair in pairs))
    work.mkdir(parents=True, exist_ok=True)
    root = work / f"stage-{built[-1].name}" if keep_built else build(built, ROOT, work)
    fill_volume(work / "volume", model, built[-1].user)
    orders = work / "orders.json"
    orders.write_text(orders_for(built[-1], root, work / "volume", model).written(), "utf-8")
    click.echo(f"starting the image in a network of its own, {model} in its volume")
    words = ["unshare", "--mount", "--net", sys.executable, "-m", "scripts.packing.contained", str(orders)]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise VerificationError("the image does not do what it should", found=f"its log: {work / 'serve.log'}")
    click.echo("the image serves")


if __name__ == "__main__":
    console.run(main)
