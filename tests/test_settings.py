"""`slm config`: what is set and where it comes from, a file to begin with, faults by name, and ~ in paths."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import slm_cli
from rag.index.names import index_path
from slm.errors import MissingFileError
from slm.models.model_argument import model_argument
from slm.paths import config_file, home
from slm.terminal.arguments import LANG_PART, NAMED_FILE
from slm.terminal.config import checked
from slm.terminal.settings import Setting, commands_below, file_text, key_of, parameters_of, settings_of, toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
OWN = {name: value for name, value in os.environ.items() if not name.startswith("SLM_")}


def slm(*words: str, config: Path | str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slm_cli", *words], capture_output=True, text=True, cwd=ROOT, timeout=60,
        env={**OWN, "SLM_CONFIG": str(config), "SLM_HOME": "/tmp/models of mine", **environment},
    )  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_what_is_set_is_listed_with_where_it_comes_from(file: Path) -> None:
    file.write_text("quiet = false\n[serve]\nport = 9000\nparallel = 2\n[train.sft]\nlr = 1e-5\n", encoding="utf-8")
    done = slm("config", config=file, SLM_SERVE_PORT="9001", SLM_SERVE_ADAPTER="en=a.gguf ja=b.gguf", SLM_CHAT_SEED="")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == f"""\
# models and indexes: /tmp/models of mine (SLM_HOME)
# configuration file: {file} (SLM_CONFIG)
quiet = false  # configuration file

[train.sft]
lr = 1e-05  # configuration file

