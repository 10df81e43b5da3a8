"""Names what is given as training data and is none: tables, folders of the datasets library, archives; with the command
that makes JSONL or text of it. It knows nothing of lines or formats."""

from __future__ import annotations

from pathlib import Path

from slm.errors import DamagedFileError, UnsupportedError
from slm.weights.checkpoint_files import pointer_of

# What files begin with that are no text (each format's specification) -> its name, and the command that unpacks it.
_PACKED = {
    b"\x1f\x8b": ("gzip data", "gunzip -k"),
    b"BZh": ("bzip2 data", "bunzip2 -k"),
    b"\xfd7zXZ\x00": ("xz data", "unxz -k"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "unzstd"),
    b"PK\x03\x04": ("a zip archive", "unzip"),
    b"%PDF": ("a PDF document", ""),
    b"GGUF": ("a GGUF model", ""),
    b"SQLite": ("a SQLite database", ""),
}
# The same of tables that the datasets library reads -> its name, and how it opens one.
_TABLES = {
    b"PAR1": ("a Parquet table", "Dataset.from_parquet({name!r})"),
    b"ARROW1": ("an Arrow table", "Dataset.from_file({name!r})"),
    b"\xff\xff\xff\xff": ("an Arrow table", "Dataset.from_file({name!r})"),
}
_SAVED = ("state.json", "dataset_info.json", "dataset_dict.json")
_CSV = "import csv, json, sys; [print(json.dumps(row, ensure_ascii=False)) for row in csv.DictReader(sys.stdin{how})]"


def refuse_other_kinds(path: Path) -> None:
    """Raise UnsupportedError or DamagedFileError for what is no text or JSONL by its name or its first bytes."""
    if path.is_dir():
        _refuse_folder(path)
    elif path.is_file():
        _refuse_file(path)


def _refuse_folder(folder: Path) -> None:
    if any((folder / name).exists() for name in _SAVED):
        split = "['train']" if (folder / "dataset_dict.json").exists() else ""
        raise UnsupportedError(
            f"'{folder}' is a folder of the datasets library (save_to_disk)",
            hint=_export(f"load_from_disk({str(folder)!r}){split}", folder),
        )
    if any(folder.rglob("*.parquet")) and not any(folder.glob("*.jsonl")):
        raise UnsupportedError(
            f"'{folder}' is a folder of Parquet tables",
            hint=_export(f"load_dataset({str(folder)!r}, split='train')", folder),
        )


def _refuse_file(file: Path) -> None:
    with file.open("rb") as stream:
        head = stream.read(256)
    if kind := pointer_of(head):
        command = "git lfs pull" if kind == "Git LFS" else "git annex get"
        raise DamagedFileError(f"'{file}' is a {kind} pointer, not the data", hint=f"Fetch the file with: {command}")
    for magic, (name, opened) in _TABLES.items():
        if head.startswith(magic):
            raise UnsupportedError(f"'{file}' is {name}, not text", hint=_export(opened.format(name=str(file)), file))
    for magic, (name, command) in _PACKED.items():
        if head.startswith(magic):
            hint = f"Unpack it: {command} '{file}'" if command else "Give plain text or JSONL."
            raise DamagedFileError(f"'{file}' is {name}, not text", hint=hint)
    if file.suffix.lower() in (".csv", ".tsv"):
        how = ", delimiter='\\t'" if file.suffix.lower() == ".tsv" else ""
        command = f"python -c \"{_CSV.format(how=how)}\" < '{file}' > '{file.with_suffix('.jsonl')}'"
        raise UnsupportedError(
            f"'{file}' is a table of values separated by {'tabs' if how else 'commas'}, not JSONL",
            hint=f"Write it as JSONL: {command}",
        )


def _export(opened: str, path: Path) -> str:
    name = opened.split("(")[0].split(".")[0]
    target = path.with_name(f"{path.stem}-examples.jsonl")
    code = f"from datasets import {name}; {opened}.to_json({str(target)!r}, force_ascii=False)"
    return f'Write it as JSONL: python -c "{code}" (after: pip install datasets)'
