"""`slm export`: a folder that transformers, our engine and Ollama's rules can read, with measured figures and terms."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM, AutoTokenizer

import slm_cli
from convert.cli.export import export
from convert.publish.checksums import check_sums
from convert.publish.licence import LicenceTerms
from convert.publish.model_page import ExportFacts, model_page
from serve.engine.engine import open_engine
from slm.artifacts import read_manifest, sha256_file
from slm.chat.prompt import TEMPLATES, render
from slm.errors import DamagedFileError, InputError, LicenceError, MismatchError, MissingFileError
from slm.joints import Finish, SamplingOptions
from slm.weights.identity import identity_of
from tests.go_template import execute, modelfile_commands
from tests.path_joints import PathJoints
from tests.tiny_runs import base, data, whole  # noqa: F401  (fixtures)
from tests.tiny_training import write_checkpoint

CARD = "---\nlicense: apache-2.0\nlicense_link: x\nbase_model: owner/first\nlanguage: [en, ja]\n---\n# Source\n"
ANSWERS = {
    "chat": {
        "file": "eval.jsonl", "items": 120,
        "models": [{"name": "base", "file": "m.gguf",
                    "overall": {"right": 30, "items": 120, "share_low": 0.181, "share_high": 0.334},
                    "by_language": {"en": {"right": 20, "items": 60}, "ja": {"right": 10, "items": 60}}}],
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def source(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The tiny base with a chat template, a card of its own and the terms."""
    folder = tmp_path_factory.mktemp("source") / "tiny"
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE.txt").write_text("The terms.")
    (folder / "NOTICE").write_text("Made by owner.")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": str(base)}))
    return folder


def call(*words: str | Path, joints: Any = None) -> Result:
    return CliRunner().invoke(export, [str(word) for word in words], obj=joints or PathJoints())


@pytest.fixture(scope="module")
def made(source: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    target = tmp_path_factory.mktemp("out") / "Office-1"
    answers = target.parent / "answers.json"
    answers.write_text(json.dumps(ANSWERS))
    words: list[str | Path] = [
        "--adapter",
        f"en={whole}",
        "-t",
        "q8_0",
        "-t",
        "f16",
        "--max-tokens",
        "64",
        "--answers",
        answers,
        "--json",
    ]
    result = call(target, "--model", source, *words)
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout)["files"] == read_manifest(target)["files"]
    return target


def test_the_folder_holds_what_a_hub_shows_and_nothing_of_this_machine(made: Path, source: Path, whole: Path) -> None:  # noqa: F811
    top = {path.name for path in made.iterdir()}
    assert top == {
        "README.md", "Modelfile", "SHA256SUMS", "manifest.json", "LICENSE.txt", "NOTICE", "config.json", "adapters",
        "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "Office-1-q8_0.gguf", "Office-1-f16.gguf",
    }  # fmt: skip
    assert {p.name for p in (made / "adapters").iterdir()} == {"en", "en.gguf"}
    assert {"adapter_config.json", "adapter_model.safetensors", "manifest.json"} <= {
        p.name for p in (made / "adapters/en").iterdir()
    }
    places = [str(folder.parent).encode() for folder in (made, source, whole)]
    naming = [p for p in made.rglob("*") if p.is_file() and any(place in p.read_bytes() for place in places)]
    assert naming == []
    assert (
        json.loads((made / "adapters/en/adapter_config.json").read_text())["base_model_name_or_path"] == "owner/first"
    )
    assert list(made.parent.glob(".*")) == []


def test_transformers_loads_it_with_the_same_weights_and_ids(made: Path, source: Path) -> None:
    ids = AutoTokenizer.from_pretrained(made)("会議室 at nine", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (made, source)]
    assert torch.equal(*logits)
    assert identity_of(made) == identity_of(source)


def test_our_engine_answers_from_its_file_and_its_adapter(made: Path) -> None:
    adapters = {"en": made / "adapters/en.gguf"}
    with open_engine(made / "Office-1-q8_0.gguf", adapters, threads=1, context=128) as engine:
        for adapter in (None, "en"):
            *pieces, end = engine.chat(
                [{"role": "user", "content": "desk 3?"}], adapter=adapter, sampling=SamplingOptions(max_tokens=4)
            )
            assert isinstance(end, Finish) and end.completion_tokens > 0 and pieces


