"""The folder of a model ready for a hub: safetensors, a ladder of GGUF files, adapters, card, Modelfile, terms, sums.

A shell over the conversion and its measuring. It is whole or absent, and names no path of the machine it was made on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.lora.adapter import convert_adapter, is_adapter_folder
from convert.publish.card import CARD, MODELFILE
from convert.publish.checksums import sums_of, write_sums
from convert.publish.inspect import inspect_gguf
from convert.publish.licence import LicenceTerms, licence_texts
from convert.publish.model_page import ExportFacts, model_page
from convert.publish.modelfile import modelfile
from convert.quality.cost import MeasureOptions, convert_measured
from convert.quality.report import report_of
from convert.quality.speed import machine
from slm import __version__
from slm.artifacts import (
    MANIFEST,
    manifest_bytes,
    new_folder,
    read_json,
    read_manifest,
    require_folder,
    require_replaceable,
)
from slm.errors import DamagedFileError, InputError, MissingFileError
from slm.terminal.console import note
from slm.weights.adapter_origin import assumed_base
from slm.weights.checkpoint_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    INDEX,
    check_checkpoint,
    shaping_files,
    weight_files,
)
from slm.weights.gguf_reader import read_gguf
from slm.weights.identity import identity_of

KIND = "export"
_TEXTS = Path(__file__).with_name("texts")  # of licences that every copy has to be given with
TYPES = ("q8_0", "q4_k_m", "q4_0")
ADAPTERS = "adapters"
_PREFERRED = "q4_k_m"  # what the Modelfile and the card's examples name, where it is there
_PATHS = ("_name_or_path", "base_model_name_or_path")  # keys that hold a path of the machine


@dataclass(frozen=True)
class ExportOptions:
    """What goes into an export.

    adapters: {name: PEFT folder}. text: where the measured texts come from. answers: the file of
    `slm evaluate --chat --json`.
    """

    name: str
    checkpoint: Path
    terms: LicenceTerms
    on: MeasureOptions
    types: Sequence[str] = TYPES
    adapters: Mapping[str, Path] = field(default_factory=dict)
    text: str = ""
    answers: Path | None = None
    languages: Sequence[str] = ()


def export_folder(target: Path, options: ExportOptions) -> dict[str, Any]:
    """Write the export; returns its manifest. An older export at `target` is replaced, nothing else is.

    Raises the errors of the conversion, and MismatchError for an adapter that was trained on other weights.
    """
    require_replaceable(target, KIND)
    check_checkpoint(options.checkpoint)
    for name, adapter in options.adapters.items():
        if not is_adapter_folder(require_folder(adapter)):
            raise MissingFileError(f"'{adapter}' ({name}) has no {ADAPTER_CONFIG}, so it is not a PEFT adapter")
    answers = _answers(options.answers)
    identity = identity_of(options.checkpoint)
    with new_folder(target, KIND) as (folder, manifest):
        _copy_checkpoint(options.checkpoint, folder)
        adapters = [_adapter(folder, name, path, options) for name, path in options.adapters.items()]
        files, reference = _ladder(folder, options)
        preferred = _preferred(files)
        described = inspect_gguf(folder / preferred)
        text, why = modelfile(preferred, read_gguf(folder / preferred).metadata)
        if why:
            note(f"the Modelfile has no TEMPLATE: {why}")
        (folder / MODELFILE).write_text(text, encoding="utf-8")
        terms = _copy_terms(folder, options)
        made = _made(options.checkpoint)
        report = report_of(options.name, files, reference, machine(), text=options.text) if reference else None
        facts = ExportFacts(
            options.name, options.terms, described, files, preferred, made, adapters, report, answers,
            _languages(options, made, adapters), terms,
        )  # fmt: skip
        (folder / CARD).write_text(model_page(facts), encoding="utf-8")
        sums = sums_of(folder)
        manifest.update(
            made_by="export", version=__version__, name=options.name, licence=options.terms.licence,
            fingerprint=identity.fingerprint, weights=identity.weights, base_model=options.terms.base,
            modelfile_of=preferred, files=sums,
        )  # fmt: skip
        # The manifest itself is written last, as `new_folder` does for all.
        write_sums(folder, {**sums, MANIFEST: hashlib.sha256(manifest_bytes(manifest)).hexdigest()})
    return manifest


def _answers(file: Path | None) -> dict[str, Any] | None:
    if file is None:
        return None
    found = read_json(file).get("chat")
    if not isinstance(found, dict) or not found.get("models"):
        raise DamagedFileError(
            f"'{file}' holds no answers", hint="It is what this prints: slm evaluate MODEL --chat FILE --json"
        )
    return found


def _copy_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Weights, configuration, tokenizer and template; not what belongs to a run or to this machine."""
    index = [checkpoint / INDEX] if len(weight_files(checkpoint).files) > 1 else []
    left_out = {MANIFEST, INDEX, *(path.name for path in licence_texts(checkpoint))}
    beside = [path for path in shaping_files(checkpoint) if path.parent == checkpoint and path.name not in left_out]
    for path in (*weight_files(checkpoint).files, *index, *beside):
        shutil.copyfile(path, folder / path.name)
    _forget_paths(folder / CONFIG, "")


