"""The chat as somebody meets it who sits at a terminal: keys, drawn answers, sessions, and what kill -9 leaves."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from serve.chat.sessions import Archive
from tests.tiny_chat import FakeServer, fake_server
from tests.tiny_gguf import write_model

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "slm_cli", "chat"]
ESCAPE, ALT_ENTER, CTRL_C, CTRL_D, CTRL_R, CTRL_Z = "\x1b", "\x1b\r", "\x03", "\x04", "\x12", "\x1a"
UP = "\x1b[A"
Start = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as script:
        yield script


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Runs `slm chat` with options in a terminal of its own; a home that stays for the test."""
    running: list[Any] = []

    def begin(*options: str, program: list[str] = COMMAND, **environment: str) -> Any:
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "SLM_CONFIG")}
        child = pexpect.spawn(
            program[0], [*program[1:], *options], encoding="utf-8", timeout=60, dimensions=(30, 80), cwd=str(ROOT),
            env={
                **kept, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "SLM_HOME": str(tmp_path),
                "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", **environment,
            },
        )  # fmt: skip
        running.append(child)
        return child

    yield begin
    for child in running:
        child.close(force=True)


def saved(tmp_path: Path) -> list[tuple[str, str | None]]:
    archive = Archive(tmp_path / "sessions.sqlite")
    latest = archive.latest()
    pairs = [(e.question, e.answer) for e in archive.exchanges(latest.id)] if latest else []
    archive.close()
    return pairs


def at_prompt(child: Any) -> None:
    """Answer where the cursor is, as a terminal does: only then is there a toolbar."""
    child.expect(re.escape("\x1b[6n"))
    child.send("\x1b[5;1R")


def left(child: Any) -> int:
    child.expect(pexpect.EOF)
    child.wait()
    return int(child.exitstatus)


def test_answers_are_drawn_and_figures_stand_under_them(start: Start, server: FakeServer, tmp_path: Path) -> None:
    server.answers = [["Two **bo", "ld** words\n- e", "tc ", "日本"]]
    child = start("--url", server.url, PROMPT_TOOLKIT_NO_CPR="0")
    at_prompt(child)
    child.send("Hello?\r")
    child.expect(re.escape("\x1b[1mbo\x1b[0m\x1b[1mld\x1b[0m words"))
    child.expect("• etc 日本")
    child.expect(r"\[fake · .*4 tokens · first after \d+\.\d\d s\]")
    at_prompt(child)
    child.expect("session.*1")
    child.send("/und")
    child.expect("take back the last question")  # the menu
    child.send("\t")
    child.expect("o")
    child.send("\r")
    child.expect("taken back: Hello")
    at_prompt(child)
    child.send(CTRL_D)
    assert left(child) == 0 and saved(tmp_path) == []


def test_ctrl_c_keeps_what_was_said_and_leaves_only_twice(start: Start, server: FakeServer, tmp_path: Path) -> None:
    server.answers, server.pause_s = [["One ", *["more "] * 200], ["Fine."]], 0.1
    child = start("--url", server.url)
    child.expect("auto>")
    child.send("Talk\r")
    child.expect("One more more")
    child.send(CTRL_C)
    child.expect(r"stopped\]")
    child.expect("auto>")
    child.send("And?\r")
    child.expect("Fine.")
    child.expect("auto>")
    for _ in range(2):  # what is dropped between two of them begins the count anew
        child.send("half a line" + CTRL_C)
        child.send(CTRL_C)
        child.expect("Ctrl-C again, or Ctrl-D, leaves")
    child.send(CTRL_C)
    assert left(child) == 0
    (first, partial), (second, whole) = saved(tmp_path)
    assert (first, second, whole) == ("Talk", "And?", "Fine.")
    assert partial is not None and partial.startswith("One more more") and len(partial) < 500


def test_what_is_typed_while_an_answer_runs_is_not_shown_in_it_and_comes_next(
    start: Start, server: FakeServer, tmp_path: Path
) -> None:
    server.answers, server.pause_s = [["One ", *["more "] * 20], ["Fine."]], 0.05
    child = start("--url", server.url)
    child.expect("auto>")
    child.send("Talk\r")
    child.expect("One more more")
    child.send("typed ahead\r")
    child.expect("stop|first after")
    assert "typed" not in child.before
    child.expect("Fine.")
    child.expect("auto>")
    child.send(CTRL_D)
    assert left(child) == 0 and [question for question, _ in saved(tmp_path)] == ["Talk", "typed ahead"]


