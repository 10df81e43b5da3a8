"""What a `tokenizer.json` and the small JSON files beside it say, as plain data. It knows nothing of GGUF's kinds.

Format: as the `tokenizers` library serializes it, https://github.com/huggingface/tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from convert.vocabulary.base.vocab import CONTROL, NORMAL, UNUSED, USER_DEFINED
from slm.errors import DamagedFileError

MAX_TOKENS = 1 << 22


def content(value: Any) -> str | None:
    """The text of a special token, which settings give as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def model_type(fast: Mapping[str, Any]) -> str:
    """BPE, Unigram, WordPiece ...; files of old versions do not say it, their vocabulary's shape does."""
    model = fast["model"]
    kind = model.get("type")
    return str(kind or ("BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "?"))


def steps(step: Any, children: str) -> list[dict[str, Any]]:
    """The steps of a normalizer (children: normalizers) or pre-tokenizer (pretokenizers), sequences flattened."""
    if not step:
        return []
    if step["type"] == "Sequence":
        return [inner for child in step[children] for inner in steps(child, children)]
    return [step]


def around(post: Any) -> tuple[list[str], list[str]]:
    """The special tokens that a post-processor puts before and after a single text."""
    if not post:
        return [], []
    if post["type"] == "Sequence":
        before: list[str] = []
        after: list[str] = []
        for inner in post["processors"]:
            left, right = around(inner)
            before, after = left + before, after + right
        return before, after
    if post["type"] in ("BertProcessing", "RobertaProcessing"):
        return [post["cls"][0]], [post["sep"][0]]
    if post["type"] != "TemplateProcessing":
        return [], []
    parts = post["single"]
    text = next((i for i, part in enumerate(parts) if "Sequence" in part), len(parts))
    names = [part["SpecialToken"]["id"] if "SpecialToken" in part else "" for part in parts]
    return names[:text], names[text + 1 :]


def token_count(fast: Mapping[str, Any], ids: Iterable[int]) -> int:
    """One more than the highest id of the model's pieces and the added tokens. Raises DamagedFileError when absurd."""
    every = [*ids, *(int(token["id"]) for token in fast.get("added_tokens") or [])]
    if not every or min(every) < 0 or max(every) >= MAX_TOKENS:
        raise DamagedFileError(f"the tokenizer claims {max(every, default=-1) + 1:,} tokens")
    return max(every) + 1


def token_table(fast: Mapping[str, Any], vocab: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """Tokens and types by id: the model's pieces, then added tokens, holes filled with unused ones."""
    added = fast.get("added_tokens") or []
    size = token_count(fast, vocab.values())
    tokens, types = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, id_ in vocab.items():
        tokens[id_], types[id_] = token, NORMAL
    for token_ in added:
        id_ = int(token_["id"])
        tokens[id_], types[id_] = token_["content"], CONTROL if token_.get("special") else USER_DEFINED
    return tokens, types


def byte_of(token: str) -> int | None:
    """The byte that a piece such as `<0x0A>` stands for; None for any other piece."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


def space_prefix(fast: Mapping[str, Any]) -> str:
    """When a space is put before a text: never, first (the whole text) or always (each piece between specials)."""
    for step in steps(fast.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace":
            scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
            return str(scheme)
    for step in steps(fast.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" or is_prefix_rule(step):
            return "always"
    return "never"


def is_prefix_rule(step: Mapping[str, Any]) -> bool:
    """Whether a Replace normalizer writes a space prefix as a rule for `^`, as llm-jp's tokenizers do."""
    return step["type"] == "Replace" and step["content"] == "▁" and step["pattern"].get("Regex") in ("^", r"(?<!\n)^")


def is_space_rule(step: Mapping[str, Any]) -> bool:
    """Whether a Replace normalizer escapes spaces, or takes back the prefix that `^` puts after a newline."""
    if step["type"] != "Replace":
        return False
    pattern = step["pattern"].get("Regex", step["pattern"].get("String"))
    return (pattern, step["content"]) in ((" ", "▁"), (r"\n▁", "\n"), ("\n▁", "\n"))
