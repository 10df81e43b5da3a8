"""`slm generate`: stdin as context, templates with variables, JSON of a schema, and the codes it ends with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve.cli import oneshot
from serve.cli.oneshot import OneShot, asked, filled, grammar_of, whole_json
from slm.errors import DamagedFileError, InputError, UnsupportedError
from tests.tiny_gguf import write_adapter, write_model

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PROGRAM = [sys.executable, "-m", "slm_cli"]


def shell(
    line: str, *words: str | os.PathLike[str], stdin: bytes | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[bytes]:
    """A line of sh in which `slm` is the command and $1, $2 ... the words; without stdin it is /dev/null."""
    program = f'slm() {{ "{sys.executable}" -m slm_cli "$@"; }}\n{line}'
    return subprocess.run(
        ["bash", "-c", program if stdin is not None else f"exec < /dev/null\n{program}", "sh", *words],
        input=stdin, capture_output=True, cwd=cwd, timeout=120, env=ENVIRONMENT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.gguf", fingerprint="f00d" * 16)


def generated(model: Path, more: str, *words: str | Path, stdin: bytes | None = None) -> dict[str, object]:
    done = shell(f'slm generate "$1" --context 2048 --max-tokens 1 --json {more}', model, *words, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, object] = json.loads(done.stdout)
    return found


def refused(code: int, text: str, more: str, *words: str | Path, stdin: bytes | None = None) -> None:
    done = shell(f"slm generate {more}", *words, stdin=stdin)
    said = done.stderr.decode()
    assert done.returncode == code and text in said and done.stdout == b"" and "Traceback" not in said, said
    assert code == 2 or said.count("\n") == 1


# What is asked


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stands in a piped stdin; empty: a terminal."""
    text: list[str] = []
    monkeypatch.setattr(oneshot, "is_piped", lambda: bool(text))
    monkeypatch.setattr(oneshot, "is_terminal", lambda: not text)
    monkeypatch.setattr(oneshot, "read_stdin", lambda: text.pop())
    return text


@pytest.mark.parametrize(
    ("context", "prompt", "raw", "text"),
    [
        (None, "Why?", False, "Why?"),
        ("A page.\n", None, False, "A page.\n"),
        ("A page.\n\n\n", "Why?", False, "A page.\n\nWhy?"),
        (" \n", "Why?", False, "Why?"),
        ("Once upon", " a time", True, "Once upon a time"),
        ("A page.", "", False, "A page.\n\n"),
    ],
)
def test_piped_text_stands_above_the_prompt(
    piped: list[str], context: str | None, prompt: str | None, raw: bool, text: str
) -> None:
    piped += [] if context is None else [context]
    assert asked(prompt, None, {}, raw=raw) == OneShot(text, text if prompt is None else prompt)
    assert piped == []


def test_a_model_sees_the_piped_text_as_part_of_its_prompt(model: Path) -> None:
    both = generated(model, "-p 'Who is it?'", stdin=b"A tall guest.\n")
    whole = generated(model, "-p 'A tall guest.\n\nWho is it?'")
    assert both["prompt_tokens"] == whole["prompt_tokens"] and both["text"] == whole["text"]
    alone = generated(model, "-p 'Who is it?'", stdin=b"")["prompt_tokens"]
    for nothing in ("< /dev/null", "<&-"):
        assert generated(model, f"-p 'Who is it?' {nothing}")["prompt_tokens"] == alone


def test_context_from_a_file_in_another_encoding_is_the_same_context(model: Path, tmp_path: Path) -> None:
    text = "会議は金曜日の午後三時に十二号室で始まります。"
    counts = set()
    for encoding in ("utf-8", "cp932", "utf-16"):
        (tmp_path / encoding).write_bytes(text.encode(encoding))
        counts.add(generated(model, '-p "いつですか。" --raw < "$2"', tmp_path / encoding)["prompt_tokens"])
    assert len(counts) == 1


def test_the_language_of_the_question_decides_who_answers_and_not_that_of_the_context(
    model: Path, tmp_path: Path
) -> None:
    for name in ("en", "ja"):
        write_adapter(tmp_path / f"{name}.gguf", seed=1)
    adapters = '--adapter "en=$2/en.gguf" --adapter "ja=$2/ja.gguf"'
    english = b"The office closes at six in the evening on every working day of the year.\n" * 3
    found = generated(model, f"{adapters} -p 会議室はどこにありますか。", tmp_path, stdin=english)
    assert found["adapter"] == "ja"
    assert generated(model, adapters, tmp_path, stdin=english)["adapter"] == "en"


def test_a_pipe_that_does_not_end_is_spoken_of(model: Path) -> None:
    command = [*PROGRAM, "generate", str(model), "-p", "x", "--context", "2048", "--max-tokens", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=ENVIRONMENT
    ) as waiting:
        assert waiting.stderr and waiting.stdin
        assert waiting.stderr.readline() == b"reading stdin until it ends; with < /dev/null nothing is read\n"
        waiting.stdin.close()
        assert waiting.wait(60) == 0