def test_the_exported_adapter_folder_fits_the_exported_model(made: Path) -> None:
    roof = slm_cli.Roof()
    assert roof.adapter_gguf_of(made / "adapters/en", str(made / "Office-1-q8_0.gguf")).is_file()


def test_the_modelfile_says_what_the_template_renders(made: Path) -> None:
    commands = modelfile_commands((made / "Modelfile").read_text("utf-8"))
    assert commands[0] == ("FROM", "./Office-1-f16.gguf") or commands[0] == ("FROM", "./Office-1-q8_0.gguf")
    assert (made / commands[0][1]).is_file()
    asked = execute(dict(commands)["TEMPLATE"], {"System": "", "Messages": [{"Role": "user", "Content": "hi"}]})
    assert asked == render(TEMPLATES["chatml"], [{"role": "user", "content": "hi"}], bos_token="", eos_token="")


def test_the_card_tells_what_was_measured_and_under_which_terms(made: Path, whole: Path) -> None:  # noqa: F811
    card = (made / "README.md").read_text("utf-8")
    assert card.startswith(
        "---\nlicense: apache-2.0\nbase_model: owner/first\nlanguage: [en, ja]\nlibrary_name: transformers\n"
        "pipeline_tag: text-generation\ntags: [gguf, llama.cpp, lora]\n---\n"
    )
    figures = read_manifest(whole)["figures"]["by_language"]
    for lang, one in figures.items():
        losses = f"{one['held_out_loss_before']:.3f} | {one['held_out_loss_after']:.3f}"
        assert f"| {lang} | {losses} | {one['held_out_tokens']} |" in card
    row = re.search(r"^\| ja \| (\d+) \| ([\d.]+) \| ([\d.,]+) \| ([\d.]+) \|$", card, re.MULTILINE)
    assert row is not None and float(row[2]) == pytest.approx(math.log(float(row[3].replace(",", ""))), abs=2e-3)
    assert "## What quantization costs: Office-1" in card and re.search(r"^\| q8_0 \| [\d.]+ \|", card, re.MULTILINE)
    assert "| base (`m.gguf`) | 20/60 | 10/60 | 30/120 | 18-33 % |" in card
    assert "[LICENSE.txt](LICENSE.txt), [NOTICE](NOTICE)" in card
    assert "slm chat Office-1-q8_0.gguf --adapter en=adapters/en.gguf" in card or "slm chat Office-1-f16.gguf" in card
    assert f"`{identity_of(made).fingerprint}`" in card
    data_row = next(line for line in card.splitlines() if line.startswith("| `d.jsonl` |"))
    assert data_row.split("|")[3].strip(" `") == read_manifest(whole)["data"][0]["sha256"][:16]


