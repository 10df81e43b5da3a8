"""A causal model at work as a reader, alone and after another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.lora.adapter import convert_adapter
from convert.model import convert_checkpoint
from rag.answer.reader import card
from rag.answer.reader.card import CARD, CONTRAST, Before, read_card
from rag.answer.reader.contrast import CausalTokenizer, ContrastJudge
from rag.answer.reader.form import FORM, rows_of
from rag.answer.reader.judge import open_reader
from rag.answer.reader.twice import ReadTwice
from slm.artifacts import new_folder
from slm.errors import DamagedFileError, InputError, MismatchError, UnsupportedError
from slm.native.llama import open_model
from slm.weights.checkpoint_files import ADAPTER_GGUF
from slm.weights.gguf_reader import read_gguf
from slm.weights.identity import identity_of
from slm_cli import Roof
from tests.test_reader_judge import ASKED, TEXTS
from tests.tiny_causal_reader import causal_bases
from tests.tiny_reader import Pointing
from tests.tiny_training import write_checkpoint
from train.adapter.fresh import add_adapter, save_adapter
from train.base import load_model, load_tokenizer
from train.batch.attention import packed_attention
from train.config import TrainOptions
from train.run.reader.contrast import contrast_head
from train.run.reader.examples import ReaderRow

__all__ = ["causal_bases"]  # a fixture


class Made:
    """A base and a reader's adapter as files, and both in torch."""

    def __init__(self, base: Path, root: Path) -> None:
        self.checkpoint, self.folder, self.adapter = base, root / "reader", root / "reader.gguf"
        options = TrainOptions(base=base, data=(base,), output=self.folder, rank=4, alpha=8)
        self.model = add_adapter(load_model(base), options).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(0.15 * torch.randn(weight.shape, generator=generator))
        with new_folder(self.folder, "adapter") as (folder, manifest):
            save_adapter(self.model, base, folder, {})
            told = {"form": FORM, "kind": CONTRAST, "scale": 2.0, "offset": -1.0, "refuse_at": {"": 0.5}}
            (folder / CARD).write_text(json.dumps(told), encoding="utf-8")
            manifest.update(base={"path": str(base), "fingerprint": identity_of(base).fingerprint})
        self.gguf = root / "base.gguf"
        convert_checkpoint(base, self.gguf, "f32")
        convert_adapter(self.folder, self.adapter, base)

    def files(self, folder: Path) -> tuple[Path, Path]:
        assert folder == self.folder
        return self.gguf, self.adapter


