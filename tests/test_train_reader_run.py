"""A whole run that makes a tiny reader: it learns, goes on after a break, and is refused what does not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rag.answer.reader.card import CARD, read_card
from slm.artifacts import read_manifest
from slm.errors import MismatchError, MissingFileError, SlmError, UnsupportedError
from tests.path_joints import PathJoints
from tests.tiny_reader_training import asked, encoder, question, reader_data, write_encoder
from tests.tiny_runs import Broken, learned, same
from tests.tiny_training import write_checkpoint, write_jsonl
from train.adapter.opened import check_adapter
from train.cli.train import train
from train.run.reader import run as module
from train.run.reader.loss import OFFSET, SCALE, reader_loss
from train.run.reader.run import ReaderResult, train_reader

__all__ = ["encoder", "reader_data"]  # fixtures


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "save_curve", lambda *_: None)
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))


@dataclass(frozen=True)
class Run:
    """A finished run."""

    base: Path
    folder: Path
    result: ReaderResult


@pytest.fixture(scope="module")
def made(encoder: Path, reader_data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("made") / "reader"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_curve", lambda *_: None)
        yield Run(encoder, folder, train_reader(asked(encoder, reader_data, folder, max_steps=24, eval_every=8)))


def test_the_held_out_loss_falls_and_the_card_says_what_the_reader_is(made: Run) -> None:
    result = made.result
    assert result.held_out_loss_after < 0.6 * result.held_out_loss_before
    assert (result.examples, result.run.steps) == (24, 24) and result.output == made.folder
    card = read_card(made.folder)
    assert (card.scale, card.offset, card.refuse_at) == (SCALE, OFFSET, {})
    manifest = read_manifest(made.folder)
    assert manifest["kind"] == "adapter" and manifest["method"] == "reader" and manifest["lang"] is None
    assert card.base == {manifest["base"]["fingerprint"], manifest["base"]["weights"]}
    assert [entry["examples"] for entry in manifest["data"]] == [24, 8]
    assert manifest["figures"] == result.as_json() == json.loads((made.folder / "run/figures.json").read_text())
    assert ReaderResult.from_json(made.folder, manifest["figures"]) == result


def test_a_run_goes_on_from_an_adapter_and_refuses_one_of_another_form(
    made: Run, reader_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []

    def check(adapter: Path, base: Path) -> None:
        checked.append(adapter)
        check_adapter(adapter, base)

    for place in ("train.run.folder", "train.adapter.opened"):
        monkeypatch.setattr(f"{place}.check_adapter", check)
    more = asked(made.base, reader_data, tmp_path / "more", max_steps=8, from_adapter=made.folder)
    result = train_reader(more)
    assert checked == [made.folder]  # once, before the base is loaded
    assert result.held_out_loss_before == pytest.approx(made.result.held_out_loss_after, abs=1e-4)
    with pytest.raises(MismatchError, match=r"r is 4 in the adapter and 8 in this run\).*--rank"):
        train_reader(asked(made.base, reader_data, tmp_path / "other", max_steps=8, from_adapter=made.folder, rank=8))
    with pytest.raises(MissingFileError, match="nowhere"):
        train_reader(asked(made.base, reader_data, tmp_path / "other", max_steps=8, from_adapter=tmp_path / "nowhere"))
    assert not (tmp_path / "other").exists()


def test_a_run_that_goes_on_ends_with_the_same_bits_and_history(
    encoder: Path, reader_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_reader(asked(encoder, reader_data, tmp_path / "whole"))
    calls = 0

    def fail(model: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += model.training
        if calls == 7:
            raise Broken
        return reader_loss(model, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Broken):
        patch.setattr(module, "reader_loss", fail)
        train_reader(asked(encoder, reader_data, tmp_path / "broken"))
    with pytest.raises(SlmError, match=r"broken off.*step 6.*--resume"):
        train_reader(asked(encoder, reader_data, tmp_path / "broken"))
    again = train_reader(asked(encoder, reader_data, tmp_path / "broken", resume=True))
    assert same(tmp_path / "whole", tmp_path / "broken")
    assert learned(tmp_path / "whole/run") == learned(tmp_path / "broken/run")
    assert again.held_out_loss_after == whole.held_out_loss_after and again.run.tokens == whole.run.tokens
    assert (tmp_path / "broken" / CARD).read_text() == (tmp_path / "whole" / CARD).read_text()
    assert not (tmp_path / "broken.run").exists()
    assert train_reader(asked(encoder, reader_data, tmp_path / "broken", resume=True)) == again, "it has ended"


def test_held_out_questions_of_another_form_are_refused(encoder: Path, tmp_path: Path) -> None:
    data = (
        write_jsonl(tmp_path / "t.jsonl", [question(1)]),
        write_jsonl(tmp_path / "h.jsonl", [question(2) | {"form": 3}]),
    )
    with pytest.raises(MismatchError, match=r"held-out examples were made for another form.*3 instead of 2"):
        train_reader(asked(encoder, data, tmp_path / "reader"))
    assert not (tmp_path / "reader").exists()


def test_the_command_gives_the_figures(encoder: Path, reader_data: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["reader", "--base", str(encoder), "--data", str(reader_data[0]), "--eval-data", str(reader_data[1])]
    arguments += ["-o", str(tmp_path / "reader"), "--max-steps", "2", "--threads", "1", "--dtype", "float32"]
    result = CliRunner().invoke(train, [*arguments, "--json"], obj=PathJoints(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["output"] == str(tmp_path / "reader") and (figures["steps"], figures["examples"]) == (2, 24)
    assert figures["held_out_loss_after"] != figures["held_out_loss_before"]
    assert (read_card(tmp_path / "reader").scale, read_card(tmp_path / "reader").offset) == (SCALE, OFFSET)


def test_data_of_another_base_and_a_causal_one_without_yes_and_no_are_refused(
    encoder: Path, reader_data: tuple[Path, Path], tmp_path: Path
) -> None:
    small = write_encoder(tmp_path / "small", vocab_size=24)
    with pytest.raises(MismatchError, match=r"train\.jsonl', line \d+ was made for another base"):
        train_reader(asked(small, reader_data, tmp_path / "reader"))
    decoder = write_checkpoint(tmp_path / "llama", "llama")
    with pytest.raises(UnsupportedError, match=r"'yes' is \d tokens of this model, a reader needs it to be one"):
        train_reader(asked(decoder, reader_data, tmp_path / "reader"))
    assert not (tmp_path / "reader").exists()
