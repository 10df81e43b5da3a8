"""What is handed out: the sdist, the wheel made from it, the check of an installed wheel, the wheelhouse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from scripts import wheel_check, wheelhouse
from scripts.packing import distribution
from slm import __version__
from slm.artifacts import sha256_file
from slm.errors import InputError, SlmError, UnsupportedError, VerificationError
from tests.tiny_training import ROOT

LEFT_OUT = (".github/",)
ROOMS = ("slm", "convert", "train", "serve", "rag")


def tracked(*below: str) -> set[str]:
    """The files of the checkout, as git lists them, with those that are new."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *below]
    listed = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split("\n")
    return {name for name in listed if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel, made in a copy of the checkout without an environment to download."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_sdist_holds_the_whole_project(built: Path) -> None:
    with tarfile.open(built / f"slm_cpu-{__version__}.tar.gz") as archive:
        packed = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    made = {name for name in packed if name == "PKG-INFO" or name == "setup.cfg" or ".egg-info/" in name}
    assert packed - made == {name for name in tracked() if not name.startswith(LEFT_OUT)}


def test_the_wheel_of_the_sdist_holds_every_file_of_the_rooms_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(built / f"slm_cpu-{__version__}-py3-none-any.whl") as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "slm = slm_cli:main" in archive.read(points).decode()
    assert packed == tracked(*ROOMS, "slm_cli.py")


def test_the_wheel_is_tried_on_every_python_that_is_promised() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text("utf-8"))
    job = workflow["jobs"]["pythons"]
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert "make wheel" in [step.get("run") for step in job["steps"]]


def test_doctors_report_of_a_laptop_size_is_judged() -> None:
    def report(**changes: dict[str, object]) -> str:
        checks = {
            "slm": {"ok": True, "found": __version__}, "llama.cpp loads": {"ok": True, "found": "yes"},
            "torch": {"ok": False, "found": "not installed"}, **changes,
        }  # fmt: skip
        return json.dumps({"checks": [{"name": name, **check} for name, check in checks.items()]})

    wheel_check.judge_doctor(report())
    with pytest.raises(VerificationError, match=r"does not load \(found: no libgomp\)"):
        wheel_check.judge_doctor(report(**{"llama.cpp loads": {"ok": False, "found": "no libgomp"}}))
    with pytest.raises(VerificationError, match=r"extra \(found: torch\)"):
        wheel_check.judge_doctor(report(torch={"ok": True, "found": "2.13.0"}))
    with pytest.raises(VerificationError, match=r"another version .* \(found: 0\.0\.9\)"):
        wheel_check.judge_doctor(report(slm={"ok": True, "found": "0.0.9"}))


def test_an_installed_slm_sees_neither_the_checkout_nor_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "SLM_SERVE_PORT", "VIRTUAL_ENV", "KEPT"):
        monkeypatch.setenv(name, "x")
    environment = wheel_check.own_environment(Path("/home/of/models"))
    assert environment["KEPT"] == "x" and environment["SLM_HOME"] == "/home/of/models"
    assert not {"PYTHONPATH", "SLM_SERVE_PORT", "VIRTUAL_ENV"} & set(environment)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What pip is asked for, with what lies in the folder by then; nothing is built or downloaded."""
    seen: list[list[str]] = []

    def run(command: list[str], *, doing: str) -> None:
        if "wheel" in command:
            folder = Path(command[command.index("-w") + 1])
            seen.append(sorted(file.name for file in folder.iterdir()))
            (folder / "click-8-py3-none-any.whl").write_bytes(b"click")
        seen.append(command)

    def build_both(out: Path) -> Path:
        (out / "slm_cpu-1-py3-none-any.whl").write_bytes(b"slm")
        return out / "slm_cpu-1-py3-none-any.whl"

    llama = tmp_path / "llama_cpp_python-1-py3-none-any.whl"
    llama.write_bytes(b"llama")
    monkeypatch.setattr(wheelhouse, "run", run)
    monkeypatch.setattr(wheelhouse, "build_both", build_both)
    monkeypatch.setattr("scripts.wheelhouse.build.wheel", lambda environment: llama)
    return seen


def test_a_wheelhouse_is_collected_around_our_own_wheels_and_tried_without_an_index(
    asked: list[list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "house"
    wheelhouse.make(out, wheelhouse.Wanted("train,rag", ("smollm2-135m-instruct",)))
    before, collected, tried = asked
    ours = ["llama_cpp_python-1-py3-none-any.whl", "slm_cpu-1-py3-none-any.whl"]
    assert before == ["constraints.txt", *ours]  # llama.cpp is there before pip looks for it
    wanted = f"slm-cpu[train,rag]=={__version__}"
    assert collected[1:5] == ["-m", "pip", "--disable-pip-version-check", "wheel"]
    assert wanted in collected and wanted in tried
    assert {"--dry-run", "--ignore-installed", "--no-index"} <= set(tried)
    packages = collected[collected.index(wanted) + 1 :]
    assert packages and all("==" in package for package in packages) and tried[tried.index(wanted) + 1 :] == packages
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    files = ["INSTALL.txt", "click-8-py3-none-any.whl", "constraints.txt", *ours]
    assert manifest["sha256"] == {name: sha256_file(out / name) for name in files}
    assert manifest["requirement"] == wanted and manifest["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    text = (out / "INSTALL.txt").read_text("utf-8")
    assert f"slm/bin/pip install --no-index --find-links house -c house/constraints.txt '{wanted}'" in text
    assert "PIP_NO_INDEX=1 PIP_FIND_LINKS=house slm/bin/slm pull smollm2-135m-instruct" in text


def test_a_wheelhouse_that_lacks_something_is_none(
    asked: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    collecting = vars(wheelhouse)["run"]

    def run(command: list[str], *, doing: str) -> None:
        if "--dry-run" in command:
            raise SlmError(f"{doing} failed: no numpy")
        collecting(command, doing=doing)

    monkeypatch.setattr(wheelhouse, "run", run)
    (tmp_path / "place").mkdir()
    with pytest.raises(SlmError, match="installing from the folder failed: no numpy"):
        wheelhouse.make(tmp_path / "place/house", wheelhouse.Wanted(""))
    assert list((tmp_path / "place").iterdir()) == []


def test_somebody_elses_folder_is_no_place_for_a_wheelhouse(asked: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(InputError):
        wheelhouse.make(tmp_path / "mine", wheelhouse.Wanted(""))
    assert asked == [] and (tmp_path / "mine/letter.txt").read_text() == "dear"


def test_a_model_that_no_package_carries_is_named_before_anything_is_built(
    asked: list[list[str]], tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=r"no package carries the model 'distilgpt2'.*slm pull distilgpt2"):
        wheelhouse.make(tmp_path / "house", wheelhouse.Wanted("", ("distilgpt2",)))
    assert asked == [] and not (tmp_path / "house").exists()


def test_a_step_that_fails_says_what_was_being_done() -> None:
    with pytest.raises(SlmError, match=r"making a cake failed: .*exit status 3"):
        distribution.run([sys.executable, "-c", "raise SystemExit(3)"], doing="making a cake")
    with pytest.raises(SlmError, match=r"making a cake failed: .*no-such-oven"):
        distribution.run(["no-such-oven"], doing="making a cake")
