"""Encoders: embeddings by llama.cpp equal to transformers', pooling from sentence-transformers' files."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from convert.cli.verify import verify
from convert.model import convert_checkpoint
from convert.quality.verify_embeddings import verify_embedder
from convert.source.pooling import read_pooling
from convert.vocabulary.vocab_source import read_vocabulary
from slm.errors import DamagedFileError, InputError, SlmError, UnsupportedError
from slm.native.llama import library, open_model, tokenize
from slm.weights.gguf_reader import read_gguf
from tests import tiny_slow_tokenizers as slow
from tests import tiny_tokenizers as tt

TEXTS = [
    "query: where is the invoice of the office?",
    "passage: 請求書は金曜日までに経理へ送ってください。😀",
    "The visitors sign a book, and the ship leaves the harbour; 会議室の予約は前日までに。 " * 3,
]


def embedding(gguf: Path, text: str) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Token ids and the pooled embedding by llama.cpp, with the pooling that the file names."""
    lib = library()
    with ExitStack() as stack:
        model = open_model(stack, gguf)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 256
        params.embeddings = True
        params.n_threads = params.n_threads_batch = 2
        params.flash_attn_type = 0
        context = lib.llama_init_from_model(model, params)
        stack.callback(lib.llama_free, context)
        ids = tokenize(model, text, add_special=True, parse_special=True)
        array = (lib.llama_token * len(ids))(*ids)
        assert lib.llama_encode(context, lib.llama_batch_get_one(array, len(ids))) == 0
        pointer = lib.llama_get_embeddings_seq(context, 0)
        assert pointer
        width = lib.llama_model_n_embd(model)
        return ids, np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (width,)).copy()


def shake(model: Any) -> Any:
    """Random weights everywhere: norms and biases of a fresh model are ones and zeros, which hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            center = weight.clone() if "norm" in name.lower() else torch.zeros_like(weight)
            weight.copy_(center + 0.15 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def pooled_by(folder: Path, mode: str) -> None:
    """sentence-transformers' files beside a checkpoint."""
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
               for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"),
                                                 ("2_Normalize", "Normalize")])]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    keys = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
    config = {"word_embedding_dimension": 64, **{key: name == mode for name, key in keys.items()}}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def vocabulary_size(folder: Path) -> int:
    config = folder / "config.json"
    known = json.loads(config.read_text()) if config.exists() else {}
    return len(read_vocabulary(folder, known, embedder=True).vocabulary.tokens)


_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}


def bert(folder: Path, kind: type = BertModel) -> Path:
    tt.word_piece(folder)
    config = BertConfig(vocab_size=vocabulary_size(folder), num_hidden_layers=2, max_position_embeddings=128, **_SIZES)
    shake(kind(config)).save_pretrained(folder)
    return folder


def e5(folder: Path) -> Path:
    """As multilingual-e5-small: BERT's layers, XLM-R's tokenizer, more rows than tokens."""
    tt.fast_unigram(folder, "xlm-r")
    config = BertConfig(vocab_size=vocabulary_size(folder) + 35, num_hidden_layers=2, max_position_embeddings=128,
                        **_SIZES)  # fmt: skip
    shake(BertModel(config)).save_pretrained(folder)
    return folder


def _like_roberta(folder: Path, config: type, kind: type) -> Path:
    """RoBERTa's layers for the tokenizer in the folder; positions begin behind the padding token's id."""
    settings = config(vocab_size=vocabulary_size(folder), num_hidden_layers=2, max_position_embeddings=130,
                      type_vocab_size=1, pad_token_id=1, **_SIZES)  # fmt: skip
    shake(kind(settings)).save_pretrained(folder)
    return folder


def xlm_roberta(folder: Path) -> Path:
    tt.fast_unigram(folder, "xlm-r")
    return _like_roberta(folder, XLMRobertaConfig, XLMRobertaModel)


def from_model_file(folder: Path) -> Path:
    """XLM-R without a tokenizer.json."""
    slow.xlm_roberta_model(folder)
    return _like_roberta(folder, XLMRobertaConfig, XLMRobertaModel)


def roberta(folder: Path, kind: type = RobertaModel) -> Path:
    """vocab.json and merges.txt."""
    slow.vocab_json(folder, "roberta")
    return _like_roberta(folder, RobertaConfig, kind)


