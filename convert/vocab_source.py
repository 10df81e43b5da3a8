"""Reads a checkpoint's tokenizer files into a Vocabulary, with the source tokenizer to prove it against.

It knows nothing of weights. Kinds: byte-level BPE and SentencePiece BPE from `tokenizer.json`; SentencePiece BPE
and unigram from `tokenizer.model` / `spiece.model`; unigram from `tokenizer.json`.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from convert.charsmap import lower_casing, read_charsmap, write_charsmap
from convert.fast_tokenizer import REGEX_OF_PRE
from convert.proof import MIXED_LINES, Encode, hf_encode
from convert.sentencepiece_model import BPE, UNIGRAM, SentencePieceModel, read_sentencepiece
from convert.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary
from slm.errors import DamagedFileError, MissingFileError, UnsupportedError

_GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPECIALS = ("bos", "eos", "unk", "sep", "pad", "mask")
_SPM_FILES = ("spiece.model", "tokenizer.model")
_TRIM = re.compile(r"(\\A|\^)? \+(\\z|\\Z|\$)?\|?(\\A|\^)? ?\+?(\\z|\\Z|\$)?")  # spaces at the text's ends
_UNKNOWN_PENALTY = 10.0  # sentencepiece and llama.cpp score an unknown character so far below the worst piece


@dataclass
class Source:
    """A vocabulary, how the source tokenizer encodes (loaded on first use), and the lines on which to compare them.

    `caveats` are known differences of the runtime that the lines leave out; they are told to the user.
    """

    vocabulary: Vocabulary
    encoder: Callable[[], Encode]
    lines: list[str] = field(default_factory=lambda: list(MIXED_LINES))
    special_ids: list[int] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DamagedFileError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"'{path}' is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"'{path}' is not a JSON object")
    return value


def read_vocabulary(folder: Path, config: Mapping[str, Any]) -> Source:
    """The tokenizer of a checkpoint folder. Raises MissingFileError, DamagedFileError or UnsupportedError."""
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    models = [folder / name for name in _SPM_FILES if (folder / name).exists()]
    try:
        if (folder / "tokenizer.json").exists():
            fast = read_json(folder / "tokenizer.json")
            if models and _model_type(fast) == "Unigram":
                # The model file is the original; the fast form of a unigram loses its unknown id in some versions.
                normalizers = _steps(fast.get("normalizer"), "normalizers")
                lower = any(step["type"] == "Lowercase" for step in normalizers)
                source = _from_sentencepiece(models[0], settings, lower)
            else:
                source = _from_fast(folder / "tokenizer.json", fast)
        elif models:
            source = _from_sentencepiece(models[0], settings, False)
        else:
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:10])
            raise MissingFileError(
                f"'{folder}' has no tokenizer (tokenizer.json, spiece.model or tokenizer.model)", found=found
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedFileError(f"the tokenizer of '{folder}' is not as its kind must be: {error!r}") from error
    _special_ids(source.vocabulary, folder, settings, config)
    source.vocabulary.chat_template = chat_template(folder, settings)
    return source


def chat_template(folder: Path, settings: Mapping[str, Any] | None = None) -> str | None:
    """The folder's chat template: `chat_template.jinja`, else the one in tokenizer_config.json (the `default` one)."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if settings is None:
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.exists() else {}
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None