[serve]
adapter = ["en=a.gguf", "ja=b.gguf"]  # environment variable SLM_SERVE_ADAPTER
port = 9001  # environment variable SLM_SERVE_PORT
parallel = 2  # configuration file
"""
    )
    assert tomllib.loads(done.stdout)["serve"]["port"] == 9001


def test_without_a_file_it_says_how_to_get_one(tmp_path: Path) -> None:
    done = slm("config", config="", XDG_CONFIG_HOME=str(tmp_path))
    path = tmp_path / "slm" / "config.toml"
    assert f"# configuration file: {path} (default; not there: slm config --init writes it)\n" in done.stdout
    assert done.stderr == "nothing is set; slm config --all shows what could be\n" and done.returncode == 0
    done = slm("models", config=tmp_path / "gone.toml")
    assert done.returncode == 2 and "there is no such file; slm config --init writes it" in done.stderr


def test_all_of_a_command_is_listed_with_the_programs_own_defaults(file: Path) -> None:
    file.write_text("[generate]\ntemperature = 0.5\n", encoding="utf-8")
    shown = slm("config", "generate", config=file).stdout
    assert "max-tokens = 256  # default\n" in shown and "temperature = 0.5  # configuration file\n" in shown
    assert "#schema =  # default\n" in shown and shown.count("\n[") == 1
    trained = json.loads(slm("config", "train", "--json", config=file).stdout)["settings"]
    assert {row["command"] for row in trained} == {
        "train estimate", "train lora", "train reader", "train scratch", "train sft", "train tokenizer"
    }  # fmt: skip
    done = slm("config", "serv", config=file)
    assert done.returncode == 2 and "Did you mean 'serve'?" in done.stderr
    assert done.stderr.startswith("Usage: slm [OPTIONS]")
    done = slm("config", "train", "stf", config=file)
    assert done.returncode == 2 and "stf" in done.stderr and done.stderr.startswith("Usage: slm train [OPTIONS]")
    done = slm("config", "serve", "it", config=file)
    assert done.returncode == 2 and "'slm serve' has no commands below it: 'it'" in done.stderr


def test_every_value_of_every_command_can_be_listed(file: Path) -> None:
    found = json.loads(slm("config", "--all", "--json", config=file, SLM_CONFIG="").stdout)
    assert found["home_source"] == "SLM_HOME" and found["faults"] == []
    rows = {(row["command"], row["option"]) for row in found["settings"]}
    wanted = {
        (" ".join(path), key_of(parameter))
        for path, command in commands_below(slm_cli.cli)
        for parameter in parameters_of(command)
    }
    assert rows == wanted | {("", "quiet"), ("", "debug"), ("", "json")} and len(rows) > 300


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("[generate]\nmax-token = 5", ["[generate] max-token: no option of this command; did you mean 'max-tokens'?"]),
        (
            "[generate]\nmax-tokens = 'many'\nseed = 7\n[serv]\nport = 1",
            ["[generate] max-tokens: 'many' is not a valid integer range", "serv: no command; did you mean 'serve'?"],
        ),
    ],
)
def test_a_wrong_key_or_type_is_named_beside_what_is_right(file: Path, text: str, faults: list[str]) -> None:
    file.write_text(text, encoding="utf-8")
    done = slm("config", config=file)
    said = done.stderr.splitlines()
    assert done.returncode == 1 and sorted(said) == sorted(f"error: {fault}" for fault in faults)
    assert ("seed = 7" in done.stdout) == ("seed" in text)
    assert sorted(json.loads(slm("config", "--json", config=file).stdout)["faults"]) == sorted(faults)
    other = slm("models", config=file)
    assert other.returncode == 2 and all(fault in other.stderr for fault in faults) and str(file) in other.stderr


def test_a_file_that_is_no_toml_and_a_wrong_variable_are_named(file: Path) -> None:
    file.write_text("[generate", encoding="utf-8")
    assert "is not valid TOML" in slm("config", config=file).stderr
    file.write_text("", encoding="utf-8")
    done = slm("config", config=file, SLM_SERVE_PORT="http", SLM_SERVE_PORTS="1", SLM_SERVE_NO_KEY_OK="perhaps")
    assert done.returncode == 1 and "error: SLM_SERVE_PORT: 'http' is not a valid integer range" in done.stderr
    assert "SLM_SERVE_PORTS sets no option of 'slm serve'; did you mean SLM_SERVE_PORT?" in done.stderr
    assert "error: SLM_SERVE_NO_KEY_OK: has to be true or false (found: 'perhaps')" in done.stderr


def test_a_first_file_sets_nothing_and_is_never_written_over(file: Path) -> None:
    done = slm("config", "--init", config=file)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}\n", "")
    assert [line for line in file.read_text(encoding="utf-8").splitlines() if line[:1] not in ("#", "[", "")] == []
    assert slm("config", config=file).stderr == "nothing is set; slm config --all shows what could be\n"
    file.write_text("[serve]\nport = 1\n", encoding="utf-8")
    done = slm("config", "--init", config=file)
    assert done.returncode == 1 and f"there is a configuration file already: '{file}'" in done.stderr
    assert file.read_text(encoding="utf-8") == "[serve]\nport = 1\n"
    assert slm("config", "--init", "serve", config=file).returncode == 2
    made = json.loads(slm("config", "--init", "--json", config=file.parent / "new" / "c.toml").stdout)
    assert Path(made["path"]).is_file()


def test_every_line_of_the_first_file_is_one_that_counts_without_its_mark() -> None:
    """Whoever takes the '#' away has the program's own value, and no fault."""
    kept = []
    for line in file_text(slm_cli.cli).splitlines():
        key, equals, rest = line.removeprefix("#").partition(" = ")
        if equals and " " not in key and not rest.startswith(" #"):
            kept.append(f"{key} = {rest}")
        elif line.startswith("["):
            kept.append(line)
    tables = tomllib.loads("\n".join(kept))
    defaults, faults = checked(tables, slm_cli.cli)
    assert faults == [] and defaults["serve"]["port"] == 8080 and defaults["train"]["sft"]["pack"] is True
    own = {(row.command, row.option): row.value for row in settings_of(slm_cli.cli, {}, {})}
    same = {
        (row.command, row.option): row.value for row in settings_of(slm_cli.cli, defaults, {}) if row.source == "file"
    }
    assert same == {key: own[key] for key in same} and len(same) > 150