def test_the_sums_are_those_that_sha256sum_checks(made: Path, tmp_path: Path) -> None:
    subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=made, check=True)
    summed = {line.split("  ", 1)[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert summed == files - {"README.md", "SHA256SUMS"}
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    (copy / "README.md").write_text("my own words")
    check_sums(copy)
    (copy / "Modelfile").write_text("changed")
    (copy / "NOTICE").unlink()
    (copy / "notes.txt").write_text("new")
    with pytest.raises(DamagedFileError, match="not as it was exported") as error:
        check_sums(copy)
    assert error.value.found == "missing: NOTICE; new: notes.txt; changed: Modelfile"


def test_a_licence_that_every_copy_needs_goes_along_where_its_text_is_not_beside_the_model(
    source: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(source, bare)
    for name in ("LICENSE.txt", "NOTICE", "README.md"):
        (bare / name).unlink(missing_ok=True)
    made = call(tmp_path / "m", "--model", bare, "-t", "q8_0", "--max-tokens", "32", "--licence", "apache-2.0")
    assert made.exit_code == 0, made.exception
    assert "Apache License\n                           Version 2.0" in (tmp_path / "m/LICENSE.txt").read_text()
    assert "[LICENSE.txt](LICENSE.txt)" in (tmp_path / "m/README.md").read_text()


def test_one_type_is_one_file_and_an_older_export_is_replaced(source: Path, tmp_path: Path) -> None:
    words = (tmp_path / "m", "--model", source, "-t", "q8_0", "--max-tokens", "32")
    assert call(*words).exit_code == 0
    again = call(*words, "--name", "other")
    assert again.exit_code == 0, again.exception
    assert {p.name for p in (tmp_path / "m").glob("*.gguf")} == {"other-q8_0.gguf"}
    assert (tmp_path / "m/other-q8_0.gguf").is_file() and str(tmp_path / "m/other-q8_0.gguf") in again.stdout
    assert modelfile_commands((tmp_path / "m/Modelfile").read_text())[0] == ("FROM", "./other-q8_0.gguf")


@pytest.mark.parametrize(
    ("name", "url", "shown"),
    [
        ("house", "https://x.example", ["license_name: house", "license_link: https://x.example"]),
        ("", "", ["license_link: COPYING"]),
    ],
)
def test_a_licence_that_the_hub_has_no_name_for_is_shown_with_its_own(name: str, url: str, shown: list[str]) -> None:
    described = {"parameters": 1e6, "architecture": "llama", "fingerprint": "f", "template": None}
    terms = LicenceTerms("other", name, url)
    page = model_page(ExportFacts("m", terms, described, [], "m.gguf", licence_files=["COPYING"]))
    assert page.splitlines()[1 : 2 + len(shown)] == ["license: other", *shown]
    assert page.splitlines()[2 + len(shown)] == "library_name: transformers"


def test_somebody_elses_folder_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = call(tmp_path, "--model", source, "--name", "m")
    assert isinstance(result.exception, InputError) and "left untouched" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_adapter_of_other_weights_leaves_nothing_behind(whole: Path, tmp_path: Path) -> None:  # noqa: F811
    other = write_checkpoint(tmp_path / "other", "llama", seed=7)
    words = ("--model", other, "--licence", "mit", "--adapter", f"en={whole}", "-t", "q8_0")
    result = call(tmp_path / "out/m", *words)
    assert isinstance(result.exception, MismatchError)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_without_a_licence_is_not_exported(base: Path, tmp_path: Path) -> None:  # noqa: F811
    result = call(tmp_path / "m", "--model", base)
    assert isinstance(result.exception, LicenceError) and "--licence" in result.exception.hint
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "Missing option '--model'"), (("--name", "x", "--upload", "a/b"), "--name goes with it"),
     (("--model", "m", "--adapter", "en"), "is not NAME=FOLDER")],
)  # fmt: skip
def test_a_command_that_says_too_little_is_refused(
    tmp_path: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    result = call(tmp_path / "m", *words)
    assert result.exit_code == 2 and said in result.output


def test_a_model_in_the_place_of_the_folder_is_recognized(source: Path) -> None:
    result = call(source)
    assert result.exit_code == 2 and f"slm export OUT --model {source}" in " ".join(result.output.split())
    result = call(source, "--model", source)
    assert isinstance(result.exception, InputError) and "is the model itself" in str(result.exception)


def test_what_cannot_be_part_of_the_export_is_named_before_any_work(source: Path, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text('{"by_language": {}}')
    failures = {
        ("--name", "a b"): (InputError, "is no name for files"),
        ("--adapter", f"../x={source}"): (InputError, "is no name for files"),
        ("--adapter", f"x={source}"): (MissingFileError, "is not a PEFT adapter"),
        ("--answers", str(tmp_path / "no.json")): (DamagedFileError, "holds no answers"),
        ("-t", "q9"): (InputError, "q9"),
    }
    for words, (kind, said) in failures.items():
        result = call(tmp_path / "m", "--model", source, *words)
        assert isinstance(result.exception, kind) and said in str(result.exception), (words, result.exception)
        assert not (tmp_path / "m").exists()
    assert sha256_file(source / "NOTICE")
