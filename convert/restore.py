"""GGUF file -> checkpoint folder that transformers loads: dequantized weights, config, tokenizer, chat template.

It knows nothing of training. Weights go through in pieces of rows, so memory stays small whatever the model's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.output.version import converter_version
from convert.output.vet import vet_model
from convert.source.malformed import load_fast_tokenizer, reading
from convert.source.safetensors_file import SafetensorsWriter
from convert.vocabulary.base.proof import MIXED_LINES, hf_encode, prove_equal, special_lines
from convert.vocabulary.base.vocab import CONTROL, USER_DEFINED, GgufVocabulary, from_metadata
from convert.vocabulary.fast_tokenizer import tokenizer_config, tokenizer_json
from convert.vocabulary.files.ends import ends_from_metadata, template_end
from slm.artifacts import new_folder, require_space
from slm.chat.prompt import TEMPLATES, named_template, template_name_for
from slm.errors import DamagedFileError, InputError, UnsupportedError
from slm.families import Family, family_of_gguf
from slm.families.parts.base import TensorRule, check_shapes
from slm.terminal.console import note, progress
from slm.terminal.text_file import read_text
from slm.weights.gguf_reader import GgufFile, read_gguf
from slm.weights.identity import gguf_fingerprint, identity_of

DTYPES = {"f32": "F32", "bf16": "BF16"}
_PIECE_ELEMENTS = 1 << 22  # 16 MB of float32 at a time

# Tokens that end a turn although the vocabulary's eos is another one; a chat stops at either.
_END_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")


def restore_checkpoint(
    gguf: Path | str, out: Path | str, dtype: str = "f32", chat_template: str | None = None
) -> dict[str, Any]:
    """Write the checkpoint folder `out` from a GGUF model file; returns its manifest.

    dtype: f32 or bf16. chat_template: a named template or a file; default: the file's own, else the named one
    whose markers are in the vocabulary. Raises InputError and its kinds for a file that cannot be restored,
    VerificationError when the restored tokenizer would give other ids than llama.cpp.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype '{dtype}'", hint=f"Known: {', '.join(DTYPES)}.")
    source, out = read_gguf(gguf), Path(out)
    if source.is_adapter:
        raise InputError(
            f"'{source.path}' is an adapter, not a model",
            hint=f"Name its base: slm restore {source.path} --base BASE -o FOLDER",
        )
    family = family_of_gguf(source.architecture)
    vet_model(source)
    with reading(f"the vocabulary of '{source.path}'"):
        vocabulary = from_metadata(source.metadata)
    config = _config(family, source, vocabulary, dtype)
    template, template_name = _template(chat_template, vocabulary)
    vocabulary.chat_template = template
    vocabulary.ends = ends_from_metadata(source.metadata, len(vocabulary.tokens))
    tensors = _check_tensors(family, source, config)
    size = 4 if dtype == "f32" else 2
    require_space(out.parent, size * sum(int(np.prod(info.shape)) for info in source.tensors.values()) + (64 << 20))
    with new_folder(out, "checkpoint") as (folder, manifest):
        _write_tokenizer(folder, vocabulary, config)
        proven = _prove_tokenizer(folder, source, vocabulary)
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", _generation(vocabulary))
        _write_weights(folder / "model.safetensors", family, source, tensors, dtype)
        manifest.update(
            made_by="restore",
            converter=converter_version(),
            fingerprint=gguf_fingerprint(source),
            weights=identity_of(folder).weights,
            architecture=family.gguf_architecture,
            source={"file": source.path.name, "name": source.metadata.get("general.name")},
            dtype=dtype,
            template=template_name,
            tokenizer_lines_proven=proven,
        )
        return dict(manifest)


def _config(family: Family, source: GgufFile, vocabulary: GgufVocabulary, dtype: str) -> dict[str, Any]:
    metadata = dict(source.metadata)
    for name in family.runtime_tensors():
        if name in source.tensors:
            metadata[name] = source.dequantized(name)
    if "token_embd.weight" not in source.tensors:
        raise DamagedFileError(f"'{source.path}' lacks the tensor 'token_embd.weight'")
    with reading(f"the header of '{source.path}'"):
        config = family.to_config(metadata, {name: info.shape for name, info in source.tensors.items()})
    for name in ("bos", "eos", "pad"):
        config[f"{name}_token_id"] = vocabulary.specials.get(name)
    config.update(dtype={"f32": "float32", "bf16": "bfloat16"}[dtype], use_cache=True)
    return config


def _generation(vocabulary: GgufVocabulary) -> dict[str, Any]:
    ends = [vocabulary.specials[n] for n in ("eos",) if n in vocabulary.specials] + vocabulary.ends
    own = template_end(vocabulary)
    ends += [] if own is None else [own]
    controls = {t: i for i, t in enumerate(vocabulary.tokens) if vocabulary.types[i] in (CONTROL, USER_DEFINED)}
    ends += [controls[t] for t in _END_OF_TURN if t in controls]
    ends = list(dict.fromkeys(ends))
    generation: dict[str, Any] = {"eos_token_id": ends[0] if len(ends) == 1 else ends, "do_sample": False}
    for name in ("bos", "pad"):
        if name in vocabulary.specials:
            generation[f"{name}_token_id"] = vocabulary.specials[name]
    return {name: value for name, value in generation.items() if value != []}


