"""A reader at work: what llama.cpp computes is what was trained; readers that do not fit or are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rag.answer.reader.card import CARD, RELEASED, read_card
from rag.answer.reader.form import ReadRow, rows_of
from rag.answer.reader.judge import open_reader
from rag.answer.reader.weights import ADAPTER, SETTINGS, base_file, reader_tokenizer
from rag.index.embed import open_embedder
from slm.errors import DamagedFileError, InputError, MismatchError, MissingFileError
from slm.joints import Reader
from slm_cli import Roof
from tests.tiny_reader_weights import TinyReader, tiny_e5_reader, write_reader
from train.base import load_encoder
from train.run.reader.examples import ReaderRow
from train.run.reader.loss import row_scores

__all__ = ["tiny_e5_reader"]  # a fixture

ASKED = {"en": "How much may a hotel in Osaka cost?", "ja": "大阪のホテルはいくらまでですか。"}
TEXTS = [
    ["Business trips > Hotels", "The daily allowance is 2,500 yen.", "Rooms cost up to 13,000 yen in Osaka."],
    ["出張 > 宿泊", "日当は2,500円です。", "大阪の宿泊は13,000円までです。", "早めに予約します。"],
    ["Visitors > Reception", "Guests sign in at the reception.", "a", "They wear a badge (ID-4711/B)."],
    ["Nothing"],
    ["規程", *(f"第{n}条 従業員は毎年{n}日の休暇を取ることができ、残りは翌年に繰り越されます。" for n in range(1, 31))],
    [
        "Rules",
        *(f"Rule {n}: whoever leaves last locks door {n} and tells the porter at the gate." for n in range(1, 31)),
    ],
]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is made of readers goes into a data folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def reader(tiny_e5_reader: TinyReader) -> Reader:
    return open_reader(tiny_e5_reader.folder)


def in_torch(model: Any, rows: list[ReadRow]) -> list[float]:
    with torch.no_grad():
        found = row_scores(model, [ReaderRow(row.ids, row.question, row.lines) for row in rows])
    return [score for scores in found for score in scores.tolist()]


@pytest.mark.parametrize("lang", ASKED)
def test_scores_are_those_of_the_model_that_was_trained(reader: Reader, tiny_e5_reader: TinyReader, lang: str) -> None:
    """Here matrices have 8 bits and the table of words 4, there all have 32."""
    found = reader.judge(ASKED[lang], TEXTS)
    rows = rows_of(reader_tokenizer(base_file()), ASKED[lang], TEXTS)
    assert [len(scores) for scores in found.scores] == [len(texts) - 1 for texts in TEXTS]
    assert [len(of_passage) for of_passage in rows][3] == 0 and min(len(of_passage) for of_passage in rows[4:]) > 1
    assert found.tokens == sum(len(row.ids) for of_passage in rows for row in of_passage)
    flat = [score for scores in found.scores for score in scores]
    expected = in_torch(tiny_e5_reader.model, [row for of_passage in rows for row in of_passage])
    assert np.std(expected) > 0.15, "they tell lines apart"
    assert np.abs(np.subtract(flat, expected)).max() < 0.1
    assert np.corrcoef(flat, expected)[0, 1] > 0.99
    with tiny_e5_reader.model.disable_adapter():
        plain = in_torch(tiny_e5_reader.model, [row for of_passage in rows for row in of_passage])
    assert np.abs(np.subtract(flat, plain)).max() > 0.5, "the adapter changes something"


def test_a_passage_has_the_scores_it_has_alone(reader: Reader) -> None:
    together = reader.judge(ASKED["en"], TEXTS).scores
    for texts, scores in zip(TEXTS, together, strict=True):
        assert reader.judge(ASKED["en"], [texts]).scores[0] == pytest.approx(scores, abs=0.02)
    nothing = reader.judge(ASKED["en"], [])
    assert (nothing.scores, nothing.tokens) == ([], 0)


def test_a_question_that_is_none_is_refused(reader: Reader) -> None:
    for question, says in (("", "empty"), ("あ" * 10_000, "10,000 characters"), ("why " * 400, "tokens, at most 192")):
        with pytest.raises(InputError, match=says):
            reader.judge(question, TEXTS)


def test_a_document_cannot_write_control_tokens() -> None:
    tokenizer = reader_tokenizer(base_file())
    begin, *_, end = tokenizer.encode(["a"])[0]
    for ids in tokenizer.encode(["a</s>b", "<s>", "x <mask> y", "<pad>", "<unk>", "\0", "</s></s>"]):
        assert not {begin, end, 1, 250001} & set(ids[1:-1])
    assert tokenizer.encode(["query: 大阪 <b>"]) == open_fast().encode(["query: 大阪 <b>"])


def open_fast() -> Any:
    from rag.index.embedders.packed import PackedTokenizer, read_packed

    return PackedTokenizer(read_packed(base_file()))


def test_the_checkpoint_that_is_trained_is_the_packaged_embedder(tiny_e5_reader: TinyReader) -> None:
    embedder = open_embedder()
    texts = ["Employees get twenty days of paid leave.", "社員は毎年20日の有給休暇を取れます。", "a"]
    model = load_encoder(tiny_e5_reader.base).eval()
    for text, vector in zip(texts, embedder.passages(texts), strict=True):
        (ids,) = open_fast().encode([f"passage: {text}"])
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        assert float(torch.cosine_similarity(mean, torch.tensor(vector), dim=0)) > 0.999


def test_an_adapter_that_changes_nothing_scores_by_the_plain_embedder(
    tiny_e5_reader: TinyReader, tmp_path: Path
) -> None:
    model = write_reader(tiny_e5_reader.base, tmp_path / "plain", size=0.0)
    found = open_reader(tmp_path / "plain")
    assert found.name == "plain-reader" and found.refuse_at == {"": 0.5}
    rows = rows_of(reader_tokenizer(base_file()), ASKED["ja"], TEXTS[:3])
    expected = in_torch(model, [row for of_passage in rows for row in of_passage])
    flat = [score for scores in found.judge(ASKED["ja"], TEXTS[:3]).scores for score in scores]
    assert flat == pytest.approx(expected, abs=0.1)


# What is no reader


@pytest.fixture
def copied(tiny_e5_reader: TinyReader, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_e5_reader.folder, tmp_path / "reader"))


def test_a_reader_of_another_base_is_refused(copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["base"]["fingerprint"] = "sha256:0"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MismatchError, match=r"trained on another base than the one that is here.*make reader"):
        open_reader(copied)


@pytest.mark.parametrize("name", [CARD, ADAPTER, SETTINGS])
def test_a_folder_in_which_a_file_is_missing_is_no_reader(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(MissingFileError, match=name):
        open_reader(copied)


def test_weights_that_are_no_lora_of_the_embedder_are_damage(copied: Path) -> None:
    whole = {name: tensor.clone() for name, tensor in load_file(copied / ADAPTER).items()}  # not the file's own memory
    first = next(name for name in whole if "lora_A" in name)
    second = first.replace("lora_A", "lora_B")
    damaged: list[Any] = [
        b"", (copied / ADAPTER).read_bytes()[:5000], {name: whole[name] for name in whole if name != second},
        {name: whole[name] for name in whole if name != first}, {**whole, second: whole[second][:-1].clone()},
        {**whole, second: whole[second][:1].clone()},
        {**whole, "base_model.model.pooler.lora_A.weight": whole[first].clone()},
        {**whole, "base_model.model.pooler.dense.weight": whole[first].clone()},
    ]  # fmt: skip
    for weights in damaged:
        if isinstance(weights, bytes):
            (copied / ADAPTER).write_bytes(weights)
        else:
            save_file(weights, copied / ADAPTER)
        with pytest.raises(DamagedFileError, match=r"holds no LoRA of multilingual-e5-small"):
            open_reader(copied)


@pytest.mark.parametrize("change", [{"r": 0}, {"r": None}, {"lora_alpha": "much"}])
def test_settings_that_are_none_are_damage(copied: Path, change: dict[str, Any]) -> None:
    settings = json.loads((copied / SETTINGS).read_text())
    (copied / SETTINGS).write_text(json.dumps(settings | change))
    with pytest.raises(DamagedFileError, match="holds no LoRA"):
        open_reader(copied)


def test_settings_that_would_scale_otherwise_are_refused(copied: Path) -> None:
    """rsLoRA divides by the root of the rank, DoRA has magnitudes: neither is what is computed here."""
    settings = json.loads((copied / SETTINGS).read_text())
    for change in ({"use_rslora": True}, {"use_dora": True}):
        (copied / SETTINGS).write_text(json.dumps(settings | change))
        with pytest.raises(DamagedFileError, match="holds no LoRA"):
            open_reader(copied)


# Who reads


def test_the_roof_opens_the_released_reader_a_named_one_or_none(
    tiny_e5_reader: TinyReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = Roof().reader_of(str(tiny_e5_reader.folder))
    assert named is not None and named.name == "reader"
    assert Roof().reader_of("model") is None
    with pytest.raises(MissingFileError, match="is no reader"):
        Roof().reader_of(str(tmp_path))
    monkeypatch.setattr("rag.answer.reader.card.RELEASED", tiny_e5_reader.folder)
    for wanted in ("auto", "point"):
        found = Roof().reader_of(wanted)
        assert found is not None and found.name == "reader"


def test_without_the_embedders_package_auto_notes_it_and_point_is_an_error(
    tiny_e5_reader: TinyReader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: Any) -> None:
        raise MissingFileError("no embedder is here", hint="Get it with: slm pull multilingual-e5-small")

    monkeypatch.setattr("rag.answer.reader.card.RELEASED", tiny_e5_reader.folder)
    monkeypatch.setattr("rag.answer.reader.weights.open_embedder", missing)
    assert Roof().reader_of("auto") is None
    told = capsys.readouterr().err
    assert "the model answers from the documents, no reader" in told and "slm pull multilingual-e5-small" in told
    with pytest.raises(MissingFileError, match="no embedder is here"):
        Roof().reader_of("point")


def test_the_released_reader_fits_the_packaged_embedder_and_tells_what_answers() -> None:
    assert RELEASED.is_dir(), (
        f"there is no released reader in '{RELEASED}' yet: make reader, and copy adapters/reader there"
    )
    card = read_card(RELEASED)
    assert {"en", "ja"} <= set(card.refuse_at)
    reader = open_reader(RELEASED)
    assert reader.name == "multilingual-e5-small-reader"
    for lang, passage, best in (("en", TEXTS[0], 1), ("ja", TEXTS[1], 1)):
        (scores,) = reader.judge(ASKED[lang], [passage]).scores
        assert int(np.argmax(scores)) == best
