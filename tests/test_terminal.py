"""What people pipe in, where they print to, and folders nobody can write to: an answer or one line, no traceback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_gguf import write_model

try:
    import pty
except ImportError:  # Windows
    pty = None  # type: ignore[assignment]

ROOT = Path(__file__).parent.parent
JAPANESE = "会議室の予約はどこで取り消せますか。総務部に電話してください。"


def shell(
    line: str, *words: str | os.PathLike[str], stdin: bytes | None = None, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """A line of sh in which `slm` is the command and $1, $2 ... the words."""
    program = f'slm() {{ "{sys.executable}" -m slm_cli "$@"; }}\n{line}'
    return subprocess.run(
        ["bash", "-c", program, "sh", *words], input=stdin or b"", capture_output=True, cwd=cwd, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.gguf")


def one_line(done: subprocess.CompletedProcess[bytes], text: str) -> None:
    """The command failed with one line on stderr, which says this."""
    said = done.stderr.decode()
    assert done.returncode == 1 and said.startswith("error: ") and said.count("\n") == 1 and text in said, said


def prompt_tokens(model: Path, stdin: bytes) -> tuple[int, str]:
    done = shell('slm generate "$1" --context 2048 --max-tokens 1 --raw --json', model, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)["prompt_tokens"], done.stderr.decode()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp932", "euc_jp", "iso2022_jp"])
def test_a_prompt_piped_in_another_encoding_is_the_same_prompt(model: Path, encoding: str) -> None:
    plain, said = prompt_tokens(model, JAPANESE.encode())
    assert said == ""
    count, said = prompt_tokens(model, JAPANESE.encode(encoding))
    assert count == plain
    assert said == "" if encoding == "utf-8-sig" else said.startswith("stdin is not plain UTF-8: ")


def test_one_bad_byte_in_a_piped_prompt_is_replaced_and_said(model: Path) -> None:
    plain, _ = prompt_tokens(model, (JAPANESE + "\ufffd").encode())
    count, said = prompt_tokens(model, JAPANESE.encode() + b"\xff")
    assert count == plain and "U+FFFD" in said


@pytest.mark.parametrize("stdin", [bytes(range(256)) * 4, b"", b"\xef\xbb\xbf", b" \n"])
def test_a_prompt_that_is_no_text_is_one_line(model: Path, stdin: bytes) -> None:
    one_line(
        shell('slm generate "$1" --context 2048', model, stdin=stdin),
        "is binary" if stdin[:1] == b"\0" else "the prompt is empty",
    )


def test_a_chat_reads_lines_of_any_encoding_as_they_come(model: Path) -> None:
    lines = "\n".join(["/adapter base", JAPANESE, "/adapter", "/exit"])
    for encoding in ("utf-8-sig", "cp932", "utf-16"):
        done = shell('slm chat "$1" --context 2048 --max-tokens 2 --temperature 0', model, stdin=lines.encode(encoding))
        assert done.returncode == 0, done.stderr.decode()
        assert b"now: base; adapters: none" in done.stderr and b"unknown command" not in done.stderr
        assert done.stdout.count(b"\n") == 1  # one answer


@pytest.mark.parametrize("line", ['slm generate "$1" --context 2048 <&-', 'slm chat "$1" --context 2048 <&-'])
def test_a_closed_stdin_is_one_line_with_what_to_do(model: Path, line: str) -> None:
    done = shell(line, model)
    assert done.returncode == 1 and b"nothing can be read from stdin" in done.stderr and b"Trace" not in done.stderr


def test_a_closed_stdin_does_not_matter_where_nothing_is_read_from_it(model: Path) -> None:
    assert shell('slm generate "$1" --context 2048 -p Hello --max-tokens 2 <&-', model).returncode == 0
    assert shell("slm route Hello <&-").stdout == b"en\tHello\n"


@pytest.mark.parametrize("line", ["slm models >&-", "slm models --json >&-", "slm route Hello >&- <&-"])
def test_results_that_a_closed_stdout_did_not_take_are_a_failure(line: str) -> None:
    one_line_at_the_end = shell(f"{line}").stderr.decode().splitlines()[-1]
    assert one_line_at_the_end == "error: stdout is closed; what the command printed is lost"
    assert shell(line).returncode == 1


def test_an_answer_to_a_closed_stdout_is_a_failure_and_no_child_took_its_number(model: Path) -> None:
    done = shell('slm generate "$1" --context 2048 -p Hello --max-tokens 2 >&-', model)
    one_line(done, "stdout is closed")
    done = shell('slm generate "$1" --context 2048 -p Hello --max-tokens 2 --json 2>&- <&-', model)
    assert done.returncode == 0 and json.loads(done.stdout)["completion_tokens"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_under_stdout_is_one_line(model: Path) -> None:
    for line in ("slm models >/dev/full", "slm models --json >/dev/full", "slm --help >/dev/full"):
        one_line(shell(line), "stdout cannot be written: No space left on device")
    one_line(
        shell('slm generate "$1" --context 2048 -p Hello --max-tokens 2 >/dev/full', model), "No space left on device"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_messages_that_cannot_be_written_do_not_end_the_command(tmp_path: Path) -> None:
    for where in ("2>/dev/full", "2>&-"):
        done = shell(f"slm route Hello {where}")
        assert done.returncode == 0 and done.stdout == b"en\tHello\n"


@pytest.mark.parametrize("command", ["models", "models --json", "doctor", "--help", "route $(seq 20000)"])
def test_a_reader_that_has_seen_enough_gets_no_word(command: str) -> None:
    done = shell(f"slm -q {command} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}")
    assert done.stderr == b"" and done.stdout in (b"0\n", b"1\n", b"141\n")


def test_a_reader_that_has_gone_is_told_by_the_code_of_a_broken_pipe() -> None:
    for command in ("models", "models --json", "route x"):
        done = shell(f"{{ sleep 0.2; slm -q {command}; echo $? >&2; }} | true")
        assert done.stderr == b"141\n"


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"ja\t????\n"), ("cp932", "ja\t会議室?\n".encode("cp932"))])
def test_a_terminal_that_lacks_a_character_shows_a_question_mark_and_it_is_said(encoding: str, shown: bytes) -> None:
    done = shell("slm route 会議室한", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout) == (0, shown)
    assert f"characters that {encoding} does not have were printed as '?'".encode() in done.stderr


SHOWING = """
import click
from slm.errors import InputError
from slm.terminal.console import err, note, progress, run

