"""Folders that look like llm-jp's, sarashina's, Swallow's, TinySwallow's, rinna's and ruri's convert and are equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from convert.model import convert_checkpoint
from slm.weights.gguf_reader import read_gguf
from tests import tiny_families as families
from tests import tiny_lookalikes as tl
from tests import tiny_tokenizers as tt
from tests.test_convert_encoders import TEXTS, embedding, pooled_by
from tests.test_convert_slow_tokenizers import LowerCased, by_sentencepiece


def tokenizer_of(folder: Path) -> Any:
    """transformers' own reading of the files: tokenizer.json as it stands, or SentencePiece's model file."""
    if (folder / "tokenizer.json").exists():
        return tf.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    name = "spiece.model" if (folder / "spiece.model").exists() else "tokenizer.model"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    return by_sentencepiece(folder, LowerCased if settings["do_lower_case"] else SentencePieceBackend, name)


@pytest.mark.parametrize("name", tl.LOOK_ALIKES)
def test_the_ids_and_the_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    look = tl.LOOK_ALIKES[name]
    folder = look.make(tmp_path / "model")
    [result] = convert_checkpoint(folder, tmp_path / "out.gguf", "f32")
    assert result["tokenizer_lines_proven"] >= 20
    metadata = read_gguf(tmp_path / "out.gguf").metadata
    assert metadata["tokenizer.ggml.model"] == look.kind
    assert (metadata["tokenizer.ggml.add_bos_token"], metadata["tokenizer.ggml.add_eos_token"]) == (look.bos, False)
    theirs = tokenizer_of(folder)
    with tt.both(folder) as (source, found, _):
        for line in source.all_lines():
            assert found(line) == theirs(line, add_special_tokens=False)["input_ids"], line
    ids = families.sequences(families.vocabulary_of(folder))[:2]
    expected = families.reference_logits(families.load(folder), ids)
    families.assert_equal_logits(families.runtime_logits(tmp_path / "out.gguf", ids), expected)


@pytest.mark.parametrize("name", ["sarashina2.2", "TinySwallow"])
def test_a_conversation_is_part_of_the_proof(name: str, tmp_path: Path) -> None:
    folder = tl.LOOK_ALIKES[name].make(tmp_path / "model")
    theirs = tokenizer_of(folder)
    theirs.chat_template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    with tt.both(folder) as (source, found, _):
        assert "こんにちは" in source.all_lines()[-1]
        messages = [{"role": "user", "content": "東京 😀"}, {"role": "assistant", "content": "Hi.\n\nはい"}]
        text = theirs.apply_chat_template(messages, tokenize=False)
        assert found(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_ruri_embeds_as_transformers_does(tmp_path: Path) -> None:
    folder = tl.ruri(tmp_path / "model")
    pooled_by(folder, "mean")
    convert_checkpoint(folder, tmp_path / "out.gguf", "f32")
    theirs = tokenizer_of(folder)
    model = tf.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for text in TEXTS:
        ids, found = embedding(tmp_path / "out.gguf", text)
        assert ids == theirs(text)["input_ids"]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).last_hidden_state[0].numpy().mean(0)
        assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()
