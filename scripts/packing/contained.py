"""Starts an image from its root folder as a container engine would, asks it, and ends it.

Run by scripts/container_check.py in mounts and a network of its own:
`unshare --mount --net python -m scripts.packing.contained ORDERS.json`. The root is read-only, the volume and /tmp are
not, the user has no rights, and there is no network but the loopback.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.error
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from scripts.packing.asking import Asked, serving
from scripts.packing.distribution import run
from scripts.packing.root import environment_of
from slm.errors import VerificationError
from slm.terminal import console

_QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class Orders:
    """An image's root and what its last stage says: who runs what where, and the volume's folder on this machine."""

    root: str
    user: str
    folder: str
    environment: dict[str, str]
    command: list[str]
    health: list[str]
    port: int
    key: str
    volume: str
    mounted_at: str

    def written(self) -> str:
        """As JSON, for the process that carries them out."""
        return json.dumps(asdict(self))

    def as_user(self, words: list[str]) -> list[str]:
        """The command that runs words in the root as the image's user, who can gain no rights."""
        uid, _, gid = self.user.partition(":")
        pairs = [f"{name}={value}" for name, value in environment_of(self.environment, self.mounted_at).items()]
        rights = ["--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        there = ["chroot", self.root, "env", "-i", "-C", self.folder, *pairs]
        return [*there, "setpriv", *rights, *words]


def mount(orders: Orders) -> None:
    """Mount the root read-only over itself, with /proc, /dev, a writable /tmp and the volume; loopback up."""
    root = orders.root
    for words in (
        ["--bind", root, root], ["-t", "proc", "proc", f"{root}/proc"], ["--rbind", "/dev", f"{root}/dev"],
        ["-t", "tmpfs", "tmpfs", f"{root}/tmp"], ["--bind", orders.volume, f"{root}{orders.mounted_at}"],
        ["-o", "remount,bind,ro", root],
    ):  # fmt: skip
        run(["mount", *words], doing=f"mounting for {root}")
    run(["ip", "link", "set", "lo", "up"], doing="setting the loopback up")


def look_around(orders: Orders) -> None:
    """Raise VerificationError unless the user is nobody special, the root cannot be written and the volume can."""
    who = _said(orders, ["id", "-u"])
    if who == "0":
        raise VerificationError("the image runs as root")
    where = [f"{orders.mounted_at}/.probe", "/tmp/.probe"]
    for path, wanted in [("/opt/.probe", False), ("/.probe", False), *((path, True) for path in where)]:
        done = subprocess.run(orders.as_user(["touch", path]), capture_output=True)
        if (done.returncode == 0) != wanted:
            raise VerificationError(f"'{path}' {'can' if done.returncode == 0 else 'cannot'} be written by user {who}")
    _said(orders, ["rm", *where])
    print(f"      user {who}, the root is read-only, {orders.mounted_at} and /tmp are not", flush=True)


def _said(orders: Orders, words: list[str]) -> str:
    done = subprocess.run(orders.as_user(words), capture_output=True, text=True)
    if done.returncode:
        raise VerificationError(f"'{' '.join(words)}' ended with {done.returncode}", found=done.stderr.strip()[-500:])
    return done.stdout.strip()


def ask(orders: Orders) -> None:
    """Start what the image starts, and ask: health by its own check, an answer with the key, none without."""
    asked = Asked(f"http://127.0.0.1:{orders.port}", orders.key)
    started = time.monotonic()
    log = Path(orders.volume).parent / "serve.log"
    with serving(orders.as_user(orders.command), asked, log) as server:
        print(f"      healthy after {time.monotonic() - started:.1f} s: {asked.get('/health').strip()}", flush=True)
        _said(orders, orders.health)
        print("      the image's health check passes", flush=True)
        try:
            Asked(asked.url).chat(_QUESTION)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
        else:
            raise VerificationError("the server answers without its key")
        print(f"      {_QUESTION} {asked.chat(_QUESTION)}", flush=True)
        ended = time.monotonic()
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)  # what `docker stop` waits for
        except subprocess.TimeoutExpired as error:
            raise VerificationError("the server goes on 10 seconds after SIGTERM", found=str(log)) from error
        print(f"      stopped {time.monotonic() - ended:.1f} s after SIGTERM", flush=True)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    """Carry out the orders of FILE."""
    orders = Orders(**json.loads(file.read_text("utf-8")))
    mount(orders)
    look_around(orders)
    ask(orders)


if __name__ == "__main__":
    console.run(main)
