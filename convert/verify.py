"""Compares a GGUF with its reference: token ids, logits, top-1 agreement, KL divergence, language by language.

The reference is a checkpoint folder (run by transformers, with PEFT for an adapter) or another GGUF. It knows
nothing of how either was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.proof import MIXED_LINES
from convert.quantize import types_written
from slm.artifacts import require_file
from slm.errors import InputError, MismatchError, UnsupportedError
from slm.gguf_reader import GgufFile, read_gguf
from slm.llama import all_logits, open_adapter, open_context, open_model, set_adapters, tokenize

Logits = npt.NDArray[np.float32]
_MAX_TOKENS = 128  # a piece of text; logits of Gemma's vocabulary take 1 MB a token

# What is compared when no text is given: ordinary prose, so that the figures mean something.
_TEXTS = {
    "en": ["The company keeps its records in a small office near the station, and every visitor signs a book.",
           "Water boils at a lower temperature in the mountains because the air presses on it less."],
    "ja": ["会社の記録は駅の近くの小さな事務所に保管されており、来客は全員名簿に名前を書きます。",
           "山の上では空気の圧力が低いため、水はより低い温度で沸騰します。"],
    "mixed": ["今日は emoji 😀 と Tokyo の天気を print('晴れ') で表示します。"],
}  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """What may at most be lost. relative: max |difference| / max |reference logit|; kl in nats, mean over tokens."""

    relative: float
    top1: float
    kl: float


# Measured on SmolLM2-135M and Gemma-3-270m with room to spare; published figures are for models 50 times as large,
# which lose less. Q4_0 of weights that come from another 4-bit grid is the worst case: KL 0.5, top-1 0.5.
# llama.cpp multiplies quantized weights with activations rounded to 8 bits.
_BOUNDS = {
    "f32": Bounds(0.01, 0.99, 0.001), "f16": Bounds(0.02, 0.98, 0.002), "bf16": Bounds(0.05, 0.95, 0.01),
    "q8_0": Bounds(0.15, 0.90, 0.05), "q6": Bounds(0.25, 0.85, 0.10), "q5": Bounds(0.40, 0.75, 0.25),
    "q4": Bounds(0.80, 0.40, 0.80), "low": Bounds(1.0, 0.40, 2.0),
}  # fmt: skip


def bounds_for(file: GgufFile) -> tuple[str, Bounds]:
    """The default bounds by the coarsest type that a sixth or more of a file's matrices have."""
    types = {t: n for t, n in types_written(file).items() if t != "F32"} or {"F32": 1}
    total = sum(types.values())
    ladder = [
        ("low", ("Q2", "Q3", "IQ1", "IQ2", "IQ3", "TQ")),
        ("q4", ("Q4", "IQ4", "MXFP4")),
        ("q5", ("Q5",)),
        ("q6", ("Q6",)),
        ("q8_0", ("Q8",)),
        ("bf16", ("BF16",)),
        ("f16", ("F16",)),
    ]
    share = 0.0
    for name, starts in ladder:
        share += sum(n for t, n in types.items() if t.startswith(starts)) / total
        if share >= 1 / 6:
            return name, _BOUNDS[name]
    return "f32", _BOUNDS["f32"]


@dataclass(frozen=True)
class Figures:
    """One text's or language's comparison."""

    tokens: int
    max_relative_difference: float
    top1_agreement: float
    mean_kl_divergence: float


def compare_logits(found: Logits, expected: Logits) -> Figures:
    """Figures of two (tokens, vocabulary) arrays; KL(expected || found) in nats, mean over tokens."""
    left, right = expected.astype(np.float64), found.astype(np.float64)
    scale = float(np.abs(left).max()) or 1.0
    log_p, log_q = _log_softmax(left), _log_softmax(right)
    kl = float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())
    return Figures(
        tokens=len(left),
        max_relative_difference=float(np.abs(left - right).max()) / scale,
        top1_agreement=float((left.argmax(-1) == right.argmax(-1)).mean()),
        mean_kl_divergence=max(0.0, kl),
    )


def _log_softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = values - values.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _pooled(parts: Sequence[Figures]) -> Figures:
    total = sum(part.tokens for part in parts)
    return Figures(
        tokens=total,
        max_relative_difference=max(part.max_relative_difference for part in parts),
        top1_agreement=sum(part.top1_agreement * part.tokens for part in parts) / total,
        mean_kl_divergence=sum(part.mean_kl_divergence * part.tokens for part in parts) / total,
    )


def broken_bounds(figures: Figures, bounds: Bounds) -> list[str]:
    """A sentence for each bound that is broken."""
    broken = []
    if not figures.max_relative_difference <= bounds.relative:
        broken.append(f"max relative difference {figures.max_relative_difference:.4g} > {bounds.relative:g}")
    if not figures.top1_agreement >= bounds.top1:
        broken.append(f"top-1 agreement {figures.top1_agreement:.4f} < {bounds.top1:g}")
    if not figures.mean_kl_divergence <= bounds.kl:
        broken.append(f"mean KL divergence {figures.mean_kl_divergence:.4g} > {bounds.kl:g}")
    return broken


@dataclass(frozen=True)
class _Runner:
    """Something that gives ids for a text and logits for ids."""

    encode: Callable[[str], list[int]]
    logits: Callable[[list[int]], Logits]
    start: tuple[int, ...] = ()  # the BOS that the vocabulary puts before a text; models answer wildly without it


