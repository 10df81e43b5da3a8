"""llama.cpp's own servers behind `slm serve --engine`: the options in their words, signals, exit codes, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from click.testing import CliRunner

from serve import upstream
from serve.bench.process import free_port
from serve.cli import serve as cli
from serve.upstream import UpstreamOptions, limits, llama_cpp_python_launch, llama_server_launch
from slm.errors import DamagedFileError, InputError, MissingExtraError, MissingFileError, UnsupportedError
from tests.path_joints import PathJoints
from tests.tiny_gguf import write_adapter, write_model

ROOT = Path(__file__).parent.parent
EN, JA = ("en", Path("/a/en.gguf")), ("ja", Path("/a/ja.gguf"))
# Stands in for llama-server: writes down how it was started, answers /health, ends with 7 on SIGINT or SIGTERM.
FAKE = """#!{python}
import http.server, json, os, signal, sys
record = {{"argv": sys.argv[1:], "key": os.environ.get("LLAMA_API_KEY")}}
open({record!r}, "w").write(json.dumps(record))
if "--fail" in os.environ.get("FAKE", ""):
    sys.exit(3)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: os._exit(7))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf")


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder for PATH with a llama-server in it, which writes `record.json` beside itself."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "llama-server"
    program.write_text(FAKE.format(python=sys.executable, record=str(folder / "record.json")))
    program.chmod(0o755)
    return folder