# Templates


def template(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "template.txt"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_template_has_the_input_the_prompt_and_its_variables(piped: list[str], tmp_path: Path) -> None:
    text = "{{ input }}\n\n{% for _ in 'ab' %}- {{ prompt }}\n{% endfor %}Write {{ tone }}. {{ '{{' }}"
    piped.append("We met.\n")
    path = template(tmp_path, text)
    assert filled(path, "Why?", {"tone": "politely"}) == "We met.\n\n- Why?\n- Why?\nWrite politely. {{"


def test_stdin_is_left_alone_by_a_template_without_an_input(piped: list[str], tmp_path: Path) -> None:
    piped.append("unread")
    assert asked(None, template(tmp_path, "Say {{ x }}."), {"x": "yes"}, raw=False) == OneShot("Say yes.", "Say yes.")
    assert piped == ["unread"]


def test_what_a_template_does_not_need_may_be_missing(piped: list[str], tmp_path: Path) -> None:
    path = template(
        tmp_path, "{% if tone is defined %}Be {{ tone }}. {% endif %}{% if input is defined %}x{% endif %}Go."
    )
    assert filled(path, None, {}) == "Go." and filled(path, None, {"tone": "kind"}) == "Be kind. Go."


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp932", "utf-16"])
def test_a_template_may_be_in_any_encoding(piped: list[str], tmp_path: Path, encoding: str) -> None:
    path = template(tmp_path, "次の文章を要約してください。\r\n{{ prompt }}", encoding)
    assert filled(path, "本文", {}) == "次の文章を要約してください。\n本文"


@pytest.mark.parametrize(
    ("text", "variables", "prompt", "said"),
    [
        ("{{ a }}{{ b }}", {}, None, "needs a, b. Give --var a=TEXT --var b=TEXT."),
        ("{{ input }}{{ prompt }}{{ a }}", {}, None, "Pipe the input in. Give the prompt with -p. Give --var a=TEXT."),
        ("{{ a }}", {"a": "1", "b": "2"}, None, "has no place for b; its variables: a"),
        ("plain", {}, "Why?", "has no place for prompt; its variables: none"),
        ("{{ input }}", {"input": "x"}, None, "'input' is no --var"),
        ("{{ a.b }}", {"a": "x"}, None, "cannot be filled in (found: 'str object' has no attribute 'b')"),
        ("{{ a + 1 }}", {"a": "x"}, None, "cannot be filled in"),
        ("{{ 1 // 0 }}", {}, None, "cannot be filled in"),
        ("{% include 'other' %}", {}, None, "cannot be filled in"),
        ("{{ a.__class__.__mro__ }}", {"a": "x"}, None, "cannot be filled in"),
    ],
)
def test_a_template_that_cannot_be_filled_says_what_it_lacks(
    piped: list[str], tmp_path: Path, text: str, variables: dict[str, str], prompt: str | None, said: str
) -> None:
    with pytest.raises(InputError) as error:
        filled(template(tmp_path, text), prompt, variables)
    assert said in str(error.value)


def test_a_template_that_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"is no template \(found: line 2: "):
        filled(template(tmp_path, "one\n{% if %}"), None, {})


def test_the_command_fills_a_template_with_what_is_piped_in(model: Path, tmp_path: Path) -> None:
    path = template(tmp_path, "{{ input }} is {{ tone }}. {{ prompt }}")
    found = generated(model, '--template "$2" --var tone=polite -p "Is it?"', path, stdin=b"A guest\n")
    assert found["prompt_tokens"] == generated(model, '-p "A guest is polite. Is it?"')["prompt_tokens"]
    refused(1, "needs tone. Give --var tone=TEXT.", 'm --template "$1" -p x', path, stdin=b"x")
    refused(1, "there is no file", "m --template gone.txt")
    refused(1, "the name 'a' is given twice", "m --template gone.txt --var a=1 --var a=2")
    refused(2, "--var fills in a template", "m -p x --var a=1")
    refused(2, "is not NAME=TEXT, like tone=polite", "m -p x --var a")


# JSON of a schema

FRUIT = {
    "type": "object", "properties": {"fruit": {"enum": ["fig", "plum"]}, "ripe": {"type": "boolean"}},
    "required": ["fruit", "ripe"], "additionalProperties": False,
}  # fmt: skip


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "fruit.json"
    path.write_text(json.dumps(FRUIT), encoding="utf-8")
    return path