def test_a_shell_that_gives_the_terminal_back_and_ctrl_c_take_nothing_from_what_is_typed_ahead(
    start: Start, server: FakeServer, tmp_path: Path
) -> None:
    server.answers, server.pause_s = [["One ", *["more "] * 200], ["Fine."]], 0.05
    child = start("--url", server.url)
    child.expect("auto>")
    child.send("Talk\r")
    child.expect("One more more")
    child.setecho(True)  # as a shell does on Ctrl-Z and fg
    child.kill(signal.SIGCONT)
    child.expect("more more more")
    assert not child.getecho()
    child.send("typed ahead" + CTRL_C)
    child.expect(r"stopped\]")
    assert "typed" not in child.before
    child.expect("typed ahead")
    child.send("\r")
    child.expect("Fine.")
    child.expect("auto>")
    child.send(CTRL_D)
    assert left(child) == 0 and [question for question, _ in saved(tmp_path)] == ["Talk", "typed ahead"]


def test_ctrl_d_while_an_answer_runs_leaves_behind_it(start: Start, server: FakeServer, tmp_path: Path) -> None:
    server.answers, server.pause_s = [["One ", *["more "] * 20, "at last."]], 0.05
    child = start("--url", server.url)
    child.expect("auto>")
    child.send("Talk\r")
    child.expect("One more more")
    child.send(CTRL_D)
    child.expect(r"at last\.")
    assert left(child) == 0 and saved(tmp_path)[0][1] == "One " + "more " * 20 + "at last."


def test_several_lines_are_one_question(start: Start, server: FakeServer, tmp_path: Path) -> None:
    server.answers = [["A."], ["B."], ["C."]]
    child = start("--url", server.url)
    child.expect("auto>")
    child.send(f"one{ALT_ENTER}two\r")
    child.expect(r"A\.")
    child.send("\x1b[200~/help\n\tthree\n四\x1b[201~\r")
    child.expect(r"B\.")
    assert "^I" not in child.before
    child.send("five\\\rsix\r")
    child.expect(r"C\.")
    child.send(CTRL_D)
    assert left(child) == 0
    assert [question for question, _ in saved(tmp_path)] == ["one\ntwo", "/help\n\tthree\n四", "five\nsix"]


def test_kill_9_loses_the_running_answer_alone_and_the_session_goes_on(
    start: Start, server: FakeServer, tmp_path: Path
) -> None:
    server.answers, server.pause_s = [["First."], ["Never ", *["ending "] * 300], ["Again."]], 0.05
    child = start("--url", server.url, "--system", "Be brief.")
    child.expect("auto>")
    child.send("one\r")
    child.expect(r"First\..*first after")
    child.send("two\r")
    child.expect("ending ending")
    os.kill(child.pid, signal.SIGKILL)
    child.expect(pexpect.EOF)
    assert saved(tmp_path) == [("one", "First."), ("two", None)]
    child = start("--url", server.url, "--continue")
    child.expect("session 1: 2 questions")
    child.expect("this question has no answer; /retry")
    child.expect("auto>")
    child.send("/retry\r")
    child.expect(r"Again\..*first after")
    child.send(f"/save 旅行\r{CTRL_D}")
    assert left(child) == 0
    assert [turn["content"] for turn in server.bodies[-1]["messages"]] == ["Be brief.", "one", "First.", "two"]
    assert saved(tmp_path) == [("one", "First."), ("two", "Again.")]
    assert "旅行" in pexpect.run(
        " ".join([*COMMAND, "--find", "again"]), encoding="utf-8", cwd=str(ROOT),
        env={**os.environ, "SLM_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_what_was_asked_before_comes_back_with_the_up_key(start: Start, server: FakeServer, tmp_path: Path) -> None:
    server.answers = [["A."], ["B."]]
    for number in range(2):
        child = start("--url", server.url)
        child.expect("auto>")
        child.send("何を？\r" if number == 0 else f"{UP}\r")
        child.expect(r"[AB]\..*first after")
        child.send("/quit\r")
        assert left(child) == 0
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "何を？"}]


