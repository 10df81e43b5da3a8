"""Every command that a document, a help or a message names is one that exists, as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documented import (
    PAGES,
    ROOT,
    SCRIPTS,
    SOURCES,
    Command,
    fault,
    of_lines,
    of_messages,
    of_page,
    of_script,
    words_of,
)
from tests.tiny_training import write_checkpoint, write_sentencepiece_checkpoint

COMMANDS = [
    *(command for page in PAGES for command in of_page(page)),
    *(command for script in SCRIPTS for command in of_script(script)),
    *(command for source in [*SOURCES, ROOT / "slm_cli.py"] for command in of_messages(source)),
]
QUICK_START = [c for c in of_page(ROOT / "README.md") if c.whole and c.text.startswith("python scripts/")]
CHEAP = [c for c in COMMANDS if c.whole and words_of(c)[:2] in (["slm", "route"], ["slm", "models"])]


@pytest.mark.parametrize("command", list({(c.text, c.whole): c for c in COMMANDS}.values()), ids=str)
def test_a_documented_command_parses_as_it_stands(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert fault(command) == ""


def test_there_are_commands_in_every_document_that_has_some_to_tell() -> None:
    named = {command.where for command in COMMANDS}
    assert {"README.md", "CONTRIBUTING.md", "data/README.md", "docs/serving.md", "scripts/router.py"} <= named
    assert {"README.ja.md", "docs/ja/quick-start.md", "docs/guides/production.md"} <= named
    assert len(QUICK_START) == 6 and len(COMMANDS) > 150


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slm serv m", "no command 'slm serv'"),
        ("slm serve m --prot 80", "No such option"),
        ("slm serve m --port eighty", "not a valid"),
        ("slm train sft --base m", "Missing option '--data'"),
        ("slm rag add", "Missing argument"),
        ("slm route a b --default", "requires an argument"),
        ("slm generate m extra -p x", "unexpected extra argument"),
        ("slm evaluate m --text en=data/gone.txt", "no file"),
        ("python scripts/gone.py", "no file"),
        ("python scripts/demo.py --bsae m", "no option"),
        ("python scripts/router.py --base <folder> --adapters en=a --prompt x y", "unexpected extra argument"),
        ("make tset", "no target"),
        ("pip install '.[trian]'", "no extra"),
        ("pip wheel -w wheelhouse 'slm-cpu[rga]'", "no extra"),
        ("slm rag read x | less --no-such-option", ""),
        ("torchrun -m slm_cli train stf", "no command"),
    ],
)
def test_the_judge_sees_what_is_wrong(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = fault(Command("here", text, whole=True))
    assert said in found and bool(said) == bool(found)


def test_a_command_is_found_behind_what_a_shell_puts_before_it() -> None:
    lines = (
        "$ slm models\nSLM_HOME=a/b TOKEN=x slm pull m\nsudo -u slm SLM_HOME=/x .venv/bin/slm doctor\n"
        "unshare --user --net .venv/bin/slm models\ncd x && slm doctor && make test\nsystemctl restart slm\n"
        "export SLM_HOME=x\n"
    )
    assert [command.text for command in of_lines("here", lines)] == [
        "slm models", "slm pull m", ".venv/bin/slm doctor", ".venv/bin/slm models", "slm doctor", "make test",
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_that_a_document_names_is_there(page: Path) -> None:
    tops = "slm|convert|train|serve|rag|scripts|tests|docs|data"
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w/.-])((?:{tops})/[\w/]+\.(?:py|mjs|md))\b|`((?:{tops})/[\w/]+)`", text)
    gone = {path or folder for path, folder in named if not (ROOT / (path or folder)).exists()}
    assert gone - {"tests/test_x.py"} == set()


@pytest.mark.parametrize("command", CHEAP, ids=str)
def test_a_cheap_command_runs_as_it_stands(command: Command) -> None:
    words = [sys.executable, "-m", "slm_cli", *words_of(command)[1:]]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_the_quick_start_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    """On tiny checkpoints; a <folder> is the base that the line's adapter was trained on."""
    for name in ("scripts", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_checkpoint(tmp_path / "distil")
    write_sentencepiece_checkpoint(tmp_path / "rinna")
    quick = " --max_steps 2 --threads 1 --dtype float32"
    for command in QUICK_START:
        japanese = "ja_lora" in command.text or "sft" in command.text
        base = "rinna" if japanese else "distil"
        line = command.text
        for placeholder in ("<distilgpt2 folder>", "<rinna japanese-gpt2-small folder>", "<folder>"):
            line = line.replace(placeholder, base)
        line += " --drop-long" if "sft" in line else ""  # the tiny bases read 256 tokens
        line += quick if "train_" in line else " --max_new_tokens 4" if "--prompt" in line else ""
        done = subprocess.run(
            ["bash", "-c", line.replace("python", shlex.quote(sys.executable), 1)],
            capture_output=True, text=True, cwd=tmp_path, timeout=300, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout.strip(), f"{line}\n{done.stderr}"
