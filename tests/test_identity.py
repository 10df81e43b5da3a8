"""What identifies weights survives every conversion, and what is cached is never that of something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import slm_cli
from convert.lora.adapter import convert_adapter
from convert.model import convert_checkpoint
from convert.publish.card import base_beside
from convert.quantize.quantize import quantize_file
from convert.restore import restore_checkpoint
from serve.adapters.registry import vet_adapter, vet_base
from slm.artifacts import sha256_files
from slm.errors import DamagedFileError, MismatchError
from slm.models import caches
from slm.weights.checkpoint_files import weight_files
from slm.weights.gguf_reader import read_gguf
from slm.weights.identity import (
    BASE_FINGERPRINT,
    BASE_WEIGHTS,
    checkpoint_fingerprint,
    identity_of,
    names_of,
    other_weights,
    trained_on,
)  # fmt: skip
from tests import tiny_checkpoints as tiny
from tests.tiny_gguf import write_model
from train.adapter.merge import merge

TYPES = ["f32", "f16", "q8_0", "q4_k_m"]


def peft_folder(base: Path, out: Path, manifest: bool = True, **config: Any) -> Path:
    """A LoRA on `base` as PEFT writes it, with the manifest that our training puts beside it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(out)
    if manifest:
        known = identity_of(base)
        said = {"path": str(base), "fingerprint": known.fingerprint, "weights": known.weights}
        (out / "manifest.json").write_text(json.dumps({"kind": "adapter", "base": said}))
    if config:
        settings = json.loads((out / "adapter_config.json").read_text())
        (out / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def siblings(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """GGUF files of one checkpoint in every type."""
    folder = tmp_path_factory.mktemp("siblings")
    return {Path(one["file"]).stem.split("-")[-1]: Path(one["file"]) for one in convert_checkpoint(base, folder, TYPES)}


@pytest.mark.parametrize("kind", TYPES)
def test_an_adapter_trained_on_a_file_fits_it_its_siblings_its_source_and_what_is_made_of_it_again(
    kind: str, base: Path, siblings: dict[str, Path], tmp_path: Path
) -> None:
    restore_checkpoint(siblings[kind], tmp_path / "restored")
    assert checkpoint_fingerprint(tmp_path / "restored") == checkpoint_fingerprint(base)
    folder = peft_folder(tmp_path / "restored", tmp_path / "adapter")
    convert_adapter(folder, tmp_path / "a.gguf")
    convert_checkpoint(tmp_path / "restored", tmp_path / "again.gguf", "q8_0")
    for model in (*siblings.values(), tmp_path / "again.gguf"):
        assert vet_adapter("a", tmp_path / "a.gguf", vet_base(model)).name == "a"
    convert_adapter(folder, tmp_path / "b.gguf", base)
    stranger = convert_checkpoint(tiny.llama(tmp_path / "other", seed=5), tmp_path / "other.gguf", "f32")[0]["file"]
    with pytest.raises(MismatchError, match="other weights"):
        vet_adapter("a", tmp_path / "a.gguf", vet_base(Path(stranger)))
    with pytest.raises(MismatchError, match="another base"):
        convert_adapter(folder, tmp_path / "c.gguf", tmp_path / "other")


def test_a_file_of_somebody_elses_is_known_by_its_tensors(tmp_path: Path) -> None:
    foreign, other = (write_model(tmp_path / f"{seed}.gguf", seed=seed, template="{{ 1 }}") for seed in (1, 2))
    restore_checkpoint(foreign, tmp_path / "restored")
    convert_adapter(peft_folder(tmp_path / "restored", tmp_path / "adapter"), tmp_path / "a.gguf")
    convert_checkpoint(tmp_path / "restored", tmp_path / "ours.gguf", "q8_0")
    quantize_file(foreign, tmp_path / "quantized.gguf", "q8_0")
    for model in (foreign, tmp_path / "ours.gguf", tmp_path / "quantized.gguf"):
        assert vet_adapter("a", tmp_path / "a.gguf", vet_base(model)).name == "a"
    sibling = tmp_path / "sibling.gguf"  # the same model quantized by somebody who says nothing of where it is from
    sibling.write_bytes((tmp_path / "quantized.gguf").read_bytes().replace(b"slm.", b"xlm."))
    assert vet_base(sibling).fingerprint is None
    assert vet_adapter("a", tmp_path / "a.gguf", vet_base(sibling)).name == "a"
    assert base_beside(tmp_path / "a.gguf") != other
    with pytest.raises(MismatchError, match="other weights"):
        vet_adapter("a", tmp_path / "a.gguf", vet_base(other))


def test_a_strangers_file_with_equal_norms_and_other_matrices_says_what_can_be_known_and_what_to_do(
    tmp_path: Path,
) -> None:
    """The same model quantized by another program, or a fine-tuned copy: only the user knows."""
    foreign = write_model(tmp_path / "foreign.gguf", seed=1, template="{{ 1 }}")
    restore_checkpoint(foreign, tmp_path / "restored")
    folder = peft_folder(tmp_path / "restored", tmp_path / "adapter")
    convert_adapter(folder, tmp_path / "a.gguf")
    other = _zeroed(foreign, tmp_path / "other.gguf", dimensions=2)
    with pytest.raises(MismatchError, match="no file tells") as refused:
        vet_adapter("a", tmp_path / "a.gguf", vet_base(other))
    assert (
        f"slm convert COPY --base {other} -o FILE.gguf" in refused.value.hint and "manifest.json" in refused.value.hint
    )
    (folder / "manifest.json").unlink()
    convert_adapter(folder, tmp_path / "b.gguf", _restored(other, tmp_path / "theirs"))
    assert vet_adapter("a", tmp_path / "b.gguf", vet_base(other)).name == "a"
    with pytest.raises(MismatchError) as refused:
        vet_adapter("a", tmp_path / "a.gguf", vet_base(_zeroed(foreign, tmp_path / "norms.gguf", dimensions=1)))
    assert "slm convert" not in refused.value.hint


def _zeroed(model: Path, out: Path, *, dimensions: int) -> Path:
    """A copy in which the first tensor of so many dimensions is zero."""
    out.write_bytes(model.read_bytes())
    tensor = next(info for info in read_gguf(model).tensors.values() if len(info.shape) == dimensions)
    with out.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(bytes(tensor.nbytes))
    return out


def test_a_manifest_does_not_speak_for_weights_that_were_changed_beside_it(
    siblings: dict[str, Path], tmp_path: Path
) -> None:
    restore_checkpoint(siblings["f32"], tmp_path / "restored")
    known = identity_of(tmp_path / "restored")
    weights = load_file(tmp_path / "restored/model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, tmp_path / "restored/model.safetensors", metadata={"format": "pt"})
    changed = identity_of(tmp_path / "restored")
    assert not changed.names & known.names


def test_a_refusal_calls_a_base_by_its_fingerprint_whatever_its_files_hash_is() -> None:
    for names in (("1" * 64, "9" * 64), ("9" * 64, "1" * 64)):
        wanted = trained_on(dict(zip((BASE_FINGERPRINT, BASE_WEIGHTS), names, strict=True)))
        refused = other_weights(Path("a.gguf"), Path("m.gguf"), wanted, "5" * 64)
        assert refused.found == f"base {names[0][:12]}, model {'5' * 12}"


def test_the_same_tensors_in_other_files_are_the_same_weights(base: Path, tmp_path: Path) -> None:
    known = identity_of(base)
    weights = load_file(base / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    (tmp_path / "metadata").mkdir()
    save_file(weights, tmp_path / "metadata/model.safetensors", metadata={"made": "elsewhere"})
    for name in ("sharded", "metadata"):
        again = identity_of(tmp_path / name)
        assert again.fingerprint == known.fingerprint and again.weights != known.weights, name
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    name, first = next(iter(weights.items()))
    for changed in (first + 1, first.half(), first.reshape(-1)):
        save_file({**weights, name: changed}, tmp_path / "metadata/model.safetensors")
        assert identity_of(tmp_path / "metadata").fingerprint != known.fingerprint


def test_the_exact_files_are_a_name_too_as_in_what_was_made_before(base: Path, siblings: dict[str, Path]) -> None:
    known = identity_of(base)
    assert known.weights == sha256_files(list(weight_files(base).files)) and known.weights in known.names
    assert known.names == names_of(read_gguf(siblings["q8_0"]).metadata)


def test_two_restorations_of_one_model_have_one_fingerprint_and_weights_of_their_own(
    siblings: dict[str, Path], tmp_path: Path
) -> None:
    made = [identity_of(_restored(siblings[kind], tmp_path / kind)) for kind in ("f32", "q4_k_m")]
    assert made[0].fingerprint == made[1].fingerprint and made[0].weights != made[1].weights


def _restored(file: Path, out: Path) -> Path:
    restore_checkpoint(file, out)
    return out


def test_a_stale_index_beside_the_single_file_counts_for_nothing(base: Path, tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "stale", seed=0)
    fresh = identity_of(folder)
    older = tiny.llama(tmp_path / "older", seed=9)
    weights = load_file(older / "model.safetensors")
    save_file(weights, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    shards = {"weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    assert identity_of(folder) == fresh
    convert_checkpoint(folder, tmp_path / "m.gguf", "f32")
    read = AutoModelForCausalLM.from_pretrained(folder).lm_head.weight.detach().numpy()
    assert (read_gguf(tmp_path / "m.gguf").dequantized("output.weight") == read).all()
    (folder / "model.safetensors").unlink()
    assert identity_of(folder) != fresh


def test_an_adapter_without_a_known_base_belongs_to_the_served_model_whichever_was_first(
    base: Path, siblings: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    folder = peft_folder(base, tmp_path / "hub", manifest=False, base_model_name_or_path="somebody/model-bnb-4bit")
    convert_checkpoint(tiny.llama(tmp_path / "other", seed=5), tmp_path / "other.gguf", "f32")
    for model in (tmp_path / "other.gguf", siblings["f16"], tmp_path / "other"):
        served = slm_cli.Roof().gguf_of(str(model))
        made = slm_cli.Roof().adapter_gguf_of(folder, str(model))
        assert vet_adapter("a", made, vet_base(served)).name == "a"
        assert slm_cli.Roof().adapter_gguf_of(folder, str(model)) == made


def test_the_cached_file_of_an_adapter_follows_what_its_named_base_holds_now(
    base: Path, siblings: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    named, other = tmp_path / "named", tiny.llama(tmp_path / "other", seed=5)
    folder = peft_folder(base, tmp_path / "hub", manifest=False, base_model_name_or_path=str(named))
    convert_checkpoint(other, tmp_path / "other.gguf", "f32")

    def fits(model: Path) -> bool:
        made = slm_cli.Roof().adapter_gguf_of(folder, str(model))
        return vet_base(model).is_base_of(read_gguf(made))

    assert fits(tmp_path / "other.gguf")  # nobody can know
    for held, model, right in (
        (base, tmp_path / "other.gguf", False), (base, siblings["f16"], True),
        (other, siblings["f16"], False), (other, tmp_path / "other.gguf", True), (base, siblings["f16"], True),
    ):  # fmt: skip
        shutil.rmtree(named, ignore_errors=True)
        shutil.copytree(held, named)
        assert fits(model) == right, (held, model)


def test_that_a_model_was_taken_as_the_base_is_said_every_time(
    base: Path, siblings: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    unknown = peft_folder(base, tmp_path / "hub", manifest=False, base_model_name_or_path="somebody/model")
    shutil.copytree(base, tmp_path / "named")
    changed = peft_folder(tmp_path / "named", tmp_path / "changed")
    shutil.rmtree(tmp_path / "named")
    tiny.llama(tmp_path / "named", seed=5)
    for folder, why in ((unknown, "somebody/model"), (changed, "holds other weights by now")):
        for _ in range(2):
            slm_cli.Roof().adapter_gguf_of(folder, str(siblings["f16"]))
            said = capsys.readouterr().err
            assert f"as the base of '{folder.name}'" in said and why in said


def test_an_adapter_that_names_a_base_which_is_here_is_not_put_onto_another(base: Path, tmp_path: Path) -> None:
    folder = peft_folder(base, tmp_path / "adapter", manifest=False)
    other = tiny.llama(tmp_path / "other", seed=5)
    for use in (
        lambda: convert_adapter(folder, tmp_path / "a.gguf", other),
        lambda: merge(other, folder, tmp_path / "merged"),
    ):
        with pytest.raises(MismatchError, match=f"names another base.*'{base}' is .*base_model_name_or_path"):
            use()
    assert not (tmp_path / "a.gguf").exists() and not (tmp_path / "merged").exists()
    shutil.copytree(base, tmp_path / "copy")
    convert_adapter(folder, tmp_path / "a.gguf", tmp_path / "copy")


def test_a_base_given_for_an_adapter_whose_own_is_not_here_is_noted(base: Path, tmp_path: Path) -> None:
    folder = peft_folder(base, tmp_path / "adapter", manifest=False, base_model_name_or_path="somebody/model")
    for command in (
        ["convert", str(folder), "-o", str(tmp_path / "a.gguf"), "--base", str(base)],
        ["merge", "--base", str(base), "--adapter", str(folder), "-o", str(tmp_path / "merged")],
    ):
        run = CliRunner().invoke(slm_cli.cli, command)
        assert run.exit_code == 0 and f"taking {base} as the base of 'adapter'" in run.stderr, command
        assert "somebody/model" in run.stderr


def test_a_base_that_was_moved_is_known_by_its_weights_and_nothing_is_said(base: Path, tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    shutil.copytree(base, tmp_path / "before" / "base")
    folder = peft_folder(tmp_path / "before" / "base", tmp_path / "adapter")
    moved = (tmp_path / "before").rename(tmp_path / "after") / "base"
    for command in (
        ["convert", str(folder), "-o", str(tmp_path / "a.gguf"), "--base", str(moved)],
        ["merge", "--base", str(moved), "--adapter", str(folder), "-o", str(tmp_path / "merged")],
    ):
        run = CliRunner().invoke(slm_cli.cli, command)
        assert run.exit_code == 0 and "as the base of" not in run.stderr, run.stderr


def test_the_manifest_of_an_adapter_is_part_of_its_cached_file(
    base: Path, siblings: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    folder = peft_folder(base, tmp_path / "adapter")
    first = slm_cli.Roof().adapter_gguf_of(folder, str(siblings["f32"]))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "lang": "ja"}))
    second = slm_cli.Roof().adapter_gguf_of(folder, str(siblings["f32"]))
    assert first != second and read_gguf(second).metadata["slm.lang"] == "ja"


@pytest.mark.parametrize("changed", ["tokenizer_config.json", "generation_config.json"])
def test_the_cached_file_of_a_checkpoint_follows_every_file_that_shapes_it(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    folder = tiny.llama(tmp_path / "model")
    first = slm_cli.Roof().gguf_of(str(folder))
    assert slm_cli.Roof().gguf_of(str(folder)) == first
    settings = json.loads((folder / changed).read_text())
    (folder / changed).write_text(json.dumps({**settings, "chat_template": "{{ 'new' }}", "eos_token_id": [0, 2]}))
    assert slm_cli.Roof().gguf_of(str(folder)) != first


def test_another_converter_makes_everything_anew_where_it_was(
    siblings: dict[str, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    restored, exported = slm_cli.Roof().checkpoint_of(str(siblings["f16"])), slm_cli.Roof().gguf_of(str(base))
    manifest = json.loads((restored / "manifest.json").read_text())
    (restored / "manifest.json").write_text(json.dumps({**manifest, "converter": "older"}))
    older = exported.with_name(exported.name.replace(manifest["converter"], "older0000000"))
    exported.rename(older)
    assert slm_cli.Roof().checkpoint_of(str(siblings["f16"])) == restored
    assert json.loads((restored / "manifest.json").read_text()) == manifest
    assert slm_cli.Roof().gguf_of(str(base)) == exported and not older.exists()


def test_caches_are_listed_with_their_sizes_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slm.doctor.report import doctor

    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    (tmp_path / "models/mine").mkdir(parents=True)
    for kind in (caches.CHECKPOINTS, caches.STATES):
        (tmp_path / kind / "one").mkdir(parents=True)
        (tmp_path / kind / "one/data").write_bytes(b"x" * 1000)
    assert {cache.folder.name: (cache.entries, cache.size_bytes) for cache in caches.found()} == {
        "checkpoints": (1, 1000), "exports": (0, 0), "states": (1, 1000), "peers": (0, 0),
    }  # fmt: skip
    run = CliRunner().invoke(doctor, ["--clean", "--json"])
    assert json.loads(run.stdout)["size_bytes"] == 2000
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_damaged_manifest_of_a_base_is_an_error_and_not_a_guess(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DamagedFileError, match="manifest"):
        identity_of(folder)