def japanese_roberta(folder: Path) -> Path:
    """As rinna/japanese-roberta-base: T5Tokenizer's spiece.model, lower-casing, the padding token's id is 3."""
    slow.rinna(folder)
    config = RobertaConfig(vocab_size=vocabulary_size(folder), num_hidden_layers=2, max_position_embeddings=132,
                           type_vocab_size=2, pad_token_id=3, **_SIZES)  # fmt: skip
    shake(RobertaForMaskedLM(config)).save_pretrained(folder)
    return folder


def modernbert(folder: Path, tokenizer: str = "byte-level") -> Path:
    """Four layers, so that two windowed ones lie between full ones; a window shorter than the text."""
    if tokenizer == "byte-level":
        tt.byte_level(folder, pre_tokenizers.ByteLevel(add_prefix_space=False))
        fast = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        ends = processors.TemplateProcessing(
            single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
        )
        fast["post_processor"] = json.loads(ends.__getstate__())
        tt.save(folder, fast)
    else:  # ruri v3 and modernbert-ja: a unigram with byte fallback
        tt.fast_unigram(folder, "llm-jp")
    config = ModernBertConfig(vocab_size=vocabulary_size(folder), num_hidden_layers=4, max_position_embeddings=256,
                              local_attention=8, pad_token_id=0, **_SIZES)  # fmt: skip
    shake(ModernBertModel(config)).save_pretrained(folder)
    return folder


MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "bert": (bert, "cls"),
    "bert inside a masked language model": (lambda f: bert(f, BertForMaskedLM), "mean"),
    "bert with the tokenizer of XLM-R": (e5, "mean"),
    "xlm-roberta": (xlm_roberta, "mean"),
    "xlm-roberta with its model file alone": (from_model_file, "mean"),
    "roberta": (roberta, "cls"),
    "roberta inside a masked language model": (lambda f: roberta(f, RobertaForMaskedLM), "mean"),
    "roberta with rinna's tokenizer": (japanese_roberta, "mean"),
    "modernbert": (modernbert, "cls"),
    "modernbert with a unigram vocabulary": (lambda f: modernbert(f, "unigram"), "mean"),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_embedding_by_llama_cpp_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    make, mode = MODELS[name]
    folder = make(tmp_path / "source")
    pooled_by(folder, mode)
    [result] = convert_checkpoint(folder, tmp_path / "out.gguf", "f32")
    assert result["tokenizer_lines_proven"] >= 14
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    encode = read_vocabulary(folder, model.config.to_dict(), embedder=True).encoder()
    for text in TEXTS:
        ids, found = embedding(tmp_path / "out.gguf", text)
        assert ids == encode(text)
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0].numpy()
        expected = states.mean(0) if mode == "mean" else states[0]
        assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()
        assert len(ids) > 10


@pytest.mark.parametrize("type_name", ["f16", "q8_0", "q4_0"])
def test_an_encoder_can_be_quantized_and_still_embeds(type_name: str, tmp_path: Path) -> None:
    folder = e5(tmp_path / "source")
    pooled_by(folder, "mean")
    exact, small = convert_checkpoint(folder, tmp_path / "out", ["f32", type_name])
    for text in TEXTS:
        one, other = embedding(Path(exact["file"]), text)[1], embedding(Path(small["file"]), text)[1]
        assert float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) > 0.9


def test_the_file_says_how_the_folder_pools(tmp_path: Path) -> None:
    folder = bert(tmp_path / "source")
    assert read_pooling(folder) is None
    convert_checkpoint(folder, tmp_path / "none.gguf", "f16")
    assert "bert.pooling_type" not in read_gguf(tmp_path / "none.gguf").metadata
    for mode, number in (("mean", 1), ("cls", 2)):
        pooled_by(folder, mode)
        convert_checkpoint(folder, tmp_path / f"{mode}.gguf", "f16")
        metadata = read_gguf(tmp_path / f"{mode}.gguf").metadata
        assert (metadata["bert.pooling_type"], metadata["bert.attention.causal"]) == (number, False)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert read_pooling(folder) == "lasttoken"


