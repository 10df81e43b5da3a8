"""Commands start without what they do not need, `slm bench start` times them, and an engine's early child is minded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

import slm_cli
from serve.bench import start
from serve.child.messages import AskStats
from serve.engine.engine import Engine
from serve.engine.supervisor import Call, Supervisor
from slm.errors import EngineDiedError, EngineError, MissingFileError
from slm.native.process import children_of
from tests.tiny_gguf import write_model

ROOT = Path(__file__).parent.parent
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def imported(*arguments: str) -> set[str]:
    """The packages that a run of Python imports, as it tells itself; what counts lines in it would be among them."""
    uncounted = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, cwd=ROOT, check=True,
        stdin=subprocess.DEVNULL, env=uncounted,
    )  # fmt: skip
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


HEAVY = {"torch", "numpy", "transformers", "llama_cpp", "faiss", "rich", "gguf", "fastapi", "tokenizers", "yaml"}


def test_the_help_imports_nothing_heavy_and_no_room() -> None:
    found = imported("-m", "slm_cli", "--help")
    assert "click" in found and found & (HEAVY | {"convert", "train", "serve", "rag"}) == set()


def test_the_list_of_models_imports_nothing_heavy_and_no_room() -> None:
    found = imported("-m", "slm_cli", "models")
    assert "click" in found and found & (HEAVY | {"convert", "train", "serve", "rag"}) == set()
    assert found & {"hashlib", "difflib", "unicodedata"} == set()


def test_a_model_file_is_read_without_the_package_of_all_its_tools(tmp_path: Path) -> None:
    file = write_model(tmp_path / "m.gguf")
    code = f"from pathlib import Path; from slm.weights.gguf_reader import read_gguf; read_gguf(Path({str(file)!r}))"
    found = imported("-c", code)
    assert "numpy" in found and found & {"gguf", "yaml", "sentencepiece", "tqdm"} == set()


def test_llama_is_loaded_without_its_package_which_can_be_imported_afterwards() -> None:
    code = """
import sys
from slm.native.llama import library
lib = library()
assert not {"llama_cpp", "llama_cpp.llama", "jinja2", "diskcache"} & sys.modules.keys()
import llama_cpp
assert llama_cpp.Llama and llama_cpp.llama_cpp is lib and library() is lib
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("group", [slm_cli.cli, slm_cli.bench], ids=["slm", "slm bench"])
def test_what_the_list_of_commands_says_of_one_is_what_its_help_begins_with(group: slm_cli.LazyGroup) -> None:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None and not command.hidden
        text = slm_cli.first_paragraph(*group._function_of(name))
        assert text, f"'{name}': its help is not found in its source, so that the list imports its room"
        for limit in (45, 1000):
            assert click.Command(name, help=text).get_short_help_str(limit) == command.get_short_help_str(limit)


def test_a_command_whose_source_does_not_say_is_listed_by_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slm_cli, "first_paragraph", lambda module, function: "")
    assert "rm        Remove a pulled model from this machine." in slm_cli.cli.get_help(click.Context(slm_cli.cli))


@pytest.mark.parametrize("of", [("slm.no_such", "x"), ("slm.models.commands", "no_such"), ("slm.errors", "_shown")])
def test_what_has_no_help_in_its_source_is_not_guessed(of: tuple[str, str]) -> None:
    assert slm_cli.first_paragraph(*of) == ""


# --- slm bench start -------------------------------------------------------------------------------------------------


def put_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all there is on PATH, beside the shell's."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slm_cli", "bench", "start", *arguments], capture_output=True, text=True, cwd=ROOT,
        timeout=300,
    )  # fmt: skip


def test_the_start_of_commands_is_measured_beside_peers(path: Path, tmp_path: Path) -> None:
    put_program(path, "llm", 'test "$1" = --help || test "$1" = models')
    put_program(path, "llama-cli", 'test "$1" = --help && exit; printf "loading\\n\\n\\033[32m> \\033[0m"; read line')
    model = write_model(tmp_path / "tiny.gguf", template=CHATML)
    done = bench(str(model), "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    rows = {row["name"]: row for row in told["programs"]}
    assert list(rows) == ["slm", "llm", "llama-cli"] and told["missing"] == []
    assert all(rows["slm"][figure] > 0.02 for figure in ("help_s", "list_s", "prompt_s"))
    assert rows["llm"]["prompt_s"] is None and rows["llama-cli"]["list_s"] is None
    assert 0 < rows["llama-cli"]["prompt_s"] < rows["slm"]["prompt_s"]
    assert told["goals"] == {"help_s": 0.12, "list_s": 0.2, "prompt_s": 0.7} and told["rounds"] == 1


def test_peers_that_are_not_there_or_fail_are_skipped_with_a_word(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_program(path, "llama-cli", 'test "$1" = --help && exit; echo "cannot load it"; exit 3')
    ours = start.starters(tmp_path)[0][0]
    monkeypatch.setattr(
        start, "starters", lambda model, known=start.starters: (
            [start.Starter("slm", {"help_s": ["true"]}), *known(model)[0][1:]], known(model)[1],
        ),
    )  # fmt: skip
    told = start.bench_start(tmp_path / "m.gguf", 2)
    assert ours.name == "slm" and [row["name"] for row in told["programs"]] == ["slm"]
    assert told["missing"] == [
        "llm is not measured: it is not on PATH",
        f"llama-cli is not measured: 'llama-cli -m {tmp_path}/m.gguf -c 4096' ended with 3: cannot load it",
    ]


def test_a_damaged_model_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    done = bench(str(tmp_path / "bad.gguf"), "--rounds", "1")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: ") and "bad.gguf' is not a GGUF file" in done.stderr


@pytest.mark.parametrize(
    ("script", "said"), [("echo one; echo two", "showed no prompt: two"), ("echo no; exit 4", "ended with 4: no")]
)
def test_a_chat_without_a_prompt_is_an_error(script: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        start._to_prompt(["sh", "-c", script], start.Starter.mark)


# --- the engine's child, which is started before the files are read --------------------------------------------------


def test_a_model_that_is_not_there_leaves_no_child_behind(tmp_path: Path) -> None:
    before = children_of(os.getpid())
    with pytest.raises(MissingFileError):
        Engine(tmp_path / "gone.gguf", {})
    assert children_of(os.getpid()) == before


def test_the_early_child_is_the_one_that_is_prepared() -> None:
    asked: list[int] = []

    def prepare(call: Call) -> None:
        asked.append(children_of(os.getpid())[-1])

    supervisor = Supervisor(prepare)
    supervisor.spawn()
    early = supervisor.pid
    try:
        supervisor.start()
        assert supervisor.pid == early and asked == [early] and supervisor.state == "ready"
    finally:
        supervisor.close()


def test_an_early_child_that_has_died_is_told_at_once_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look at who has ended, the order would wait for an answer for ever."""

    def prepare(call: Call) -> None:
        call(AskStats())

    monkeypatch.setattr("serve.engine.process.sys.executable", "/bin/false")
    supervisor = Supervisor(prepare)
    supervisor.spawn()
    child = supervisor._child
    assert child is not None
    child._process.wait()
    errors: list[BaseException] = []

    def begin() -> None:
        try:
            supervisor.start()
        except EngineDiedError as error:
            errors.append(error)

    for _ in range(100):
        if supervisor._ended is child:
            break
        threading.Event().wait(0.05)
    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and [str(error) for error in errors] == [
        "the inference process ended unexpectedly (found: exit code 1)"
    ]
    supervisor.close()
