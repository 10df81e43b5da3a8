"""Under which licence an export stands: that of what it was made from, found by following its folders back.

It reads model cards, manifests and the catalog; it knows nothing of what an export holds. Terms that bind whoever
passes a model on (Gemma's) cannot be replaced by another licence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.publish.card import source_facts
from slm.artifacts import MANIFEST, read_manifest
from slm.errors import LicenceError, SlmError
from slm.models.catalog import CATALOG, CatalogEntry, entry_of, find_pulled, is_hub_id

_DEEPEST = 6  # a merge of a merge of a restored file ...
# The hub's names: https://huggingface.co/docs/hub/repositories-licenses
_HUB_NAMES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Gemma Terms of Use": "gemma"}
_TEXTS = ("licen[cs]e", "notice", "copying", "terms", "use_policy")


@dataclass(frozen=True)
class LicenceTerms:
    """licence: as the hub names it. name, url: for people, "" where unknown. base: the hub repository it was made from,
    or "". texts: files with the terms that go along. languages: of the base's card, as it writes them."""

    licence: str
    name: str = ""
    url: str = ""
    base: str = ""
    texts: tuple[Path, ...] = ()
    languages: str = ""


def terms_of(checkpoint: Path, named: str | None, asked: str | None) -> LicenceTerms:
    """The terms of a checkpoint. named: the model's or its base's catalog name. asked: a licence given by the user.

    Raises LicenceError where none is found, or where another one is asked for than the base's terms allow.
    """
    found = _found(checkpoint, named)
    if asked is not None:
        if found is not None and found.licence != asked.lower() and _is_binding(found.licence):
            raise LicenceError(
                f"'{checkpoint.name}' was made from a model under '{found.name or found.licence}', whose terms stay",
                found=f"--licence {asked}",
                hint=f"Leave --licence out, and read {found.url}",
            )
        texts = found.texts if found is not None else ()
        return LicenceTerms(asked.lower(), base=found.base if found else "", texts=texts)
    if found is None:
        raise LicenceError(
            f"'{checkpoint}' does not say under which licence it stands",
            hint="Name what it was made from with --base NAME, or its licence with --licence, like apache-2.0.",
        )
    return found


def _is_binding(licence: str) -> bool:
    return any(e.licence.must_accept and _HUB_NAMES.get(e.licence.name) == licence for e in CATALOG.values())


def _found(checkpoint: Path, named: str | None) -> LicenceTerms | None:
    if named is not None and (named in CATALOG or (is_hub_id(named) and not Path(named).exists())):
        return _of_entry(entry_of(named))
    if named is not None and Path(named).is_dir():
        checkpoint = Path(named)
    for folder, manifest in _back(checkpoint):
        facts = source_facts(folder)
        if "license" in facts:
            return LicenceTerms(
                facts["license"], facts.get("license_name", ""), facts.get("license_link", ""),
                facts.get("base_model", ""), licence_texts(folder), facts.get("language", ""),
            )  # fmt: skip
        entry = _entry_in(manifest)
        if entry is not None:
            return _of_entry(entry)
    return None


def _back(checkpoint: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder, the one it was made from, and so on, each with its manifest."""
    folder = checkpoint
    for _ in range(_DEEPEST):
        try:
            manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
        except SlmError:
            manifest = {}  # its reader complains of it
        yield folder, manifest
        base = manifest.get("base")
        path = base.get("path") if isinstance(base, dict) else None
        if not isinstance(path, str) or not Path(path).is_dir():
            return
        folder = Path(path)


def _entry_in(manifest: dict[str, Any]) -> CatalogEntry | None:
    """The catalog's entry of a pulled model, or of the file that a checkpoint was restored from."""
    if manifest.get("kind") == "model" and manifest.get("name") in CATALOG:
        return CATALOG[str(manifest["name"])]
    source = manifest.get("source")
    file = source.get("file") if isinstance(source, dict) else None
    for entry in CATALOG.values():
        if file and entry.package and file in {one.name for one in entry.package.files}:
            return entry
    return None


def _of_entry(entry: CatalogEntry) -> LicenceTerms:
    pulled = find_pulled(entry.name)
    facts = source_facts(pulled.folder) if pulled else {}
    licence = facts.get("license") or _HUB_NAMES.get(entry.licence.name)
    if licence is None:
        raise LicenceError(
            f"the licence of '{entry.name}' is not known here: {entry.licence.url}", hint="Name it with --licence."
        )
    return LicenceTerms(
        licence, entry.licence.name, entry.licence.url, entry.hub.repo, licence_texts(pulled.folder) if pulled else (),
        facts.get("language", ""),
    )  # fmt: skip


def licence_texts(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that hold a licence, terms or a notice, by their names."""
    if not folder.is_dir():
        return ()
    sign = re.compile("|".join(_TEXTS), re.IGNORECASE)
    return tuple(
        path for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix.lower() in ("", ".txt", ".md", ".html", ".pdf") and sign.search(path.stem)
    )  # fmt: skip