def _template(asked: str | None, vocabulary: GgufVocabulary) -> tuple[str | None, str | None]:
    """(template text, its name). A name is given only to a named template."""
    if asked is not None:
        if asked not in TEMPLATES and Path(asked).is_file():
            return read_text(asked), None
        return named_template(asked), asked
    if vocabulary.chat_template:
        return vocabulary.chat_template, None
    markers = {vocabulary.tokens[i] for i, t in enumerate(vocabulary.types) if t in (CONTROL, USER_DEFINED)}
    name = template_name_for(markers)
    note(f"the file has no chat template; its vocabulary calls for '{name}' (another one: --chat-template)")
    return named_template(name), name


def _check_tensors(family: Family, source: GgufFile, config: dict[str, Any]) -> list[tuple[TensorRule, str, str]]:
    """The whole model's tensors, each present, none unknown, shapes belonging together."""
    with reading(f"the header of '{source.path}'"):
        expanded = family.expanded(config)
    missing = [gguf_name for _, _, gguf_name in expanded if gguf_name not in source.tensors]
    if missing:
        raise DamagedFileError(f"'{source.path}' lacks the tensor '{missing[0]}' and {len(missing) - 1} others")
    unknown = set(source.tensors) - {gguf_name for _, _, gguf_name in expanded} - set(family.runtime_tensors())
    if unknown:
        raise UnsupportedError(
            f"'{source.path}' has the tensor '{min(unknown)}', which a {family.gguf_architecture} checkpoint has not"
        )
    width = source.tensors["token_embd.weight"].shape[-1]
    declared = int(config.get("hidden_size") or config["n_embd"])
    check_shapes((config["vocab_size"], declared), (config["vocab_size"], width), "token_embd.weight")
    return expanded


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, vocabulary: GgufVocabulary, config: dict[str, Any]) -> None:
    context = int(config.get("max_position_embeddings", config.get("n_positions", 0)))
    # Compact, without indentation: Gemma's file would otherwise be half as large again.
    fast = json.dumps(tokenizer_json(vocabulary), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(fast, encoding="utf-8", errors="surrogateescape")
    _write_json(folder / "tokenizer_config.json", tokenizer_config(vocabulary, context))
    if vocabulary.chat_template:
        (folder / "chat_template.jinja").write_text(vocabulary.chat_template, encoding="utf-8")


def _prove_tokenizer(folder: Path, source: GgufFile, vocabulary: GgufVocabulary) -> int:
    tokenizer = load_fast_tokenizer(folder / "tokenizer.json")
    added = [i for i, t in enumerate(vocabulary.types) if t in (CONTROL, USER_DEFINED)]
    lines = [*MIXED_LINES, *special_lines(vocabulary.tokens, added)]
    return prove_equal(source.path, hf_encode(tokenizer), lines=lines)


def _pieces(source: GgufFile, name: str, rule: TensorRule) -> Iterator[npt.NDArray[np.float32]]:
    """The tensor in checkpoint form, in pieces of whole rows where its transform allows it."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    info = source.tensors[name]
    if not rule.transform.row_wise or len(info.shape) < 2:
        yield _finite(rule.transform.to_checkpoint(source.dequantized(name)), name)
        return
    raw = source.raw(name).reshape(info.shape[0], -1)
    step = max(1, _PIECE_ELEMENTS // int(np.prod(info.shape[1:])))
    for start in range(0, info.shape[0], step):
        try:
            values = dequantize(raw[start : start + step], GGMLQuantizationType[info.type_name])
        except NotImplementedError as error:
            raise UnsupportedError(f"cannot dequantize {info.type_name} (tensor '{name}')") from error
        yield _finite(rule.transform.to_checkpoint(values.astype(np.float32, copy=False)), name)


def _finite(values: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise DamagedFileError(f"the tensor '{name}' has NaN or infinite values")
    return values


def _write_weights(
    path: Path, family: Family, source: GgufFile, tensors: list[tuple[TensorRule, str, str]], dtype: str
) -> None:
    shapes = {}
    for rule, name, gguf_name in tensors:
        shape = source.tensors[gguf_name].shape
        shapes[name] = rule.transform.gguf_shape(shape)  # a transposition is its own inverse
    total = sum(int(np.prod(shape)) for shape in shapes.values()) * (4 if dtype == "f32" else 2)
    with path.open("wb") as file, progress(f"restoring {family.gguf_architecture}", total / 1e6, "MB") as done:
        writer = SafetensorsWriter(file, shapes, DTYPES[dtype])
        written = 0
        for rule, _, gguf_name in tensors:
            written += writer.write(_pieces(source, gguf_name, rule))
            done(written / 1e6)
