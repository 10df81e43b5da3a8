"""`slm export --upload`: what was exported is on the hub byte for byte, or nothing is; against a hub of our own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pytest_httpserver import HTTPServer

from convert.cli.export import export
from convert.publish.checksums import sums_of, write_sums
from slm.artifacts import manifest_bytes, new_folder
from slm.errors import DamagedFileError, InputError, MissingFileError, UploadError
from tests.fake_hub import COMMIT, TOKEN, FakeUploads
from tests.path_joints import PathJoints

REPOSITORY = "me/office"


@pytest.fixture
def hub(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeUploads:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the hub's own storage protocol; ours speaks LFS
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fake = FakeUploads(httpserver, REPOSITORY)
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    return fake


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A small folder of the kind that an export is."""
    target = tmp_path / "office"
    with new_folder(target, "export") as (folder, manifest):
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# Office\n")
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights" * 1000)
        (folder / "office-q8_0.gguf").write_bytes(b"GGUF" * 1000)
        (folder / "adapters").mkdir()
        (folder / "adapters/ja.gguf").write_bytes(b"adapter")
        sums = sums_of(folder)
        manifest.update(name="office", version="0.1.0", licence="mit", files=sums)
        write_sums(folder, {**sums, "manifest.json": hashlib.sha256(manifest_bytes(manifest)).hexdigest()})
    return target


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(export, [str(word) for word in words], obj=PathJoints())


def test_an_export_arrives_whole_in_one_commit_of_a_private_repository(hub: FakeUploads, exported: Path) -> None:
    (exported / "README.md").write_text("---\nlicense: mit\n---\n# In my own words\n")
    result = call(exported, "--upload", REPOSITORY, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(result.stdout) == {
        "folder": str(exported), "repository": REPOSITORY, "url": f"{hub.url}/{REPOSITORY}", "commit": COMMIT
    }  # fmt: skip
    local = {p.relative_to(exported).as_posix(): p.read_bytes() for p in exported.rglob("*") if p.is_file()}
    assert hub.files == local and len(local) == 7
    assert set(hub.blobs.values()) == {content for name, content in local.items() if name.endswith(hub.large)}
    assert hub.commits == ["office, slm-cpu 0.1.0"]
    assert hub.created == [{"name": "office", "private": True}]


def test_a_public_repository_has_to_be_asked_for(hub: FakeUploads, exported: Path) -> None:
    result = call(exported, "--upload", REPOSITORY, "--public")
    assert result.exit_code == 0, result.exception
    assert hub.created[0]["private"] is False
    assert f"{hub.url}/{REPOSITORY}  commit {COMMIT}" in result.stdout


def test_a_folder_that_was_changed_since_is_not_sent(hub: FakeUploads, exported: Path) -> None:
    (exported / "model.safetensors").write_bytes(b"others")
    result = call(exported, "--upload", REPOSITORY)
    assert isinstance(result.exception, DamagedFileError) and "changed: model.safetensors" in str(result.exception)
    assert hub.created == [] and hub.files == {}


def test_without_a_token_nothing_is_made_or_sent(
    hub: FakeUploads, exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    result = call(tmp_path / "new", "--model", tmp_path / "gone", "--upload", REPOSITORY)
    assert isinstance(result.exception, InputError) and "HF_TOKEN" in result.exception.hint
    assert hub.created == [] and not (tmp_path / "new").exists()


def test_a_name_that_is_no_repository_is_refused(hub: FakeUploads, exported: Path) -> None:
    result = call(exported, "--upload", "office")
    assert isinstance(result.exception, InputError) and "OWNER/NAME" in result.exception.hint


@pytest.mark.parametrize("status", [401, 403])
def test_what_the_hub_says_against_it_is_told_with_the_way_to_go_on(
    hub: FakeUploads, exported: Path, status: int
) -> None:
    hub.refuse = status
    result = call(exported, "--upload", REPOSITORY)
    assert isinstance(result.exception, UploadError) and f"slm export {exported} --upload" in result.exception.hint
    assert hub.files == {}
    hub.refuse = 0
    assert call(exported, "--upload", REPOSITORY).exit_code == 0 and len(hub.files) == 7


def test_a_wrong_token_is_the_hubs_to_refuse(hub: FakeUploads, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    result = call(exported, "--upload", REPOSITORY)
    assert isinstance(result.exception, UploadError) and "401" in str(result.exception)
    assert "hf_other" not in str(result.exception)


def test_a_folder_that_is_no_export_is_refused(hub: FakeUploads, tmp_path: Path) -> None:
    result = call(tmp_path, "--upload", REPOSITORY)
    assert isinstance(result.exception, MissingFileError)
    (tmp_path / "manifest.json").write_text('{"kind": "checkpoint"}')
    result = call(tmp_path, "--upload", REPOSITORY)
    assert isinstance(result.exception, InputError) and "is no export" in str(result.exception)
    assert hub.created == []