@pytest.fixture(scope="module")
def made(causal_bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(causal_bases("gemma3"), tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("lang", ASKED)
def test_scores_are_those_of_the_model_that_was_trained(made: Made, lang: str) -> None:
    reader = open_reader(made.folder, made.files)
    found = reader.judge(ASKED[lang], TEXTS)
    assert [len(scores) for scores in found.scores] == [len(texts) - 1 for texts in TEXTS]
    with ExitStack() as stack:
        rows = rows_of(CausalTokenizer(open_model(stack, made.gguf, vocab_only=True)), ASKED[lang], TEXTS)
    flat = [row for of_passage in rows for row in of_passage]
    assert found.tokens == sum(len(row.ids) for row in flat) and min(map(len, rows[4:])) > 1
    head = contrast_head(made.model, load_tokenizer(made.checkpoint))
    with torch.no_grad(), packed_attention(made.model):
        scores = head(made.model, [ReaderRow(row.ids, row.question, row.lines) for row in flat])
    expected = 2 * torch.cat(scores).numpy() - 1
    got = [score for of_passage in found.scores for score in of_passage]
    assert np.std(expected) > 0.1, "they tell lines apart"
    np.testing.assert_allclose(got, expected, atol=0.05)


def test_questions_that_are_none_and_control_tokens_are_as_for_any_reader(made: Made) -> None:
    judge = ContrastJudge(made.gguf, made.adapter)
    with pytest.raises(InputError, match="empty"):
        judge("", TEXTS)
    assert judge(ASKED["en"], []).scores == []
    tokenizer = load_tokenizer(made.checkpoint)
    with ExitStack() as stack:
        encoded = CausalTokenizer(open_model(stack, made.gguf, vocab_only=True)).encode(
            ["a<bos>b", "<end_of_turn>", ""]
        )
    special = {tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")}
    assert all(ids[0] == tokenizer.bos_token_id and not special & set(ids[1:]) for ids in encoded)
    assert len({ids[-1] for ids in encoded}) == 1 and len(encoded[2]) == 2


def test_a_vocabulary_without_the_words_is_refused(tmp_path: Path, made: Made) -> None:
    base = write_checkpoint(tmp_path / "llama", "llama")
    convert_checkpoint(base, tmp_path / "llama.gguf", "f32")
    with pytest.raises(UnsupportedError, match="a reader needs it to be one"):
        ContrastJudge(tmp_path / "llama.gguf", made.adapter)


def test_a_reader_of_other_weights_is_refused(made: Made, causal_bases: Callable[[str], Path], tmp_path: Path) -> None:
    convert_checkpoint(causal_bases("llama"), tmp_path / "other.gguf", "f32")
    with pytest.raises(MismatchError, match="trained on another base"):
        open_reader(made.folder, lambda _: (tmp_path / "other.gguf", made.adapter))


def test_a_causal_reader_needs_its_files_from_elsewhere(made: Made) -> None:
    with pytest.raises(MismatchError, match="is of a causal model"):
        open_reader(made.folder)


# Two readers


def test_the_released_second_reader_is_whole() -> None:
    """Its weights lie beside its card, small enough, for the base that its manifest names."""
    adapter = read_gguf(card.SECOND / ADAPTER_GGUF)
    assert adapter.path.stat().st_size < 8e6 and len(adapter.tensors) == 252
    told = read_card(card.SECOND)
    assert adapter.metadata["slm.base_fingerprint"] in told.base and told.kind == CONTRAST and told.before is not None
    assert set(told.refuse_at) == {"", "en", "ja"}


def test_both_readers_read_where_both_bases_are_here_and_one_is_noted(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    monkeypatch.setattr(card, "SECOND", made.folder)
    for wanted in ("auto", "point"):
        reader = Roof().reader_of(wanted)
        assert reader is not None and reader.name == "reader"
        assert "one reader" not in capsys.readouterr().err
    monkeypatch.setattr(card, "SECOND", tmp_path / "nowhere")
    reader = Roof().reader_of("auto")
    assert reader is not None and reader.name == f"{card.RELEASED.name}-reader"
    assert "one reader reads instead of two" in capsys.readouterr().err


def test_the_second_reads_the_likeliest_passages_and_both_scores_are_added() -> None:
    first, second = Pointing("Osaka", "13,000円", sure=4.0), Pointing("Osaka", sure=1.0)
    both = ReadTwice(first, second, Before(passages=2, share=0.5))
    found = both(ASKED["en"], TEXTS[:4])
    assert [passage[0] for _, passage in second.asked] == [TEXTS[0][0], TEXTS[1][0]]
    assert found.scores[0] == [-3.0, 3.0] and found.scores[1] == [-3.0, 1.0, -3.0]
    assert set(found.scores[2]) == {-30.0} and found.scores[3] == []
    alone = [judge(ASKED["en"], TEXTS[:n]).tokens for judge, n in ((Pointing(), 4), (Pointing(), 2))]
    assert found.tokens == sum(alone)
    assert both(ASKED["en"], []).scores == []


SOUND: dict[str, Any] = {"form": FORM, "kind": CONTRAST, "scale": 1.0, "offset": 0.0, "refuse_at": {}}


def test_a_card_says_what_has_read_before(tmp_path: Path) -> None:
    told = SOUND | {"before": {"passages": 6, "share": 0.7}}
    with new_folder(tmp_path / "r", "adapter") as (folder, _):
        (folder / CARD).write_text(json.dumps(told))
    assert read_card(tmp_path / "r").before == Before(6, 0.7) and read_card(tmp_path / "r").kind == CONTRAST


@pytest.mark.parametrize(
    "change", [{"kind": "guess"}, {"before": {}}, {"before": {"passages": 0, "share": 1}}, {"before": 3},
               {"before": {"passages": 2, "share": float("nan")}}]
)  # fmt: skip
def test_a_damaged_card_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    with new_folder(tmp_path / "r", "adapter") as (folder, _):
        (folder / CARD).write_text(json.dumps(SOUND | change))
    with pytest.raises(DamagedFileError, match=r"reader\.json"):
        read_card(tmp_path / "r")
