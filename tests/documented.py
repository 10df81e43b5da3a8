"""The commands that the documents, the helps and the messages name, as they stand there, and a judge of them.

A fenced line is a whole command and has to parse as a whole. What stands in a sentence may be a part of one: its
command, its options and their values have to exist. Placeholders: <a folder> and capitals (FILE, NAME=FILE) are any
value, a single capital is a number, A|B is a choice of values, `...` stands for what is left out. Variables, `sudo -u`
and the like before a command are no part of it, nor is what a pipe or a redirection has behind it.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

import slm_cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "README.ja.md", "CONTRIBUTING.md", "data/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
SOURCES = [p for room in ("slm", "convert", "train", "serve", "rag") for p in sorted((ROOT / room).rglob("*.py"))]
_COMMAND = re.compile(r"((?:\.venv/bin/)?slm|python scripts/\w+\.py|make|torchrun|pip (?:install|wheel))(?=\s|$)")
# What may stand before a command: a prompt, another user, a network that is closed, variables.
_BEFORE = re.compile(r"(?:Run: |\$ |sudo -u \w+ |unshare (?:--[\w-]+ )+|[A-Z_]+=\S+ )*")
_OPERATORS = {"|", "&", ">", ">>", "<", "2>"}  # what stands behind is not the command's


@dataclass(frozen=True)
class Command:
    """A command of a document. whole: nothing may be missing."""

    where: str
    text: str
    whole: bool

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def of_page(path: Path) -> Iterator[Command]:
    """The commands of a Markdown page, of its fenced blocks and of its sentences."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for block in blocks:
        yield from of_lines(name, block)
    prose = re.sub(r"^```[^\n]*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for inline in re.findall(r"`([^`]+)`", prose):
        words = " ".join(inline.split())
        if _COMMAND.match(bare(words)):
            yield Command(name, bare(words), whole=False)


def bare(line: str) -> str:
    """A line without what stands before its command."""
    return line[_BEFORE.match(line).end() :]  # type: ignore[union-attr]


def of_lines(where: str, text: str) -> Iterator[Command]:
    """The lines that are commands; one goes on where it ends with a backslash."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if re.match(r"make \w+ \w+.*[.;]$", line.strip()):  # a sentence
            continue
        for part in map(bare, re.split(r" && ", line.strip())):
            if _COMMAND.match(part):
                yield Command(where, part, whole=True)


def of_script(path: Path) -> Iterator[Command]:
    """The commands in the docstrings of a script."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef)):
            yield from of_lines(path.relative_to(ROOT).as_posix(), ast.get_docstring(node) or "")


def of_messages(path: Path) -> Iterator[Command]:
    """The commands that messages of a module tell the user to run: `slm ...` behind a colon or in backticks."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            pieces = [p.value if isinstance(p, ast.Constant) else "NAME" for p in node.values]
            text = "".join(str(piece) for piece in pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            text = node.value
        else:
            continue
        for words in re.findall(r"(?::|with|run|Run) (slm [a-z]+(?: [^.;,()]+)?)|`(slm [^`]+)`", text):
            command = words[1] or words[0]
            yield Command(path.relative_to(ROOT).as_posix(), command.strip(), whole=False)


def words_of(command: Command) -> list[str]:
    """The words as the shell splits them, without the comment, placeholders as words."""
    text = re.sub(r"<[^<>]+>", "PLACEHOLDER", command.text)
    words = shlex.split(text, comments=True, posix=True)
    ends = [at for at, word in enumerate(words) if word in _OPERATORS]
    words = words[: ends[0]] if ends else words
    return [re.sub(r"(?<=[a-z])\|[a-z|]+$", "", word) for word in words]


def fault(command: Command) -> str:
    """What is wrong with a documented command, or ""."""
    words = words_of(command)
    named = [word.rpartition("=")[2] for word in words]
    gone = [name for name in named if re.match("(data|docs|scripts|tests)/", name) and not (ROOT / name).exists()]
    if gone:
        return f"no file {gone}"
    if words[0] == "make":
        return _of_make(words[1:])
    if words[0] == "pip":
        return _of_pip(words)
    if words[0] == "torchrun":
        if "slm_cli" not in words:
            return ""
        words = ["slm", *words[words.index("slm_cli") + 1 :]]
    if words[0] == "python":
        return _of_script(words[1], words[2:], whole=command.whole)
    return _of_slm(words[1:], whole=command.whole)


def _of_make(words: list[str]) -> str:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    names = words[: words.index("&&")] if "&&" in words else words
    unknown = [word for word in names if "=" not in word and word not in targets]
    return f"no target {unknown}" if unknown else ""


def _of_pip(words: list[str]) -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [name for word in words for name in re.findall(r"(?:\.|slm-cpu)\[([\w,]+)\]", word)]
    unknown = [one for name in named for one in name.split(",") if one not in extras]
    return f"no extra {unknown}" if unknown else ""


def _of_slm(words: list[str], *, whole: bool) -> str:
    command: click.Command = slm_cli.cli
    path = "slm"
    words = words[: words.index("<")] if "<" in words else words  # a redirected stdin is no argument
    while isinstance(command, click.Group):
        words = [
            word for at, word in enumerate(words) if not (at == 0 and word in ("-q", "--debug", "--json", "--version"))
        ]
        if not words or words[0] == "...":
            return "" if not whole else f"'{path}' needs a command"
        if words[0] in ("-h", "--help"):
            return ""
        child = command.get_command(click.Context(command), words[0])
        if child is None:
            return f"no command '{path} {words[0]}'"
        path, command, words = f"{path} {words[0]}", child, words[1:]
    return _parsed(command, path, words, whole=whole)


def _of_script(file: str, words: list[str], *, whole: bool) -> str:
    path = ROOT / file
    if not path.exists():
        return f"no script '{file}'"
    source = path.read_text(encoding="utf-8")
    if "@click.command" in source:
        module = importlib.import_module(f"scripts.{path.stem}")
        return _parsed(module.main, file, words, whole=whole)
    unknown = [word for word in words if word.startswith("--") and f'"{word.partition("=")[0]}"' not in source]
    return f"no option {unknown}" if unknown else ""


def _parsed(command: click.Command, path: str, words: list[str], *, whole: bool) -> str:
    partial = not whole or "..." in words
    words = ["1" if re.fullmatch("[A-Z]", word) else word for word in words if word != "..."]
    try:
        with command.make_context(path, words, resilient_parsing=False):
            return ""
    except click.exceptions.Exit:
        return ""  # --help
    except click.MissingParameter as error:
        return "" if partial else error.format_message()
    except click.BadOptionUsage as error:  # an option that a sentence is about, without its value
        return "" if partial and "requires" in error.format_message() else error.format_message()
    except click.UsageError as error:
        return error.format_message()