def _forget_paths(file: Path, instead: str) -> None:
    """Put the name of what was meant in place of a path of the machine."""
    values = read_json(file)
    named = {key: instead for key in _PATHS if values.get(key)}
    if named:
        file.write_text(json.dumps({**values, **named}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _adapter(folder: Path, name: str, source: Path, options: ExportOptions) -> dict[str, Any]:
    """An adapter as PEFT folder and as GGUF; what the card says of it."""
    made = folder / ADAPTERS / f"{name}.gguf"
    made.parent.mkdir(exist_ok=True)
    record = convert_adapter(source, made, options.checkpoint)
    if assumed := assumed_base(source, options.terms.base or options.checkpoint):
        note(assumed)
    into = folder / ADAPTERS / name
    into.mkdir()
    beside = [path for path in shaping_files(source) if path.parent == source and path.name != MANIFEST]
    for path in dict.fromkeys([source / ADAPTER_CONFIG, source / ADAPTER_WEIGHTS, *beside]):
        shutil.copyfile(path, into / path.name)
    _forget_paths(into / ADAPTER_CONFIG, options.terms.base or options.name)
    manifest = read_manifest(source) if (source / MANIFEST).exists() else {}
    identity = identity_of(options.checkpoint)
    told = {key: manifest.get(key) for key in ("lang", "template", "figures")}
    kept = {
        "kind": "adapter",
        "base": {"fingerprint": identity.fingerprint, "weights": identity.weights},
        "data": _without_folders(manifest.get("data")),
        **told,
    }
    text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    (into / MANIFEST).write_text(text, encoding="utf-8")
    return {
        "name": name, "file": f"{ADAPTERS}/{name}.gguf", "size_bytes": record["size_bytes"], "rank": record["rank"],
        "lang": record["lang"], "figures": told["figures"], "data": kept["data"],
    }  # fmt: skip


def _without_folders(data: Any) -> list[dict[str, Any]]:
    rows = data if isinstance(data, list) else []
    return [{**row, "file": Path(str(row.get("file"))).name} for row in rows if isinstance(row, dict)]


def _ladder(folder: Path, options: ExportOptions) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The GGUF files, named after the export, with their figures; and those of the reference."""
    scratch = folder / ".ladder"
    out = scratch / "one.gguf" if len(options.types) == 1 else scratch
    scratch.mkdir()
    records, reference = convert_measured(options.checkpoint, out, options.types, options.on)
    named = []
    for record in records:
        name = f"{options.name}-{record['type']}.gguf"
        Path(record["file"]).rename(folder / name)
        named.append({**record, "file": name})
    scratch.rmdir()
    return named, reference


def _preferred(files: Sequence[Mapping[str, Any]]) -> str:
    chosen = [one for one in files if one["type"] == _PREFERRED]
    return str((chosen or sorted(files, key=lambda one: int(one["size_bytes"])))[0]["file"])


def _copy_terms(folder: Path, options: ExportOptions) -> list[str]:
    """The files with the terms, those of the base and those beside the checkpoint; their names."""
    names = []
    for path in dict.fromkeys((*options.terms.texts, *licence_texts(options.checkpoint))):
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
            names.append(path.name)
    known = _TEXTS / f"{options.terms.licence}.txt"
    if not any("licen" in name.lower() for name in names) and known.is_file():
        shutil.copyfile(known, folder / "LICENSE.txt")
        names.append("LICENSE.txt")
    if not names:
        name = options.terms.name or options.terms.licence
        note(f"no text of the licence ({name}) lies beside the model; put it into the folder if it has to go along")
    return names


def _made(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint's manifest says of its making, without paths."""
    manifest = read_manifest(checkpoint) if (checkpoint / MANIFEST).exists() else {}
    source = manifest.get("source")
    merged = manifest.get("adapters")
    return {
        "by": manifest.get("made_by", "somebody else"),
        "version": (manifest.get("environment") or {}).get("slm", __version__),
        "restored_from": source.get("file") if isinstance(source, dict) else None,
        "data": _without_folders(manifest.get("data")),
        "figures": manifest.get("figures") or {},
        "adapters": [_merged(one) for one in (merged if isinstance(merged, list) else [])],
    }


def _merged(one: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter that was merged: its name and weight, and its data and losses where its folder is still there."""
    folder = Path(str(one.get("path")))
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    return {
        "name": folder.name, "weight": float(one.get("weight", 1)), "data": _without_folders(manifest.get("data")),
        "figures": manifest.get("figures"),
    }  # fmt: skip


def _languages(options: ExportOptions, made: Mapping[str, Any], adapters: Sequence[Mapping[str, Any]]) -> list[str]:
    """The languages that were taught: as asked, else of the base's card, else of the training's figures."""
    if options.languages:
        return list(options.languages)
    known = [part.strip() for part in options.terms.languages.strip("[] ").split(",")]
    taught = made["figures"].get("bits_per_byte") or made["figures"].get("by_language") or {}
    found = [*known, *taught, *(str(one["lang"] or "") for one in adapters)]
    return list(dict.fromkeys(lang for lang in found if lang and lang != "und"))


def check_name(name: str) -> str:
    """The name of an export, which is part of file names and of Ollama's. Raises InputError."""
    if not name or not all(letter.isascii() and (letter.isalnum() or letter in "._-") for letter in name):
        raise InputError(
            f"'{name}' is no name for files", hint="Use letters, digits, '.', '-' and '_': --name my-model"
        )
    return name