def test_an_answer_holds_to_its_schema_and_is_all_of_stdout(model: Path, schema: Path) -> None:
    line = 'slm generate "$1" --context 2048 -p "Which?" --schema "$2" --temperature 1 --seed'
    for seed in range(3):
        done = shell(f"{line} {seed}", model, schema)
        assert done.returncode == 0, done.stderr.decode()
        answer = json.loads(done.stdout)
        assert set(answer) == {"fruit", "ripe"} and answer["fruit"] in ("fig", "plum")
        assert isinstance(answer["ripe"], bool) and done.stderr == b""


def test_the_value_of_a_schema_is_in_the_figures(model: Path, schema: Path) -> None:
    found = generated(model, '-p "Which?" --max-tokens 200 --schema "$2"', schema)
    assert isinstance(found["text"], str) and found["value"] == json.loads(found["text"])


def test_json_that_was_cut_is_a_failure_and_nothing_is_printed(model: Path, schema: Path) -> None:
    cut = '"$1" --context 2048 -p "Which?" --schema "$2" --max-tokens 3'
    for more in (cut, f"{cut} --json"):
        refused(1, "was cut at --max-tokens 3, before its JSON was whole", more, model, schema)


def test_only_an_answer_that_ended_by_itself_is_taken_for_whole() -> None:
    assert whole_json('{"a": 1}', "stop", 9) == {"a": 1}
    with pytest.raises(InputError, match=r"\(found: \{ \"a\": 1\}\)"):
        whole_json('{\n "a": 1}', "length", 9)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("{", DamagedFileError, "is no JSON"),
        ("[1]", DamagedFileError, "is no JSON schema (found: a list, not an object)"),
        ('{"type": "objct"}', InputError, "has a mistake: 'type' at '/' is \"objct\", not one of object"),
        ('{"type": "array", "uniqueItems": true}', UnsupportedError, "'uniqueItems' at '/'. Leave that out of the"),
        ("[" * 100_000, DamagedFileError, "is no JSON"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_before_anything_is_asked(
    tmp_path: Path, text: str, kind: type[InputError], said: str
) -> None:
    path = tmp_path / "s.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(kind) as error:
        grammar_of(path)
    assert said in str(error.value) and str(path) in str(error.value)
    refused(1, said, 'm -p x --schema "$1"', path)


def test_a_stop_text_and_a_schema_do_not_go_together(schema: Path) -> None:
    refused(2, "--stop would cut the JSON", 'm -p x --stop a --schema "$1"', schema)


# How it ends


def test_an_answer_that_was_cut_says_so(model: Path) -> None:
    done = shell('slm generate "$1" --context 2048 -p Hello --max-tokens 2', model)
    assert done.returncode == 0 and done.stderr == b"the answer was cut at --max-tokens 2\n"
    assert shell('slm generate "$1" --context 2048 -p Hello --max-tokens 2 -q', model).stderr == b""


def test_a_reader_that_has_seen_enough_ends_the_answer_without_a_word(model: Path) -> None:
    line = 'slm generate "$1" --context 2048 -p Hello --max-tokens 1500 | head -c 3 | wc -c; echo ${PIPESTATUS[0]}'
    done = shell(line, model)
    assert done.stdout.split() == [b"3", b"141"] and done.stderr == b""


def test_an_interrupted_answer_keeps_what_was_said_and_ends_with_130(model: Path) -> None:
    command = [*PROGRAM, "generate", str(model), "-p", "Hello", "--context", "2048", "--max-tokens", "1900"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=ENVIRONMENT
    ) as running:
        assert running.stdout and running.stderr
        first = running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        rest, said = running.communicate(timeout=60)
    assert running.returncode == 130 and first and rest.endswith(b"\n")
    assert said == b"interrupted; nothing half-written was left\n"


def test_nothing_to_ask_is_wrong_usage_and_an_empty_prompt_a_failure(model: Path) -> None:
    refused(1, "the prompt is empty", "m -p ''")
    refused(1, "the prompt is empty", "m", stdin=b"")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals here")
def test_a_terminal_is_not_waited_for(model: Path) -> None:
    import pty

    child, terminal = pty.openpty()
    try:
        words = ["generate", str(model), "--context", "2048", "--max-tokens", "1"]
        began = time.monotonic()
        done = subprocess.run(
            [*PROGRAM, *words], stdin=terminal, capture_output=True, cwd=ROOT, env=ENVIRONMENT, timeout=60
        )
        assert done.returncode == 2 and b"give a prompt with -p, or pipe one in" in done.stderr
        done = subprocess.run(
            [*PROGRAM, *words, "-p", "x"], stdin=terminal, capture_output=True, cwd=ROOT, env=ENVIRONMENT, timeout=60
        )
        assert done.returncode == 0 and time.monotonic() - began < 60
    finally:
        for handle in (child, terminal):
            with contextlib.suppress(OSError):
                os.close(handle)


def test_the_help_tells_the_exit_codes() -> None:
    said = shell("slm generate --help").stdout.decode()
    for words in ("0 answered", "1 failed", "2 wrong usage", "130 interrupted", "141 whoever reads"):
        assert words in said