def _gguf_runner(stack: ExitStack, path: Path, adapter: Path | None) -> _Runner:
    model = open_model(stack, path)
    # Without flash attention and with an f32 cache: the runtime's f16 shortcuts are no property of the file.
    context = open_context(
        stack, model, n_ctx=_MAX_TOKENS, n_batch=_MAX_TOKENS, flash_attention=False, exact_cache=True
    )
    if adapter is not None:
        set_adapters(context, [(open_adapter(stack, model, adapter), 1.0)])
    return _Runner(
        lambda text: tokenize(model, text, add_special=False, parse_special=True),
        lambda ids: all_logits(model, context, ids),
        tuple(tokenize(model, "", add_special=True, parse_special=False)),
    )


def _checkpoint_runner(folder: Path, peft: Path | None) -> _Runner:
    import torch
    import transformers

    from convert.checkpoint import read_checkpoint
    from convert.vocab_source import read_vocabulary

    # The tokenizer as conversion reads it: some classes of transformers change it while loading.
    encode = read_vocabulary(folder, read_checkpoint(folder).config).encoder()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if peft is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(peft))
    model.eval()

    def logits(ids: list[int]) -> Logits:
        with torch.no_grad():
            result: Logits = model(torch.tensor([ids])).logits[0].float().numpy()
        return result

    return _Runner(encode, logits)


def verify_model(
    candidate: Path | str,
    against: Path | str,
    *,
    adapter: Path | str | None = None,
    peft: Path | str | None = None,
    texts: Mapping[str, Path] | None = None,
    bounds: Bounds | None = None,
    max_pieces: int = 8,
) -> dict[str, Any]:
    """Compare a GGUF (with an adapter GGUF) with a checkpoint folder (with a PEFT folder) or a GGUF.

    texts: {language: file}; a piece is up to 128 tokens, at most `max_pieces` a language. Returns {ok, broken,
    bounds, token_ids, by_language, overall, ...}; `ok` says whether every bound holds.
    """
    file = read_gguf(candidate)
    if file.is_adapter:
        raise InputError(f"'{file.path}' is an adapter", hint="Give its base as CANDIDATE and it as --adapter.")
    reference, adapter_path = Path(against), None if adapter is None else read_gguf(adapter).path
    if (adapter is None) != (peft is None) and reference.is_dir():
        raise InputError("--adapter and --peft belong together: the GGUF adapter and the PEFT folder it came from")
    if adapter_path is not None and "adapter.alora.invocation_tokens" in read_gguf(adapter_path).metadata:
        raise UnsupportedError(
            f"'{adapter}' is an activated LoRA, which acts from certain tokens on; it is not compared"
        )
    kind, default = bounds_for(file)
    bounds = bounds or default
    with ExitStack() as stack:
        found = _gguf_runner(stack, file.path, adapter_path)
        if reference.is_dir():
            expected = _checkpoint_runner(reference, None if peft is None else Path(peft))
        else:
            expected = _gguf_runner(stack, read_gguf(require_file(reference)).path, adapter_path)
        pieces = {"mixed": list(MIXED_LINES)}
        prose = {lang: list(lines) for lang, lines in _TEXTS.items()}
        for lang, path in (texts or {}).items():
            lines = [line for line in require_file(path).read_text(encoding="utf-8").splitlines() if line.strip()]
            if not lines:
                raise InputError(f"'{path}' has no text")
            pieces[lang], prose[lang] = lines, lines
        token_ids = _compare_ids(pieces, found, expected)
        by_language = {}
        for lang, lines in prose.items():
            parts = [_compare(line, found, expected) for line in lines[:max_pieces]]
            by_language[lang] = _pooled(parts)
    overall = _pooled(list(by_language.values()))
    broken = broken_bounds(overall, bounds)
    if token_ids["lines_different"]:
        broken.insert(0, f"token ids differ on {token_ids['lines_different']} of {token_ids['lines']} lines")
    return {
        "candidate": str(candidate),
        "against": str(against),
        "adapter": None if adapter is None else str(adapter),
        "ok": not broken,
        "broken": broken,
        "bounds_for": kind,
        "bounds": asdict(bounds),
        "token_ids": token_ids,
        "by_language": {lang: asdict(figures) for lang, figures in by_language.items()},
        "overall": asdict(overall),
    }


def _compare_ids(pieces: Mapping[str, Sequence[str]], found: _Runner, expected: _Runner) -> dict[str, Any]:
    lines = [line for group in pieces.values() for line in group]
    different = [line for line in lines if found.encode(line) != expected.encode(line)]
    return {
        "lines": len(lines),
        "lines_different": len(different),
        "first_different": different[0][:120] if different else None,
    }


def _compare(line: str, found: _Runner, expected: _Runner) -> Figures:
    ids = expected.encode(line)
    if not ids:
        raise InputError(f"the text {line[:40]!r} has no tokens")
    ids = [*found.start, *ids][:_MAX_TOKENS]
    left, right = found.logits(ids), expected.logits(ids)
    # Vocabularies may be padded to a round number; the common part is what both know.
    if abs(left.shape[1] - right.shape[1]) > 1024:
        raise MismatchError(
            "the two models have different vocabularies", found=f"{left.shape[1]:,} and {right.shape[1]:,} tokens"
        )
    width = min(left.shape[1], right.shape[1])
    return compare_logits(left[:, :width], right[:, :width])