def test_ctrl_r_searches_what_was_asked_before(start: Start, server: FakeServer) -> None:
    server.answers = [["A."], ["B."], ["C."], ["D."]]
    child = start("--url", server.url)
    for question in ("the first lease", "another thing", "a last one"):
        child.expect("auto>")
        child.send(f"{question}\r")
        child.expect(r"[ABC]\..*first after")
    child.expect("auto>")
    child.send(CTRL_R)
    child.expect("I-search backward")
    child.send("fir")
    child.expect("st lease")  # what is searched for is drawn in another way
    child.send("\r")  # takes what was found to the prompt, where it may be edited
    child.send("\x05?\r")  # at the end of the line; the cursor is at what was searched for
    child.expect(r"D\..*first after")
    child.send(CTRL_D)
    assert left(child) == 0
    assert server.bodies[3]["messages"][-1] == {"role": "user", "content": "the first lease?"}


def in_a_shell(start: Start, server: FakeServer) -> Any:
    """The chat at its prompt, run by a shell that controls its jobs."""
    shell = start(program=["bash", "--norc", "-i"], PS1="shell: ")
    shell.expect("shell: ")
    shell.send(f"{' '.join(COMMAND)} --url {server.url}\r")
    shell.expect("auto>")
    return shell


def test_ctrl_z_suspends_in_the_middle_of_an_answer_which_goes_on(start: Start, server: FakeServer) -> None:
    server.answers, server.pause_s = [["One ", *["more "] * 40, "at last."], ["Fine."]], 0.05
    shell = in_a_shell(start, server)
    shell.send("Talk\r")
    shell.expect("One more more")
    shell.send(CTRL_Z)
    shell.expect("Stopped")
    shell.expect("shell: ")
    shell.send("echo $((6 * 7))\r")
    shell.expect(r"echo \$\(\(6 \* 7\)\)")  # the shell's own line is seen
    shell.expect("42")
    shell.send("fg\r")
    shell.expect(r"at last\.")
    shell.expect("auto>")
    shell.send("And?\r")
    shell.expect(r"Fine\.")
    shell.expect("auto>")
    shell.send(CTRL_D)
    shell.expect("shell: ")


def test_ctrl_z_suspends_at_the_prompt(start: Start, server: FakeServer) -> None:
    server.answers = [["Back."]]
    shell = in_a_shell(start, server)
    shell.send(CTRL_Z)
    shell.expect("Stopped")
    shell.send("fg\r")
    shell.expect("auto>")
    shell.send("Hello\r")
    shell.expect(r"Back\.")
    shell.expect("auto>")  # a key that comes before the prompt is there is the terminal's own
    shell.send(CTRL_D)
    shell.expect("shell: ")


@pytest.mark.parametrize(
    ("options", "environment"), [(("--plain",), {}), ((), {"TERM": "dumb"}), ((), {"NO_COLOR": "1"})]
)
def test_a_plain_terminal_gets_the_answer_as_it_was_written(
    start: Start, server: FakeServer, options: tuple[str, ...], environment: dict[str, str]
) -> None:
    server.answers = [["Two **bold** wo\x1b[31mrds\n- etc"]]
    child = start("--url", server.url, *options, **environment)
    child.expect("auto>")
    child.send("Hello?\r")
    child.expect(re.escape("Two **bold** wo[31mrds\r\n- etc\r\n"))
    if "NO_COLOR" not in environment:
        assert ESCAPE not in child.before
    child.send(CTRL_D)
    assert left(child) == 0


def test_a_model_of_ours_is_opened_behind_the_prompt(start: Start, tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    child = start(str(model), "--max-tokens", "5", "--context", "256", PROMPT_TOOLKIT_NO_CPR="0")
    child.expect("tiny.gguf; /help shows the commands")
    at_prompt(child)
    child.expect("base>")
    child.send("Hello\r")
    child.expect(r"\[base · .*5 tokens · first after \d+\.\d\d s · cut at the length limit\]")
    at_prompt(child)
    child.expect("context.*%.*of.*256")
    child.send(CTRL_D)
    assert left(child) == 0


def test_a_model_that_cannot_be_opened_ends_the_chat_with_one_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    child = start(str(tmp_path / "bad.gguf"))
    child.expect("error: [^\r\n]*bad.gguf")
    assert left(child) == 1