@contextmanager
def served(*args: str, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`slm serve` as a process, from its 'listening on' line on; what it said until then."""
    with subprocess.Popen(
        [sys.executable, "-m", "slm_cli", "serve", *args],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT, env={**os.environ, **env},
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            said: list[str] = []
            while not said or "listening on" not in said[-1]:
                line = process.stderr.readline()
                assert line, said
                said.append(line)
            yield process, said
        finally:
            process.kill()


# --- the mapping ------------------------------------------------------------------------------------------------


def test_llama_server_gets_every_option_in_its_own_words() -> None:
    options = UpstreamOptions(Path("/m/small.gguf"), (EN, JA), context=2048, threads=3, parallel=4, host="::1", port=9)
    launch = llama_server_launch(options, "/bin/llama-server")
    assert launch.argv == [
        "/bin/llama-server", "--model", "/m/small.gguf", "--alias", "small", "--ctx-size", "8192", "--parallel", "4",
        "--host", "::1", "--port", "9", "--threads", "3", "--lora-scaled", "/a/en.gguf:0,/a/ja.gguf:0",
    ]  # fmt: skip
    assert launch.env == {} and options.url == "http://[::1]:9"


def test_one_adapter_is_applied_to_every_request_of_llama_server() -> None:
    launch = llama_server_launch(UpstreamOptions(Path("/m.gguf"), (EN,)))
    assert launch.argv[-2:] == ["--lora", "/a/en.gguf"]
    assert "--threads" not in launch.argv


def test_llama_cpp_python_gets_a_model_for_the_base_and_for_each_adapter() -> None:
    options = UpstreamOptions(Path("/m/small.gguf"), (EN, JA), context=2048, host="127.0.0.1", port=9, api_key="k")
    launch = llama_cpp_python_launch(options, Path("/t/config.json"), python="py", threads=2)
    assert launch.argv == ["py", "-m", "llama_cpp.server", "--config_file", "/t/config.json"]
    assert launch.env == {"HOST": "127.0.0.1", "PORT": "9", "API_KEY": "k"}
    settings = json.loads(launch.files[Path("/t/config.json")])
    assert [(one["model_alias"], one.get("lora_path")) for one in settings["models"]] == [
        ("small", None), ("en", "/a/en.gguf"), ("ja", "/a/ja.gguf"),
    ]  # fmt: skip
    assert {(one["model"], one["n_ctx"], one["n_threads"]) for one in settings["models"]} == {
        ("/m/small.gguf", 2048, 2)
    }
    assert settings["interrupt_requests"] is False


def test_a_key_is_never_on_a_command_line_nor_in_a_file() -> None:
    options = UpstreamOptions(Path("/m.gguf"), api_key="very-secret")
    for launch in (
        llama_server_launch(options),
        llama_cpp_python_launch(options, Path("/t/c.json"), python="py", threads=1),
    ):
        assert "very-secret" in launch.env.values()
        assert "very-secret" not in " ".join([*launch.argv, *launch.files.values()])


def test_a_path_that_llama_server_would_split_is_refused() -> None:
    for name in ("a,b.gguf", "a:b.gguf", 'a"b.gguf'):
        with pytest.raises(InputError, match="separates"):
            llama_server_launch(UpstreamOptions(Path("/m.gguf"), (("en", Path("/") / name),)))


def test_what_an_engine_cannot_do_is_said() -> None:
    both, one = UpstreamOptions(Path("/m/small.gguf"), (EN, JA)), UpstreamOptions(Path("/m/small.gguf"), (EN,))
    assert any('"lora": [{"id": 0, "scale": 1}] (0 is en, 1 is ja)' in line for line in limits("llama-server", both))
    assert any("'en' answers every request" in line for line in limits("llama-server", one))
    assert any("models: small, en, ja" in line for line in limits("llama-cpp-python", both))
    for engine in upstream.ENGINES:
        assert "does not route by language" in limits(engine, both)[0]
        assert "control tokens" in limits(engine, both)[1]


# --- the programs -----------------------------------------------------------------------------------------------


def test_llama_server_is_started_announced_signalled_and_its_exit_code_passed_on(model: Path, fake: Path) -> None:
    adapters = [write_adapter(model.parent / f"{name}.gguf", seed=n) for n, name in enumerate(("en", "ja"))]
    args = ["--engine", "llama-server", "--port", "0", "--parallel", "2", "--context", "256", "--api-key-env", "MY_KEY"]
    for path in adapters:
        args += ["--adapter", f"{path.stem}={path}"]
    for number in (signal.SIGTERM, signal.SIGINT):
        env = {"PATH": f"{fake}{os.pathsep}{os.environ['PATH']}", "MY_KEY": "a-key"}
        with served(str(model), *args, env=env) as (process, said):
            record = json.loads((fake / "record.json").read_text())
            assert record["key"] == "a-key" and "a-key" not in record["argv"]
            assert record["argv"][record["argv"].index("--ctx-size") + 1] == "512"
            scaled = ",".join(f"{path}:0" for path in adapters)
            assert record["argv"][record["argv"].index("--lora-scaled") + 1] == scaled
            assert "does not route by language" in said[0]
            assert f":{record['argv'][record['argv'].index('--port') + 1]} (llama-server;" in said[-1]
            process.send_signal(number)
            assert process.wait(30) == 7


def test_a_program_named_by_a_relative_path_is_found_from_any_folder(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fake.parent)
    assert upstream.find_llama_server(Path("bin/llama-server")) == str(fake / "llama-server")
    with pytest.raises(MissingFileError, match="no program 'nowhere'"):
        upstream.find_llama_server(Path("nowhere"))


def test_a_server_that_fails_at_its_start_gives_its_exit_code(
    model: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(fake))
    monkeypatch.setenv("FAKE", "--fail")
    assert upstream.serve_upstream("llama-server", UpstreamOptions(model, port=free_port())) == 3


def test_llama_cpp_server_answers_with_base_and_adapter_and_wants_its_key(model: Path) -> None:
    adapter = write_adapter(model.parent / "ja.gguf", seed=2)
    args = [str(model), "--engine", "llama-cpp-python", "--port", "0", "--context", "256", "--threads", "1"]
    args += ["--adapter", f"ja={adapter}", "--api-key-env", "MY_KEY"]
    # A HOST of the environment (some shells set it) must not be where it listens.
    with served(*args, env={"MY_KEY": "a-key", "HOST": "192.0.2.1"}) as (process, said):
        url = said[-1].split()[2]
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="a-key", max_retries=0, timeout=60)
        assert [one.id for one in client.models.list()] == ["tiny", "ja"]
        texts = {
            name: client.completions.create(model=name, prompt="Once", max_tokens=8, temperature=0).choices[0].text
            for name in ("tiny", "ja")
        }
        assert len(texts["tiny"]) == 8 and texts["tiny"] != texts["ja"]
        assert httpx.get(f"{url}/v1/models").status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, 128 + signal.SIGTERM)


# --- what is refused --------------------------------------------------------------------------------------------


def serve(*args: str) -> BaseException | None:
    return CliRunner().invoke(cli.serve, list(args), obj=PathJoints()).exception


def test_options_that_the_engine_has_nothing_for_are_refused_by_name(model: Path, tmp_path: Path) -> None:
    given = ["--adapters-dir", str(tmp_path), "--hot", "3", "--default-adapter", "en", "--rag", "index"]
    error = serve(str(model), "--port", "0", "--engine", "llama-server", *given)
    assert isinstance(error, UnsupportedError)
    for option in ("--adapters-dir", "--hot", "--default-adapter", "--rag"):
        assert option in str(error)
    assert "--port" not in str(error)
    runner, args = CliRunner(), [str(model), "--port", "0", "--engine", "llama-server"]
    by_file = runner.invoke(cli.serve, args, obj=PathJoints(), default_map={"hot": 4}).exception
    assert isinstance(by_file, UnsupportedError) and "--hot" in str(by_file)


def test_a_missing_program_or_package_is_named_with_what_installs_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = serve(str(model), "--port", "0", "--engine", "llama-server")
    assert isinstance(error, MissingFileError) and "brew install llama.cpp" in str(error)
    monkeypatch.setattr(upstream, "_SERVER_PACKAGES", ("llama_cpp", "no_such_package_here"))
    error = serve(str(model), "--port", "0", "--engine", "llama-cpp-python")
    assert isinstance(error, MissingExtraError) and "[peers]" in str(error)


def test_an_adapter_that_is_no_gguf_is_refused_before_anything_starts(model: Path, fake: Path) -> None:
    junk = model.parent / "junk.gguf"
    junk.write_bytes(b"junk" * 100)
    error = serve(str(model), "--port", "0", "--engine", "llama-server", "--adapter", f"en={junk}")
    assert isinstance(error, DamagedFileError)
    assert not (fake / "record.json").exists()
