"""The configuration file and SLM_* variables: every spelling of an option works, nothing is dropped in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import slm_cli
from slm.terminal.config import defaults_of, read_config, settle_environment

ROOT = Path(__file__).parent.parent


def checked(tmp_path: Path, text: str, encoding: str = "utf-8") -> dict[str, Any]:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode(encoding))
    return defaults_of(read_config(path, named=True), slm_cli.cli, path)


def slm(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slm_cli", *words], capture_output=True, text=True, cwd=ROOT, timeout=60,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[generate]\nmax_tokens = 5", {"max_tokens": 5}),
        ("[generate]\nmax-tokens = 5", {"max_tokens": 5}),
        ("generate.max-tokens = 5", {"max_tokens": 5}),
        ("[generate]\nm = 'auto'\njson = true\np = 'x'", {"wanted": "auto", "as_json": True, "prompt": "x"}),
        ("[generate]\nadapter = ['en=a', 'ja=b']", {"adapters": ["en=a", "ja=b"]}),
        ("[generate]\nadapter = 'en=a'", {"adapters": ["en=a"]}),
        ("[generate]\nadapters = ['en=a']\ntemperature = 1", {"adapters": ["en=a"], "temperature": 1}),
        ("[generate]\nstop = []\nmodel = 'mine.gguf'", {"stop": [], "model": "mine.gguf"}),
    ],
)
def test_a_key_is_an_option_in_any_spelling(tmp_path: Path, text: str, found: dict[str, Any]) -> None:
    assert checked(tmp_path, text) == {"generate": found}


def test_flags_take_true_and_false_in_both_directions(tmp_path: Path) -> None:
    text = "quiet = true\n[train.sft]\npack = false\nno-fuse = true\nno_dora = false\nresume = true"
    sft = {"pack": False, "fuse": False, "dora": True, "resume": True}
    assert checked(tmp_path, text) == {"quiet": True, "train": {"sft": sft}}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp932"])
def test_the_file_may_be_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    assert checked(tmp_path, "[chat]\nsystem = 'はい、お答えします。'\n", encoding)["chat"] == {
        "system": "はい、お答えします。"
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[generate]\nmax-tokens = 5\nmax_token = 5", "[generate] max_token: no option of this command; did you mean"),
        ("[generate]\nmax-tokens = 5\nmax_tokens = 6", "given twice"),
        ("[generate]\nmax_tokens = 'many'", "[generate] max_tokens: 'many' is not a valid integer"),
        ("[generate]\nmax_tokens = 5.5", "has to be a whole number (found: 5.5)"),
        ("[generate]\nmax_tokens = true", "has to be a whole number (found: true)"),
        ("[generate]\nmax_tokens = 0", "0 is not in the range"),
        ("[generate]\nmax_tokens = [5]", "takes one value, not a list"),
        ("[generate]\ntop-p = false", "has to be a number (found: false)"),
        ("[generate]\ntop-p = 1979-05-27", "has to be a number"),
        ("[generate]\nsystem = 4", "has to be a text in quotes (found: 4)"),
        ("[generate]\nsystem = {}", "has to be a text in quotes (found: a table)"),
        ("[generate]\nraw = 'yes'", "has to be true or false (found: 'yes')"),
        ("[generate]\nadapter = ['en']", "'en' is not NAME=FILE"),
        ("[generate]\nstop = ['a', 3]", "has to be a text in quotes (found: 3)"),
        ("[train.sft]\nschedule = 'steps'", "'steps' is not one of"),
        ("[serve]\nmax-body = 'huge'", "'huge' is no size"),
        ("generate = 5", "'generate' is a command and has to be a table, [generate] (found: 5)"),
        ("[[generate]]\nseed = 1", "has to be a table, [generate]"),
        ("train.sft = 'x'", "'train.sft' is a command and has to be a table"),
        ("[generat]\nseed = 1", "generat: no command; did you mean 'generate'?"),
        ("[train]\nrank = 8", "[train] rank: no command; an option belongs into the table of its command"),
        ("temperature = 0.5", "temperature: no command; an option belongs into the table of its command: ["),
        ("[train]\nlr = 1e-4", "[train] lr: no command; an option belongs into the table of its command: [train.est"),
        ("[bench.nope]", "[bench] nope: no command"),
        ("version = true", "version: no command"),
        ("[generate", "is not valid TOML"),
        ("[generate]\nhelp = true", "help: no option"),
    ],
)
def test_what_no_command_knows_is_named(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(click.UsageError) as error:
        checked(tmp_path, text)
    assert fault in error.value.message and str(tmp_path / "config.toml") in error.value.message


def test_all_faults_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError) as error:
        checked(tmp_path, "a = 1\n[serve]\nport = 'x'\nnone = 1\n[chat]\nseed = 1.5")
    assert error.value.message.count(";") >= 3


def test_a_file_of_the_users_choice_has_to_be_there(tmp_path: Path) -> None:
    assert read_config(tmp_path / "none.toml", named=False) == {}
    for path, reason in ((tmp_path / "none.toml", "no such file"), (tmp_path, "cannot be read")):
        done = slm("models", SLM_CONFIG=str(path))
        assert done.returncode == 2 and reason in done.stderr and "Traceback" not in done.stderr


def test_the_commands_use_the_file_and_a_flag_or_variable_goes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[route]\njson = true\nadapter = ['english', 'ja']\n", encoding="utf-8")
    assert '"adapter": "english"' in slm("route", "Hello", SLM_CONFIG=str(path)).stdout
    assert '"adapter": "en"' in slm("route", "Hello", SLM_CONFIG=str(path), SLM_ROUTE_ADAPTER="en ja").stdout
    assert '"adapter": "base"' in slm("route", "Hello", "--adapter", "ja", SLM_CONFIG=str(path)).stdout


def test_quiet_of_the_file_silences_notes(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("quiet = true\n", encoding="utf-8")
    assert slm("route", "Hello", SLM_CONFIG=str(path)).stderr == ""
    assert slm("route", "Hello", SLM_CONFIG=os.devnull).stderr != ""


def test_a_wrong_value_is_said_with_where_it_was_set(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[serve]\nadapters-dir = 'nowhere'\n", encoding="utf-8")
    assert f"It is set in '{path}'." in slm("serve", "m", SLM_CONFIG=str(path)).stderr
    done = slm("generate", "m", "-p", "x", SLM_GENERATE_MAX_TOKENS="many")
    assert done.returncode == 2
    assert "set by the environment variable SLM_GENERATE_MAX_TOKENS" in done.stderr


def test_variables_may_be_spelled_as_the_options_and_unknown_ones_are_named() -> None:
    environment = {
        "SLM_SERVE_ADAPTER": "en=a", "SLM_TRAIN_SFT_LR": "0.1", "SLM_QUIET": "1", "SLM_HOME": "x", "HOME": "y",
        "SLM_SERVE_PORTS": "1", "SLM_GENERAT_SEED": "1", "SLM_TRAIN_RANK": "8",
    }  # fmt: skip
    complaints = settle_environment(slm_cli.cli, environment)
    assert environment["SLM_SERVE_ADAPTERS"] == "en=a" and environment["SLM_TRAIN_SFT_LEARNING_RATE"] == "0.1"
    assert [complaint.split()[3] for complaint in complaints] == [
        "SLM_GENERAT_SEED",
        "SLM_SERVE_PORTS",
        "SLM_TRAIN_RANK",
    ]
    assert "did you mean SLM_SERVE_PORT?" in complaints[1]
