"""The model card (README.md) and the Ollama Modelfile beside an export, from what is in the GGUF file itself.

`model_card` is pure; `write_card` reads the file and writes both. A README.md or Modelfile that it did not write
itself is never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.publish.inspect import inspect_gguf
from convert.publish.modelfile import MARK, modelfile
from convert.quality.report import markdown
from slm.artifacts import new_file
from slm.errors import InputError, MissingFileError, SlmError
from slm.terminal.console import note
from slm.weights.gguf_reader import read_gguf
from slm.weights.identity import names_of, tensors_hash, trained_on

_CARD_MARK = "<!-- Written by slm convert. -->"
CARD, MODELFILE = "README.md", "Modelfile"
_LICENCE_KEYS = ("license", "license_name", "license_link", "base_model", "language")


def check_replaceable(folder: Path) -> None:
    """Raise InputError when README.md or Modelfile of the folder is somebody else's; asked before any work is done."""
    for name, mark in ((CARD, _CARD_MARK), (MODELFILE, MARK)):
        path = folder / name
        if path.exists() and mark not in path.read_text(encoding="utf-8", errors="replace"):
            raise InputError(
                f"'{path}' was not written by this command; it is left untouched",
                hint="Choose another output folder with -o, or leave --card out.",
            )


def source_facts(checkpoint: Path) -> dict[str, str]:
    """Licence, base model and languages from the front matter of the checkpoint's own README.md; {} without one."""
    path = checkpoint / CARD
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    facts = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon and key in _LICENCE_KEYS and value.strip():
            facts[key] = value.strip()
    return facts


def model_card(
    files: Sequence[Mapping[str, Any]],
    described: Mapping[str, Any],
    facts: Mapping[str, str],
    report: Mapping[str, Any] | None = None,
) -> str:
    """The card of one or several GGUF files of a model (or of an adapter).

    files: {file, type, size_bytes} each; described: `inspect_gguf` of the first; facts: `source_facts`.
    """
    is_adapter = described["kind"] == "adapter"
    name = str(described["name"] or Path(str(files[0]["file"])).stem)
    front = [f"{key}: {value}" for key, value in facts.items()]
    tags = ["gguf", "llama.cpp", *(["lora"] if is_adapter else [])]
    lines = ["---", *front, "library_name: gguf", f"tags: [{', '.join(tags)}]", "---", _CARD_MARK, "", f"# {name}", ""]
    kind = f"A LoRA adapter for {described['architecture']}" if is_adapter else f"A {described['architecture']} model"
    lines += [f"{kind} in GGUF, {described['parameters'] / 1e6:,.1f} million parameters.", ""]
    if "license" not in facts:
        lines += ["The licence of the source model applies; it did not name one where it was converted.", ""]
    lines += ["| file | type | size (MB) |", "|---|---|---|"]
    for one in files:
        lines.append(f"| `{Path(str(one['file'])).name}` | {one.get('type', 'f32')} | {one['size_bytes'] / 1e6:,.1f} |")
    lines += ["", "## Use", "", "```sh", *_use(files, is_adapter), "```", "", "## What is in it", ""]
    lines += [f"- {key}: {value}" for key, value in _facts(described) if value not in (None, "")]
    if report is not None:
        lines += ["", *("#" + line if line.startswith("#") else line for line in markdown(report).splitlines())]
    return "\n".join(lines) + "\n"


def _use(files: Sequence[Mapping[str, Any]], is_adapter: bool) -> list[str]:
    first = Path(str(files[0]["file"])).name
    if is_adapter:
        return [f"slm chat BASE.gguf --adapter name={first}", f"llama-cli -m BASE.gguf --lora {first}"]
    tag = Path(first).stem.lower()
    return [f"slm chat {first}", f"llama-cli -m {first}", f"ollama create {tag} -f {MODELFILE} && ollama run {tag}"]


def _facts(described: Mapping[str, Any]) -> list[tuple[str, Any]]:
    vocabulary, adapter = described.get("vocabulary", {}), described.get("adapter", {})
    return [
        ("context length", described.get("context_length")),
        ("vocabulary", f"{vocabulary['tokens']:,} tokens, {vocabulary['model']}" if vocabulary else None),
        ("chat template", "yes" if described["template"] else "none"),
        ("rank", adapter.get("rank")),
        ("alpha", adapter.get("alpha")),
        ("language", adapter.get("lang")),
        ("fingerprint of the source's weights", described["fingerprint"]),
        ("fingerprint of the base", adapter.get("base_fingerprint")),
    ]


def write_card(
    results: Sequence[Mapping[str, Any]], checkpoint: Path, report: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write README.md and Modelfile beside the first file (of several: for the largest quantized one).

    Raises InputError for files of somebody else's, MissingFileError for an adapter whose base GGUF is not there.
    """
    folder = Path(str(results[0]["file"])).parent
    check_replaceable(folder)
    main = Path(str(max(results, key=_preference)["file"]))
    described = inspect_gguf(main)
    adapter_template: str | None = None
    if described["kind"] == "adapter":
        base = base_beside(main)
        adapter_template = described["template"]
        text, why = modelfile(base.name, read_gguf(base).metadata, adapter=main.name, template=adapter_template)
    else:
        text, why = modelfile(main.name, read_gguf(main).metadata)
    if why:
        note(f"the Modelfile has no TEMPLATE: {why}")
    card = model_card(results, described, source_facts(checkpoint), report)
    written = []
    for name, content in ((CARD, card), (MODELFILE, text)):
        with new_file(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
        written.append(folder / name)
    return written


def _preference(result: Mapping[str, Any]) -> tuple[bool, int]:
    return result.get("type") not in ("f32", "f16", "bf16"), int(result["size_bytes"])


def base_beside(adapter: Path) -> Path:
    """The GGUF model in the adapter's folder that is its base, the smallest of several.

    Raises MissingFileError: Ollama needs both files in one place, and another base would give wrong answers.
    """
    found, wanted = [], frozenset(trained_on(read_gguf(adapter).metadata))
    for path in adapter.parent.glob("*.gguf"):
        if path == adapter:
            continue
        try:
            file = read_gguf(path)
        except SlmError:
            continue  # somebody else's file
        if wanted and not file.is_adapter and wanted & (names_of(file.metadata) or {tensors_hash(file)}):
            found.append(path)
    if not found:
        raise MissingFileError(
            f"the base of '{adapter.name}' is not in '{adapter.parent}', and a Modelfile has to name it",
            hint=f"Convert it there first: slm convert BASE -o {adapter.parent}/base.gguf --type q4_k_m",
        )
    return min(found, key=lambda path: path.stat().st_size)