@pytest.mark.parametrize(
    "value", [True, False, 3, -1.5, 1e-9, 1e22, "a", 'quote " \\ \n\t\x7f\x00 。', ["a", "b"], [], [1, 2.5, False]]
)
def test_a_value_is_written_as_toml_reads_it(value: Any) -> None:
    assert tomllib.loads(f"x = {toml(value)}") == {"x": value}


def test_a_variable_that_is_spelled_as_the_parameter_or_as_the_option_is_named_as_it_was_set() -> None:
    def rows(**environment: str) -> list[Setting]:
        return [row for row in settings_of(slm_cli.cli, {}, environment) if row.source == "environment"]

    assert rows(SLM_RAG_SEARCH_K="3") == [Setting("rag search", "k", 3, "environment", "SLM_RAG_SEARCH_K")]
    assert rows(SLM_SERVE_ADAPTERS="en=a") == [
        Setting("serve", "adapter", ["en=a"], "environment", "SLM_SERVE_ADAPTERS")
    ]
    assert rows(SLM_ROUTE_JSON="1", SLM_ROUTE_AS_JSON="1")[0].where == "SLM_ROUTE_JSON"
    assert rows(SLM_SERVE_HELP="1", SLM_SERVE_QUIET="1") == []


# ~ in paths


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_users_own_folder_is_meant_by_its_mark(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_HOME", "~/models")
    monkeypatch.setenv("SLM_CONFIG", "~/c.toml")
    assert home() == mine / "models" and config_file() == mine / "c.toml"
    monkeypatch.setenv("SLM_HOME", "~")
    assert home() == mine
    assert NAMED_FILE.convert("ja=~/ja.gguf", None, None) == ("ja", mine / "ja.gguf")
    assert LANG_PART.convert("ja=0.5", None, None) == ("ja", 0.5)
    assert index_path("~/index") == mine / "index"


def test_a_user_that_there_is_not_is_a_plain_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_HOME", "~nobody-of-that-name/models")
    assert home() == Path("~nobody-of-that-name/models")
    with pytest.raises(MissingFileError, match=re.escape("'~nobody-of-that-name/m.gguf'")):
        model_argument("~nobody-of-that-name/m.gguf")


def test_paths_of_the_file_are_expanded_and_prose_is_not(mine: Path) -> None:
    tables = tomllib.loads(
        "[serve]\nmodel = '~/m.gguf'\nadapters-dir = '~/a'\nadapter = ['en=~/en.gguf']\nrag = '~/index'\nhost = '~'\n"
        "[chat]\nsystem = '~/ is your folder'\n[generate]\nstop = ['~/']\n[train.sft]\ndata = ['~/d.jsonl', 'e~/f']\n"
    )
    found = checked(tables, slm_cli.cli)
    assert found.faults == []
    assert found.defaults["serve"]["model"] == f"{mine}/m.gguf" and found.defaults["serve"]["index"] == f"{mine}/index"
    assert found.defaults["serve"]["adapters_dir"] == f"{mine}/a"
    assert found.defaults["chat"] == {"system": "~/ is your folder"} and found.defaults["generate"] == {"stop": ["~/"]}
    assert found.defaults["train"]["sft"]["data"] == [f"{mine}/d.jsonl", "e~/f"]


def test_models_are_looked_for_in_the_expanded_folder(mine: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[serve]\nmodel = '~/gone.gguf'\n", encoding="utf-8")
    done = slm("serve", config="~/config.toml", HOME=str(mine), SLM_HOME="~/m")
    assert f"there is no file or folder '{mine}/gone.gguf'" in done.stderr and done.returncode == 1


def test_commands_that_end_themselves_have_no_default() -> None:
    names = {parameter.name for _, c in commands_below(slm_cli.cli) for parameter in parameters_of(c)}
    assert not names & {"help", "version", "quiet", "debug"} and "as_json" in names
    assert isinstance(slm_cli.cli, click.Group)