@click.command()
def show():
    err().print("[base · 3 tok/s · cut…]", style="dim", markup=False)
    note("a “quote” – 会")
    with progress("copying", 2) as done:
        done(1, "x · y")
    click.secho("1. heading", bold=True)
    raise InputError("it is wrong")

run(show)
"""


def on_a_terminal(program: str, **environment: str) -> str:
    """What a Python program writes to a terminal of its own."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execvpe(sys.executable, [sys.executable, "-c", program], {**os.environ, **environment})
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while piece := os.read(terminal, 1 << 16):
            written += piece
    os.waitpid(child, 0)
    os.close(terminal)
    return written.decode().replace("\r\n", "\n")


@pytest.mark.skipif(pty is None, reason="there are no pseudo-terminals here")
def test_a_plain_terminal_gets_neither_colours_nor_escapes_for_our_own_marks() -> None:
    shown = on_a_terminal(SHOWING, TERM="dumb", PYTHONIOENCODING="ascii")
    assert "[base - 3 tok/s - cut...]\n" in shown and 'a "quote" - \\u4f1a\n' in shown
    assert "x - y" in shown and "\n1. heading\n" in shown and shown.endswith("\nerror: it is wrong\n")
    assert "\x1b" not in shown and "\\x" not in shown
    shown = on_a_terminal(SHOWING, TERM="xterm", PYTHONIOENCODING="ascii")
    assert "\x1b[31merror" in shown and "\\x" not in shown and set(re.findall(r"\\u....", shown)) == {"\\u4f1a"}
    assert "\x1b[31m" not in on_a_terminal(SHOWING, TERM="xterm", NO_COLOR="1")