@pytest.mark.parametrize(
    ("modules", "pooling", "error", "match"),
    [
        ('[{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "2"}]', "{}", UnsupportedError, "Dense"),
        ('[{"type": "x.Pooling", "path": "../../etc"}]', "{}", DamagedFileError, "outside"),
        ('[{"type": "x.Pooling", "path": "1_Pooling"}]', '{"pooling_mode_max_tokens": true}', UnsupportedError, "max"),
        (
            '[{"type": "x.Pooling", "path": "1_Pooling"}]',
            '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}',
            UnsupportedError,
            "cls, mean",
        ),
        ('{"type": 1}', "{}", DamagedFileError, "not a list of modules"),
        ("[1]", "{}", DamagedFileError, "not a list of modules"),
        ('[{"type": "x.Pooling", "path": "1_Pooling"}]', "[", DamagedFileError, "not readable JSON"),
    ],
)
def test_a_pooling_that_gguf_cannot_hold_is_refused(
    modules: str, pooling: str, error: type[SlmError], match: str, tmp_path: Path
) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(modules)
    (tmp_path / "1_Pooling" / "config.json").write_text(pooling)
    with pytest.raises(error, match=match):
        read_pooling(tmp_path)


@pytest.mark.parametrize(
    ("make", "change", "match"),
    [
        (bert, {"hidden_act": "relu"}, "hidden_act"),
        (bert, {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (bert, {"architectures": ["BertForSequenceClassification"]}, "BertForSequenceClassification"),
        (modernbert, {"mlp_bias": True}, "mlp_bias"),
        (modernbert, {"layer_types": ["sliding_attention"] * 4}, "order of windowed and full layers"),
    ],
)
def test_what_the_runtime_would_compute_wrongly_is_refused(
    make: Callable[[Path], Path], change: dict[str, Any], match: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UnsupportedError, match=match):
        convert_checkpoint(folder, tmp_path / "out.gguf", "f16")
    assert not list(tmp_path.glob("*.gguf"))


# --- slm verify


@pytest.mark.parametrize("name", ["bert", "bert with the tokenizer of XLM-R", "roberta", "modernbert"])
def test_verify_compares_the_embeddings_of_a_file_with_its_checkpoint(name: str, tmp_path: Path) -> None:
    make, mode = MODELS[name]
    folder = make(tmp_path / "source")
    pooled_by(folder, mode)
    exact, small = convert_checkpoint(folder, tmp_path / "out", ["f32", "q8_0"])
    result = verify_embedder(exact["file"], folder, max_tokens=300)
    assert result["ok"], result["broken"]
    assert set(result["by_language"]) == {"en", "ja"}
    assert result["overall"]["min_cosine"] > 0.9999
    assert result["token_ids"]["lines_different"] == 0
    against_exact = verify_embedder(small["file"], exact["file"], max_tokens=300)
    assert against_exact["bounds_for"] in ("q8_0", "f16")
    assert 0.9 < against_exact["overall"]["min_cosine"] < result["overall"]["min_cosine"]


def test_verify_finds_another_pooling_and_another_model(tmp_path: Path) -> None:
    folder, other = e5(tmp_path / "source"), e5(tmp_path / "other")
    for path, mode in ((folder, "mean"), (other, "cls")):
        pooled_by(path, mode)
        convert_checkpoint(path, tmp_path / f"{mode}.gguf", "f32")
    result = verify_embedder(tmp_path / "cls.gguf", tmp_path / "mean.gguf", max_tokens=200)
    assert not result["ok"]
    assert any("cosine" in sentence for sentence in result["broken"])
    tt.word_piece(tmp_path / "words")
    folder = bert(tmp_path / "words")
    convert_checkpoint(folder, tmp_path / "words.gguf", "f32")
    result = verify_embedder(tmp_path / "words.gguf", tmp_path / "mean.gguf", max_tokens=50)
    assert any("token ids differ" in sentence for sentence in result["broken"])


def test_the_command_shows_cosines_and_ends_with_1_beyond_a_bound(tmp_path: Path) -> None:
    folder = bert(tmp_path / "source")
    pooled_by(folder, "mean")
    convert_checkpoint(folder, tmp_path / "m.gguf", "f16")
    base = [str(tmp_path / "m.gguf"), "--against", str(folder), "--max-tokens", "100"]
    shown = CliRunner().invoke(verify, base)
    assert shown.exit_code == 0, shown.output
    assert "min cosine" in shown.output
    assert CliRunner().invoke(verify, [*base, "--max-relative", "1e-12"]).exit_code == 1
    result = json.loads(CliRunner().invoke(verify, [*base, "--json"]).stdout)
    assert result["overall"]["min_cosine"] > 0.999
    refused = CliRunner().invoke(verify, [*base, "--max-kl", "1"])
    assert isinstance(refused.exception, InputError)
