"""How llama.cpp comes to this machine: slm/native/build.py, its pip writing a file where the real one builds."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from convert.model import convert_checkpoint
from slm.doctor.installed import LlamaTrial, llama_checks
from slm.native import build
from slm.native.llama import ContextParams, forget, has_our_kernels, library, open_context, open_model
from tests.tiny_checkpoints import llama
from tests.tiny_families import decode_rest, vocabulary_of
from tests.tiny_training import ROOT

WHAT = "llama-cpp-python==1.2.3"


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with its cache in a folder of the test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    return build


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip was asked for; `pip wheel` leaves a wheel."""
    seen: list[list[str]] = []

    def run(command: list[str], *, check: bool, env: dict[str, str] | None = None) -> None:
        assert check
        seen.append(command)
        if "wheel" in command:
            assert (
                env and env["SKBUILD_BUILD_TARGETS"] == "llama" and "slm/native/recipe/build.cmake" in env["CMAKE_ARGS"]
            )
            Path(command[command.index("-w") + 1], "llama-1.whl").write_bytes(b"")

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_the_wheel_is_built_once_and_installed_in_place_of_another(
    builder: ModuleType, calls: list[list[str]], tmp_path: Path
) -> None:
    assert builder.main() == 0
    assert [("wheel" in call, "--force-reinstall" in call) for call in calls] == [(1, 0), (0, 1), (0, 0)]
    (wheel,) = tmp_path.rglob("*.whl")
    assert all(str(wheel) in call for call in calls[1:])
    assert builder.main() == 0
    assert sum("wheel" in call for call in calls) == 1


def test_whatever_shapes_the_build_has_a_wheel_of_its_own(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    folders = [builder.wheel_folder(WHAT, environment), builder.wheel_folder("llama-cpp-python==1.2.4", environment)]
    folders.append(builder.wheel_folder(WHAT, {**environment, "CMAKE_ARGS": "-DSLM_KERNELS=OFF"}))
    monkeypatch.setattr(builder, "processor", lambda: "x86_64 sse2")
    folders.append(builder.wheel_folder(WHAT, environment))
    changed = tmp_path / "recipe"
    shutil.copytree(builder.RECIPE, changed)
    (changed / "dot.h").write_text("// another")
    monkeypatch.setattr(builder, "RECIPE", changed)
    folders.append(builder.wheel_folder(WHAT, environment))
    assert len(set(folders)) == len(folders)
    assert all(folder.parent == tmp_path / "slm-cpu" for folder in folders)


def test_without_a_cache_that_can_be_written_the_wheel_stays_in_the_environment(
    builder: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = builder.wheel_folder(WHAT, {"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert folder.parent == Path(sys.prefix) / "wheels"
    assert "nothing can be written" in capsys.readouterr().err


def test_a_build_that_fails_leaves_nothing_and_says_so(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(command: list[str], **_: object) -> None:
        Path(command[command.index("-w") + 1], "half").write_bytes(b"")
        raise subprocess.CalledProcessError(7, command)

    monkeypatch.setattr(subprocess, "run", fails)
    assert builder.main() == 7
    assert list((tmp_path / "slm-cpu").iterdir()) == []
    assert "could not be built" in capsys.readouterr().err


def test_the_pinned_version_is_found(builder: ModuleType) -> None:
    assert builder.requirement("numpy==2\nllama_cpp_python==0.3.36\n", "it") == "llama_cpp_python==0.3.36"
    with pytest.raises(SystemExit, match="it names no version of llama-cpp-python"):
        builder.requirement("numpy==2\n", "it")


def test_an_installed_package_builds_the_version_it_requires_without_a_checkout(
    builder: ModuleType, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(builder, "CONSTRAINTS", tmp_path / "site-packages/constraints.txt")
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: ["click>=8", 'llama-cpp-python==4.5.6; extra == "x"']
    )
    assert builder.main() == 0
    assert calls[0][-1] == "llama_cpp_python==4.5.6"  # as constraints.txt spells it: one wheel for both
    assert not any("-c" in call for call in calls)


def test_the_recipe_names_the_file_it_stands_in(builder: ModuleType) -> None:
    """What the build says when it stops has to lead whoever reads it to the right file."""
    text = (builder.RECIPE / "build.cmake").read_text("utf-8")
    assert f"{builder.RECIPE.relative_to(ROOT).as_posix()}/build.cmake does not know this llama.cpp" in text


def test_doctor_names_the_build_by_the_python_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (line,) = [check for check in llama_checks(LlamaTrial()) if check.name == "llama.cpp kernels"]
    assert line.fix == f"{sys.executable} -m slm.native.build"


def test_this_environments_llama_cpp_was_built_so() -> None:
    """Every edit of slm/native/recipe/build.cmake found its place: else the build would have stopped."""
    if platform.machine() in ("x86_64", "AMD64") and sys.platform != "win32":
        assert has_our_kernels(), "this llama.cpp was installed otherwise: python -m slm.native.build"


@pytest.mark.parametrize("kind", ["q4_0", "iq4_nl", "q4_k_m", "q2_k", "q8_0"])
def test_rows_of_a_batch_agree_with_rows_computed_alone(kind: str, tmp_path: Path) -> None:
    """Kernels for several rows, ours among them, against those for one: 31 rows are 16, 12 and three single ones."""
    llama(tmp_path / "tiny", width=256)
    convert_checkpoint(tmp_path / "tiny", tmp_path / "tiny.gguf", kind)
    ids = list(np.random.default_rng(3).integers(2, vocabulary_of(tmp_path / "tiny"), 31))
    with ExitStack() as stack:
        model = open_model(stack, tmp_path / "tiny.gguf")
        context = open_context(
            stack, model, ContextParams(n_ctx=64, n_batch=64, n_threads=1, flash_attention=False, exact_cache=True)
        )
        together = decode_rest(model, context, ids, 0)
        forget(context)
        alone = [decode_rest(model, context, ids[: at + 1], at)[0] for at in range(len(ids))]
    # An activation that is rounded the other way by the other kernel moves a row by half a per cent (q4_k).
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-2 * float(np.ptp(alone)))


def test_no_amx_is_in_the_library() -> None:
    """llama.cpp's products by AMX end the process where the compiler dropped what describes the tiles."""
    info = library().llama_print_system_info().decode()
    assert "AVX2 = 1" in info or platform.machine() not in ("x86_64", "AMD64")
    assert "AMX" not in info
