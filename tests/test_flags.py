"""-q, --debug and --json mean the same before a command and behind it, for every command there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import slm_cli
from slm.artifacts import new_folder
from slm.models.catalog import KIND
from slm.terminal import console
from slm.terminal.arguments import Named
from slm.terminal.settings import commands_below
from tests.tiny_rag import own_home

__all__ = ["own_home"]  # a fixture

COMMANDS = {" ".join(path): command for path, command in commands_below(slm_cli.cli)}
WITHOUT_FIGURES = {"cluster serve", "serve"}  # they run until they are ended
FLAGS = {"-q": "quiet", "--quiet": "quiet", "--debug": "debug", "--json": "json"}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    console.set_verbosity(quiet=False, debug=False)


def word_for(parameter: click.Parameter, file: Path) -> str:
    """A word that the parameter takes."""
    kind = parameter.type
    if isinstance(kind, Named):
        return f"ja={file}" if "FIL" in kind.name or "FOLD" in kind.name else "ja=1"
    if isinstance(kind, click.Choice):
        return str(next(iter(kind.choices)))
    if isinstance(kind, click.Path):
        return str(file if kind.file_okay else file.parent)
    return "1" if isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)) else "x"


def needed(command: click.Command, file: Path) -> list[str]:
    """The words without which the command does not start."""
    words: list[str] = []
    for parameter in command.params:
        if parameter.required:
            words += [parameter.opts[-1]] if isinstance(parameter, click.Option) else []
            words += [word_for(parameter, file)] * max(parameter.nargs, 1)
    return words


def outcome(name: str, before: list[str], behind: list[str], file: Path, patch: pytest.MonkeyPatch) -> Any:
    """What the command would have run with: {quiet, debug, json}, or click's result where it did not start."""
    command = COMMANDS[name]
    seen: dict[str, Any] = {}

    def started(**values: Any) -> None:
        seen.update(quiet=console._State.quiet, debug=console._State.debug, json=values.get("as_json"))

    patch.setattr(command, "callback", started)
    words = [*before, *name.split(), *needed(command, file), *behind]
    done: Result = CliRunner().invoke(slm_cli.cli, words, default_map={})
    return seen or done


@pytest.mark.parametrize("name", COMMANDS)
def test_a_flag_counts_before_a_command_between_its_words_and_behind_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    plain = outcome(name, [], [], file, monkeypatch)
    assert isinstance(plain, dict), plain.output
    assert not plain["quiet"] and not plain["debug"] and not plain["json"]
    for flag, what in FLAGS.items():
        places = [outcome(name, [flag], [], file, monkeypatch), outcome(name, [], [flag], file, monkeypatch)]
        if what == "json" and name in WITHOUT_FIGURES:
            assert {place.exit_code for place in places} == {2}
            assert all("no --json" in place.output for place in places)
            continue
        for place in places:
            assert place == {**plain, what: True}, f"{flag}: {getattr(place, 'output', place)}"


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_counts_behind_a_group_too(flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = COMMANDS["rag status"]
    seen: dict[str, Any] = {}

    def started(**values: Any) -> None:
        seen.update(quiet=console._State.quiet, debug=console._State.debug, json=values["as_json"])

    monkeypatch.setattr(command, "callback", started)
    assert CliRunner().invoke(slm_cli.cli, ["rag", flag, "status", "x"], default_map={}).exit_code == 0
    assert [name for name, value in seen.items() if value] == [FLAGS[flag]]


def test_all_flags_go_together_and_none_outlasts_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = outcome("rag search", ["--debug"], ["-q", "--json"], tmp_path, monkeypatch)
    assert everything == {"quiet": True, "debug": True, "json": True}
    assert outcome("rag search", [], [], tmp_path, monkeypatch) == {"quiet": False, "debug": False, "json": False}


def test_json_as_a_default_of_the_file_asks_only_where_there_is_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slm: Any
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("json = true\n[models]\njson = false\n", encoding="utf-8")
    monkeypatch.setenv("SLM_CONFIG", str(config))
    assert json.loads(slm("route", "Hello").stdout)["routes"][0]["adapter"] == "en"
    assert not slm("models").stdout.startswith("{")
    assert slm("models", "--json").stdout.startswith("{")
    refused = slm("serve", "gone.gguf")
    assert "--json" not in refused.stderr and "gone.gguf" in refused.stderr
    config.write_text("", encoding="utf-8")
    monkeypatch.setenv("SLM_JSON", "1")
    assert slm("route", "Hello").stdout.startswith("{") and "gone.gguf" in slm("serve", "gone.gguf").stderr
    monkeypatch.delenv("SLM_JSON")
    config.write_text("[serve]\njson = true\n", encoding="utf-8")
    assert "[serve] json: no option of this command" in slm("models").stderr


def test_quiet_behind_a_command_silences_what_is_said_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, slm: Any
) -> None:
    monkeypatch.setenv("SLM_ROUTE_DEFAULTS", "en")
    assert "SLM_ROUTE_DEFAULTS sets no option of 'slm route'" in slm("route", "Hello").stderr
    for words in (["-q", "route", "Hello"], ["route", "Hello", "-q"]):
        done = slm(*words)
        assert (done.stdout, done.stderr) == ("en\tHello\n", "")


def test_debug_behind_a_command_shows_the_traceback(slm: Any) -> None:
    assert "Traceback" not in slm("inspect", "gone.gguf").stderr
    assert "Traceback" in slm("inspect", "gone.gguf", "--debug").stderr


def test_the_help_tells_of_the_flags_once(slm: Any) -> None:
    said = slm("--help").stdout
    assert "-q, --debug and --json may stand behind the command as well" in said and "Exit codes: 0 done" in said
    assert "--debug" not in slm("pull", "--help").stdout


@pytest.mark.parametrize("word", ["-quota", "-qk", "-question", "--quieter"])
def test_a_query_that_begins_as_a_flag_does_is_named_whole_and_explained(word: str, slm: Any) -> None:
    done = slm("rag", "search", "handbook", word)
    assert done.returncode == 2 and f"'{word}'" in done.stderr
    assert "A text or name that begins with a dash goes behind --: slm rag search -- ..." in done.stderr
    assert slm("route", "--", word).stdout == f"en\t{word}\n"


def test_a_pulled_model_that_is_removed_is_reported_as_json(own_home: Path) -> None:
    folder = own_home / "models" / "me--mine"
    with new_folder(folder, KIND) as (made, manifest):
        (made / "model.gguf").write_bytes(b"x" * 70)
        manifest.update(name="me/mine", files={"model.gguf": {"sha256": "", "size_bytes": 70}})
    done = CliRunner().invoke(slm_cli.cli, ["--json", "rm", "me/mine"], default_map={})
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"name": "me/mine", "freed_bytes": 70} and not folder.exists()


def test_what_a_pull_gives_is_reported_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pulled(name: str, source: str | None, accept_license: bool, ask: Any) -> Path:
        return tmp_path / name

    monkeypatch.setattr("slm.models.fetch.pull", pulled)
    done = CliRunner().invoke(slm_cli.cli, ["pull", "mine", "--json"], default_map={})
    assert json.loads(done.stdout) == {"name": "mine", "path": str(tmp_path / "mine")}
    done = CliRunner().invoke(slm_cli.cli, ["pull", "mine"], default_map={})
    assert done.stdout == f"{tmp_path / 'mine'}\n"
