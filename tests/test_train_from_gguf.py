"""Training, merging and measuring that begin with an adapter's GGUF file: as from the folder it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click import Command
from click.testing import CliRunner

import slm_cli
from convert.lora.adapter import convert_adapter
from convert.model import convert_checkpoint
from rag.answer.reader.card import CARD, SECOND
from rag.answer.reader.judge import open_reader
from slm.artifacts import new_folder, read_manifest
from slm.errors import MismatchError, MissingFileError, UnsupportedError
from slm.models import caches
from slm.weights.checkpoint_files import ADAPTER_GGUF
from slm.weights.gguf_reader import read_gguf
from tests import tiny_families
from tests.test_convert_family_adapters import change_settings
from tests.tiny_adapters import checkpoints, instruct, options, trained
from tests.tiny_causal_reader import causal_bases
from tests.tiny_reader_training import reader_data
from tests.tiny_runs import same
from train.adapter.fresh import add_adapter, save_adapter
from train.adapter.opened import check_adapter
from train.base import load_model, load_tokenizer
from train.cli.evaluate import evaluate
from train.cli.train import merge, train
from train.config import TrainOptions

__all__ = ["causal_bases", "checkpoints", "instruct", "reader_data", "trained"]  # fixtures


@pytest.fixture(autouse=True)
def roof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> slm_cli.Roof:
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    for run in ("train.run.lora", "train.run.reader.run"):
        monkeypatch.setattr(f"{run}.save_curve", lambda *_: None)
    return slm_cli.Roof()


def run(command: Command, *arguments: Any) -> dict[str, Any]:
    """What a command under the roof says as JSON."""
    told = [*map(str, arguments), "--json"]
    result = CliRunner().invoke(command, told, obj=slm_cli.Roof(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def asked(base: Path, **changes: Any) -> TrainOptions:
    return TrainOptions(base=base, data=(base,), output=base / "unwritten", **({"rank": 4, "alpha": 6.0} | changes))


@pytest.mark.parametrize("layers", [{"targets": "all"}, {"targets": "qv", "top_layers": 1}])
@pytest.mark.parametrize("family", tiny_families.MAKE)
def test_a_run_begins_with_the_same_weights_and_logits_from_the_file_as_from_the_folder(
    family: str, layers: dict[str, Any], roof: slm_cli.Roof, tmp_path: Path
) -> None:
    base = tiny_families.MAKE[family](tmp_path / "base")
    model = tiny_families.with_random_factors(add_adapter(load_model(base), asked(base, **layers)))
    with new_folder(tmp_path / "adapter", "adapter") as (folder, manifest):
        save_adapter(model, base, folder, {})
        manifest.update(base={"path": str(base)})
    convert_adapter(tmp_path / "adapter", tmp_path / "a.gguf")
    began = []
    for start in (tmp_path / "adapter", roof.adapter_of(tmp_path / "a.gguf", base)):
        check_adapter(start, base)
        began.append(add_adapter(load_model(base), asked(base, from_adapter=start, **layers)).eval())
    states = [one.state_dict() for one in began]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    ids = torch.tensor([tiny_families.sequences(tiny_families.vocabulary_of(base))[0]])
    with torch.no_grad():
        first, second, plain = (one(ids).logits for one in (*began, load_model(base)))
    assert torch.equal(first, second) and not torch.allclose(first, plain, atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trained_converted_trained_from_the_file_and_converted_again_it_computes_what_peft_does(
    family: str, checkpoints: dict[str, Path], trained: dict[str, Path], instruct: Path, tmp_path: Path
) -> None:
    """Round the circle; the run from the file is that from the folder to the last bit."""
    base = checkpoints[family]
    convert_adapter(trained[family], tmp_path / "a.gguf")
    told = ("sft", "--base", base, "--data", instruct, "--rank", 4, "--max-steps", 3, "--threads", 1,
            "--dtype", "float32", "--template", "chatml")  # fmt: skip
    starts = {"file": tmp_path / "a.gguf", "folder": trained[family]}
    made = {name: run(train, *told, "-o", tmp_path / name, "--from-adapter", start) for name, start in starts.items()}
    fresh = run(train, *told, "-o", tmp_path / "fresh")
    losses = [made[name]["held_out_loss_before"] for name in starts]
    assert losses[0] == losses[1] < fresh["held_out_loss_before"] - 0.1
    assert same(tmp_path / "file", tmp_path / "folder")
    convert_checkpoint(base, tmp_path / "base.gguf", "f32", verify=False)
    convert_adapter(tmp_path / "file", tmp_path / "b.gguf")
    ids = tiny_families.sequences(tiny_families.vocabulary_of(base), length=64)
    from peft import PeftModel

    model = PeftModel.from_pretrained(tiny_families.load(base), str(tmp_path / "file")).eval()
    found = tiny_families.runtime_logits(tmp_path / "base.gguf", ids, tmp_path / "b.gguf", context=64)
    tiny_families.assert_equal_logits(found, tiny_families.reference_logits(model, ids))
    figures = run(train, "estimate", *told[1:], "--from-adapter", tmp_path / "a.gguf")
    assert figures["examples"] == 36


def test_a_reader_that_comes_converted_is_gone_on_with(
    causal_bases: Callable[[str], Path], reader_data: tuple[Path, Path], tmp_path: Path
) -> None:
    """A folder as of the released second reader: a card, a manifest and adapter.gguf."""
    base, (data, held_out) = causal_bases("gemma3"), reader_data
    told = ("reader", "--base", base, "--data", data, "--eval-data", held_out, "--rank", 4, "--threads", 1,
            "--lr", 1e-2, "--dtype", "float32", "--max-steps", 8)  # fmt: skip
    first = run(train, *told, "-o", tmp_path / "first")
    released = tmp_path / "released"
    released.mkdir()
    for name in (CARD, "manifest.json"):
        shutil.copy(tmp_path / "first" / name, released / name)
    convert_adapter(tmp_path / "first", released / ADAPTER_GGUF)
    assert {path.name for path in released.iterdir()} == {path.name for path in SECOND.iterdir()} - {"README.md"}
    more = run(train, *told, "-o", tmp_path / "more", "--from-adapter", released)
    assert more["held_out_loss_before"] == pytest.approx(first["held_out_loss_after"], abs=1e-4)
    convert_checkpoint(base, tmp_path / "base.gguf", "f32", verify=False)
    convert_adapter(tmp_path / "more", tmp_path / "more.gguf")
    reader = open_reader(tmp_path / "more", lambda _: (tmp_path / "base.gguf", tmp_path / "more.gguf"))
    assert len(reader.judge("Where?", [["a place", "a line", "another"]]).scores[0]) == 2


# --- merging and measuring


def test_an_adapter_file_is_merged_and_measured_as_its_folder(
    checkpoints: dict[str, Path], trained: dict[str, Path], instruct: Path, tmp_path: Path
) -> None:
    base = checkpoints["llama"]
    convert_adapter(trained["llama"], tmp_path / "a.gguf")
    starts = {"file": tmp_path / "a.gguf", "folder": trained["llama"]}
    made = {}
    for name, start in starts.items():
        merged = run(merge, "--base", base, "--adapter", start, "-o", tmp_path / name)
        text = run(evaluate, base, "--adapter", start, "--text", f"en={Path('data/en.txt').resolve()}")
        made[name] = (merged["fingerprint"], load_tokenizer(tmp_path / name).chat_template, text["by_language"]["en"])
    assert made["file"] == made["folder"] and made["file"][1]


# --- what is kept, and what is refused


@pytest.fixture
def file(checkpoints: dict[str, Path], trained: dict[str, Path], tmp_path: Path) -> Path:
    convert_adapter(trained["llama"], tmp_path / "ja.gguf")
    return tmp_path / "ja.gguf"


def test_it_is_restored_once_for_all_that_shapes_it(
    file: Path, roof: slm_cli.Roof, checkpoints: dict[str, Path], trained: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = checkpoints["llama"]
    assert roof.adapter_of(trained["llama"], base) == trained["llama"]
    made = roof.adapter_of(file, base)
    assert made.parent == tmp_path / "home" / caches.CHECKPOINTS and made.name.startswith("ja-adapter-")
    assert "restoring" in capsys.readouterr().err
    written = read_manifest(made)
    assert roof.adapter_of(file, base) == made and "restoring" not in capsys.readouterr().err
    (made / "manifest.json").write_text(json.dumps({**written, "converter": "older"}))
    assert [path for path, _ in caches.stale(roof.converter())] == [made]
    assert roof.adapter_of(file, base) == made and read_manifest(made) == written
    moved = shutil.copytree(base, tmp_path / "moved")
    other = roof.adapter_of(file, moved)
    assert other != made and read_manifest(other)["base"]["path"] == str(moved)
    convert_adapter(trained["llama"], tmp_path / "again" / "ja.gguf")
    assert roof.adapter_of(tmp_path / "again" / "ja.gguf", base) == made


def test_an_adapter_of_another_base_or_form_is_refused_before_anything_is_written(
    file: Path, roof: slm_cli.Roof, checkpoints: dict[str, Path], instruct: Path, tmp_path: Path
) -> None:
    base = checkpoints["llama"]
    for other in ("gemma3", "gpt2"):
        with pytest.raises(MismatchError, match=r"ja\.gguf' was trained on another base than"):
            roof.adapter_of(file, checkpoints[other])
    told = ("sft", "--base", base, "--data", instruct, "--threads", 1, "--template", "chatml", "-o", tmp_path / "out")
    for wrong, says in (
        (("--rank", 8), "r is 4 in the adapter and 8 in this run.*--rank"),
        (("--rank", 4, "--alpha", 8), r"lora_alpha is 32\.0 in the adapter and 8\.0.*--alpha"),
        (("--rank", 4, "--targets", "qv"), "target_modules is .* in the adapter.*--targets"),
    ):
        with pytest.raises(MismatchError, match=says):
            run(train, *told, *wrong, "--from-adapter", file)
    (tmp_path / "folder").mkdir()
    shutil.copy(file, tmp_path / "folder" / ADAPTER_GGUF)
    with pytest.raises(MissingFileError, match=r"has no adapter_config\.json.*slm restore .*folder --base BASE"):
        check_adapter(tmp_path / "folder", base)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("alora_invocation_tokens", [1, 2]), ("rank_pattern", {"q_proj": 2}), ("alpha_pattern", {"q_proj": 2})],
)
def test_what_no_run_has_is_refused_by_name(
    setting: str, value: Any, checkpoints: dict[str, Path], trained: dict[str, Path], roof: slm_cli.Roof, tmp_path: Path
) -> None:
    """Of a folder too: its factors would be trained as something else than they are."""
    base = checkpoints["llama"]
    folder = shutil.copytree(trained["llama"], tmp_path / "adapter")
    change_settings(folder, **{setting: value})
    starts = [folder]
    if setting == "alora_invocation_tokens":
        convert_adapter(folder, tmp_path / "a.gguf")
        assert read_gguf(tmp_path / "a.gguf").metadata["adapter.alora.invocation_tokens"].tolist() == value
        starts.append(roof.adapter_of(tmp_path / "a.gguf", base))
    for start in starts:
        with pytest.raises(UnsupportedError, match=f"no run goes on with .* '{setting}'"):
            add_adapter(load_model(base), options(base, base, tmp_path / "out", from_adapter=start))
