"""Small tokenizers of every kind, trained on data/en.txt and data/ja.txt, for the tokenizer tests."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from convert.output.writer import write_gguf
from convert.vocabulary.base.proof import VocabularySource
from convert.vocabulary.vocab_source import read_vocabulary
from slm.native.llama import open_model, tokenize

DATA = Path(__file__).parent.parent / "data"
LINES = [line for name in ("en.txt", "ja.txt") for line in (DATA / name).read_text("utf-8").splitlines() if line]
EXTRA = ["def f(x):\n\treturn {'a': x ** 2}  # 10 20 300", "MIXED Case, l'École — “quotes” … ½ ² ﬁ", "\t\t\n\n  \n"]


def save(folder: Path, tokenizer: Tokenizer | dict[str, Any], **settings: Any) -> Path:
    """tokenizer.json and tokenizer_config.json in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer.to_str() if isinstance(tokenizer, Tokenizer) else json.dumps(tokenizer, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def byte_level(folder: Path, pre: Any, *, normalizer: Any = None, ignore_merges: bool = False) -> Path:
    """Byte-level BPE behind any pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre, normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(LINES + EXTRA, trainer)
    return save(folder, tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def raw_bpe(folder: Path) -> Path:
    """BPE with byte fallback that `tokenizers` trained itself: one merge a token, no space prefix."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1800, special_tokens=[*special, *(f"<0x{value:02X}>" for value in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    fast = json.loads(tokenizer.to_str())
    fast["added_tokens"] = [t for t in fast["added_tokens"] if t["content"] in special]
    return save(folder, fast, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def _normalization_rules(path: Path) -> Path:
    """A part of nmt_nfkc that is quick to rewrite: widths, compatibility forms, white space, composed pairs."""
    singles = [chr(c) for r in ((0xA0, 0x100), (0x2150, 0x2190), (0x2460, 0x2500), (0x3300, 0x3400), (0xFB00, 0xFB07),
                                (0xFF01, 0xFFEF)) for c in range(*r)]  # fmt: skip
    letters = [chr(c) for r in ((0xC0, 0x100), (0x304C, 0x30FF), (0x1E00, 0x1F00)) for c in range(*r)]
    pairs = [unicodedata.normalize("NFD", letter) for letter in letters]
    pairs += [half + mark for half in map(chr, range(0xFF66, 0xFF9E)) for mark in "\uff9e\uff9f"]
    rules = {text: unicodedata.normalize("NFKC", text) for text in [*singles, *pairs]}
    rules |= dict.fromkeys(["\t", "\n", "\r", "\u3000", "\x85"], " ")

    def codes(text: str) -> str:
        return " ".join(f"{ord(c):X}" for c in text)

    lines = [f"{codes(key)}\t{codes(value)}" for key, value in rules.items() if key != value]
    path.write_text("\n".join(lines) + "\n")
    return path


def sentencepiece(folder: Path, **options: Any) -> Path:
    """A SentencePiece model file.

    lower: trained on lower-cased text, with `do_lower_case`. small_map: a character map of a thousand rules instead
    of nmt_nfkc's 225,000.
    """
    import sentencepiece as sp

    lower = options.pop("lower", False)
    folder.mkdir(parents=True, exist_ok=True)
    if options.pop("small_map", False):
        rules = _normalization_rules(folder.parent / f"{folder.name}-rules.tsv")
        options.update(normalization_rule_name="user_defined", normalization_rule_tsv=str(rules))
    lines = [line.lower() if lower else line for line in LINES]
    defaults: dict[str, Any] = {"vocab_size": 1500, "model_type": "unigram", "hard_vocab_limit": False,
                                "character_coverage": 0.99, "minloglevel": 2}  # fmt: skip
    if options.get("byte_fallback"):
        defaults["vocab_size"] = 1900
    with (folder / "spiece.model").open("wb") as file:
        sp.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=file, **{**defaults, **options})
    settings = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", "do_lower_case": lower}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def fast_unigram(folder: Path, style: str) -> Path:
    """A unigram model as a tokenizer.json: in `llm-jp`'s way, or in `xlm-r`'s (multilingual-e5)."""
    import sentencepiece as sp

    from convert.vocabulary.files.sentencepiece_file import read_sentencepiece

    xlm = style == "xlm-r"
    options: dict[str, Any] = {} if xlm else {
        "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "user_defined_symbols": ["\n"],
    }  # fmt: skip
    sentencepiece(folder, **options)
    processor = sp.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    charsmap = read_sentencepiece(folder / "spiece.model").charsmap
    (folder / "spiece.model").unlink()
    pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.vocab_size())]
    if xlm:
        pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces[3:], ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, pieces.index(("<unk>", 0.0)), byte_fallback=not xlm))
    if xlm:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
        )
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Replace(Regex(r"(?<!\n)^"), "▁"), normalizers.Replace(" ", "▁")]
        )
    tokenizer.add_special_tokens([piece for piece, _ in pieces if piece in ("<s>", "</s>", "<unk>", "<pad>", "<mask>")])
    ids = {piece: id_ for id_, (piece, _) in enumerate(pieces)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if xlm else "<s> $A", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    fast = json.loads(tokenizer.to_str())
    if xlm:
        fast["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
        next(t for t in fast["added_tokens"] if t["content"] == "<mask>")["lstrip"] = True
    return save(folder, fast, eos_token="</s>", bos_token="<s>", unk_token="<unk>", mask_token="<mask>")


def word_piece(folder: Path, *, lower: bool = True, strip_accents: bool | None = None) -> Path:
    """BERT's WordPiece."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(LINES + EXTRA, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return save(folder, tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
                mask_token="[MASK]", tokenizer_class="BertTokenizer")  # fmt: skip


def write_vocabulary(path: Path, source: VocabularySource) -> Path:
    """A GGUF file that holds a vocabulary and nothing else."""
    metadata = {"general.architecture": "llama", "general.type": "model", **source.vocabulary.to_metadata()}
    with path.open("wb") as file:
        for _ in write_gguf(file, metadata, []):
            pass
    return path


@contextmanager
def both(folder: Path, *, embedder: bool = False) -> Iterator[tuple[VocabularySource, Callable[[str], list[int]], Any]]:
    """(source, how llama.cpp encodes, llama.cpp's handle) of a tokenizer folder."""
    config = folder / "config.json"
    source = read_vocabulary(folder, json.loads(config.read_text()) if config.exists() else {}, embedder=embedder)
    path = write_vocabulary(folder / "vocabulary.gguf", source)
    with ExitStack() as stack:
        model = open_model(stack, path, vocab_only=True)
        yield source, lambda text: tokenize(model, text, add_special=embedder, parse_special=True), model
