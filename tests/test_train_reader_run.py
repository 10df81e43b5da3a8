"""A whole run that makes a tiny reader: it learns, goes on after a break, and judges the same wherever it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from convert.model import convert_checkpoint
from rag.answer.reader.card import CARD, read_card, write_thresholds
from serve.engine.engine import open_engine
from slm.artifacts import read_manifest
from slm.errors import MismatchError, MissingFileError, SlmError
from slm.joints import PieceScores
from slm_cli import Roof
from tests.path_joints import PathJoints
from tests.tiny_reader_training import FAMILIES, asked, question, reader_bases, reader_data
from tests.tiny_runs import Broken, learned, same
from tests.tiny_training import write_jsonl
from train.adapter.opened import check_adapter
from train.base import load_tokenizer
from train.cli.train import train
from train.run.reader import run as module
from train.run.reader.examples import read_examples
from train.run.reader.loss import question_loss, reader_loss
from train.run.reader.run import ReaderResult, train_reader

__all__ = ["reader_bases", "reader_data"]  # fixtures


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


@pytest.fixture(scope="module", params=FAMILIES)
def made(
    request: pytest.FixtureRequest,
    reader_bases: Callable[[str], Path],
    reader_data: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Run]:
    base, folder = reader_bases(request.param), tmp_path_factory.mktemp(request.param) / "reader"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "save_curve", lambda *_: None)
        yield Run(base, folder, train_reader(asked(base, reader_data, folder, max_steps=24, eval_every=8)))


def test_the_held_out_loss_falls_and_the_card_says_what_the_reader_is(made: Run) -> None:
    result = made.result
    assert result.held_out_loss_after < 0.6 * result.held_out_loss_before
    assert (result.examples, result.run.steps) == (24, 24) and result.output == made.folder
    card = read_card(made.folder)
    assert card.contrast == ("yes", "no") and card.refuse_at == {}
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


def test_the_engines_scores_give_the_loss_that_the_run_measured(
    made: Run, reader_data: tuple[Path, Path], tmp_path: Path
) -> None:
    """Converted base, converted adapter, its tokenizer, its BOS and its logits: all as they were trained."""
    convert_checkpoint(made.base, tmp_path / "model.gguf", "f32", verify=False)
    model = str(tmp_path / "model.gguf")
    write_thresholds(made.folder, {"en": 0.4, "": 0.5})
    reader = Roof().reader_of(model, str(made.folder))
    assert reader is not None and (reader.name, reader.contrast) == ("reader", ("yes", "no"))
    assert reader.refuse_at == {"en": 0.4, "": 0.5} and reader.adapter.suffix == ".gguf"
    rows = [json.loads(line) for line in reader_data[1].read_text(encoding="utf-8").splitlines()]
    examples = read_examples(reader_data[1:], load_tokenizer(made.base), 900)[0]

    def losses(adapter: str | None) -> float:
        found: list[PieceScores] = [engine.scores(row["prompts"], reader.contrast, adapter=adapter) for row in rows]
        # The first score of a prompt is that of the place.
        lines = [torch.tensor([score for row in one.scores for score in row[1:]]) for one in found]
        return sum(float(question_loss(own, one)) for own, one in zip(lines, examples, strict=True)) / len(rows)

    with open_engine(tmp_path / "model.gguf", {reader.name: reader.adapter}, threads=1) as engine:
        assert losses("reader") == pytest.approx(made.result.held_out_loss_after, abs=0.01)
        assert losses(None) == pytest.approx(made.result.held_out_loss_before, abs=0.01)


@pytest.fixture(scope="module")
def base(reader_bases: Callable[[str], Path]) -> Path:
    return reader_bases("llama")


def test_a_run_that_goes_on_ends_with_the_same_bits_and_history(
    base: Path, reader_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_reader(asked(base, reader_data, tmp_path / "whole"))
    calls = 0

    def fail(model: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += model.training
        if calls == 7:
            raise Broken
        return reader_loss(model, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Broken):
        patch.setattr(module, "reader_loss", fail)
        train_reader(asked(base, reader_data, tmp_path / "broken"))
    with pytest.raises(SlmError, match=r"broken off.*step 6.*--resume"):
        train_reader(asked(base, reader_data, tmp_path / "broken"))
    again = train_reader(asked(base, reader_data, tmp_path / "broken", resume=True))
    assert same(tmp_path / "whole", tmp_path / "broken")
    assert learned(tmp_path / "whole/run") == learned(tmp_path / "broken/run")
    assert again.held_out_loss_after == whole.held_out_loss_after and again.run.tokens == whole.run.tokens
    assert (tmp_path / "broken" / CARD).read_text() == (tmp_path / "whole" / CARD).read_text()
    assert not (tmp_path / "broken.run").exists()
    assert train_reader(asked(base, reader_data, tmp_path / "broken", resume=True)) == again, "it has ended"


def test_held_out_questions_of_another_form_are_refused(base: Path, tmp_path: Path) -> None:
    data = (
        write_jsonl(tmp_path / "t.jsonl", [question(1)]),
        write_jsonl(tmp_path / "h.jsonl", [question(2) | {"form": 2}]),
    )
    with pytest.raises(MismatchError, match=r"held-out examples were made for another form.*2 instead of 1"):
        train_reader(asked(base, data, tmp_path / "reader"))
    assert not (tmp_path / "reader").exists()


def test_the_command_gives_the_figures(base: Path, reader_data: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["reader", "--base", str(base), "--data", str(reader_data[0]), "--eval-data", str(reader_data[1])]
    arguments += ["-o", str(tmp_path / "reader"), "--max-steps", "2", "--threads", "1", "--dtype", "float32"]
    result = CliRunner().invoke(train, [*arguments, "--json"], obj=PathJoints(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["output"] == str(tmp_path / "reader") and (figures["steps"], figures["examples"]) == (2, 24)
    assert figures["held_out_loss_after"] != figures["held_out_loss_before"]
    assert read_card(tmp_path / "reader").contrast == ("yes", "no")


# Who reads for a model

_ONE_FAMILY = pytest.mark.parametrize("made", ["llama"], indirect=True)


@pytest.fixture
def models(made: Run, reader_bases: Callable[[str], Path], tmp_path: Path) -> tuple[str, str]:
    """The reader's base and another model, as GGUF."""
    for name, folder in (("own", made.base), ("other", reader_bases("gemma3"))):
        convert_checkpoint(folder, tmp_path / f"{name}.gguf", "f32", verify=False)
    return str(tmp_path / "own.gguf"), str(tmp_path / "other.gguf")


@_ONE_FAMILY
def test_a_released_reader_is_found_by_its_base(
    models: tuple[str, str], made: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own, other = models
    monkeypatch.setattr("rag.answer.reader.card._RELEASED", tmp_path / "none")
    assert Roof().reader_of(own, "auto") is None
    monkeypatch.setattr("rag.answer.reader.card._RELEASED", made.folder.parent)
    for wanted in ("auto", "point"):
        found = Roof().reader_of(own, wanted)
        assert found is not None and found.name == "reader" and found.adapter.is_file()
    assert Roof().reader_of(own, "model") is None and Roof().reader_of(other, "auto") is None
    with pytest.raises(MissingFileError, match=r"no released reader for '.*other\.gguf'.*slm train reader"):
        Roof().reader_of(other, "point")
    with pytest.raises(MissingFileError, match="is no reader"):
        Roof().reader_of(own, str(tmp_path))


@_ONE_FAMILY
def test_a_reader_for_another_base_is_a_clear_error(models: tuple[str, str], made: Run) -> None:
    other = models[1]
    with pytest.raises(MismatchError, match="reader"):
        Roof().reader_of(other, str(made.folder))
