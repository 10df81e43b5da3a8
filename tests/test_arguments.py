"""Words of the command line that begin with a dash, and lists of values, as people type them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from slm.terminal.arguments import TEXT, ListsCommand, TextCommand

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
