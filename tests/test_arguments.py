"""Words of the command line that begin with a dash, and lists of values, as people type them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import slm_cli
from slm.errors import InputError
from slm.terminal.arguments import (
    FLOAT,
    LANG_PART,
    NAMED_FILE,
    TEXT,
    FiniteRange,
    ListsCommand,
    TextCommand,
    all_of_each,
    one_of_each,
)
from slm.terminal.config import defaults_of
from train.config import TrainOptions

ROOT = Path(__file__).parent.parent


@click.command(cls=TextCommand)
@click.argument("index")
@click.argument("texts", nargs=-1, type=TEXT, required=True)
@click.option("-k", type=int, default=5)
@click.option("--name")
@click.option("--flag/--no-flag")
def search(index: str, texts: tuple[str, ...], k: int, name: str | None, flag: bool) -> None:
    click.echo(repr((index, texts, k, name, flag)))


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (["i", "-5 degrees"], ("i", ("-5 degrees",), 5, None, False)),
        (["i", "-5"], ("i", ("-5",), 5, None, False)),
        (["i", "- item", "-k", "3"], ("i", ("- item",), 3, None, False)),
        (["-k3", "i", "--- rule", "-"], ("i", ("--- rule", "-"), 3, None, False)),
        (["i", "-休暇は何日", "--flag"], ("i", ("-休暇は何日",), 5, None, True)),
        (["i", "--name", "-5 x", "q"], ("i", ("q",), 5, "-5 x", False)),
        (["i", "--name=-5 x", "q"], ("i", ("q",), 5, "-5 x", False)),
        (["i", "--flag", "--", "--name", "-k"], ("i", ("--name", "-k"), 5, None, True)),
        (["i", "-k days are left?"], ("i", ("-k days are left?",), 5, None, False)),
        (["i", "plain", "--no-flag"], ("i", ("plain",), 5, None, False)),
    ],
)
def test_text_that_begins_with_a_dash_is_text(words: list[str], seen: tuple[object, ...]) -> None:
    done = CliRunner().invoke(search, words)
    assert done.exit_code == 0 and done.output == f"{seen!r}\n", done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["i", "q", "--nmae", "x"], "No such option"), (["i", "q", "-x"], "No such option"),
        (["i", "q", "-k"], "requires an argument"), (["i"], "Missing argument"), (["i", "q", "-k", "x"], "integer"),
    ],
)  # fmt: skip
def test_a_slip_in_an_option_is_still_a_slip(words: list[str], said: str) -> None:
    done = CliRunner().invoke(search, words)
    assert done.exit_code == 2 and said in done.output


def test_a_query_that_looks_like_an_option_is_told_how_to_be_one() -> None:
    for words in (["route", "-verbose"], ["rag", "search", "i", "--frozen-lockfile"], ["inspect", "-file.gguf"]):
        done = subprocess.run(
            [sys.executable, "-m", "slm_cli", *words], capture_output=True, text=True, cwd=ROOT, timeout=60
        )
        assert done.returncode == 2 and f"slm {' '.join(words[:-1]).replace(' i', '')} -- ..." in done.stderr


@click.command(cls=ListsCommand, context_settings={"token_normalize_func": lambda name: name.replace("_", "-")})
@click.option("--adapters", "--adapter_path", "adapters", multiple=True)
@click.option("--weight", multiple=True, type=float)
@click.option("--prompt")
def route(adapters: tuple[str, ...], weight: tuple[float, ...], prompt: str | None) -> None:
    click.echo(repr((adapters, weight, prompt)))


@pytest.mark.parametrize(
    "words",
    [
        ["--adapters", "en=a", "ja=b", "--prompt", "-5"],
        ["--adapters", "en=a", "--adapters", "ja=b", "--prompt=-5"],
        ["--adapters=en=a", "ja=b", "--prompt", "-5"],
        ["--prompt", "-5", "--adapter-path", "en=a", "ja=b"],
        ["--prompt", "-5", "--adapter_path", "en=a", "--adapters", "ja=b"],
    ],
)
def test_a_list_is_given_in_one_go_or_one_by_one(words: list[str]) -> None:
    assert CliRunner().invoke(route, words).output == f"{(('en=a', 'ja=b'), (), '-5')!r}\n"


def test_numbers_of_a_list_may_be_negative_and_a_stray_word_is_refused() -> None:
    assert CliRunner().invoke(route, ["--weight", "1", "-.5", "-2"]).output == f"{((), (1.0, -0.5, -2.0), None)!r}\n"
    assert CliRunner().invoke(route, ["--prompt", "a", "b"]).exit_code == 2


def _commands(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(path, command)]
    context = click.Context(command)
    inner = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
    return [pair for name, child in inner if child for pair in _commands(child, f"{path} {name}")]


def _scripts() -> list[tuple[str, click.Command]]:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "scripts").glob("*.py")}
    modules = [importlib.import_module(f"scripts.{name}") for name in sorted(texts) if "@click.command" in texts[name]]
    return [(m.__name__, one) for m in modules for one in vars(m).values() if isinstance(one, click.Command)]


def test_no_command_takes_a_number_that_is_none_or_has_no_end() -> None:
    seen = set()
    for path, command in [*_commands(slm_cli.cli, "slm"), *_scripts()]:
        for parameter in command.params:
            if not isinstance(parameter.type, click.types.FloatParamType):
                continue
            convert: Any = parameter.type.convert
            seen.add(f"{path} {parameter.opts[0]}")
            for text in ("nan", "inf", "-inf", "Infinity", "1e999", float("nan"), float("inf")):
                with pytest.raises(click.BadParameter):
                    convert(text, parameter, click.Context(command))
    assert {"slm train sft --lr", "slm merge --weight", "slm serve --request-timeout", "slm verify --max-kl"} <= seen
    assert {"slm train tokenizer --temperature", "scripts.merge_lora --weight"} <= seen


def test_a_number_is_said_to_be_finite_and_keeps_its_bounds() -> None:
    assert FLOAT.convert("5e-4", None, None) == 5e-4 and FiniteRange(0, 5).convert("0.5", None, None) == 0.5
    with pytest.raises(click.BadParameter, match="'nan' is not a finite number"):
        FiniteRange(0, 5).convert("nan", None, None)
    with pytest.raises(click.BadParameter, match="not in the range"):
        FiniteRange(0, 5).convert("6", None, None)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_configuration_file_takes_finite_numbers_only(value: str) -> None:
    with pytest.raises(click.UsageError, match=r"\[train.sft\] lr: .*not a finite number"):
        defaults_of({"train": {"sft": {"lr": float(value)}}}, slm_cli.cli, Path("config.toml"))


def test_options_of_a_run_are_finite_however_they_came(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"weights is not a finite number.*learning_rate is not"):
        TrainOptions(
            base=tmp_path, data=(tmp_path / "d",), output=tmp_path / "o", learning_rate=float("inf"),
            weights=(float("inf"),),
        )  # fmt: skip


@click.command()
@click.option("--adapter", "adapters", type=NAMED_FILE, multiple=True)
@click.option("--share", "shares", type=LANG_PART, multiple=True)
def named(adapters: tuple[tuple[str, Path], ...], shares: tuple[tuple[str, float], ...]) -> None:
    click.echo(repr((one_of_each(adapters), all_of_each(shares))))


def test_a_name_goes_before_the_first_equals_sign_and_the_rest_is_its_value() -> None:
    done = CliRunner().invoke(named, ["--adapter", "日本語=a=b.gguf", "--share", "ja=0.5", "--share", "ja=2"])
    assert done.output == f"{({'日本語': Path('a=b.gguf')}, {'ja': [0.5, 2.0]})!r}\n", done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adapter", "en"], "'en' is not NAME=FILE, like ja=exports/ja.gguf"),
        (["--adapter", "=x"], "'=x' is not NAME=FILE"), (["--adapter", "en="], "'en=' is not NAME=FILE"),
        (["--share", "ja=nan"], "'nan' is not a finite number"),
    ],
)  # fmt: skip
def test_what_is_no_name_with_a_value_is_refused(words: list[str], said: str) -> None:
    done = CliRunner().invoke(named, words)
    assert done.exit_code == 2 and said in done.output, done.output


def test_a_name_that_is_given_twice_is_refused_with_both_values() -> None:
    with pytest.raises(InputError, match=r"'en' is given twice: en=a\.gguf and en=b\.gguf"):
        one_of_each([("en", Path("a.gguf")), ("ja", Path("j.gguf")), ("en", Path("b.gguf"))])