def _content(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _special_ids(vocabulary: Vocabulary, folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Fill `specials`, explicitly: the runtime's assumptions about absent ones are wrong for most vocabularies."""
    path = folder / "special_tokens_map.json"
    named = {**(read_json(path) if path.exists() else {}), **settings}
    ids = {token: id_ for id_, token in enumerate(vocabulary.tokens)}
    for name in _SPECIALS:
        token = _content(named.get(f"{name}_token"))
        id_ = ids.get(token) if token is not None else None
        if id_ is None:
            number = config.get(f"{name}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            id_ = number if isinstance(number, int) and 0 <= number < len(ids) else None
        if id_ is not None:
            vocabulary.specials[name] = id_
            if name != "unk" and vocabulary.types[id_] in (NORMAL, USER_DEFINED):
                vocabulary.types[id_] = CONTROL
    for value in ([named.get("cls_token")], named.get("additional_special_tokens"), named.get("extra_special_tokens")):
        for token in value if isinstance(value, list) else []:
            id_ = ids.get(_content(token) or "")
            if id_ is not None and vocabulary.types[id_] in (NORMAL, USER_DEFINED):
                vocabulary.types[id_] = CONTROL
    if "eos" not in vocabulary.specials:
        raise DamagedFileError(
            f"'{folder}' names no end-of-text token",
            hint="Set eos_token in tokenizer_config.json to one of its tokens.",
        )
    for name in ("bos", "pad"):
        vocabulary.specials.setdefault(name, vocabulary.specials["eos"])


def _model_type(fast: Mapping[str, Any]) -> str:
    model = fast["model"]
    kind = model.get("type")
    return str(kind or ("BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "?"))


def _steps(step: Any, children: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences flattened."""
    if not step:
        return []
    if step["type"] == "Sequence":
        return [inner for child in step[children] for inner in _steps(child, children)]
    return [step]


def _from_fast(path: Path, fast: Mapping[str, Any]) -> Source:
    kind = _model_type(fast)
    steps = _steps(fast.get("pre_tokenizer"), "pretokenizers")
    if kind == "BPE" and any(step["type"] == "ByteLevel" for step in steps):
        source = _byte_level(fast, steps)
    elif kind == "BPE" and fast["model"].get("byte_fallback"):
        source = _sentencepiece_bpe(fast, steps)
    elif kind == "Unigram":
        source = _unigram(fast, steps)
    else:
        raise UnsupportedError(
            f"the tokenizer of '{path.parent}' is of a kind that is not supported (model {kind})",
            hint="Supported: byte-level BPE, SentencePiece BPE with byte fallback, SentencePiece unigram.",
        )

    def load() -> Encode:
        from tokenizers import Tokenizer

        return hf_encode(Tokenizer.from_file(str(path)))

    source.encoder = load
    source.vocabulary.add_bos = _adds(fast.get("post_processor"), first=True)
    # An end-of-text token after every prompt would end a causal model's answer before it begins.
    source.vocabulary.add_eos = False
    return source


def _adds(post: Any, *, first: bool) -> bool:
    """Whether a post-processor puts a special token before (or after) a single text."""
    if not post:
        return False
    if post["type"] == "Sequence":
        return any(_adds(inner, first=first) for inner in post["processors"])
    return post["type"] == "TemplateProcessing" and "SpecialToken" in post["single"][0 if first else -1]


def _tokens(fast: Mapping[str, Any], vocab: Mapping[str, int]) -> Vocabulary:
    """Tokens and types of a fast tokenizer: model pieces, then added tokens, holes filled with unused ones."""
    added = fast.get("added_tokens") or []
    size = max([*vocab.values(), *(int(t["id"]) for t in added)], default=-1) + 1
    if not 0 < size <= 1 << 22:
        raise DamagedFileError(f"the tokenizer claims {size:,} tokens")
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, id_ in vocab.items():
        tokens[id_], types[id_] = token, NORMAL
    for token_ in added:
        id_ = int(token_["id"])
        tokens[id_], types[id_] = token_["content"], CONTROL if token_.get("special") else USER_DEFINED
    return Vocabulary("gpt2", tokens, types)


def _added_ids(vocabulary: Vocabulary) -> list[int]:
    return [i for i, t in enumerate(vocabulary.types) if t in (CONTROL, USER_DEFINED)]


def _byte_level(fast: Mapping[str, Any], steps: list[dict[str, Any]]) -> Source:
    model = fast["model"]
    vocabulary = _tokens(fast, model["vocab"])
    vocabulary.pre = pre_name(steps, bool(model.get("ignore_merges")))
    vocabulary.merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    source = Source(vocabulary, lambda: lambda _: [], special_ids=_added_ids(vocabulary))
    normalizers = [step["type"] for step in _steps(fast.get("normalizer"), "normalizers")]
    if normalizers == ["NFC"]:
        source.lines = [unicodedata.normalize("NFC", line) for line in source.lines]
        source.caveats.append("the runtime does not compose characters (NFC): decomposed accents get other ids")
    elif normalizers:
        raise UnsupportedError(f"the tokenizer normalizes text ({', '.join(normalizers)}), which the runtime does not")
    return source


def pre_name(steps: list[dict[str, Any]], ignore_merges: bool) -> str:
    """llama.cpp's name of a byte-level pre-tokenizer, by its structure and regex. Raises UnsupportedError.

    Names and regexes: src/llama-vocab.cpp, `llm_tokenizer_bpe`. It is proven id for id afterwards.
    """
    kinds = [step["type"] for step in steps]
    last = steps[-1]
    if last.get("add_prefix_space"):
        raise UnsupportedError("the tokenizer puts a space before each text (add_prefix_space), the runtime does not")
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        regex = steps[0]["pattern"].get("Regex")
        names = {_GPT2_REGEX: "gpt-2", **{text: name for name, text in REGEX_OF_PRE.items()}}
        if regex in names:
            # Llama 3's regex without `ignore_merges` is what llama.cpp calls dbrx.
            return "dbrx" if names[regex] == "llama-bpe" and not ignore_merges else names[regex]
    raise UnsupportedError(
        f"the pre-tokenizer ({', '.join(kinds)}) is not one the runtime knows",
        hint="Supported: those of gpt-2, smollm, llama-bpe, dbrx, qwen2.",
    )


def _space_prefix(fast: Mapping[str, Any], steps: list[dict[str, Any]]) -> str:
    """When a space is put before a text: never, first (the whole text) or always (each piece between specials)."""
    for step in steps:
        if step["type"] == "Metaspace":
            scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
            return str(scheme)
    normalizers = _steps(fast.get("normalizer"), "normalizers")
    return "always" if any(step["type"] == "Prepend" for step in normalizers) else "never"


def _sentencepiece_bpe(fast: Mapping[str, Any], steps: list[dict[str, Any]]) -> Source:
    model = fast["model"]
    vocabulary = _tokens(fast, model["vocab"])
    vocabulary.model = "llama"
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    unreached = -float(len(model["merges"]) + 1)
    unknown = model.get("unk_token")
    for id_, token in enumerate(vocabulary.tokens):
        kind = vocabulary.types[id_]
        vocabulary.scores.append(-float(ranks[token]) if token in ranks else unreached)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">") and kind == NORMAL:
            vocabulary.types[id_] = BYTE
        elif token == unknown:
            vocabulary.types[id_] = UNKNOWN
            vocabulary.specials["unk"] = id_
        elif kind == USER_DEFINED:
            # Added tokens are looked for in the raw text, where a space is a space.
            vocabulary.tokens[id_] = token.replace("▁", " ")
    scheme = _space_prefix(fast, steps)
    vocabulary.add_space_prefix = scheme != "never"
    source = Source(vocabulary, lambda: lambda _: [], special_ids=_added_ids(vocabulary))
    if scheme == "first":
        source.special_ids = []
        source.caveats.append("after a special token the runtime puts a space that the tokenizer does not put")
    return source


def _unigram(fast: Mapping[str, Any], steps: list[dict[str, Any]]) -> Source:
    model = fast["model"]
    pieces = SentencePieceModel(kind=UNIGRAM, byte_fallback=bool(model.get("byte_fallback")))
    for piece, score in model["vocab"]:
        pieces.pieces.append(piece)
        pieces.scores.append(float(score))
        pieces.types.append(BYTE if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">") else NORMAL)
    unknown = int(model["unk_id"])
    pieces.types[unknown] = UNKNOWN
    pieces.ids = {"unk": unknown}
    lower = False
    pieces.remove_extra_whitespaces = False
    for step in _steps(fast.get("normalizer"), "normalizers"):
        if step["type"] == "Precompiled":
            pieces.charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
        elif step["type"] == "Replace" and step["pattern"].get("Regex") == " {2,}":
            pieces.remove_extra_whitespaces = True
        elif step["type"] == "Lowercase":
            lower = True
        elif step["type"] == "Replace" and step["content"] == "" and _TRIM.fullmatch(step["pattern"].get("Regex", "")):
            continue  # the runtime drops outer spaces whenever it merges inner ones
        elif step["type"] not in ("Strip", "Nmt"):
            raise UnsupportedError(f"the tokenizer's normalizer '{step['type']}' is not supported for a unigram model")
    if any(step["type"] == "WhitespaceSplit" for step in steps):
        pieces.remove_extra_whitespaces = True  # splitting at white space drops what is more than one
    scheme = _space_prefix(fast, steps)
    pieces.add_dummy_prefix = scheme != "never"
    vocabulary = _ugm(pieces, lower)
    for token in fast.get("added_tokens") or []:
        id_ = int(token["id"])
        vocabulary.tokens += [f"[PAD{i}]" for i in range(len(vocabulary.tokens), id_ + 1)]
        vocabulary.types += [UNUSED] * (id_ + 1 - len(vocabulary.types))
        vocabulary.scores += [0.0] * (id_ + 1 - len(vocabulary.scores))
        vocabulary.tokens[id_] = token["content"]
        if vocabulary.types[id_] != UNKNOWN:
            vocabulary.types[id_] = CONTROL if token.get("special") else USER_DEFINED
    source = Source(vocabulary, lambda: lambda _: [])
    if pieces.charsmap:
        # `tokenizers` maps whole graphemes where SentencePiece and the runtime map the longest known sequence.
        source.lines = [unicodedata.normalize("NFC", line) for line in source.lines]
        source.caveats.append(
            "decomposed accents get SentencePiece's ids, which differ from the `tokenizers` library's"
        )
    return source


def _ugm(model: SentencePieceModel, lower: bool) -> Vocabulary:
    """A unigram model as llama.cpp's `t5`, which has no byte fallback of its own.

    ASCII byte pieces become ordinary pieces of the character itself, scored as an unknown character is, so that the
    best path stays the same; other unknown characters become the unknown token.
    """
    vocabulary = Vocabulary(
        "t5",
        list(model.pieces),
        list(model.types),
        list(model.scores),
        specials={name: id_ for name, id_ in model.ids.items() if 0 <= id_ < len(model.pieces)},
        add_space_prefix=model.add_dummy_prefix,
        remove_extra_whitespaces=model.remove_extra_whitespaces,
        charsmap=model.charsmap,
        lower_case=lower,
    )
    known = set(model.pieces)
    worst = min((s for s, t in zip(model.scores, model.types, strict=True) if t == NORMAL), default=0.0)
    for id_, piece in enumerate(model.pieces):
        if model.types[id_] == BYTE:
            value = int(piece[3:5], 16)
            if 0 < value < 0x80 and chr(value) not in known and value != 0x20:
                vocabulary.tokens[id_], vocabulary.types[id_] = chr(value), NORMAL
                vocabulary.scores[id_] = worst - _UNKNOWN_PENALTY
    if lower:
        vocabulary.charsmap = _lower_cased(model.charsmap)
    return vocabulary


@lru_cache(maxsize=2)
def _lower_cased(charsmap: bytes) -> bytes:
    """A character map that lower-cases first; a few seconds for nmt_nfkc's 225,000 sequences."""
    return write_charsmap(lower_casing(read_charsmap(charsmap)))


def _from_sentencepiece(path: Path, settings: Mapping[str, Any], lower: bool) -> Source:
    model = read_sentencepiece(path)
    lower = lower or bool(settings.get("do_lower_case"))
    if model.space_is_suffix or not model.escape_whitespaces:
        raise UnsupportedError(f"'{path}' treats white space in a way the runtime does not")
    if model.kind == UNIGRAM:
        vocabulary = _ugm(model, lower)
    elif model.kind == BPE:
        if lower:
            raise UnsupportedError(f"'{path}' is a SentencePiece BPE model that lower-cases; the runtime cannot")
        vocabulary = Vocabulary("llama", list(model.pieces), list(model.types), list(model.scores))
        vocabulary.specials = {name: id_ for name, id_ in model.ids.items() if 0 <= id_ < len(model.pieces)}
        vocabulary.add_space_prefix = model.add_dummy_prefix
        vocabulary.add_bos = bool(settings.get("add_bos_token", True))
    else:
        raise UnsupportedError(
            f"'{path}' is a SentencePiece model of kind {model.kind}", hint="Supported: unigram, BPE."
        )

    def load() -> Encode:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return lambda text: list(processor.encode(text.lower() if lower else text))

    return Source(vocabulary, load)
