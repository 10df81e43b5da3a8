"""Carries out a Dockerfile's steps in folders: a Debian that debootstrap unpacks, chroot for what runs.

Needs root, debootstrap and util-linux. Each command has mounts and processes of its own, which end with it.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.packing.distribution import run
from scripts.packing.dockerfile import Copy, Rules, Run, Stage, ignores, in_context
from slm.errors import MissingFileError, UnsupportedError

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def suite_of(base: str) -> str:
    """Debian's release that an image is of: "bookworm" for debian:bookworm-slim. Raises UnsupportedError for others."""
    name, _, tag = base.partition(":")
    if name != "debian" or not tag.endswith("-slim"):
        raise UnsupportedError(f"the image '{base}' cannot be unpacked here", hint="Only debian:RELEASE-slim can.")
    return tag.removesuffix("-slim")


def unpack(base: str, folder: Path) -> Path:
    """The unpacked Debian of an image, made once and kept below `folder`. Raises SlmError."""
    root = folder / f"debian-{(suite := suite_of(base))}"
    if not root.exists():
        half = root.with_suffix(".part")
        shutil.rmtree(half, ignore_errors=True)
        run(["debootstrap", "--variant=minbase", suite, str(half)], doing=f"unpacking Debian {suite}")
        half.rename(root)
    return root


def environment_of(variables: Mapping[str, str], home: str = "/root") -> dict[str, str]:
    """What a process in the root sees: nothing of this machine's own environment."""
    return {"PATH": _PATH, "HOME": home, **variables}


def inside(root: Path, words: Sequence[str], variables: Mapping[str, str], folder: str = "/") -> list[str]:
    """The command that runs words in a root, with /proc and /dev, in `folder`."""
    pairs = [f"{name}={value}" for name, value in environment_of(variables).items()]
    mounts = f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev"
    there = ["chroot", str(root), "env", "-i", "-C", folder, *pairs, *words]
    return [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        f"{mounts} && exec {shlex.join(there)}",
    ]


def build(stages: Sequence[Stage], context: Path, work: Path) -> Path:
    """Build every stage below `work`; returns the root of the last. Raises SlmError with the step that failed."""
    rules = ignores((context / ".dockerignore").read_text("utf-8"))
    roots: dict[str, Path] = {}
    for stage in stages:
        root = roots[stage.name] = work / f"stage-{stage.name}"
        if root.exists():
            shutil.rmtree(root)
        run(
            ["cp", "-a", "--reflink=auto", str(unpack(stage.base, work)), str(root)],
            doing="copying the unpacked Debian",
        )
        for number, step in enumerate(stage.steps, start=1):
            print(f"[{stage.name} {number}/{len(stage.steps)}] {_shown(step)}", flush=True)
            if isinstance(step, Run):
                words = inside(root, ["/bin/sh", "-c", step.script], step.environment, step.folder)
                run(words, doing=f"'{_shown(step)}'")
            else:
                place = roots[step.stage] if step.stage else context
                carry(step, place, root, [] if step.stage else rules)
    return roots[stages[-1].name]


def _shown(step: Run | Copy) -> str:
    text = f"RUN {step.script}" if isinstance(step, Run) else f"COPY {' '.join(step.sources)} {step.target}"
    return text if len(text) <= 110 else text[:107] + "..."


def carry(step: Copy, place: Path, root: Path, rules: Rules) -> None:
    """Copy files and what is in folders, as COPY does: a folder's content, not the folder. Raises MissingFileError."""
    target = root / step.target.lstrip("/")
    for name in step.sources:
        source = place / name.lstrip("/")
        if not source.exists():
            raise MissingFileError(f"COPY {name}: there is no '{source}'")
        if step.stage:
            target.mkdir(parents=True, exist_ok=True)
            run(["cp", "-a", f"{source}/.", str(target)], doing=f"copying '{name}'")
            continue
        files = [source] if source.is_file() else [file for file in sorted(source.rglob("*")) if file.is_file()]
        taken = [file for file in files if in_context(file.relative_to(place).as_posix(), rules)]
        if not taken:
            raise MissingFileError(f"COPY {name}: .dockerignore leaves nothing of '{source}'")
        for file in taken:
            to_folder = step.target.endswith("/") or source.is_dir()
            to = target / (file.name if source.is_file() else file.relative_to(source)) if to_folder else target
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, to)