def test_json_loses_nothing_where_the_terminal_lacks_a_character() -> None:
    done = shell("slm route 会議室한 --json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["routes"][0]["text"] == "会議室한"
    assert b"printed as" not in done.stderr


def test_the_shells_completion_is_written() -> None:
    complete = f'import sys; sys.path.insert(0, "{ROOT}"); sys.argv = ["slm"]; import slm_cli; slm_cli.main()'
    settings: list[dict[str, Any]] = [{}, {"PYTHONIOENCODING": "ascii"}]
    for environment in settings:
        done = shell(
            f'"{sys.executable}" -c \'{complete}\'',
            _SLM_COMPLETE="bash_complete", COMP_WORDS="slm tra", COMP_CWORD="1", **environment,
        )  # fmt: skip
        assert done.stdout == b"plain,train\n" and done.stderr == b""


def test_the_c_locale_takes_and_shows_japanese() -> None:
    plain: dict[str, Any] = {"LC_ALL": "C"}
    for environment in (plain, plain | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        assert shell("slm route 会議室はどこですか", **environment).stdout.startswith(b"ja\t")


def test_arguments_in_another_encoding_are_read_as_a_file_would_be() -> None:
    escaped = "".join(f"\\x{byte:02x}" for byte in JAPANESE.encode("cp932"))
    done = shell(f"slm route $'{escaped}'")
    assert done.stdout.decode() == f"ja\t{JAPANESE}\n" and b"an argument is not UTF-8" in done.stderr


def test_a_name_that_is_no_text_is_an_error_of_one_line() -> None:
    one_line(shell("slm inspect $'gone-\\xe9.gguf'"), "gone-\\udce9.gguf")
    one_line(shell("slm inspect $'gone-\\xe9.gguf'", PYTHONIOENCODING="ascii"), "gone-")


@pytest.mark.parametrize("home", ["/dev/null/x", "/proc/nowhere/x", "file"])
def test_a_data_folder_that_cannot_be_written_is_named_with_another_choice(
    tmp_path: Path, home: str, model: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "page.md").write_text("# Page\n\nThe office closes at six.\n")
    where = home if home.startswith("/") else str(tmp_path / home)
    done = shell('slm rag add handbook "$1"', tmp_path / "page.md", SLM_HOME=where)
    assert done.returncode == 1, done.stderr.decode()
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("error: ") and where.removesuffix("/x") in last and "SLM_HOME=FOLDER" in last, last
    assert shell("slm models", SLM_HOME=where).returncode == 0
    assert b"Trace" not in shell("slm doctor", SLM_HOME=where).stderr


def test_an_output_below_a_file_says_what_to_do(tmp_path: Path, model: Path) -> None:
    done = shell('slm quantize "$1" -o "$1/below.gguf" --type q4_0', model)
    one_line(done, "Choose another output with -o.")


_BROKEN = """
import click
from slm.terminal.console import run

@click.command()
@click.option("--debug", is_flag=True)
@click.argument("kind")
def command(debug, kind):
    from slm.terminal.console import set_verbosity
    set_verbosity(quiet=False, debug=debug)
    if kind == "deep":
        def deeper(n): return deeper(n + 1)
        deeper(0)
    raise {"value": ValueError("embedded null byte\\nand more"), "memory": MemoryError(),
           "unicode": UnicodeDecodeError("utf-8", b"\\xff", 0, 1, "invalid start byte"),
           "pipe": BrokenPipeError(32, "Broken pipe")}[kind]

run(command)
"""


@pytest.mark.parametrize("kind", ["value", "memory", "unicode", "pipe", "deep"])
def test_what_no_command_expects_is_one_line_and_a_traceback_with_debug(tmp_path: Path, kind: str) -> None:
    (tmp_path / "broken.py").write_text(_BROKEN)
    program = f'"{sys.executable}" "$1" "$2"'
    done = shell(program, tmp_path / "broken.py", kind)
    one_line(done, "--debug")
    done = shell(program + " --debug", tmp_path / "broken.py", kind)
    assert done.returncode == 1 and b"Traceback" in done.stderr
